//! What a result says about the machine that it comes from, and which processors are used.
#![forbid(unsafe_code)]

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::shell;

/// The machine and what was measured on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) processors: usize,
    pub(super) kernel: String,
    /// The commit of this tree, with a mark if it was changed.
    pub(super) commit: String,
}

impl Machine {
    pub(super) fn here() -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel =
            fs::read_to_string("/proc/sys/kernel/osrelease").context("reading osrelease")?;
        Ok(Self {
            processor: model.map_or_else(|| "unknown".into(), |(_, name)| name.to_owned()),
            processors: processors()?.len(),
            kernel: kernel.trim().to_owned(),
            commit: commit(),
        })
    }
}

fn commit() -> String {
    let mut git = Command::new("git");
    git.current_dir(shell::root()).args(["describe", "--always", "--dirty"]);
    match git.output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".into(),
    }
}

/// The processors that this process may run on.
fn processors() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("asking for the processors")?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// Which processors the server and the generator run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) server: Vec<usize>,
    pub(super) load: Vec<usize>,
}

impl Placement {
    /// One processor for each thread of the server, and as many others for the generator. Where
    /// there are not enough, both use all of them.
    pub(super) fn of(threads: u32) -> Result<Self> {
        let all = processors()?;
        ensure!(all.len() >= 2, "a comparison needs two processors: server and load");
        Ok(Self::among(&all, threads as usize))
    }

    fn among(all: &[usize], threads: usize) -> Self {
        if all.len() < 2 * threads {
            return Self { server: all.to_vec(), load: all.to_vec() };
        }
        Self { server: all[..threads].to_vec(), load: all[threads..2 * threads].to_vec() }
    }

    /// Whether server and generator compete for processors, so that neither throughput nor
    /// latency says much about the server.
    pub(super) fn is_shared(&self) -> bool {
        self.server == self.load
    }

    /// Threads of the generator.
    pub(super) fn load_threads(&self) -> usize {
        if self.is_shared() { 1 } else { self.load.len() }
    }
}

/// Processors as `taskset` and `session-load` take them.
pub(super) fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::Placement;

    #[test]
    fn server_and_load_are_apart_where_there_is_room() {
        let apart = Placement::among(&[0, 1], 1);
        assert_eq!((apart.server.as_slice(), apart.load.as_slice()), (&[0][..], &[1][..]));
        assert!(!apart.is_shared());
        assert!(Placement::among(&[0, 1], 2).is_shared());
        assert_eq!(Placement::among(&[0, 1, 2, 3], 2).load, [2, 3]);
    }
}
