//! Finds the objects of guard and kernel plane for the daemon to include, and fails the build when
//! the kept ones are older than their sources.
//!
//! Sets `SESSION_GUARD_OBJECT` and `SESSION_PLANE_OBJECT` for the compiler. The same variable in the
//! environment names another object, which is taken as it is: that is how a fresh object is tested
//! before it is kept.
#![forbid(unsafe_code)]

use std::path::Path;
use std::{env, fs};

#[path = "../session-ebpf/digest.rs"]
#[allow(dead_code, reason = "the build script compiles nothing")]
mod digest;

/// The variable that names an object, and the kept object's name.
const OBJECTS: [(&str, &str); 2] =
    [("SESSION_GUARD_OBJECT", "guard.bpf.o"), ("SESSION_PLANE_OBJECT", "plane.bpf.o")];

fn main() {
    for (variable, object) in OBJECTS {
        println!("cargo::rerun-if-env-changed={variable}");
        match env::var_os(variable) {
            Some(path) => given(variable, Path::new(&path)),
            None => kept(variable, object),
        }
    }
}

fn given(variable: &str, path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
    if !path.is_absolute() || !path.is_file() {
        fail(&format!("{variable}={} must be the absolute path of a file", path.display()));
        return;
    }
    println!("cargo::rustc-env={variable}={}", path.display());
}

fn kept(variable: &str, object: &str) {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    let workspace = Path::new(&manifest).parent().expect("the crate stands in a workspace");
    for input in digest::INPUTS.iter().chain(&["Cargo.lock", digest::DIRECTORY]) {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    if let Err(error) = check(workspace, object) {
        fail(&error);
    }
    let path = workspace.join(digest::DIRECTORY).join(object);
    println!("cargo::rustc-env={variable}={}", path.display());
}

fn check(workspace: &Path, object: &str) -> Result<(), String> {
    let directory = workspace.join(digest::DIRECTORY);
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let text = String::from_utf8_lossy(&read(digest::DIGEST_FILE)?).into_owned();
    let kept = digest::parse(&text);
    let sources = digest::of_sources(workspace)
        .map_err(|error| format!("cannot read the objects' sources: {error}"))?;
    if kept.get(digest::SOURCES) != Some(&sources.as_str()) {
        return Err("the objects' sources have changed since they were made".to_owned());
    }
    if kept.get(object) != Some(&digest::of_bytes(&read(object)?).as_str()) {
        return Err(format!("{object} is not the object that its digest was taken of"));
    }
    Ok(())
}

fn fail(cause: &str) {
    println!("cargo::error={cause}; run `cargo xtask build-ebpf`");
}
