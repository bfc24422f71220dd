//! Processor time as the scheduler accounts it: /proc/PID/task/TID/schedstat.
#![forbid(unsafe_code)]

use std::fs;
use std::io;

use anyhow::{Context, Result};

/// Processor time of some processes, of all their threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Nanoseconds on a processor.
    pub run_ns: u64,
    /// Nanoseconds ready to run while something else ran.
    pub wait_ns: u64,
}

/// Ticks of the machine's processors since it started, of /proc/stat.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) all: u64,
    /// Ticks that the hypervisor gave to others.
    pub(crate) stolen: u64,
}

impl Account {
    /// The sums over all threads of the processes. The running thread's figure is as old as the
    /// last tick, which is at most 10 ms.
    ///
    /// # Errors
    /// When a process has ended, or the kernel keeps no such account.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let directory = format!("/proc/{pid}/task");
            let tasks = fs::read_dir(&directory).with_context(|| format!("reading {directory}"))?;
            for task in tasks {
                match fs::read_to_string(task?.path().join("schedstat")) {
                    Ok(text) => sum.add(&text)?,
                    // The thread ended meanwhile: before the file was opened, or before it was read.
                    Err(error) if has_ended(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(sum)
    }

    fn add(&mut self, schedstat: &str) -> Result<()> {
        let mut numbers = schedstat.split_ascii_whitespace().map(str::parse::<u64>);
        self.run_ns += numbers.next().context("schedstat is empty")??;
        self.wait_ns += numbers.next().context("schedstat has one number")??;
        Ok(())
    }

    /// What has been added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
            wait_ns: self.wait_ns.saturating_sub(earlier.wait_ns),
        }
    }
}

fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

impl Machine {
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        // user nice system idle iowait irq softirq steal; guest time is in user time already.
        let ticks: Vec<u64> = line
            .split_ascii_whitespace()
            .skip(1)
            .take(8)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self { all: ticks.iter().sum(), stolen: ticks.get(7).copied().unwrap_or(0) })
    }

    /// Share of the ticks since `earlier` that were stolen.
    pub(crate) fn stolen_since(self, earlier: Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        self.stolen.saturating_sub(earlier.stolen) as f64 / all as f64
    }
}
