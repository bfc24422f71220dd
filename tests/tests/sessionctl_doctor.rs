//! `sessionctl doctor` on hosts with one thing wrong.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::process::{Command, Output};

use serde_json::Value;
use session_tests::binaries;
use session_tests::netns::Namespace;
use session_tests::require_root;
use session_tests::sessiond::Setup;

fn doctor(namespace: &Namespace, setup: &Setup, arguments: &[&str]) -> (Output, Vec<Value>) {
    let mut command = Command::new(binaries::sessionctl());
    command.arg("--control").arg(setup.control()).args(["doctor", "--json", "--bpffs"]);
    command.arg(setup.bpffs()).args(arguments);
    let output = namespace.output(&mut command).unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sound = output.status.success();
    assert_eq!(answer["ok"], sound, "{answer}");
    (output, answer["findings"].as_array().unwrap().clone())
}

fn finding<'a>(findings: &'a [Value], check: &str, text: &str) -> &'a Value {
    let found = findings.iter().find(|one| {
        one["check"] == check && one["text"].as_str().is_some_and(|words| words.contains(text))
    });
    found.unwrap_or_else(|| panic!("no {check} with {text} in {findings:#?}"))
}

#[test]
fn each_trouble_is_found_with_its_fix() {
    require_root!();
    let namespace = Namespace::new("doctor").unwrap();
    namespace.ip("link add eth0 type veth peer name eth1").unwrap();
    let setup = Setup::guarded().unwrap();
    let (_, findings) = doctor(&namespace, &setup, &[]);
    finding(&findings, "daemon", "only the host");
    assert_eq!(finding(&findings, "bpffs", "mounted")["state"], "ok");
    assert_eq!(finding(&findings, "capabilities", "are held")["state"], "ok");
    assert_eq!(finding(&findings, "eth0: XDP", "veth")["state"], "ok");
    assert_eq!(finding(&findings, "redirects", "no rule")["state"], "ok");
    assert_eq!(findings.iter().filter(|one| one["fix"].is_null()).count(), {
        findings.iter().filter(|one| one["state"] == "ok").count()
    });

    namespace.sysctl("net/core/somaxconn", "16").unwrap();
    let mut redirect = Command::new("iptables");
    redirect.args("-t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 11211".split(' '));
    let redirected = namespace.output(&mut redirect).is_ok_and(|output| output.status.success());
    let file = setup.scratch().join("memory/items");
    let path = file.to_str().unwrap();
    let (output, findings) = doctor(&namespace, &setup, &["-m", "4000000", "-e", path]);
    assert_eq!(output.status.code(), Some(1));
    let somaxconn = finding(&findings, "net.core.somaxconn", "16");
    assert_eq!(somaxconn["fix"], "sysctl -w net.core.somaxconn=1024");
    assert_eq!(finding(&findings, "memory", "would end the daemon")["state"], "fail");
    assert_eq!(finding(&findings, "memory file", "not there")["state"], "fail");
    if redirected {
        finding(&findings, "redirects", "--to-ports 11211");
    }
}

#[test]
fn programs_of_others_and_a_guard_of_ours_are_told_apart() {
    require_root!();
    let namespace = Namespace::new("doctor").unwrap();
    namespace.ip("link add eth0 type veth peer name eth1").unwrap();
    let setup = Setup::guarded().unwrap().arg("--allow=198.18.0.0/24");
    let daemon = setup.start(Some(&namespace)).unwrap();
    let (_, findings) = doctor(&namespace, &setup, &[]);
    finding(&findings, "eth0: programs", "the guard's own");
    assert_eq!(finding(&findings, "daemon", "on every interface")["state"], "ok");
    daemon.ctl(&["audit", "on"]).unwrap();
    let (_, findings) = doctor(&namespace, &setup, &[]);
    assert_eq!(finding(&findings, "daemon", "AUDIT")["fix"], "sessionctl audit off");
    drop(daemon);
    // Pinned somewhere else: nobody's that this host's guard knows.
    let other = Setup::guarded().unwrap();
    let (_, findings) = doctor(&namespace, &other, &[]);
    let foreign = finding(&findings, "eth0: programs", "never displaces it");
    assert!(foreign["fix"].as_str().unwrap().contains("--guard-mode tcx"), "{foreign}");
    let mut text = Command::new(binaries::sessionctl());
    text.arg("--control").arg(other.control()).args(["doctor", "--bpffs"]).arg(other.bpffs());
    let printed = String::from_utf8(namespace.output(&mut text).unwrap().stdout).unwrap();
    assert!(printed.contains("fix: --guard-mode tcx"), "{printed}");
}
