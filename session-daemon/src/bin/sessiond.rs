//! `sessiond`: the cache server behind its guard.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(session_daemon::startup::sessiond(std::env::args_os().skip(1).collect()))
}
