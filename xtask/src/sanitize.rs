//! The store's tests under ThreadSanitizer. It owns which compiler does that, and says so when none
//! can.
//!
//! The runtime comes with rustup's toolchains. The standard library is as it comes, so what it does
//! between threads is not seen: reports about its own primitives are suppressed, by their names.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::shell;

/// Options of `cargo xtask sanitize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Tests to run, by a part of their names; all but those of processes when none is given
    tests: Vec<String>,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Tests that are about something else, start other processes, or would take minutes.
const LEFT_OUT: &[&str] =
    &["crash::", "attach::", "resume::", "model::", "hash::", "classes::", "tests::eviction::"];
/// What a standard library that is not instrumented orders between threads without being seen: an
/// `Arc`'s drop, a thread's result, a channel's message, a `OnceLock`'s value.
const SUPPRESSIONS: &str =
    "race:alloc::sync::Arc\nrace:std::thread\nrace:std::sync::mpmc\nrace:once_lock\n";

/// Runs the store's tests; prints why not where that is impossible.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let rustc = PathBuf::from(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    if !has_runtime(&sysroot(&rustc)?) {
        println!("skipped: {} comes without librustc-*_rt.tsan.a", rustc.display());
        return Ok(ExitCode::SUCCESS);
    }
    let directory = shell::target_directory().join("sanitizer");
    std::fs::create_dir_all(&directory)?;
    let suppressions = directory.join("suppressions");
    std::fs::write(&suppressions, SUPPRESSIONS)?;
    let mut command = command(&directory, options);
    // A report ends the process with this code though every test passed.
    let settings = format!("exitcode=66 suppressions={}", suppressions.display());
    println!("+ {}", shell::line(&command));
    let status = command.env("TSAN_OPTIONS", settings).status().context("running cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn command(directory: &Path, options: &Options) -> Command {
    let mut command = shell::cargo();
    command.args(["test", "-p", "session-schedules", "--test", "sanitized"]);
    command.args(["--target", TARGET, "--target-dir"]).arg(directory);
    command.args(["--", "--test-threads=2"]).args(&options.tests);
    if options.tests.is_empty() {
        command.args(LEFT_OUT.iter().flat_map(|name| ["--skip", name]));
    }
    // The switch is one of the unstable ones, which a stable compiler takes from this variable.
    command.env("RUSTC_BOOTSTRAP", "1").env("SESSION_PLAIN_ATOMICS", "1");
    let flags = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer";
    command.env("RUSTFLAGS", flags);
    command
}

/// Where a compiler's own files are.
fn sysroot(rustc: &Path) -> Result<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output();
    let output = output.with_context(|| format!("running {}", rustc.display()))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn has_runtime(sysroot: &Path) -> bool {
    let directory = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    names.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with("_rt.tsan.a"))
}
