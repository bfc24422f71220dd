//! The list in the kernel: changes under load, deadlines, counters, and several daemons at once.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData};
use session_common::guard::{ACTION_ALLOW, HostKey4, ListWord, Rule};
use session_daemon::allowlist::{Action, Entry, Origin, host};
use session_daemon::clock::Now;
use session_daemon::guard::lists::Protocol;
use session_daemon::guard::status::InterfaceState;
use session_tests::guard_bed::{Bed, EVERY_WAY, PORT, interface, packets};
use session_tests::guard_holder::{Request, Setup, entries};
use session_tests::topology::Host;
use session_tests::{require_root, wait};

/// A client that connects over and over: how often it got through and how often not.
#[derive(Default)]
struct Hammer {
    reached: AtomicU64,
    refused: AtomicU64,
}

impl Hammer {
    fn run(&self, from: &Host, target: SocketAddr, patience: Duration, stop: &AtomicBool) {
        from.run(|| {
            while !stop.load(Ordering::Relaxed) {
                match TcpStream::connect_timeout(&target, patience) {
                    Ok(_) => self.reached.fetch_add(1, Ordering::Relaxed),
                    Err(error) if error.kind() == ErrorKind::TimedOut => {
                        self.refused.fetch_add(1, Ordering::Relaxed)
                    }
                    Err(error) => panic!("{} to {target}: {error}", from.role),
                };
            }
        });
    }

    fn counts(&self) -> (u64, u64) {
        (self.reached.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

/// Accepts and drops connections until told to stop.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if wait::readable(listener.as_fd(), Duration::from_millis(50)) {
            drop(listener.accept());
        }
    }
}

/// Lets the threads of a scope end also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn lists_change_under_four_clients_without_one_wrong_verdict() -> Result<()> {
    require_root!();
    let bed = Bed::new(2)?;
    let (cache, stranger) = (&bed.topology.cache, &bed.topology.stranger);
    // The stranger is on every list, as denied: so whatever is dropped because no entry names it
    // comes from an allowed host, and not even one packet may be.
    let with_stranger = |allowed: &str| -> Vec<Entry> {
        let denied = stranger.addresses().map(host);
        let denied = denied.map(|prefix| Entry::new(prefix, Action::Deny, Origin::Config));
        entries(allowed).into_iter().chain(denied).collect()
    };
    let own = bed.topology.allow_argument();
    let setup = Setup { entries: with_stranger(&own), ..bed.setup() };
    let (mut holder, before) = bed.start(&setup)?;
    let listeners = cache
        .run(|| cache.addresses().map(|address| TcpListener::bind((address, PORT)).expect("free")));
    let (stop, closed) = (AtomicBool::new(false), AtomicBool::new(false));
    let allowed: [Hammer; 4] = Default::default();
    let denied: [Hammer; 2] = Default::default();
    thread::scope(|servers| {
        // Connections are taken until the last client is done.
        let _closed_at_the_end = StopOnDrop(&closed);
        for listener in &listeners {
            servers.spawn(|| serve(listener, &closed));
        }
        thread::scope(|scope| -> Result<()> {
            let _stopped_at_the_end = StopOnDrop(&stop);
            let stop = &stop;
            for (idx, hammer) in allowed.iter().enumerate() {
                let from = &bed.topology.allowed[idx / 2];
                let target = listeners[idx % 2].local_addr()?;
                scope.spawn(move || hammer.run(from, target, Duration::from_secs(10), stop));
            }
            for (hammer, listener) in denied.iter().zip(&listeners) {
                let target = listener.local_addr()?;
                scope.spawn(move || hammer.run(stranger, target, Duration::from_millis(50), stop));
            }
            for round in 0..60_u32 {
                // The allowed hosts are on every list, as hosts or by a prefix.
                let list = match round % 3 {
                    0 => format!("{own},198.18.{}.0/24", round + 1),
                    1 => format!("198.18.0.8/29,2001:db8::10/124,198.18.77.{round}"),
                    _ => own.clone(),
                };
                holder.ask(&Request::Replace(with_stranger(&list)))?;
                let other = entries(&format!("198.18.99.{}", round + 1)).remove(0);
                holder.ask(&Request::Insert(other.clone()))?;
                holder.ask(&Request::Remove(other.prefix))?;
            }
            // A quick machine is through the lists before the clients have tried often enough.
            wait::until("attempts of every client", || {
                let attempts = |hammer: &Hammer| hammer.counts().0 + hammer.counts().1;
                let enough = allowed.iter().all(|hammer| attempts(hammer) > 100)
                    && denied.iter().all(|hammer| attempts(hammer) > 20);
                enough.then_some(())
            });
            Ok(())
        })
    })?;
    let after = holder.status();
    for hammer in &allowed {
        let (reached, refused) = hammer.counts();
        assert!(refused == 0 && reached > 20, "allowed: {reached} reached, {refused} refused");
    }
    for hammer in &denied {
        let (reached, refused) = hammer.counts();
        assert!(reached == 0 && refused > 20, "stranger: {reached} reached, {refused} refused");
    }
    let grown = |reason: &str| packets(&after, reason) - packets(&before, reason);
    assert_eq!((grown("not_listed"), grown("deadline")), (0, 0), "{:?}", after.reasons);
    assert!(grown("deny_entry") > 40 && grown("allowed") > 400, "{:?}", after.reasons);
    Ok(())
}

