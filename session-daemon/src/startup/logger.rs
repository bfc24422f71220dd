//! Log lines on standard error: plain, one event a line.
#![forbid(unsafe_code)]

use std::io::Write;

use env_logger::Builder;
use log::LevelFilter;

/// Starts the log. Start, stop, guard and list changes are told without `-v`; `RUST_LOG`
/// chooses otherwise.
pub(super) fn start(verbosity: u8) {
    let level = match verbosity {
        0 | 1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let mut builder = Builder::new();
    // What libraries say below a warning is of use to their authors only.
    builder.filter_level(LevelFilter::Warn).filter_module("session_daemon", level);
    builder.filter_module("audit", LevelFilter::Info);
    builder.parse_default_env();
    builder.format(|out, record| {
        let level = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        let audit = if record.target() == "audit" { "audit: " } else { "" };
        writeln!(out, "sessiond: {audit}{level}{}", record.args())
    });
    // A second start in one process would only be a test's.
    let _ = builder.try_init();
}
