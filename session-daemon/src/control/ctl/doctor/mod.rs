//! `sessionctl doctor`: what on this host keeps the guard or the cache from working well, and the
//! command that mends it. It reads and changes nothing, with or without a daemon.
#![forbid(unsafe_code)]

mod boot;
mod devices;
mod host;
mod memory;
mod network;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// It works, and could work better or more safely.
    Warn,
    /// The guard or the cache does not work like this.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at, such as `kernel` or `eth0: offloads`.
    check: String,
    state: State,
    /// What was found.
    text: String,
    /// The command or the step that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(check: impl Into<String>, text: impl Into<String>) -> Self {
        Self { check: check.into(), state: State::Ok, text: text.into(), fix: None }
    }

    fn warn(check: impl Into<String>, text: impl Into<String>, fix: impl Into<String>) -> Self {
        let (check, text, fix) = (check.into(), text.into(), Some(fix.into()));
        Self { check, state: State::Warn, text, fix }
    }

    fn fail(check: impl Into<String>, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: State::Fail, ..Self::warn(check, text, fix) }
    }
}

/// What the operator is about to run, as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The port of the cache.
    pub(super) port: u16,
    /// `-m` in bytes.
    pub(super) memory_limit: u64,
    /// `-e`.
    pub(super) memory_file: Option<PathBuf>,
    /// `--bpffs`.
    pub(super) bpffs: PathBuf,
}

/// Looks at everything; `status` is what a running daemon says of itself.
pub(super) fn examine(plan: &Plan, status: Option<&Value>) -> Vec<Finding> {
    let mut findings = host::findings(plan);
    findings.extend(devices::findings(plan));
    findings.extend(network::findings(plan));
    findings.extend(memory::findings(plan, status.is_some()));
    findings.push(boot::finding(plan, status));
    findings.extend(daemon(plan, status));
    findings
}

/// What a running daemon says, or that none runs.
fn daemon(plan: &Plan, status: Option<&Value>) -> Vec<Finding> {
    let Some(status) = status else {
        let text = "none answers: only the host was looked at";
        return vec![Finding::ok("daemon", text)];
    };
    let mut findings = vec![match status["enforced"].as_str() {
        Some("xdp") if status["guard"]["complete"] == true => Finding::ok(
            "daemon",
            "it runs, and its guard is on every interface that it should be on",
        ),
        Some("xdp") => Finding::fail(
            "daemon",
            "its guard is not on every interface: strangers reach the port through the open ones",
            "sessionctl status",
        ),
        Some("audit") => Finding::warn(
            "daemon",
            "AUDIT: everybody is let in and counted",
            "sessionctl audit off",
        ),
        Some("user") => Finding::warn(
            "daemon",
            "--guard=user: strangers reach the network stack and are refused after it accepts",
            "restart sessiond without --guard=user",
        ),
        Some("loopback") => Finding::ok("daemon", "it serves this host alone: nothing to guard"),
        _ => Finding::fail(
            "daemon",
            "--guard=off: whoever reaches the port is served",
            "restart sessiond without --guard=off",
        ),
    }];
    for warning in status["guard"]["warnings"].as_array().into_iter().flatten() {
        let text = warning.as_str().unwrap_or_default();
        findings.push(Finding::warn("daemon: guard", text, "sessionctl status"));
    }
    if status["list"]["entries"] == 0 && status["enforced"] == "xdp" {
        let fix = format!("sessionctl -p {} allow 198.18.0.0/24", plan.port);
        findings.push(Finding::warn("daemon: list", "it is empty: nobody is served", fix));
    }
    findings
}

/// Whether nothing failed.
pub(super) fn is_sound(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.state != State::Fail)
}

/// One line a finding, the fix below it.
pub(super) fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        let _ = writeln!(text, "{state:4}  {:22} {}", finding.check, finding.text);
        if let Some(fix) = &finding.fix {
            let _ = writeln!(text, "{:28} fix: {fix}", "");
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let (fails, warns) = (count(State::Fail), count(State::Warn));
    let _ = writeln!(text, "{} looked at, {warns} to improve, {fails} to mend", findings.len());
    text
}

/// The same as JSON.
pub(super) fn to_json(findings: &[Finding]) -> Value {
    json!({"ok": is_sound(findings), "findings": findings})
}

/// A file of /proc or /sys without its newline; None where the kernel has no such file.
fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A number in such a file.
fn number(path: impl AsRef<Path>) -> Option<u64> {
    read(path)?.parse().ok()
}

/// Standard output of a program that is there and ends well.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = std::process::Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Megabytes, rounded up.
fn mb(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// For `run`: the findings printed, and whether nothing failed.
pub(super) fn report(plan: &Plan, status: Option<&Value>) -> Result<(Value, String, bool)> {
    let findings = examine(plan, status);
    Ok((to_json(&findings), render(&findings), is_sound(&findings)))
}
