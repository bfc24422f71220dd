//! The list changes at once, both ways, while clients hammer the daemon and notice nothing.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use session_tests::client::{Client, REFUSAL_TIMEOUT, REPLY_TIMEOUT};
use session_tests::require_root;
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::{Host, Topology};
use session_tests::wait::{self, EndOnDrop};

/// Clients that hammer while the list changes.
const CLIENTS: u8 = 4;

/// How often the stranger is let in and shut out again.
const ROUNDS: usize = 12;

#[test]
fn allow_and_deny_take_effect_at_once_while_four_clients_hammer() {
    require_root!();
    let topology = Topology::new(CLIENTS).unwrap();
    let setup = Setup::guarded().unwrap().arg(format!("--allow={}", topology.allow_argument()));
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    let (end, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for host in &topology.allowed {
            scope.spawn(|| hammer(host, &topology.cache, &end, &done));
        }
        let _end = EndOnDrop(&end);
        for round in 0..ROUNDS {
            let before = done.load(Ordering::Relaxed);
            let by = if round % 2 == 0 { "deny" } else { "remove" };
            let_in_and_shut_out(&topology, &daemon, by);
            wait::until("requests of the clients", || {
                (done.load(Ordering::Relaxed) > before + 100).then_some(())
            });
        }
    });
}

#[test]
fn a_change_survives_kill_9_and_restart() {
    require_root!();
    let topology = Topology::new(2).unwrap();
    let [web1, web2] = topology.allowed.as_slice() else { panic!("two hosts were asked for") };
    let setup = Setup::guarded().unwrap().arg(format!("--allow={}", web1.v4));
    let mut daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    daemon.ctl(&["allow", &web2.v4.to_string()]).unwrap();
    daemon.ctl(&["deny", &web1.v4.to_string()]).unwrap();
    daemon.process.kill();
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    assert!(reaches(web2, &topology.cache), "what sessionctl allowed");
    assert!(!reaches(web1, &topology.cache), "what sessionctl denied, though --allow names it");
    drop(daemon);
}

/// One round: the stranger is allowed, connects, is refused again, and loses its connection.
fn let_in_and_shut_out(topology: &Topology, daemon: &Sessiond<'_>, by: &str) {
    let (cache, stranger) = (&topology.cache, &topology.stranger);
    let (v4, v6) = (stranger.v4.to_string(), stranger.v6.to_string());
    assert!(!reaches(stranger, cache), "before it is allowed");
    daemon.ctl(&["allow", &v4, &v6]).unwrap();
    let mut connections = cache.addresses().map(|address| {
        let connected = stranger.run(|| Client::connect_within(address, PORT, REPLY_TIMEOUT));
        let mut client = connected.unwrap();
        assert_eq!(client.set("stranger", b"in").unwrap(), "STORED");
        client
    });
    daemon.ctl(&[by, &v4, &v6]).unwrap();
    assert!(!reaches(stranger, cache), "after {by}");
    // The reset passes the guard, which judges what comes in only; what was sent does not.
    for client in &mut connections {
        client.closed().unwrap_or_else(|error| panic!("still connected after {by}: {error}"));
    }
}

fn reaches(host: &Host, cache: &Host) -> bool {
    host.run(|| Client::connect_within(cache.v4.into(), PORT, REFUSAL_TIMEOUT)).is_ok()
}

/// Sets and gets until told to end, on one connection; every reply must be right.
fn hammer(host: &Host, cache: &Host, end: &AtomicBool, done: &AtomicUsize) {
    let mut client = host.run(|| Client::connect(cache.v4.into(), PORT)).unwrap();
    let mut round = 0_u64;
    while !end.load(Ordering::Relaxed) {
        let value = round.to_string();
        assert_eq!(client.set(&host.role, value.as_bytes()).unwrap(), "STORED");
        assert_eq!(client.get(&host.role).unwrap().unwrap(), value.as_bytes());
        done.fetch_add(2, Ordering::Relaxed);
        round += 1;
    }
}
