//! The documentation's commands. Each is run: page by page, block by block, on hosts of their own,
//! with the package installed. What another test runs stands in a list that must be true both ways.
//!
//! The words behind a fence say what a block is: `sh HOST` is run there, `sh HOST fails` has to
//! fail, `sh elsewhere` is run by another test, `usage` names the forms of commands, and anything
//! else holds no command.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use session_tests::binaries::{self, workspace_root};
use session_tests::sandbox::Sandbox;
use session_tests::topology::Topology;
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

impl Block {
    fn is(&self, word: &str) -> bool {
        self.words.first().is_some_and(|first| first == word)
    }

    /// The host that runs the block, if this test does.
    fn host(&self) -> Option<&str> {
        let host = self.words.get(1).filter(|_| self.is("sh"))?;
        (host != "elsewhere").then_some(host)
    }

    /// The commands, without remarks behind them.
    fn commands(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines().map(|line| line.split(" # ").next().unwrap_or(line).trim());
        lines.filter(|line| !line.is_empty())
    }

    /// What is run. A daemon that the page starts in the foreground goes on behind the rest of its
    /// block, and ends with it.
    fn script(&self) -> String {
        let in_front = |line: &&str| line.starts_with("sessiond ") && !line.contains(" -d ");
        let mut script = "cd /root\n".to_owned();
        for line in self.text.lines() {
            let line = line.split(" # ").next().unwrap_or(line);
            let aside = if in_front(&line) { format!(" -d -P {PIDFILE}") } else { String::new() };
            script += &format!("{line}{aside}\n");
        }
        if self.text.lines().any(|line| in_front(&line)) {
            script += &format!("kill \"$(cat {PIDFILE})\"\n");
        }
        script + UNTIL_ENDED
    }
}

/// Of a daemon that a page starts in the foreground.
const PIDFILE: &str = "/run/page.pid";

/// Waits for daemons that were asked to end: the next block may start another.
const UNTIL_ENDED: &str = "
for file in /run/page.pid /run/sessiond.pid; do
    for _ in $(seq 400); do [ ! -e $file ] || sleep 0.05; done
    [ ! -e $file ]
done
";

/// A machine with the package in root's home, and hosts around it.
struct Stage {
    sandbox: Sandbox,
    topology: Topology,
}

impl Stage {
    fn new() -> anyhow::Result<Self> {
        let sandbox = Sandbox::new()?;
        prepare(&sandbox);
        Ok(Self { sandbox, topology: Topology::new(2)? })
    }

    /// Runs the blocks of a page, in order; returns how many.
    fn run(&self, page: &str) -> usize {
        let blocks = blocks(page);
        let here = blocks.iter().filter_map(|block| Some((block, block.host()?)));
        here.map(|(block, host)| self.block(page, block, host)).count()
    }

    fn block(&self, page: &str, block: &Block, host: &str) {
        let host = self.topology.hosts().find(|one| one.role == host);
        let host = host.unwrap_or_else(|| panic!("{page}:{}: no such host", block.line));
        let fails = block.words.get(2).is_some_and(|word| word == "fails");
        let output = self.sandbox.shell(&host.namespace, &block.script()).unwrap();
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
    }

