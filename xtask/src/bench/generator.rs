//! Running `session-load`, for a bounded time.
#![forbid(unsafe_code)]

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use session_load::report::Report;
use session_tests::process::Process;

use super::machine;
use super::servers::{Server, placed, prefer};
use crate::shell;

/// What a run may take beyond its measured time: storing the items, and warming up.
const EXTRA: Duration = Duration::from_secs(120);

/// Loads the server from the processors and returns the report.
pub(super) fn load(
    server: &Server,
    cpus: &[usize],
    arguments: &[String],
    seconds: f64,
) -> Result<Report> {
    let directory = tempfile::Builder::new().prefix("session-load-").tempdir()?;
    let output = directory.path().join("output");
    let mut command = placed(cpus, false);
    command.arg(shell::target_directory().join("release/session-load")).arg("--json");
    command.args(server.address()).args(["--cpus", &machine::list(cpus)]);
    let pids: Vec<String> = server.pids()?.iter().map(u32::to_string).collect();
    command.args(["--server", &pids.join(",")]);
    command.args(["--seconds", &seconds.to_string()]).args(arguments);
    command.stdin(Stdio::null());
    let mut process = Process::start(&mut command, None, &output)?;
    prefer(&process);
    let limit = Duration::from_secs_f64(seconds) + EXTRA;
    if process.wait(limit).is_none() {
        bail!("the load does not end: {command:?}");
    }
    let text = fs::read_to_string(&output)?;
    // A report with a fault comes with a failure's status: the words count, not the status.
    let line = text.lines().last().with_context(|| format!("no report of {command:?}"))?;
    serde_json::from_str(line).with_context(|| format!("{command:?}: {text}"))
}
