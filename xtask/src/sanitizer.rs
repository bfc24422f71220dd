//! The store's tests under a sanitizer. It owns which compiler does that, and says so when none can.
//!
//! Debian's `rustc-web` comes with the sources of the standard library, so that it is instrumented
//! too; the runtime is that of rustup's toolchain. Without those sources the standard library is as
//! it comes, and what it does between threads is not seen: reports about it alone are suppressed.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::shell;

/// A sanitizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sanitizer {
    /// ThreadSanitizer: accesses of two threads that nothing orders
    Thread,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Debian's compiler, and where its library's sources stand below the one directory of them.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Tests that are about something else, start other processes, or would take minutes.
const LEFT_OUT: &[&str] =
    &["crash::", "attach::", "resume::", "model::", "hash::", "classes::", "tests::eviction::"];
/// What a standard library that is not instrumented does between threads: it orders the drop of an
/// `Arc`'s value by a fence, which the sanitizer does not know, and hands results from thread to thread.
const SUPPRESSIONS: &str =
    "race:alloc::sync::Arc\nrace:std::thread\nrace:core::ptr::drop_in_place\n";

/// A compiler that can instrument, and the sanitizer's runtime.
struct Toolchain {
    rustc: PathBuf,
    runtime: PathBuf,
    builds_std: bool,
}

/// Runs the store's tests; prints why not where that is impossible.
pub(crate) fn run(sanitizer: Sanitizer) -> Result<ExitCode> {
    let Sanitizer::Thread = sanitizer;
    let Some(toolchain) = find() else {
        println!(
            "skipped: ThreadSanitizer: no toolchain here has its runtime (librustc-*_rt.tsan.a)"
        );
        return Ok(ExitCode::SUCCESS);
    };
    let library = if toolchain.builds_std { "instrumented" } else { "as it comes" };
    println!("ThreadSanitizer by {}, standard library {library}", toolchain.rustc.display());
    let directory = shell::target_directory().join("sanitizer");
    std::fs::create_dir_all(&directory)?;
    let suppressions = directory.join("suppressions");
    std::fs::write(&suppressions, if toolchain.builds_std { "" } else { SUPPRESSIONS })?;
    let status = toolchain
        .command(&directory)
        .env("TSAN_OPTIONS", format!("halt_on_error=1 suppressions={}", suppressions.display()))
        .status()
        .context("running cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Toolchain {
    fn command(&self, directory: &Path) -> Command {
        let runtime = self.runtime.display();
        let mut flags = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer".to_owned();
        if self.builds_std {
            flags += &format!(
                " -Zexternal-clangrt -Clink-arg=-Wl,--whole-archive -Clink-arg={runtime} \
                 -Clink-arg=-Wl,--no-whole-archive -Clink-arg=-Wl,--export-dynamic \
                 -Clink-arg=-lm -Clink-arg=-lc"
            );
        }
        let mut command = shell::cargo();
        command.args(["test", "-p", "session-schedules", "--test", "sanitized"]);
        command.args(["--target", TARGET, "--target-dir"]).arg(directory);
        if self.builds_std {
            command.arg("-Zbuild-std=std,panic_unwind,test");
        }
        command.args(["--", "--test-threads=2"]);
        for name in LEFT_OUT {
            command.args(["--skip", name]);
        }
        command.env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags);
        command.env("SESSION_PLAIN_ATOMICS", "1");
        command
    }
}

/// Where a compiler's own files are.
fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

/// The sanitizer's runtime that came with the compiler that `cargo` uses here.
fn runtime(sysroot: &Path) -> Option<PathBuf> {
    let directory = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let names = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    names.into_iter().find(|path| path.to_string_lossy().ends_with("_rt.tsan.a"))
}

fn find() -> Option<Toolchain> {
    let ours = PathBuf::from(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let runtime = runtime(&sysroot(&ours)?)?;
    let debian = PathBuf::from(DEBIAN_RUSTC);
    let has_sources = |root: PathBuf| root.join("lib/rustlib/src/rust/library/std").is_dir();
    let builds_std = sysroot(&debian).is_some_and(has_sources);
    let rustc = if builds_std { debian } else { ours };
    Some(Toolchain { rustc, runtime, builds_std })
}