#[test]
fn entries_come_into_force_at_once_and_the_longest_wins() -> Result<()> {
    require_root!();
    let bed = Bed::new(0)?;
    let sockets = bed.listen()?;
    let (mut holder, _) = bed.start(&bed.setup())?;
    let stranger = &bed.topology.stranger;
    let deny = |prefix: &str| Entry { action: Action::Deny, ..entries(prefix).remove(0) };
    assert_eq!(sockets.reached_by(stranger), []);
    for prefix in ["198.18.0.64/26", "2001:db8::/64"] {
        holder.ask(&Request::Insert(entries(prefix).remove(0)))?;
    }
    assert_eq!(sockets.reached_by(stranger), EVERY_WAY);
    for address in stranger.addresses() {
        holder.ask(&Request::Insert(deny(&address.to_string())))?;
    }
    assert_eq!(sockets.reached_by(stranger), []);
    let mut ways = Vec::new();
    for address in stranger.addresses() {
        holder.ask(&Request::Remove(host(address)))?;
        ways.push(sockets.reached_by(stranger).len());
    }
    assert_eq!(ways, [2, 4]);
    holder.ask(&Request::Replace(Vec::new()))?;
    assert_eq!(sockets.reached_by(stranger), []);
    Ok(())
}

#[test]
fn a_deadline_ends_an_entry_although_no_daemon_runs() -> Result<()> {
    require_root!();
    let bed = Bed::new(0)?;
    let sockets = bed.listen()?;
    let stranger = &bed.topology.stranger;
    let (mut holder, _) = bed.start(&bed.setup())?;
    let deadline_ns = Now::sample().boottime_ns + 6_000_000_000;
    for entry in entries(&format!("{},2001:db8::/64", stranger.v4)) {
        holder.ask(&Request::Insert(Entry { deadline_ns: Some(deadline_ns), ..entry }))?;
    }
    holder.kill();
    assert_eq!(sockets.reached_by(stranger), EVERY_WAY, "within six seconds");
    wait::until("the deadline", || (Now::sample().boottime_ns > deadline_ns).then_some(()));
    assert_eq!(sockets.reached_by(stranger), []);
    Ok(())
}

#[test]
fn what_a_crash_left_of_a_next_list_never_comes_into_force() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, first) = bed.start(&bed.setup())?;
    holder.kill();
    // As if the process had died while it wrote the next list.
    let path = format!("{}/maps/HOSTS4", first.pins);
    let mut hosts = HashMap::<_, HostKey4, Rule>::try_from(Map::HashMap(MapData::from_pin(path)?))?;
    let stale = HostKey4 {
        list: ListWord::new(0, first.generation + 1),
        address: bed.topology.stranger.v4.octets(),
    };
    hosts.insert(stale, Rule { action: ACTION_ALLOW, ..Rule::default() }, 0)?;
    let (mut holder, second) = bed.start(&bed.setup())?;
    bed.assert_guarded(&sockets);
    assert_ne!(second.generation, first.generation + 1);
    assert!(hosts.get(&stale, 0).is_err(), "the entry is swept");
    assert_eq!(hosts.keys().count(), 1, "the list before is swept");
    holder.ask(&Request::Replace(entries(&bed.topology.allow_argument())))?;
    bed.assert_guarded(&sockets);
    assert_eq!(hosts.keys().count(), 1);
    Ok(())
}

/// A second daemon on the same guard: another list, other ports.
fn other(bed: &Bed, allowed: &str) -> Setup {
    Setup {
        list: "other.one".to_owned(),
        endpoints: vec![(Protocol::Tcp, PORT + 1)],
        ..Setup::new(&bed.bpffs, allowed)
    }
}

fn tcp_reaches(from: &Host, to: &Host, port: u16) -> Result<bool> {
    let listener = to.run(|| TcpListener::bind((to.v4, port)))?;
    let target = listener.local_addr()?;
    Ok(from.run(|| TcpStream::connect_timeout(&target, Duration::from_millis(400))).is_ok())
}

#[test]
fn two_daemons_share_a_guard_and_not_their_lists() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (cache, web, stranger) =
        (&bed.topology.cache, &bed.topology.allowed[0], &bed.topology.stranger);
    let (mut first, before) = bed.start(&bed.setup())?;
    let second_setup = other(&bed, &stranger.v4.to_string());
    let (mut second, status) = bed.start(&second_setup)?;
    assert_eq!(interface(&status, "eth0").link_id, interface(&before, "eth0").link_id);
    bed.assert_guarded(&sockets);
    assert!(tcp_reaches(stranger, cache, PORT + 1)?);
    assert!(!tcp_reaches(web, cache, PORT + 1)?);

    // The first daemon does not fight over the program.
    wait::within(Duration::from_secs(1), || None::<()>);
    assert_eq!(first.events(), Vec::<String>::new());
    assert_eq!(second.events(), Vec::<String>::new());

    // Changes of one leave the other alone, and so does its death.
    second.ask(&Request::Replace(Vec::new()))?;
    assert!(!tcp_reaches(stranger, cache, PORT + 1)?);
    bed.assert_guarded(&sockets);
    first.kill();
    bed.assert_guarded(&sockets);
    let (_first, again) = bed.start(&bed.setup())?;
    assert_eq!(interface(&again, "eth0").link_id, interface(&before, "eth0").link_id);
    assert!(!tcp_reaches(stranger, cache, PORT + 1)?, "the other's port is still guarded");
    second.ask(&Request::Insert(entries(&stranger.v4.to_string()).remove(0)))?;
    assert!(tcp_reaches(stranger, cache, PORT + 1)?);
    Ok(())
}

