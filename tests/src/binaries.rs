//! Where the built binaries are. Built on demand, once a process, unless the runner did.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names the directory of binaries that are already built; `cargo xtask test` sets it.
pub const DIRECTORY_VARIABLE: &str = "SESSION_BIN_DIR";

/// Path of the built `sessiond`.
#[must_use]
pub fn sessiond() -> PathBuf {
    directory().join("sessiond")
}

/// Path of the built `sessionctl`.
#[must_use]
pub fn sessionctl() -> PathBuf {
    directory().join("sessionctl")
}

/// Path of the built `xtask`.
#[must_use]
pub fn xtask() -> PathBuf {
    directory().join("xtask")
}

/// The top of the source tree.
#[must_use]
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands below the root")
}

fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| match std::env::var_os(DIRECTORY_VARIABLE) {
        Some(directory) => PathBuf::from(directory),
        None => build(),
    })
}

/// Builds the programs in the profile of the running test, so that it is never stale.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("/proc/self/exe is readable");
    let mut directory = test.parent().expect("an executable stands in a directory");
    if directory.ends_with("deps") {
        directory = directory.parent().expect("deps stands in the profile's directory");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--package",
        "session-daemon",
        "--package",
        "xtask",
        "--bins",
    ]);
    if directory.ends_with("release") {
        command.arg("--release");
    }
    let status = command.current_dir(workspace_root()).status().expect("cargo can be started");
    assert!(status.success(), "{command:?}: {status}");
    directory.to_owned()
}
