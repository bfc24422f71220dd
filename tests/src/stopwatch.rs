//! How long others took, less the time in which the machine had other work for its processors.
#![forbid(unsafe_code)]

use std::fs;
use std::time::{Duration, Instant};

/// Runs from its making on.
#[derive(Debug)]
pub struct Stopwatch {
    /// The process whose promise is timed.
    pid: u32,
    start: Instant,
    waited: Duration,
}

impl Stopwatch {
    /// For what the first thread of a process does, and this thread looks for.
    #[must_use]
    pub fn start(pid: u32) -> Self {
        Self { pid, start: Instant::now(), waited: waited(pid) }
    }

    /// Time since the start, without that in which one of the two threads could run and the kernel
    /// let another one. All of it, where the kernel keeps no such account.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        let waited = waited(self.pid).saturating_sub(self.waited);
        self.start.elapsed().saturating_sub(waited)
    }
}

/// How long the two threads have waited for a processor since they were made.
fn waited(pid: u32) -> Duration {
    let theirs = format!("/proc/{pid}/task/{pid}/schedstat");
    waited_in(&theirs) + waited_in("/proc/thread-self/schedstat")
}

/// The second number: nanoseconds on a run queue (Documentation/scheduler/sched-stats.rst).
fn waited_in(path: &str) -> Duration {
    let text = fs::read_to_string(path).unwrap_or_default();
    let ns = text.split_whitespace().nth(1).and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Stopwatch;
    use crate::wait;

    #[test]
    fn sleeping_counts() {
        let (start, watch) = (Instant::now(), Stopwatch::start(std::process::id()));
        wait::pause(Duration::from_millis(20));
        let (counted, all) = (watch.elapsed(), start.elapsed());
        assert!(counted >= Duration::from_millis(1) && counted <= all, "{counted:?} of {all:?}");
    }
}
