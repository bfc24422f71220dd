//! The account of skipped tests. A test that cannot run here says so and why, and is counted.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::Write;
use std::thread;

/// Names the file that [`record`] appends to; `cargo xtask test` sets it and counts its lines.
pub const FILE_VARIABLE: &str = "SESSION_SKIP_FILE";

/// `1` in this variable asks for the long tests as well (`cargo xtask test --all`).
pub const ALL_VARIABLE: &str = "SESSION_TEST_ALL";

/// Leaves the running test as skipped: records the reason and returns from the function.
///
/// Takes `format!` arguments. The test may return `()` or a `Result<(), E>`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::skip::record(module_path!(), &format!($($reason)*));
        return $crate::skip::outcome();
    }};
}

/// Skips the running test unless it runs as root, which network namespaces need.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::skip::can_make_namespaces() {
            $crate::skip!("needs root, to make network namespaces");
        }
    };
}

/// Skips the running test unless the named program can be found.
#[macro_export]
macro_rules! require_program {
    ($program:expr) => {
        if !$crate::skip::has_program($program) {
            $crate::skip!(
                "needs the program `{}`; `cargo xtask test` as root installs it",
                $program
            );
        }
    };
}

/// What a skipped test returns.
pub trait Outcome {
    /// The value that libtest reads as passed; the record tells it from a test that ran.
    fn skipped() -> Self;
}

impl Outcome for () {
    fn skipped() -> Self {}
}

impl<E> Outcome for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// The return value of a skipped test.
#[must_use]
pub fn outcome<T: Outcome>() -> T {
    T::skipped()
}

/// Writes one line to the file named by [`FILE_VARIABLE`] and to standard error, past libtest's
/// capture. Prefer the `skip!` macro.
///
/// # Panics
/// If the named file cannot be written: a skip that nobody counts must not look like a pass.
pub fn record(module: &str, reason: &str) {
    let current = thread::current();
    let line = format!("{module}::{}: {reason}\n", current.name().unwrap_or("main"));
    // One write, so that lines of tests that run at the same time stay whole.
    let _ = std::io::stderr().write_all(format!("SKIPPED {line}").as_bytes());
    if let Some(path) = std::env::var_os(FILE_VARIABLE) {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("cannot record a skipped test in {path:?}: {error}"));
    }
}

/// Whether the effective user is root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether this process is root and may make network namespaces: in a container it may not.
#[must_use]
pub fn can_make_namespaces() -> bool {
    // CAP_NET_ADMIN and CAP_SYS_ADMIN, linux/capability.h.
    const NEEDED: u64 = 1 << 12 | 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    is_root() && effective.is_some_and(|bits| bits & NEEDED == NEEDED)
}

/// Whether `program` is in one of the directories of `PATH` or in `/usr/sbin` or `/sbin`.
#[must_use]
pub fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}

/// Whether the long tests were asked for.
#[must_use]
pub fn all() -> bool {
    std::env::var_os(ALL_VARIABLE).is_some_and(|value| value == "1")
}
