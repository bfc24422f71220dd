//! The serving process as its parent sees it, whichever program of the parent's has started it.
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use caps::Capability;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::capability::with_capability;

/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A child of this process that has not been waited for, so that its pid is its own.
#[derive(Debug)]
pub(super) struct Serving {
    pid: Pid,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Status(i32),
    Signal(Signal),
}

impl Serving {
    /// The child of this pid, started by this program or by the one that ran here before.
    pub(super) fn new(pid: u32) -> Self {
        Self { pid: Pid::from_raw(i32::try_from(pid).expect("pids are positive i32")) }
    }

    /// Its pid.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&self) -> io::Result<Option<End>> {
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, status)) => return Ok(Some(End::Status(status))),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(End::Signal(signal))),
                Ok(_) => return Ok(None),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends it, whatever it is doing, and waits for its end.
    pub(super) fn kill(&self) {
        let killed = with_capability(Capability::CAP_KILL, || kill(self.pid, Signal::SIGKILL));
        if let Err(error) = killed {
            log::error!("killing the serving process: {error}");
            return;
        }
        // Killed for certain; a wait that fails has nothing left to wait for.
        let _ = waitpid(self.pid, None);
    }

    /// Waits for its end for at most `limit`, then kills it.
    pub(super) async fn end_within(&self, limit: Duration) {
        let give_up = tokio::time::Instant::now() + limit;
        while matches!(self.ended(), Ok(None)) {
            if tokio::time::Instant::now() >= give_up {
                log::warn!("the serving process does not stop; killing it");
                return self.kill();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
