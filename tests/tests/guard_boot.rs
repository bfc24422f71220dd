//! The boot rule: nobody but the host itself reaches the port until the guard is on every interface,
//! whatever listens there meanwhile, and whether `sessiond` ever starts or not.
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use session_tests::client::{Client, REFUSAL_TIMEOUT, REPLY_TIMEOUT};
use session_tests::guard_bed::{Bed, EVERY_WAY};
use session_tests::netns::Namespace;
use session_tests::sessiond::{PORT, Setup};
use session_tests::topology::Topology;
use session_tests::{binaries, require_program, require_root, skip, wait};

const TABLE: &str = "table inet session_boot_11211\n";

/// Runs `sessionctl` on a host.
fn ctl(namespace: &Namespace, setup: &Setup, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binaries::sessionctl());
    command.arg("--control").arg(setup.control()).args(arguments);
    namespace.output(&mut command)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Why `sessionctl` fails.
#[track_caller]
fn refused(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    text(&output.stderr)
}

fn tables(namespace: &Namespace) -> Result<String> {
    let output = namespace.output(Command::new("nft").args(["list", "tables"]))?;
    ensure!(output.status.success(), "nft: {}", text(&output.stderr));
    Ok(text(&output.stdout))
}

fn rule_stands(topology: &Topology) -> Result<bool> {
    Ok(tables(&topology.cache.namespace)?.contains(TABLE))
}

/// Whether a host is served, by each family's address; where it is not, it is not answered at all.
fn served(topology: &Topology, role: &str) -> Result<Vec<bool>> {
    let host = topology.hosts().find(|host| host.role == role).context("a host of this role")?;
    let is_let_in = role != "stranger" && !rule_stands(topology)?;
    let limit = if is_let_in { REPLY_TIMEOUT } else { REFUSAL_TIMEOUT };
    let is_served = |address| match host.run(|| Client::connect_within(address, PORT, limit)) {
        Ok(mut client) => Ok(client.command("version")?.starts_with("VERSION")),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error).context(role.to_owned()),
    };
    topology.cache.addresses().into_iter().map(is_served).collect()
}

#[test]
fn the_port_is_closed_until_the_guard_stands_and_then_as_the_guard_has_it() -> Result<()> {
    require_root!();
    require_program!("nft");
    let bed = Bed::new(1)?;
    let topology = &bed.topology;
    let host = &topology.cache.namespace;
    let setup = Setup::guarded()?.args(["--allow", &topology.allow_argument()]);
    let sockets = bed.listen()?;
    let is_open = || (sockets.reached_by(&topology.stranger) == EVERY_WAY).then_some(());
    wait::until("a stranger to come in without a rule", is_open);

    let told = done(ctl(host, &setup, &["boot-rule", "set"])?);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.starts_with("port 11211: closed to all but this host"), "{told}");
    for other in topology.allowed.iter().chain([&topology.stranger]) {
        assert_eq!(sockets.reached_by(other), [], "{}", other.role);
    }
    // The host itself, other ports, and a rule in place of the rule.
    topology.cache.run(|| TcpStream::connect((topology.cache.v4, PORT)))?;
    let other = topology.cache.run(|| TcpListener::bind((topology.cache.v4, 0)))?;
    topology.stranger.run(|| TcpStream::connect(other.local_addr()?))?;
    done(ctl(host, &setup, &["boot-rule", "set"])?);
    assert_eq!(tables(host)?, TABLE);
    drop(sockets);

    // No one is let in by the start itself; the guard judges from then on, the rule does not.
    let daemon = setup.start(Some(host))?;
    wait::until("the end of the rule", || (!rule_stands(topology).ok()?).then_some(()));
    let log = daemon.process.log();
    assert!(log.contains("the boot rule of port 11211 is lifted"), "{log}");
    assert_eq!(served(topology, "web1")?, [true, true]);
    let dropped = daemon.dropped()?;
    assert_eq!(served(topology, "stranger")?, [false, false]);
    assert!(daemon.dropped()? >= dropped + 2, "the guard itself drops what comes");

    // Set while a daemon guards, it goes again.
    done(ctl(host, &setup, &["boot-rule", "set"])?);
    wait::until("its end", || (!rule_stands(topology).ok()?).then_some(()));
    assert_eq!(served(topology, "web1")?, [true, true]);
    Ok(())
}