#[test]
fn two_daemons_cannot_have_one_name_one_port_or_two_settings() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut first, _) = bed.start(&bed.setup())?;
    let error = |setup: Setup| bed.start(&setup).unwrap_err().to_string();
    let message = error(Setup { endpoints: vec![(Protocol::Tcp, 1)], ..bed.setup() });
    assert!(message.contains("list `default` already runs"), "{message}");
    let message = error(Setup { endpoints: vec![(Protocol::Udp, PORT)], ..other(&bed, "") });
    assert!(
        message.contains("udp port 11211 is already guarded for the list `default`"),
        "{message}"
    );
    let message = error(Setup { audit: true, ..other(&bed, "") });
    assert!(message.contains("with other settings"), "{message}");
    bed.assert_guarded(&sockets);
    first.kill();
    // A dead daemon's port can be had, and its list no longer judges it.
    let taken = Setup { endpoints: vec![(Protocol::Tcp, PORT)], ..other(&bed, "") };
    let _second = bed.start(&taken)?;
    let ways = sockets.reached_by(&bed.topology.allowed[0]);
    assert_eq!(ways, [(Protocol::Udp, "IPv4"), (Protocol::Udp, "IPv6")]);
    assert_eq!(sockets.reached_by(&bed.topology.stranger), []);
    Ok(())
}

#[test]
fn a_ninth_daemon_buries_a_dead_one_whose_port_stays_closed() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let cache = &bed.topology.cache;
    let (web, stranger) = (&bed.topology.allowed[0], &bed.topology.stranger);
    let setup = |number: u16| Setup {
        list: format!("daemon {number}"),
        endpoints: vec![(Protocol::Tcp, PORT + number)],
        ..bed.setup()
    };
    let mut holders = Vec::new();
    for number in 0..8 {
        holders.push(bed.start(&setup(number))?.0);
    }
    let message = bed.start(&setup(8)).unwrap_err().to_string();
    assert!(message.contains("8 daemons run"), "{message}");
    holders[3].kill();
    assert!(tcp_reaches(web, cache, PORT + 3)?, "a dead daemon's list still judges its port");
    let (_ninth, status) = bed.start(&setup(8))?;
    assert_eq!(interface(&status, "eth0").state, InterfaceState::Guarded);
    assert!(tcp_reaches(web, cache, PORT + 8)?);
    for from in [web, stranger] {
        assert!(!tcp_reaches(from, cache, PORT + 3)?, "{}", from.role);
    }
    Ok(())
}

#[test]
fn a_hundred_thousand_hosts_are_replaced_in_one_step() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let hosts = |first: u32| -> Vec<Entry> {
        let other = (0..100_000_u32).map(move |n| {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + first + n);
            Entry::new(host(address.into()), Action::Allow, Origin::File)
        });
        entries(&bed.topology.allow_argument()).into_iter().chain(other).collect()
    };
    let (mut holder, _) = bed.start(&bed.setup())?;
    for first in [0, 50_000] {
        let status = holder.ask(&Request::Replace(hosts(first)))?;
        assert_eq!(status.entries, 100_002);
        // Counters are for the first entries; there is one for all others together.
        assert_eq!(status.counts.len(), 8191);
        bed.assert_guarded(&sockets);
    }
    let pins = holder.status().pins;
    let short = |name: &str| -> Result<usize> {
        let data = MapData::from_pin(format!("{pins}/maps/{name}"))?;
        let map = HashMap::<_, HostKey4, Rule>::try_from(Map::HashMap(data))?;
        Ok(map.keys().count())
    };
    let long = || -> Result<Vec<usize>> {
        let data = MapData::from_pin(format!("{pins}/maps/LARGE4"))?;
        let places =
            ArrayOfMaps::<_, HashMap<MapData, HostKey4, Rule>>::try_from(Map::ArrayOfMaps(data))?;
        let tables = (0..places.len()).filter_map(|place| places.get(&place, 0).ok());
        Ok(tables.map(|table| table.keys().count()).collect())
    };
    assert_eq!((short("HOSTS4")?, long()?), (0, vec![100_001]), "the lists before are swept");
    holder.ask(&Request::Replace(entries(&bed.topology.allow_argument())))?;
    assert_eq!((short("HOSTS4")?, long()?), (1, vec![]), "a short list takes little");
    bed.assert_guarded(&sockets);
    Ok(())
}
