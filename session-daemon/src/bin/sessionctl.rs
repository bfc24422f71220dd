//! `sessionctl`: steers the daemon over its control socket.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(session_daemon::control::ctl::sessionctl(std::env::args_os()))
}
