//! The daemon itself, with the capabilities that it lowers itself to, mends its guard.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use session_tests::client::{Client, REFUSAL_TIMEOUT, REPLY_TIMEOUT};
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::{Host, Topology};
use session_tests::{require_program, require_root, skip, wait};

/// How soon the daemon must have noticed and mended.
const SOON: Duration = Duration::from_secs(1);

/// The guard's part of `sessionctl status`.
fn guard(daemon: &Sessiond<'_>) -> Result<Value> {
    Ok(daemon.ctl_json(&["status"])?["guard"].clone())
}

fn interface(daemon: &Sessiond<'_>, name: &str) -> Result<Value> {
    let guard = guard(daemon)?;
    let interfaces = guard["interfaces"].as_array().context("no interfaces")?;
    let found = interfaces.iter().find(|one| one["name"] == name);
    found.cloned().with_context(|| format!("no {name} in {guard}"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Waits for words in the daemon's log.
fn logged(daemon: &Sessiond<'_>, words: &str, since: Instant) {
    wait::until(words, || daemon.process.log().contains(words).then_some(()));
    assert!(since.elapsed() <= SOON, "`{words}` took {:?}", since.elapsed());
}

fn assert_guarded(topology: &Topology) {
    for address in topology.cache.addresses() {
        let reach = |host: &Host, limit| host.run(|| Client::connect_within(address, PORT, limit));
        let mut client = reach(&topology.allowed[0], Duration::from_secs(10)).expect("allowed");
        assert!(client.command("version").expect("served").starts_with("VERSION"));
        let error = reach(&topology.stranger, REFUSAL_TIMEOUT).expect_err("a stranger");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    }
}

/// The second layer: with the program off every interface, and nobody there to mend it, the
/// listening sockets themselves answer no stranger.
#[test]
fn a_stranger_gets_no_answer_when_no_interface_is_guarded() -> Result<()> {
    require_root!();
    require_program!("bpftool");
    let topology = Topology::new(1)?;
    let setup = Setup::guarded()?.args(["--allow", &topology.allow_argument()]);
    let daemon = setup.start(Some(&topology.cache.namespace))?;
    let link = interface(&daemon, "eth0")?["link_id"].to_string();
    // The serving process goes on, and so do its connections.
    daemon.process.signal(Signal::SIGSTOP);
    run(Command::new("bpftool").args(["link", "detach", "id", &link]))?;
    let shown = topology.cache.namespace.ip("-json -details link show dev eth0")?;
    let shown: Value = serde_json::from_str(&shown)?;
    assert!(shown[0]["xdp"]["prog"].is_null(), "nothing guards the interface: {shown}");
    assert_guarded(&topology);
    assert_guarded(&topology);

    let since = Instant::now();
    daemon.process.signal(Signal::SIGCONT);
    logged(&daemon, "the guard was detached from eth0", since);
    let status = guard(&daemon)?;
    let mut reasons = status["reasons"].as_array().context("no reasons")?.iter();
    let refused = reasons.find(|one| one["reason"] == "not_listed").context("none refused")?;
    assert!(refused["packets"].as_u64() >= Some(4), "what the sockets drop counts: {refused}");
    Ok(())
}

#[test]
fn the_daemon_mends_what_others_break() -> Result<()> {
    require_root!();
    require_program!("bpftool");
    let topology = Topology::new(1)?;
    let setup = Setup::guarded()?.args(["--allow", &topology.allow_argument()]);
    let mut daemon = setup.start(Some(&topology.cache.namespace))?;
    assert_guarded(&topology);
    let before = interface(&daemon, "eth0")?;
    assert_eq!((&before["state"], &before["pinned"]), (&"guarded".into(), &true.into()));

    let since = Instant::now();
    run(Command::new("bpftool").args(["link", "detach", "id", &before["link_id"].to_string()]))?;
    logged(&daemon, "the guard was detached from eth0", since);
    assert_ne!(interface(&daemon, "eth0")?["link_id"], before["link_id"]);
    assert_guarded(&topology);

    // The parent has CAP_SYS_ADMIN in reserve only, and takes it up for the mount.
    let since = Instant::now();
    run(Command::new("umount").arg("--lazy").arg(setup.bpffs()))?;
    logged(&daemon, "the bpffs was unmounted", since);
    assert_eq!(interface(&daemon, "eth0")?["pinned"], true);

    let since = Instant::now();
    topology.cache.namespace.ip("link add later0 type veth peer name later1")?;
    logged(&daemon, "interface later0 is guarded now", since);

    let program = interface(&daemon, "eth0")?["program_id"].clone();
    daemon.process.kill();
    let after = topology.cache.namespace.ip("-json -details link show dev eth0")?;
    let after: Value = serde_json::from_str(&after)?;
    assert_eq!(after[0]["xdp"]["prog"]["id"], program, "the guard outlives the daemon");
    Ok(())
}

/// Segment routing takes a packet out of another and has it received by no device anew: the guard in
/// the driver saw the outer one alone. The sockets see what came out.
#[test]
fn what_segment_routing_takes_out_is_judged_at_the_sockets() -> Result<()> {
    require_root!();
    let topology = Topology::new(1)?;
    let cache = &topology.cache;
    // A second address, by which packets for the first one are taken out of others.
    let segment = "2001:db8::5e9";
    for setting in ["all", "eth0"] {
        cache.namespace.sysctl(&format!("net/ipv6/conf/{setting}/seg6_enabled"), "1")?;
    }
    cache.namespace.ip(&format!("addr add {segment}/64 dev eth0 nodad"))?;
    for host in topology.hosts().skip(1) {
        let line =
            format!("-6 route add {}/128 encap seg6 mode encap segs {segment} dev eth0", cache.v6);
        if let Err(error) = host.namespace.ip(&line) {
            skip!("needs segment routing: {error:#}");
        }
    }
    let reach =
        |host: &Host, limit| host.run(|| Client::connect_within(cache.v6.into(), PORT, limit));
    let listener = cache.run(|| TcpListener::bind((cache.v6, PORT)))?;
    reach(&topology.stranger, REPLY_TIMEOUT).context("a stranger comes in without a guard")?;
    drop(listener);

    let setup = Setup::guarded()?.args(["--allow", &topology.allow_argument()]);
    let daemon = setup.start(Some(&cache.namespace))?;
    let mut client = reach(&topology.allowed[0], REPLY_TIMEOUT).context("an allowed host")?;
    assert!(client.command("version")?.starts_with("VERSION"));
    let error = reach(&topology.stranger, REFUSAL_TIMEOUT).expect_err("a stranger");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    assert!(daemon.dropped()? >= 1, "what the sockets drop counts");
    Ok(())
}