/// What is forwarded to other hosts is none of this host's, and a port behind NAT is.
#[test]
fn only_what_is_for_this_host_is_closed_whatever_port_it_came_by() -> Result<()> {
    require_root!();
    require_program!("nft");
    let bed = Bed::new(0)?;
    let (cache, stranger) = (&bed.topology.cache, &bed.topology.stranger);
    let behind = Namespace::new("behind")?;
    cache.namespace.ip_batch(&format!(
        "link add inner0 type veth peer name eth0 netns {}\naddr add 198.18.1.1/24 dev inner0\n\
         link set inner0 up",
        behind.name()
    ))?;
    behind.ip_batch(
        "addr add 198.18.1.2/24 dev eth0\nlink set eth0 up\nroute add default via 198.18.1.1",
    )?;
    cache.namespace.sysctl("net/ipv4/ip_forward", "1")?;
    stranger.namespace.ip(&format!("route add 198.18.1.0/24 via {}", cache.v4))?;
    let setup = Setup::guarded()?;
    done(ctl(&cache.namespace, &setup, &["boot-rule", "set"])?);
    let forwarded = behind.run(|| TcpListener::bind(("198.18.1.2", PORT)))?;
    stranger.run(|| TcpStream::connect(forwarded.local_addr()?))?;

    let sockets = bed.listen()?;
    assert_eq!(sockets.reached_by(stranger), []);
    let nat = "table ip nat { chain pre { type nat hook prerouting priority -100; \
               tcp dport 80 redirect to :11211; }; }";
    let redirected = cache.namespace.output(Command::new("nft").arg(nat))?;
    if !redirected.status.success() {
        skip!("needs NAT of nftables: {}", text(&redirected.stderr));
    }
    let through = || TcpStream::connect_timeout(&(cache.v4, 80).into(), REFUSAL_TIMEOUT);
    assert_eq!(stranger.run(through).unwrap_err().kind(), ErrorKind::TimedOut);
    done(ctl(&cache.namespace, &setup, &["boot-rule", "clear"])?);
    stranger.run(through)?;
    Ok(())
}

#[test]
fn it_stays_when_sessiond_does_not_start_and_everybody_who_asks_is_told() -> Result<()> {
    require_root!();
    require_program!("nft");
    let topology = Topology::new(1)?;
    let host = &topology.cache.namespace;
    let setup = Setup::guarded()?.args(["--allow", "198.18.0.0/24", "--interface", "nope"]);
    done(ctl(host, &setup, &["boot-rule", "set"])?);
    let mut daemon = setup.spawn(Some(host))?;
    let status = daemon.wait(wait::PATIENCE).expect("it does not start");
    assert!(!status.success() && daemon.log().contains("no interface `nope`"), "{}", daemon.log());
    assert!(rule_stands(&topology)?);
    let status = refused(ctl(host, &setup, &["status"])?);
    for words in ["no daemon answers there", "keeps port 11211 closed", "boot-rule clear"] {
        assert!(status.contains(words), "{status}");
    }
    let bpffs = setup.bpffs().display().to_string();
    let doctor = ctl(host, &setup, &["doctor", "--json", "--bpffs", &bpffs])?;
    let doctor: Value = serde_json::from_slice(&doctor.stdout)?;
    let found = doctor["findings"].as_array().into_iter().flatten();
    let found = found.filter(|one| one["check"] == "boot rule").collect::<Vec<_>>();
    assert_eq!((found.len(), &found[0]["state"]), (1, &"warn".into()), "{found:?}");
    assert!(found[0]["fix"].as_str().is_some_and(|fix| fix.contains("boot-rule clear")));

    // By port, and twice.
    let other = done(ctl(host, &setup, &["boot-rule", "clear", "--json"])?);
    let other: Value = serde_json::from_str(&other)?;
    assert_eq!(other["ports"], serde_json::json!([11_211]));
    assert_eq!(done(ctl(host, &setup, &["boot-rule", "clear"])?), "no boot rule stands\n");
    let status = refused(ctl(host, &setup, &["status"])?);
    assert!(!status.contains("boot"), "{status}");
    Ok(())
}

