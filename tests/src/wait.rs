//! Waiting for an event with a deadline, and for nothing else: no test sleeps and hopes.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long an event that must come may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How many times longer everything may take, for machines that are emulated.
pub const FACTOR_VARIABLE: &str = "SESSION_TEST_PATIENCE";

/// [`PATIENCE`], as often as the environment says.
#[must_use]
pub fn patience() -> Duration {
    let factor = std::env::var(FACTOR_VARIABLE).ok().and_then(|factor| factor.parse().ok());
    PATIENCE * factor.unwrap_or(1)
}

/// Pause between two looks at a condition that has no file descriptor to wait on.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks until `condition` gives a value.
///
/// # Panics
/// If that takes longer than [`patience`]; `what` names the event in the message.
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    match within(patience(), condition) {
        Some(value) => value,
        None => panic!("waited {:?} in vain for {what}", patience()),
    }
}

/// Looks until `condition` gives a value, for at most `limit`; always looks at least once.
pub fn within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if start.elapsed() >= limit {
            return None;
        }
        pause(LOOK_EVERY);
    }
}

/// Waits for at most `limit` until `fd` is readable (a pidfd is when its process has ended).
#[must_use]
pub fn readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timespec(limit))), Ok(count) if count > 0)
}

/// Sets the flag when it goes out of scope, also by a failed assertion: threads that work until
/// the flag is set would keep a `thread::scope` from ending.
#[derive(Debug)]
pub struct EndOnDrop<'a>(pub &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        // Relaxed: the flag stands for itself, nothing is published with it.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does nothing for a while: the pace of a loop, never the way to wait for an event.
pub fn pause(duration: Duration) {
    // An empty poll can be interrupted by a signal, which only makes the next look come sooner.
    let _ = poll(&mut [], Some(&timespec(duration)));
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
