//! `sessionctl`: steers the daemon over its control socket.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let check_file = session_daemon::startup::check_memory_file;
    ExitCode::from(session_daemon::control::ctl::sessionctl(std::env::args_os(), check_file))
}
