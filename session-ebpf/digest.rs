//! The digest of everything that decides what the kept objects contain.
//!
//! `session-daemon/build.rs` and `cargo xtask build-ebpf` both include this file, so that they
//! cannot disagree. It reads files and hashes; it never builds and never writes.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest as _, Sha256};

/// Where the kept objects stand, below the workspace.
pub(crate) const DIRECTORY: &str = "session-ebpf/object";

/// The digests of the sources and of each kept object, as `sha256sum` prints them.
pub(crate) const DIGEST_FILE: &str = "guard.sha256";

/// The name beside the sources' digest in [`DIGEST_FILE`].
pub(crate) const SOURCES: &str = "sources";

/// What the objects are made of, below the workspace. `Cargo.lock` counts in part only.
pub(crate) const INPUTS: [&str; 5] = [
    "session-ebpf/Cargo.toml",
    "session-ebpf/digest.rs",
    "session-ebpf/src",
    "session-common/Cargo.toml",
    "session-common/src",
];

/// How the objects are compiled, whatever the profiles of the workspace say.
pub(crate) const PROFILE: [(&str, &str); 6] = [
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    ("CARGO_PROFILE_RELEASE_LTO", "true"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
];

/// Flags of the compiler: BTF, which the loaders need for the map definitions, is made of the
/// debugging information.
pub(crate) const FLAGS: [&str; 2] = ["-Cdebuginfo=2", "-Clink-arg=--btf"];

/// Helps aya's build scripts find a toolchain and sets one `cfg`; what it is made of does not
/// reach the object.
const NOT_FOLLOWED: &str = "aya-build";

/// The digest of the sources of the kept objects.
pub(crate) fn of_sources(workspace: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    for input in INPUTS {
        for path in files(&workspace.join(input))? {
            let name = path.strip_prefix(workspace).unwrap_or(&path);
            let content = fs::read(&path)?;
            hash.update(format!("{} {}\n", name.display(), content.len()));
            hash.update(content);
        }
    }
    let lock = fs::read_to_string(workspace.join("Cargo.lock"))?;
    for entry in locked(&lock, "session-ebpf") {
        hash.update(format!("{entry}\n"));
    }
    Ok(hex(&hash.finalize()))
}

/// The digest of an object.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Reads [`DIGEST_FILE`]: a digest for each name. Lines that begin with `#` are for people.
pub(crate) fn parse(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once("  "))
        .map(|(digest, name)| (name, digest))
        .collect()
}

/// The files below `path`, sorted, or `path` itself.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    entries.sort();
    entries.iter().map(|entry| files(entry)).collect::<io::Result<Vec<_>>>().map(|f| f.concat())
}

/// `name version checksum` of every package that `root` needs, sorted. Packages of the workspace
/// have no checksum: their sources are hashed instead, and what they need for user space only
/// is not followed.
fn locked(lock: &str, root: &str) -> BTreeSet<String> {
    let packages: Vec<&str> = lock.split("[[package]]\n").skip(1).collect();
    let mut found = BTreeSet::new();
    let mut wanted = dependencies(&packages, root, None);
    while let Some((name, version)) = wanted.pop() {
        for package in packages.iter().filter(|package| field(package, "name") == Some(&name)) {
            let (Some(locked_version), Some(checksum)) =
                (field(package, "version"), field(package, "checksum"))
            else {
                continue;
            };
            if version.as_deref().is_some_and(|version| version != locked_version) {
                continue;
            }
            if found.insert(format!("{name} {locked_version} {checksum}")) && name != NOT_FOLLOWED {
                wanted.extend(dependencies(&packages, &name, Some(locked_version)));
            }
        }
    }
    found
}

/// Name and, where the lock file gives it, version of each dependency of a package.
fn dependencies(
    packages: &[&str],
    name: &str,
    version: Option<&str>,
) -> Vec<(String, Option<String>)> {
    packages
        .iter()
        .filter(|package| field(package, "name") == Some(name))
        .filter(|package| version.is_none() || field(package, "version") == version)
        .filter_map(|package| package.split_once("dependencies = [\n"))
        .flat_map(|(_, list)| list.lines().take_while(|line| *line != "]"))
        .map(|line| {
            let mut words = line.trim().trim_matches([',', '"']).split(' ');
            (words.next().unwrap_or_default().to_owned(), words.next().map(str::to_owned))
        })
        .collect()
}

/// The value of `key = "value"` in one package's table.
fn field<'a>(package: &'a str, key: &str) -> Option<&'a str> {
    package
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
