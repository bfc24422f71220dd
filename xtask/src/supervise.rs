//! Two processes for what makes hosts in namespaces. The outer one waits for a signal or the end of
//! the inner one, and then removes whatever stands in the inner one's name; the inner one makes the
//! hosts. So the machine is left clean even when the inner one is killed.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use session_tests::binaries::DIRECTORY_VARIABLE;
use session_tests::{leftovers, wait};

use crate::shell;

/// How often the outer process looks whether the inner one has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Starts this program again with `words`, waits, and removes what is left of it. It finds
/// `sessiond` and `sessionctl` in the directory `binaries`.
pub(crate) fn run(words: &[String], binaries: &Path) -> Result<ExitCode> {
    leftovers::reap();
    let mut inner = Command::new(std::env::current_exe()?);
    inner.args(words);
    inner.env(DIRECTORY_VARIABLE, binaries);
    // Started before the signals are blocked: a child inherits the mask, and so would sessiond.
    let mut inner = inner.spawn().context("starting the inner process")?;
    let waited = wait_for_end(&mut inner);
    let _ = inner.kill();
    let status = inner.wait();
    leftovers::reap();
    match waited? {
        Ended::BySignal => Ok(ExitCode::SUCCESS),
        Ended::ByItself if status.as_ref().is_ok_and(|status| status.success()) => {
            Ok(ExitCode::SUCCESS)
        }
        Ended::ByItself => bail!("the inner process failed: {}", status?),
    }
}

/// Why the inner process ends.
enum Ended {
    BySignal,
    ByItself,
}

fn wait_for_end(inner: &mut Child) -> Result<Ended> {
    let signals: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
    signals.thread_block()?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        if wait::readable(signal_fd.as_fd(), LOOK_EVERY) && signal_fd.read_signal()?.is_some() {
            return Ok(Ended::BySignal);
        }
        if inner.try_wait()?.is_some() {
            return Ok(Ended::ByItself);
        }
    }
}

/// Starts this program again as root, with `words`. Returns only when that fails.
pub(crate) fn through_sudo(words: &[String]) -> anyhow::Error {
    let Some(sudo) = shell::find("sudo") else {
        return anyhow::anyhow!("network namespaces need root: run this command as root");
    };
    let this = match std::env::current_exe() {
        Ok(this) => this,
        Err(error) => return error.into(),
    };
    let mut command = Command::new(sudo);
    command.arg("--").arg(this).args(words);
    println!("network namespaces need root: {}", shell::line(&command));
    anyhow::Error::from(command.exec()).context("starting sudo")
}
