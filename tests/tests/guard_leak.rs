//! A flood of forbidden packets while the program is replaced over and over, while the list is, and on
//! interfaces that were made anew: not one of them may reach the stack.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use session_daemon::allowlist::{Action, Entry, Origin, host};
use session_daemon::guard::status::GuardStatus;
use session_daemon::sys;
use session_tests::flood::{Flood, Packet};
use session_tests::guard_bed::{PORT, interface, packets};
use session_tests::guard_holder::{Holder, Request, Setup, entries};
use session_tests::netns::Namespace;
use session_tests::packet::{TCP, UDP};
use session_tests::scratch::Scratch;
use session_tests::{require_root, skip, wait};

const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const SOURCES: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);

/// Packets that the guard must have judged while it was being replaced.
const JUDGED: u64 = 2_000_000;
const JUDGED_ALL: u64 = 10_000_000;

/// Packets of one call of the generator.
const BURST: u32 = 50_000;

/// Two hosts on one wire: `from` sends by `far0`, `host` receives by `eth0`.
struct Wire {
    from: Namespace,
    host: Namespace,
}

impl Wire {
    fn new() -> Result<Self> {
        let (from, host) = (Namespace::new("from")?, Namespace::new("host")?);
        host.ip(&format!("link add eth0 type veth peer name far0 netns {}", from.name()))?;
        // Without IPv6 the host receives nothing but the flood.
        host.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        // Answers go nowhere, or the host would tell itself that it cannot reach the sources.
        host.ip_batch(
            "link set eth0 address 02:00:00:00:00:01
             addr add 198.18.0.1/16 dev eth0
             link set eth0 up
             route add blackhole 198.19.0.0/16",
        )?;
        from.ip("link set far0 up")?;
        Ok(Self { from, host })
    }

    /// Takes the wire away and lays another one, whose ends are down.
    fn lay_anew(&self) -> Result<()> {
        self.host.ip("link delete eth0")?;
        self.host
            .ip(&format!("link add eth0 type veth peer name far0 netns {}", self.from.name()))?;
        Ok(())
    }

    /// Brings such a wire up.
    fn bring_up(&self) -> Result<()> {
        self.host.ip_batch(
            "link set eth0 address 02:00:00:00:00:01
             addr add 198.18.0.1/16 dev eth0
             link set eth0 up",
        )?;
        self.from.ip("link set far0 up").map(drop)
    }

    fn flood(&self, protocol: u8) -> Result<Flood> {
        let packet = Packet {
            hardware: [0x02, 0, 0, 0, 0, 0x01],
            source: SOURCES,
            sources_log2: 16,
            destination: HOST,
            protocol,
            port: PORT,
        };
        Flood::new(self.from.ifindex("far0")?, &packet)
    }

    /// IPv4 packets that reached the host's stack.
    fn received(&self) -> Result<u64> {
        let text = self.host.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
        let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
        let names = lines.next().context("names of the counters")?.split(' ');
        let values = lines.next().context("values of the counters")?.split(' ');
        let (_, value) =
            names.zip(values).find(|(name, _)| *name == "InReceives").context("no InReceives")?;
        Ok(value.parse()?)
    }
}

/// Sends bursts, `work` beside them until they are sent; returns how many packets were.
fn flooded<T: Send>(
    wire: &Wire,
    flood: &Flood,
    bursts: u32,
    work: impl FnOnce(&AtomicBool) -> Result<T> + Send,
) -> Result<(u64, T)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| work(&stop));
        let outcome = (0..bursts).try_for_each(|_| flood.send(&wire.from, BURST).map(drop));
        stop.store(true, Ordering::Relaxed);
        let worked = worker.join().expect("it does not panic");
        outcome.and(worked).map(|worked| (u64::from(BURST * bursts), worked))
    })
}

/// The program that a status's daemon has pinned.
fn pinned_program(status: &GuardStatus) -> Result<OwnedFd> {
    Ok(sys::object_open(&Path::new(&status.pins).join("programs/guard_frags"))?)
}

/// Restarts the daemon, and swaps the programs of the last two in the link, until told to stop.
fn replace(wire: &Wire, setup: &Setup, first: OwnedFd, stop: &AtomicBool) -> Result<(u64, u64)> {
    let (mut restarts, mut swaps) = (0, 0);
    let mut before = first;
    while !stop.load(Ordering::Relaxed) {
        let (mut holder, status) = Holder::start(&wire.host, setup)?;
        holder.kill();
        restarts += 1;
        let after = pinned_program(&status)?;
        let ifindex = interface(&status, "eth0").ifindex.to_string();
        let link = sys::object_open(&Path::new(&status.pins).join("links").join(ifindex))?;
        for _ in 0..10 {
            for program in [&before, &after] {
                sys::link_update(link.as_fd(), program.as_fd())?;
                swaps += 1;
            }
        }
        before = after;
    }
    Ok((restarts, swaps))
}