    /// Does on the cache host what a page takes for granted.
    fn on_cache(&self, script: &str) {
        let script = format!("cd /root\n{script}");
        let output = self.sandbox.shell(&self.topology.cache.namespace, &script).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_page_on_migration_does_what_it_says() {
    require_root!();
    for program in ["dpkg-deb", "iptables", "memcached", "perl"] {
        require_program!(program);
    }
    let stage = match Stage::new() {
        Ok(stage) => stage,
        Err(error) => skip!("needs overlayfs: {error:#}"),
    };
    let ran = stage.run("docs/migrate-from-memcached.md");
    assert!(ran >= 15, "{ran} blocks only");
}

/// What docs/operations.md takes for granted before its first command: rules to be read.
const BEFORE_OPERATIONS: &str = "
iptables -A INPUT -p tcp --dport 11211 -s 198.18.0.11 -j ACCEPT
iptables -A INPUT -p tcp --dport 11211 -j DROP
mkdir -p /etc/sysconfig
iptables-save > /etc/sysconfig/iptables
printf '%s\n' 'create webs hash:ip family inet' 'add webs 198.18.0.12' > sets.txt
cp /usr/sbin/sessiond sessiond
";

#[test]
fn the_other_pages_do_what_they_say() {
    require_root!();
    for program in ["dpkg-deb", "iptables", "memcached", "bpftool"] {
        require_program!(program);
    }
    let stage = match Stage::new() {
        Ok(stage) => stage,
        Err(error) => skip!("needs overlayfs: {error:#}"),
    };
    let release = stage.sandbox.path("root/target/release");
    fs::create_dir_all(&release).unwrap();
    for program in [binaries::sessiond(), binaries::sessionctl()] {
        fs::copy(&program, release.join(program.file_name().unwrap())).unwrap();
    }
    let mut ran = stage.run("README.md");
    stage.on_cache("rm /usr/local/bin/session*; dpkg -i session_*.deb");
    stage.on_cache(BEFORE_OPERATIONS);
    for page in DOCUMENTS.iter().filter(|page| !OWN_TEST.contains(page)) {
        ran += stage.run(page);
    }
    // What docs/operations.md started by its unit.
    stage.on_cache("systemctl stop sessiond");
    assert!(ran >= 7, "{ran} blocks only");
}

/// Pages that are not run among the others.
const OWN_TEST: &[&str] = &["README.md", "docs/migrate-from-memcached.md"];

/// Commands of the pages that other tests run: the command, the test, and what shows it there.
/// Where there is no test, the reason.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("cargo xtask run", "e2e_playground.rs", "[\"run\", \"--built\""),
    ("cargo xtask test", "", "runs all tests, this one too; CI runs it"),
    ("cargo xtask demo sessions", "e2e_sessions.rs", "[\"demo\", \"sessions\", \"--binaries\"]"),
    ("cargo xtask package deb", "process_package.rs", "pack(\"deb\", "),
    ("cargo xtask package rpm", "process_package.rs", "pack(\"rpm\", "),
    ("cargo build --release", "", "minutes of compiling; the demo that is not in CI builds so"),
];

#[test]
fn every_block_says_what_it_is_and_no_command_is_left_out() {
    let mut met = vec![false; ELSEWHERE.len()];
    for page in DOCUMENTS {
        for block in blocks(page) {
            let place = format!("{page}:{}", block.line);
            assert!(!block.words.is_empty(), "{place}: the fence does not say what this is");
            if block.is("usage") || block.host().is_some() {
                continue;
            }
            for command in block.commands() {
                let found = ELSEWHERE.iter().position(|(listed, ..)| *listed == command);
                match found {
                    Some(at) => met[at] = true,
                    None => {
                        assert!(!is_command(&block, command), "{place}: nobody runs `{command}`")
                    }
                }
            }
        }
    }
    for ((command, test, shown), met) in ELSEWHERE.iter().zip(met) {
        assert!(met, "no page has `{command}` any more");
        if !test.is_empty() {
            let path = workspace_root().join("tests/tests").join(test);
            assert!(fs::read_to_string(path).unwrap().contains(shown), "{test}: no {shown}");
        }
    }
}

/// Whether a line asks its reader to run it.
fn is_command(block: &Block, line: &str) -> bool {
    let programs = ["sessiond", "sessionctl", "cargo", "systemctl", "install", "ip", "bpftool"];
    let first = line.split_whitespace().next().unwrap_or_default();
    block.is("sh") || programs.contains(&first.trim_start_matches("$ "))
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
                    ["sessionctl", command @ ("import" | "boot-rule"), what, ..] => {
                        help(&binaries::sessionctl(), &[command, what, "--help"])
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
