//! Replaying one trace: `session-replay` against the store, and against a memcached whose clock
//! follows the trace.
#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use session_tests::process::Process;

use super::RECOVERED;
use super::traces::Trace;
use crate::bench::servers::Program;
use crate::bench::{directory, measured};
use crate::shell;

/// What is used of a report of `session-replay`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Replay {
    /// Requests and hits of each window.
    pub(super) requests: Vec<u64>,
    pub(super) hits: Vec<u64>,
    pub(super) evicted: u64,
    pub(super) evicted_unfetched: u64,
    pub(super) pages_moved: u64,
    pub(super) items: u64,
    pub(super) refused: u64,
    pub(super) memory_bytes: u64,
}

impl Replay {
    /// Share of hits after the first part of the trace.
    pub(super) fn hit_ratio(&self, warm_up: f64) -> f64 {
        let skip = (self.requests.len() as f64 * warm_up).round() as usize;
        let sum = |counts: &[u64]| counts[skip..].iter().sum::<u64>() as f64;
        sum(&self.hits) / sum(&self.requests)
    }

    /// Share of hits of each window.
    pub(super) fn windows(&self) -> Vec<f64> {
        self.hits.iter().zip(&self.requests).map(|(hits, all)| *hits as f64 / *all as f64).collect()
    }

    /// Share of hits in the last quarter of a phase.
    pub(super) fn steady(&self, phase: usize, phases: usize) -> f64 {
        let windows = self.phase(phase, phases);
        let last = &windows[windows.len() - windows.len() / 4..];
        last.iter().sum::<f64>() / last.len() as f64
    }

    /// Part of a phase before a window had nearly this share of hits.
    pub(super) fn recovery(&self, phase: usize, phases: usize, steady: f64) -> f64 {
        let windows = self.phase(phase, phases);
        let first = windows.iter().position(|ratio| *ratio >= steady * RECOVERED);
        first.unwrap_or(windows.len()) as f64 / windows.len() as f64
    }

    fn phase(&self, phase: usize, phases: usize) -> Vec<f64> {
        let windows = self.windows();
        let len = windows.len() / phases;
        windows[phase * len..(phase + 1) * len].to_vec()
    }
}

/// What replays.
#[derive(Debug)]
pub(super) struct Replayer {
    memcached: Program,
    clock: PathBuf,
}

impl Replayer {
    /// Compiles the clock that memcached is given.
    pub(super) fn new(memcached: Program) -> Result<Self> {
        let clock = directory()?.join("clock.so");
        let source = shell::root().join("xtask/replay/preload/clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-o"]).args([&clock, &source]);
        shell::run(&mut compiler)?;
        Ok(Self { memcached, clock })
    }

    pub(super) fn memcached_version(&self) -> &str {
        &self.memcached.version
    }

    /// Replays against this tree's store.
    pub(super) fn store(&self, trace: &Trace, memory_mb: u32) -> Result<Replay> {
        run(trace, &["--memory".into(), memory_mb.to_string()])
    }

    /// Replays against memcached.
    pub(super) fn memcached(&self, trace: &Trace) -> Result<Replay> {
        let directory = tempfile::Builder::new().prefix("session-replay-").tempdir()?;
        // memcached makes its socket as the user that it becomes.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777))?;
        let [socket, time] = ["socket", "time"].map(|name| directory.path().join(name));
        fs::write(&time, [0; 8])?;
        let mut command = Command::new(self.memcached.path());
        command.env("LD_PRELOAD", &self.clock).env("REPLAY_CLOCK", &time);
        command.args(["-t", "1", "-m", &trace.memory_mb.to_string()]).arg("-s").arg(&socket);
        if shell::is_root() {
            command.args(["-u", "nobody"]);
        }
        let mut process = Process::start(&mut command, None, &directory.path().join("log"))?;
        process.until("memcached's socket", || UnixStream::connect(&socket).ok());
        let path = |path: &Path| path.display().to_string();
        run(trace, &["--unix".into(), path(&socket), "--clock".into(), path(&time)])
    }
}

fn run(trace: &Trace, arguments: &[String]) -> Result<Replay> {
    let mut command = Command::new(shell::target_directory().join("release/session-replay"));
    measured(command.arg(&trace.path).args(arguments))
}

#[cfg(test)]
mod tests {
    use super::Replay;

    #[test]
    fn a_phase_recovers_when_it_is_nearly_steady() {
        let hits = [5, 6, 8, 8, 8, 8, 8, 8, 1, 2, 3, 4, 4, 4, 4, 4].to_vec();
        let replay = Replay {
            requests: vec![10; 16],
            hits,
            evicted: 0,
            evicted_unfetched: 0,
            pages_moved: 0,
            items: 0,
            refused: 0,
            memory_bytes: 0,
        };
        assert_eq!([0, 1].map(|phase| replay.steady(phase, 2)), [0.8, 0.4]);
        assert_eq!([0.8, 0.5, 0.9].map(|steady| replay.recovery(0, 2, steady)), [0.25, 0.0, 1.0]);
        assert_eq!(replay.recovery(1, 2, 0.4), 0.375);
        assert!((replay.hit_ratio(0.5) - 0.325).abs() < 1e-9);
    }
}
