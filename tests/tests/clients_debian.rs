//! Debian's own clients: they work from an allowed host, over every command that they have, and
//! get nothing from the stranger, whether the kernel refuses it or `sessiond` itself does.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use session_tests::binaries::workspace_root;
use session_tests::client::Client;
use session_tests::netns::Namespace;
use session_tests::sessiond::{PORT, Setup};
use session_tests::topology::Topology;
use session_tests::{require_program, require_root, skip};

/// A client that is refused gives up within this; one that does not is stopped.
const GIVES_UP: Duration = Duration::from_secs(8);

/// Debian's Python, which has Debian's modules.
const PYTHON: &str = "/usr/bin/python3";

/// What `--guard` says: refused by the kernel, or by the daemon at accept.
const GUARDS: [&str; 2] = ["xdp", "user"];

#[test]
fn pymemcache() {
    require_root!();
    if !has_module("pymemcache") {
        skip!("needs Debian's python3-pymemcache");
    }
    check(|host| script("pymemcache_commands.py", host), says_ok);
}

#[test]
fn pylibmc() {
    require_root!();
    if !has_module("pylibmc") {
        skip!("needs Debian's python3-pylibmc");
    }
    check(|host| script("pylibmc_commands.py", host), says_ok);
}

#[test]
fn pylibmc_in_binary() {
    require_root!();
    if !has_module("pylibmc") {
        skip!("needs Debian's python3-pylibmc");
    }
    let in_binary = |host: &str| {
        let mut client = script("pylibmc_commands.py", host);
        client.arg("binary");
        client
    };
    check(in_binary, says_ok);
}

#[test]
fn memccapable() {
    require_root!();
    require_program!("memccapable");
    check(
        |host| command("memccapable", &["-a", "-h", host, "-p", &PORT.to_string()]),
        |output| {
            let text = String::from_utf8_lossy(&output.stdout);
            text.contains("All tests passed") && text.matches("[pass]").count() == 27
        },
    );
}

#[test]
fn memccapable_in_binary() {
    require_root!();
    require_program!("memccapable");
    check(
        |host| command("memccapable", &["-b", "-h", host, "-p", &PORT.to_string()]),
        |output| {
            let text = String::from_utf8_lossy(&output.stdout);
            text.contains("All tests passed") && text.matches("[pass]").count() == 27
        },
    );
}

#[test]
fn memcstat() {
    require_root!();
    require_program!("memcstat");
    check(
        |host| command("memcstat", &[&servers(host)]),
        |output| String::from_utf8_lossy(&output.stdout).contains("curr_connections: "),
    );
}

#[test]
fn memccp_and_memccat() {
    require_root!();
    require_program!("memccat");
    let directory = session_tests::scratch::Scratch::new("files").unwrap();
    let file = directory.join("greeting");
    fs::write(&file, "hello from a file\n").unwrap();
    let copy = file.to_str().unwrap();
    // memccat must find what memccp of the same host stored.
    check(
        |host| {
            let servers = servers(host);
            command(
                "sh",
                &["-c", &format!("memccp {servers} {copy} && memccat {servers} greeting")],
            )
        },
        |output| String::from_utf8_lossy(&output.stdout).contains("hello from a file"),
    );
}

/// Runs one client from an allowed host and from the stranger, with both kinds of refusal.
fn check(client: impl Fn(&str) -> Command, works: impl Fn(&Output) -> bool) {
    for guard in GUARDS {
        let topology = Topology::new(1).unwrap();
        let cache = &topology.cache;
        let setup = Setup::guarded()
            .unwrap()
            .arg(format!("--guard={guard}"))
            .arg(format!("--allow={}", topology.allow_argument()));
        let daemon = setup.start(Some(&cache.namespace)).unwrap();
        let host = cache.v4.to_string();

        let output = topology.allowed[0].namespace.output(&mut client(&host)).unwrap();
        assert!(output.status.success() && works(&output), "--guard={guard}: {output:#?}");

        let (output, ended) = run_briefly(&topology.stranger.namespace, &mut client(&host));
        assert!(!ended || !output.status.success(), "--guard={guard}, stranger: {output:#?}");
        assert!(!works(&output), "--guard={guard}, stranger: {output:#?}");

        // The stranger has stopped nobody else, and the daemon is still the one that started.
        let allowed = &topology.allowed[0];
        let stored = allowed.run(|| Client::connect(cache.v4.into(), PORT)?.set("after", b"1"));
        assert_eq!(stored.unwrap(), "STORED");
        drop(daemon);
    }
}

/// Runs a command for at most [`GIVES_UP`]; whether it ended by itself.
fn run_briefly(namespace: &Namespace, command: &mut Command) -> (Output, bool) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=1", &GIVES_UP.as_secs().to_string()]);
    limited.arg(command.get_program()).args(command.get_args());
    let output = namespace.output(&mut limited).unwrap();
    (output, start.elapsed() < GIVES_UP)
}

fn script(name: &str, host: &str) -> Command {
    let path = workspace_root().join("tests/clients").join(name);
    command(PYTHON, &[path.to_str().unwrap(), host, &PORT.to_string()])
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn servers(host: &str) -> String {
    format!("--servers={host}:{PORT}")
}

fn says_ok(output: &Output) -> bool {
    output.stdout == b"ok\n"
}

fn has_module(name: &str) -> bool {
    let import = format!("import {name}");
    Path::new(PYTHON).exists()
        && Command::new(PYTHON).args(["-c", &import]).output().is_ok_and(|o| o.status.success())
}
