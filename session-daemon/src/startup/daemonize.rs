//! `-d`: a launcher starts the daemon in a session of its own and returns when it serves.
//!
//! The launcher re-executes itself with a marker, one end of a socket pair as standard input and
//! its own standard error, so that whatever goes wrong is read where the command was typed. The
//! daemon writes one byte when it serves; the launcher then ends with status 0. If the daemon
//! ends first, the launcher takes over its status.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::cli::DETACHED_MARKER;

/// Starts the daemon with the same arguments; the result is the launcher's exit status.
///
/// # Errors
/// The daemon cannot be started at all.
pub(super) fn launch(arguments: &[OsString]) -> Result<u8> {
    let (mut ours, theirs) = UnixStream::pair().context("making a socket pair")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(DETACHED_MARKER)
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null());
    let mut daemon = command.spawn().context("starting the daemon from /proc/self/exe")?;
    // The command's copy of the daemon's end; with it the end of the daemon would go unnoticed.
    drop(command);
    let mut byte = [0];
    if ours.read_exact(&mut byte).is_ok() {
        return Ok(0);
    }
    let status = daemon.wait().context("waiting for the daemon")?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .filter(|code| *code != 0)
        .unwrap_or(1))
}

/// The daemon's side: what it has to do to be left alone by the launcher's terminal.
#[derive(Debug)]
pub(super) struct Detached {
    launcher: UnixStream,
    keep_stderr: bool,
}

impl Detached {
    /// Leaves the launcher's session; standard input was the launcher's socket.
    ///
    /// # Errors
    /// The process was not started by a launcher.
    pub(super) fn begin(keep_stderr: bool) -> Result<Self> {
        let stdin = std::io::stdin();
        rustix::net::sockopt::socket_type(&stdin)
            .context("this flag is for sessiond's own background process")?;
        let launcher = UnixStream::from(stdin.as_fd().try_clone_to_owned()?);
        let null = std::fs::File::open("/dev/null").context("opening /dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        nix::unistd::setsid().context("setsid")?;
        Ok(Self { launcher, keep_stderr })
    }

    /// The port is served: the launcher returns. Without -v standard error goes to /dev/null,
    /// as memcached has it.
    ///
    /// # Errors
    /// /dev/null cannot be opened.
    pub(super) fn serving(mut self) -> Result<()> {
        std::env::set_current_dir("/").context("changing to /")?;
        if !self.keep_stderr {
            let null = std::fs::File::options()
                .write(true)
                .open("/dev/null")
                .context("opening /dev/null")?;
            rustix::stdio::dup2_stderr(&null)?;
        }
        // A launcher that was killed does not end the daemon.
        let _ = self.launcher.write_all(&[1]);
        Ok(())
    }
}
