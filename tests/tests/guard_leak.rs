//! A flood of forbidden packets while the program is replaced over and over: not one of them may
//! reach the stack.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result};
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
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut judged, mut replaced) = (0, (0, 0));
    while judged < target {
        stop.store(false, Ordering::Relaxed);
        let first = pinned_program(&status)?;
        let outcome = thread::scope(|scope| -> Result<_> {
            let replacer = scope.spawn(|| replace(&wire, &setup, first, &stop));
            let outcome = (0..10).try_for_each(|_| {
                sent.fetch_add(u64::from(BURST), Ordering::Relaxed);
                flood.send(&wire.from, BURST).map(drop)
            });
            stop.store(true, Ordering::Relaxed);
            let replaced = replacer.join().expect("the replacer does not panic");
            outcome.and(replaced)
        })?;
        replaced = (replaced.0 + outcome.0, replaced.1 + outcome.1);
        let (_holder, status) = Holder::start(&wire.host, &setup)?;
        judged = packets(&status, "not_listed");
    }
    let leaked = wire.received()? - received;
    let sent = sent.into_inner();
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
