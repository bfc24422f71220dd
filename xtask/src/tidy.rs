//! Checks what a compiler does not, over every file of the tree. The rules are in the modules
//! below, each a pure function from a file to findings, and each with samples that must fail.
#![forbid(unsafe_code)]

mod layers;
mod links;
mod mask;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::shell;

/// What may stand at the top of the tree, besides what git ignores.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".git",
    ".gitattributes",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "STYLE.md",
    "clippy.toml",
    "deny.toml",
    "docs",
    "fuzz",
    "models",
    "packaging",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "schedules",
    "session-common",
    "session-daemon",
    "session-ebpf",
    "target",
    "tests",
    "xtask",
];

/// A rule that is broken, and where. Lines count from 1; 0 stands for the whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    line: usize,
    message: String,
}

impl Finding {
    fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// Checks the tree and prints what it finds, one finding a line.
pub(crate) fn run() -> Result<ExitCode> {
    let root = shell::root();
    let mut count = 0;
    let mut report = |path: &Path, findings: Vec<Finding>| {
        count += findings.len();
        for finding in findings {
            println!("{}:{}: {}", path.display(), finding.line, finding.message);
        }
    };
    for name in top_level(root)? {
        if !TOP_LEVEL.contains(&name.as_str()) {
            report(Path::new(&name), vec![Finding::new(0, "does not belong at the top level")]);
        }
    }
    let files = files(root)?;
    for path in &files {
        let Ok(text) = fs::read_to_string(root.join(path)) else { continue };
        report(path, check(root, path, &text));
    }
    println!("{} files checked, {count} findings", files.len());
    Ok(if count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(root: &Path, path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = text::any_file(text);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("rs") => {
            let code = mask::code(text);
            findings.extend(text::rust_file(path, text, &code));
            findings.extend(layers::check(path, &code));
        }
        Some("md") => findings.extend(links::check(root, path, text)),
        _ => {}
    }
    findings
}

fn top_level(root: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(root).context("reading the top of the tree")?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Every file of the tree that is not built and not git's, relative to the top, in order.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let name = entry.file_name();
            match entry.file_type()? {
                kind if kind.is_dir() && name != "target" && name != ".git" => {
                    directories.push(path);
                }
                kind if kind.is_file() && name != ".git" => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{check, run};
    use crate::shell;

    #[test]
    fn a_file_with_every_fault_is_found_out() {
        let bad = "use foo::*;\nfn f() { todo!() }\n";
        let findings = check(shell::root(), Path::new("session-daemon/src/store/bad.rs"), bad);
        let messages: Vec<_> = findings.iter().map(|finding| finding.message.as_str()).collect();
        for expected in ["//!", "glob", "todo!"] {
            assert!(messages.iter().any(|m| m.contains(expected)), "{expected}: {messages:?}");
        }
    }

    #[test]
    fn this_tree_is_tidy() {
        assert_eq!(
            format!("{:?}", run().unwrap()),
            format!("{:?}", std::process::ExitCode::SUCCESS)
        );
    }
}
