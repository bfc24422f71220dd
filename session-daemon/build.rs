//! Finds the guard's object for the daemon to include, and fails the build when the kept one is
//! older than its sources.
//!
//! Sets `SESSION_GUARD_OBJECT` for the compiler. The same variable in the environment names
//! another object, which is taken as it is: that is how a fresh object is tested before it is
//! kept.
#![forbid(unsafe_code)]

use std::path::Path;
use std::{env, fs};

#[path = "../session-ebpf/digest.rs"]
#[allow(dead_code, reason = "the build script compiles nothing")]
mod digest;

const VARIABLE: &str = "SESSION_GUARD_OBJECT";
const OBJECT: &str = "guard.bpf.o";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    match env::var_os(VARIABLE) {
        Some(path) => given(Path::new(&path)),
        None => kept(),
    }
}

fn given(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
    if !path.is_absolute() || !path.is_file() {
        fail(&format!("{VARIABLE}={} must be the absolute path of a file", path.display()));
        return;
    }
    println!("cargo::rustc-env={VARIABLE}={}", path.display());
}

fn kept() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    let workspace = Path::new(&manifest).parent().expect("the crate stands in a workspace");
    for input in digest::INPUTS.iter().chain(&["Cargo.lock", digest::DIRECTORY]) {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    if let Err(error) = check(workspace) {
        fail(&error);
    }
    let object = workspace.join(digest::DIRECTORY).join(OBJECT);
    println!("cargo::rustc-env={VARIABLE}={}", object.display());
}

fn check(workspace: &Path) -> Result<(), String> {
    let directory = workspace.join(digest::DIRECTORY);
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let text = String::from_utf8_lossy(&read(digest::DIGEST_FILE)?).into_owned();
    let kept = digest::parse(&text);
    let sources = digest::of_sources(workspace)
        .map_err(|error| format!("cannot read the guard's sources: {error}"))?;
    if kept.get(digest::SOURCES) != Some(&sources.as_str()) {
        return Err("the guard's sources have changed since its object was made".to_owned());
    }
    if kept.get(OBJECT) != Some(&digest::of_bytes(&read(OBJECT)?).as_str()) {
        return Err(format!("{OBJECT} is not the object that its digest was taken of"));
    }
    Ok(())
}

fn fail(cause: &str) {
    println!("cargo::error={cause}; run `cargo xtask build-ebpf`");
}
