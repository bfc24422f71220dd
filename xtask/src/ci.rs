//! What `.ci/run` does once everything is installed: every check, then every test.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::shell;
use crate::test;

/// One step: its name and what it does.
type Step = (&'static str, fn() -> Result<()>);

const STEPS: &[Step] = &[
    ("lock file", || cargo(&["fetch", "--locked"])),
    ("formatting", || cargo(&["fmt", "--all", "--check"])),
    ("tidy", || this(&["tidy"])),
    ("dependencies", || cargo(&["deny", "--locked", "check", "licenses", "sources", "bans"])),
    ("lints", || {
        cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"])
    }),
    ("instructions a request", || this(&["bench", "instructions"])),
    ("eBPF object from source", rebuild_object),
    ("guard tests on that object", test_object),
];

/// The object that is built into the programs.
const KEPT_OBJECT: &str = "session-ebpf/object/guard.bpf.o";

/// Runs every step though an earlier one failed, and the tests last; their closing line ends
/// the output.
pub(crate) fn run() -> Result<ExitCode> {
    let start = Instant::now();
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        begin(start, name);
        if let Err(error) = step() {
            println!("{error:#}");
            println!("=== failed: {name}");
            failed.push(*name);
        }
    }
    begin(start, "tests: cargo xtask test");
    let total = test::total(&test::Options::default());
    if !failed.is_empty() {
        println!("=== failed before the tests: {}", failed.join(", "));
    }
    println!("=== {} s in all", start.elapsed().as_secs());
    println!("{total}");
    let good = failed.is_empty() && total.failed == 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn begin(start: Instant, name: &str) {
    println!("=== {} s: {name}", start.elapsed().as_secs());
}

fn cargo(arguments: &[&str]) -> Result<()> {
    shell::run(shell::cargo().args(arguments))
}

/// Another command of this program.
fn this(arguments: &[&str]) -> Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    shell::run(Command::new(program).current_dir(shell::root()).args(arguments))
}

fn fresh_object() -> PathBuf {
    shell::target_directory().join("ci").join("guard.bpf.o")
}

fn rebuild_object() -> Result<()> {
    let object = fresh_object();
    // An object of an earlier run must not pass for this one's.
    if object.exists() {
        std::fs::remove_file(&object)?;
    }
    std::fs::create_dir_all(object.parent().context("the object stands in a directory")?)?;
    this(&["build-ebpf", "--out", &object.to_string_lossy()])
}

/// Tests the object that was made from source, unless it is the one in the repository: that is
/// built into the programs, and tested with them.
fn test_object() -> Result<()> {
    let object = fresh_object();
    ensure!(object.exists(), "there is no fresh object to test");
    if std::fs::read(&object)? == std::fs::read(shell::root().join(KEPT_OBJECT))? {
        println!("it is {KEPT_OBJECT} byte for byte, which the tests below are of");
        return Ok(());
    }
    let total = test::total(&test::Options::on_object(object));
    println!("on the fresh object: {total}");
    ensure!(total.failed == 0, "the guard's tests fail on the object made from source");
    Ok(())
}