fn leak_test(protocol: u8, target: u64) -> Result<()> {
    let wire = Wire::new()?;
    let scratch = Scratch::new("leak")?;
    let bpffs = scratch.mount_bpffs()?;
    let setup = Setup::new(&bpffs, "");
    let flood = wire.flood(protocol)?;
    let (mut holder, status) = Holder::start(&wire.host, &setup)?;

    // What is allowed does arrive, and is counted as received.
    let all = entries(&format!("{SOURCES}/16"));
    holder.ask(&Request::Replace(all))?;
    let received = wire.received()?;
    flood.send(&wire.from, 64)?;
    wait::until("what is allowed", || (wire.received().ok()? == received + 64).then_some(()));
    holder.ask(&Request::Replace(Vec::new()))?;
    holder.kill();

    let received = wire.received()?;
    let (mut sent, mut judged, mut replaced) = (0, 0, (0, 0));
    while judged < target {
        let first = pinned_program(&status)?;
        let (more, outcome) =
            flooded(&wire, &flood, 10, |stop| replace(&wire, &setup, first, stop))?;
        sent += more;
        replaced = (replaced.0 + outcome.0, replaced.1 + outcome.1);
        let (_holder, status) = Holder::start(&wire.host, &setup)?;
        judged = packets(&status, "not_listed");
    }
    let leaked = wire.received()? - received;
    let (restarts, swaps) = replaced;
    println!("{sent} sent, {judged} judged, {leaked} leaked; {restarts} restarts, {swaps} swaps");
    assert_eq!(leaked, 0);
    assert!(judged <= sent, "{judged} of {sent}");
    assert!(restarts >= 3 && swaps >= 60, "{restarts} restarts, {swaps} swaps");
    Ok(())
}

#[test]
fn no_packet_leaks_while_the_program_is_replaced() -> Result<()> {
    require_root!();
    leak_test(UDP, if skip::all() { JUDGED_ALL } else { JUDGED })
}

#[test]
fn no_segment_leaks_while_the_program_is_replaced() -> Result<()> {
    require_root!();
    leak_test(TCP, if skip::all() { JUDGED_ALL } else { JUDGED })
}

/// Lists that name none of the sources: short ones, and some in tables of their own.
fn lists() -> Vec<Vec<Entry>> {
    let hosts = |count: u32| -> Vec<Entry> {
        let address = |n: u32| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + n));
        let entry = |n| Entry::new(host(address(n)), Action::Allow, Origin::File);
        (0..count).map(entry).collect()
    };
    let more = entries("198.18.64.0/18,198.20.0.0/14,2001:db8::/32");
    vec![Vec::new(), hosts(3), hosts(5_000), [hosts(20), more.clone()].concat(), hosts(6_000), more]
}

#[test]
fn no_packet_leaks_while_the_list_is_replaced() -> Result<()> {
    require_root!();
    let wire = Wire::new()?;
    let scratch = Scratch::new("leak")?;
    let setup = Setup::new(&scratch.mount_bpffs()?, "");
    let flood = wire.flood(UDP)?;
    let (mut holder, _) = Holder::start(&wire.host, &setup)?;
    let target = if skip::all() { JUDGED_ALL } else { JUDGED };
    let received = wire.received()?;
    let (mut sent, mut judged, mut replaced) = (0, 0, 0);
    while judged < target {
        let (more, lists) = flooded(&wire, &flood, 10, |stop| {
            let mut replaced = 0;
            for list in lists().into_iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                holder.ask(&Request::Replace(list))?;
                replaced += 1;
            }
            Ok(replaced)
        })?;
        (sent, replaced) = (sent + more, replaced + lists);
        judged = packets(&holder.status(), "not_listed");
    }
    let leaked = wire.received()? - received;
    println!("{sent} sent, {judged} judged, {leaked} leaked; {replaced} lists");
    assert_eq!(leaked, 0);
    assert!(judged <= sent && replaced >= 6, "{judged} of {sent}, {replaced} lists");
    Ok(())
}

/// An interface that was made anew is guarded before it is up: here by whoever brings it up.
#[test]
fn no_packet_leaks_through_an_interface_that_was_made_anew() -> Result<()> {
    require_root!();
    const BURSTS: u32 = 4;
    let wire = Wire::new()?;
    let scratch = Scratch::new("leak")?;
    let setup = Setup::new(&scratch.mount_bpffs()?, "");
    let (mut holder, _) = Holder::start(&wire.host, &setup)?;
    let target = if skip::all() { JUDGED_ALL } else { JUDGED / 4 };
    let received = wire.received()?;
    let (mut sent, mut judged, mut wires) = (0, 0, 0);
    while judged < target {
        wire.lay_anew()?;
        holder.event("interface eth0 is guarded now");
        wire.bring_up()?;
        wires += 1;
        let flood = wire.flood(UDP)?;
        sent += flooded(&wire, &flood, BURSTS, |_| Ok(()))?.0;
        judged = packets(&holder.status(), "not_listed");
    }
    let leaked = wire.received()? - received;
    println!("{sent} sent, {judged} judged, {leaked} leaked; {wires} wires");
    assert_eq!(leaked, 0);
    assert!(judged <= sent && wires >= 2, "{judged} of {sent} by {wires} wires");
    Ok(())
}
