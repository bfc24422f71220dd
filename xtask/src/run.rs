//! The README's first command: a playground of network namespaces with a guarded `sessiond`.
//!
//! Two processes. The outer one builds, waits for a signal or the end of the inner one, and then
//! removes whatever stands in the inner one's name; the inner one makes the playground. So the
//! machine is left clean even when the inner one is killed.
#![forbid(unsafe_code)]

mod demonstration;
mod playground;

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use session_tests::{binaries, leftovers, wait};

use crate::packages;
use crate::shell;

/// How often the outer process looks whether the inner one has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Options of `cargo xtask run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// End by itself after so many seconds
    #[arg(long, value_name = "N", conflicts_with = "host")]
    seconds: Option<u64>,
    /// Run sessiond on this machine itself, with the arguments after `--`, instead of a playground
    #[arg(long)]
    host: bool,
    /// Arguments for sessiond, with --host
    #[arg(last = true, requires = "host")]
    arguments: Vec<String>,
    /// The inner process, started by the outer one
    #[arg(long, hide = true, conflicts_with = "host")]
    inner: bool,
    /// The binaries are built; set when the command starts itself again through sudo
    #[arg(long, hide = true)]
    built: bool,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.inner {
        return playground::run(options.seconds).map(|()| ExitCode::SUCCESS);
    }
    if !options.built {
        build()?;
    }
    if options.host {
        return Err(on_the_host(&shell::binary_directory().join("sessiond"), &options.arguments));
    }
    if !shell::is_root() {
        return Err(through_sudo(options));
    }
    packages::ensure(&["iproute2"]);
    outer(options)
}

fn build() -> Result<()> {
    shell::run(shell::cargo().args(["build", "--package", "session-daemon", "--bins"]))
}

/// Starts the inner process, waits, and removes what is left of it.
fn outer(options: &Options) -> Result<ExitCode> {
    leftovers::reap();
    let mut inner = Command::new(std::env::current_exe()?);
    inner.args(["run", "--inner"]);
    inner.env(binaries::DIRECTORY_VARIABLE, shell::binary_directory());
    if let Some(seconds) = options.seconds {
        inner.args(["--seconds", &seconds.to_string()]);
    }
    // Started before the signals are blocked: a child inherits the mask, and so would sessiond.
    let mut inner = inner.spawn().context("starting the playground")?;
    let waited = wait_for_end(&mut inner);
    let _ = inner.kill();
    let status = inner.wait();
    leftovers::reap();
    println!("\nthe playground is removed");
    match waited? {
        Ended::BySignal => Ok(ExitCode::SUCCESS),
        Ended::ByItself if status.as_ref().is_ok_and(|status| status.success()) => {
            Ok(ExitCode::SUCCESS)
        }
        Ended::ByItself => bail!("the playground failed: {}", status?),
    }
}

/// Why the playground ends.
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

/// Starts this command again as root. Returns only when that fails.
fn through_sudo(options: &Options) -> anyhow::Error {
    let Some(sudo) = shell::find("sudo") else {
        return anyhow::anyhow!("network namespaces need root: run this command as root");
    };
    let this = match std::env::current_exe() {
        Ok(this) => this,
        Err(error) => return error.into(),
    };
    let mut command = Command::new(sudo);
    command.arg("--").arg(this).args(["run", "--built"]);
    if let Some(seconds) = options.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    println!("network namespaces need root: {}", shell::line(&command));
    anyhow::Error::from(command.exec()).context("starting sudo")
}

/// Becomes `sessiond` on the machine itself. Returns only when that fails.
fn on_the_host(sessiond: &Path, arguments: &[String]) -> anyhow::Error {
    eprintln!(
        "WARNING: this is no playground. sessiond attaches its guard to the real interfaces of\n\
         WARNING: this machine, and the guard stays when sessiond ends: the port then refuses\n\
         WARNING: everything until `sessionctl detach` or a reboot."
    );
    let mut command = match shell::find("sudo") {
        Some(sudo) if !shell::is_root() => {
            let mut command = Command::new(sudo);
            command.arg("--").arg(sessiond);
            command
        }
        _ => Command::new(sessiond),
    };
    command.args(arguments);
    anyhow::Error::from(command.exec()).context("starting sessiond")
}
