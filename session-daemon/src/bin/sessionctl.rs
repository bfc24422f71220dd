//! `sessionctl`: steers the daemon over its control socket.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use session_daemon::control::ctl::{Offline, sessionctl};
use session_daemon::startup::{boot_ports, check_memory_file, import_config_file};

fn main() -> ExitCode {
    let offline =
        Offline { check_file: check_memory_file, import_config: import_config_file, boot_ports };
    ExitCode::from(sessionctl(std::env::args_os(), offline))
}