/// An interface that is open would let strangers to the port, so the rule waits for it.
#[test]
fn it_waits_for_the_last_interface() -> Result<()> {
    require_root!();
    require_program!("nft");
    let topology = Topology::new(1)?;
    let host = &topology.cache.namespace;
    host.ip_batch("tuntap add tun0 mode tun\nlink set tun0 up")?;
    let allow = topology.allow_argument();
    // Not in the driver, for want of an Ethernet header: the start goes on without this interface.
    let setup = Setup::guarded()?.args(["--allow", &allow, "--guard-mode", "native"]);
    done(ctl(host, &setup, &["boot-rule", "set"])?);
    let daemon = setup.start(Some(host))?;
    let status = daemon.ctl(&["status"])?;
    assert!(status.contains("NOT attached to every interface"), "{status}");
    let warned = daemon.guard()?["warnings"].to_string();
    for words in ["boot rule keeps port 11211 closed", "open: tun0", "boot-rule clear"] {
        assert!(warned.contains(words) && daemon.process.log().contains(words), "{warned}");
    }
    assert_eq!(served(&topology, "web1")?, [false, false]);
    assert!(rule_stands(&topology)?);

    host.ip("link delete tun0")?;
    wait::until("the end of the rule", || (!rule_stands(&topology).ok()?).then_some(()));
    assert_eq!(served(&topology, "web1")?, [true, true]);
    assert_eq!(served(&topology, "stranger")?, [false, false]);
    let warned = daemon.guard()?["warnings"].to_string();
    assert!(!warned.contains("boot rule"), "{warned}");
    Ok(())
}

/// Nobody is there who would lift it, so the daemon says so at once.
#[test]
fn a_daemon_without_a_guard_lifts_nothing_and_says_so() -> Result<()> {
    require_root!();
    require_program!("nft");
    let topology = Topology::new(1)?;
    let host = &topology.cache.namespace;
    let setup = Setup::guarded()?.args(["--allow", &topology.allow_argument(), "--guard=user"]);
    done(ctl(host, &setup, &["boot-rule", "set"])?);
    let daemon = setup.start(Some(host))?;
    let log = daemon.process.log();
    assert!(log.contains("without --guard=xdp nobody lifts it"), "{log}");
    assert_eq!(served(&topology, "web1")?, [false, false]);
    done(ctl(host, &setup, &["boot-rule", "clear"])?);
    assert_eq!(served(&topology, "web1")?, [true, true]);
    Ok(())
}

#[test]
fn its_ports_are_those_of_the_configuration_and_each_goes_by_itself() -> Result<()> {
    require_root!();
    require_program!("nft");
    let namespace = Namespace::new("boot")?;
    let setup = Setup::guarded()?;
    let file = setup.scratch().join("sessiond.conf");
    let path = file.to_str().expect("UTF-8");
    fs::write(&file, "-m 64\n-p 11311\n-l 127.0.0.1,198.18.0.1:11411\n-l 198.18.0.1\n")?;
    let printed = done(ctl(&namespace, &setup, &["boot-rule", "print", "--config", path])?);
    assert_eq!(tables(&namespace)?, "", "printed, not loaded");
    done(ctl(&namespace, &setup, &["boot-rule", "set", "--config", path])?);
    let expected = "table inet session_boot_11311\ntable inet session_boot_11411\n";
    assert_eq!(tables(&namespace)?, expected);
    let list = |namespace: &Namespace| -> Result<String> {
        Ok(done(namespace.output(Command::new("nft").args(["-s", "list", "ruleset"]))?))
    };
    let loaded = list(&namespace)?;
    // What is printed is what is set, so that it can be loaded by other means.
    let by_hand = setup.scratch().join("rule.nft");
    fs::write(&by_hand, &printed)?;
    let mut nft = Command::new("nft");
    done(namespace.output(nft.arg("-f").arg(&by_hand))?);
    assert_eq!(list(&namespace)?, loaded);
    let mut clear = Command::new(binaries::sessionctl());
    let cleared = done(namespace.output(clear.args(["-p", "11311", "boot-rule", "clear"]))?);
    assert_eq!(cleared, "port 11311: the boot rule is gone\n");
    assert_eq!(tables(&namespace)?, "table inet session_boot_11411\n");

    fs::write(&file, "-l 127.0.0.1\n")?;
    let nothing = done(ctl(&namespace, &setup, &["boot-rule", "set", "--config", path])?);
    assert!(nothing.starts_with("nothing to close"), "{nothing}");
    fs::write(&file, "-p -1\n")?;
    let unknown = refused(ctl(&namespace, &setup, &["boot-rule", "set", "--config", path])?);
    assert!(unknown.contains("write a number"), "{unknown}");
    // Without nft the reason names the package; nothing is needed to take a rule away.
    let mut bare = Command::new(binaries::sessionctl());
    bare.args(["boot-rule", "set"]).env("PATH", "/nonexistent");
    let missing = refused(namespace.output(&mut bare)?);
    assert!(missing.contains("apt install nftables"), "{missing}");
    let mut bare = Command::new(binaries::sessionctl());
    bare.args(["boot-rule", "clear"]).env("PATH", "/nonexistent");
    done(namespace.output(&mut bare)?);
    assert_eq!(tables(&namespace)?, "");
    Ok(())
}
