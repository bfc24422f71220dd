//! The documentation's commands. Those of docs/migrate-from-memcached.md are run one after the
//! other on hosts of their own, with the package installed; of all others it is checked that the
//! command and its flags exist.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use session_tests::binaries::{self, workspace_root};
use session_tests::sandbox::Sandbox;
use session_tests::topology::{Host, Topology};
use session_tests::{require_program, require_root, skip};

/// What stands in for systemctl on a machine without systemd: it runs a unit's command line.
const SYSTEMCTL: &str = include_str!("../clients/systemctl.sh");

/// A fenced block: the words behind its fence, and its lines.
struct Block {
    words: Vec<String>,
    text: String,
    line: usize,
}

fn blocks(file: &str) -> Vec<Block> {
    let text = fs::read_to_string(workspace_root().join(file)).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(words), None) => {
                let words = words.split_whitespace().map(str::to_owned).collect();
                open = Some(Block { words, text: String::new(), line: index + 1 });
            }
            (None, Some(mut block)) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    blocks
}

#[test]
fn the_page_on_migration_does_what_it_says() {
    require_root!();
    for program in ["dpkg-deb", "iptables", "memcached", "perl"] {
        require_program!(program);
    }
    let page = "docs/migrate-from-memcached.md";
    let sandbox = match Sandbox::new() {
        Ok(sandbox) => sandbox,
        Err(error) => skip!("needs overlayfs: {error:#}"),
    };
    let topology = Topology::new(2).unwrap();
    prepare(&sandbox);
    let mut ran = 0;
    for block in blocks(page).iter().filter(|block| block.words.first().is_some_and(|w| w == "sh"))
    {
        let host = host(&topology, &block.words[1]);
        let fails = block.words.get(2).is_some_and(|word| word == "fails");
        let script = format!("cd /root\n{}", block.text);
        let output = sandbox.shell(&host.namespace, &script).unwrap();
        assert_eq!(
            output.status.success(),
            !fails,
            "{page}:{} on {}:\n{}\n{}{}",
            block.line,
            host.role,
            block.text,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ran += 1;
    }
    assert!(ran >= 15, "{ran} blocks only");
}

/// The package in root's home, and a systemctl; nobody starts anything yet.
fn prepare(sandbox: &Sandbox) {
    let built = binaries::sessiond();
    let mut pack = Command::new(binaries::xtask());
    pack.args(["package", "deb", "--fast", "--binaries"]).arg(built.parent().unwrap());
    let output = pack.arg("--out").arg(sandbox.path("root")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = sandbox.path("usr/local/bin/systemctl");
    fs::write(&path, SYSTEMCTL).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn host<'t>(topology: &'t Topology, role: &str) -> &'t Host {
    topology.hosts().find(|host| host.role == role).unwrap_or_else(|| panic!("no host {role}"))
}

/// Where commands are found in blocks.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "CONTRIBUTING.md",
    "docs/benchmarks.md",
    "docs/guard.md",
    "docs/migrate-from-memcached.md",
    "docs/operations.md",
    "docs/protocol.md",
    "docs/security.md",
    "docs/store.md",
];

#[test]
fn every_command_and_its_flags_exist() {
    let mut seen = 0;
    for file in DOCUMENTS {
        for block in blocks(file) {
            for line in block.text.lines().map(str::trim) {
                let line = line.split(" # ").next().unwrap_or(line);
                let words: Vec<&str> = line.split_whitespace().collect();
                let help = match words.as_slice() {
                    ["sessionctl", "import", what, ..] => {
                        help(&binaries::sessionctl(), &["import", what, "--help"])
                    }
                    ["sessionctl", command, ..] => {
                        help(&binaries::sessionctl(), &[command, "--help"])
                    }
                    ["cargo", "xtask", command, ..] => {
                        help(&binaries::xtask(), &[command, "--help"])
                    }
                    ["sessiond", ..] => help(&binaries::sessiond(), &["-h"]),
                    _ => continue,
                };
                let help = help.unwrap_or_else(|| panic!("{file}: there is no `{line}`"));
                for flag in flags(line) {
                    assert!(help.contains(flag), "{file}: no {flag} in `{line}`");
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 15, "{seen} commands only");
}

/// What a program says of a command; none if there is no such command.
fn help(program: &std::path::Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

/// The long flags of a line.
fn flags(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split(|c: char| c.is_whitespace() || "[]|=".contains(c));
    words.filter(|word| word.starts_with("--") && word.len() > 2)
}
