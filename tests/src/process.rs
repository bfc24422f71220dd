//! Processes under test: started, watched, waited for, and killed by their own pid on drop.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::netns::Namespace;
use crate::wait;

/// A process that is killed when this is dropped. Its output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, inside `namespace` if one is given, with its output in the file `log`.
    ///
    /// # Errors
    /// When it cannot be started or the file cannot be written.
    pub fn start(command: &mut Command, namespace: Option<&Namespace>, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut child = match namespace {
            Some(namespace) => namespace.spawn(command)?,
            None => command.spawn().with_context(|| format!("starting {command:?}"))?,
        };
        match pidfd_open(raw_pid(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd, log: log.to_owned() }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error).context("opening a pidfd")
            }
        }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("pids are positive i32");
        kill(Pid::from_raw(pid), signal).expect("the process is ours and not waited for");
    }

    /// Waits for the process to end, for at most `limit`.
    ///
    /// # Panics
    /// When waiting fails, which it does not for a child that is ours.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        if !wait::readable(self.pidfd.as_fd(), limit) {
            return None;
        }
        Some(self.child.wait().expect("the child is ours"))
    }

    /// Kills the process (`SIGKILL`) and waits for it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Looks until `ready` gives a value.
    ///
    /// # Panics
    /// With the process's output, when it ends first or when [`wait::PATIENCE`] is over.
    pub fn until<T>(&mut self, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
        let mut ended = None;
        let found = wait::within(wait::PATIENCE, || {
            if let Some(value) = ready() {
                return Some(Some(value));
            }
            ended = self.child.try_wait().ok().flatten();
            ended.is_some().then_some(None)
        });
        match found.flatten() {
            Some(value) => value,
            None => panic!("no {what}; ended: {ended:?}; it wrote:\n{}", self.log()),
        }
    }
}

/// How long a child may outlive its parent before the next daemon of a test is started.
const ORPHANED: Duration = Duration::from_secs(5);

impl Drop for Process {
    /// Ends the process and sees its children end, which would answer in their successors' place.
    fn drop(&mut self) {
        let children = children(self.pid());
        self.kill();
        let gone = || children.iter().all(|child| is_gone(*child)).then_some(());
        if wait::within(ORPHANED, gone).is_none() {
            eprintln!("of the children {children:?} of {} some live on", self.pid());
        }
        if std::thread::panicking() {
            eprintln!("--- {} wrote:\n{}---", self.log.display(), self.log());
        }
    }
}

fn raw_pid(child: &Child) -> rustix::process::Pid {
    let raw = i32::try_from(child.id()).expect("pids are positive i32");
    rustix::process::Pid::from_raw(raw).expect("a child's pid is not 0")
}

/// The children of a process by its only thread, or by its first; none when it has ended.
///
/// # Panics
/// When the kernel names something else than processes.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|child| child.parse().expect("a process id")).collect()
}

/// Whether a process has ended, waited for or not.
#[must_use]
pub fn is_gone(pid: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = text.rsplit(") ").next().unwrap_or_default();
    state.is_empty() || state.starts_with('Z')
}
