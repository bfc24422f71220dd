//! A package for Fedora and RHEL, by rpmbuild.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::{Tree, output, version};
use crate::shell;

/// Packs the tree; returns the package's path.
pub(super) fn pack(tree: &Tree, out: &Path, revision: u32, fast: bool) -> Result<PathBuf> {
    let scratch = tempfile::tempdir()?;
    let files: String = tree
        .files
        .iter()
        .map(|(place, mode)| {
            let kind = if Tree::is_configuration(place) { "%config(noreplace) " } else { "" };
            format!("%attr(0{mode:o}, root, root) {kind}/{place}\n")
        })
        .collect();
    let template = shell::root().join("packaging/rpm/session.spec.in");
    let spec = fs::read_to_string(&template)
        .with_context(|| template.display().to_string())?
        .replace("@VERSION@", version())
        .replace("@REVISION@", &revision.to_string())
        .replace("@URL@", env!("CARGO_PKG_REPOSITORY"))
        .replace("@TREE@", &tree.path().display().to_string())
        .replace("@FILES@", &files);
    let path = scratch.path().join("session.spec");
    fs::write(&path, spec)?;
    let mut command = Command::new("rpmbuild");
    command.arg("-bb").arg("--define").arg(format!("_topdir {}", scratch.path().display()));
    command.arg("--define").arg(format!("_rpmdir {}", out.display()));
    command.args(["--define", "_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm"]);
    command.args([
        "--define",
        &format!("_binary_payload {}", if fast { "w0.gzdio" } else { "w19.zstdio" }),
    ]);
    output(command.arg(&path))?;
    let architecture = output(Command::new("rpm").args(["--eval", "%{_arch}"]))?;
    let name = format!("session-{}-{revision}.{}.rpm", version(), architecture.trim());
    Ok(out.join(name))
}
