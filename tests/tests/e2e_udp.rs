//! Datagrams to a daemon that serves them: an allowed host's are answered, a stranger's are
//! neither answered nor seen, and without the kernel's guard seen and not answered.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::net::{IpAddr, SocketAddr};

use session_tests::datagram::DatagramClient;
use session_tests::require_root;
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::{Host, Topology};
use session_tests::wait;

const REQUEST: &[u8] = b"\0\0\0\0\0\x01\0\0get key\r\n";

fn playground() -> (Topology, Setup) {
    let topology = Topology::new(1).unwrap();
    let setup = Setup::guarded()
        .unwrap()
        .args(["-U", "11211"])
        .arg("--guard-mode=native")
        .arg(format!("--allow={}", topology.allow_argument()));
    (topology, setup)
}

fn asker(host: &Host, address: IpAddr) -> DatagramClient {
    host.run(|| DatagramClient::new(SocketAddr::new(address, PORT))).unwrap()
}

fn count(daemon: &Sessiond<'_>, topic: &str, name: &str) -> u64 {
    daemon.client().stats(topic).unwrap()[name].parse().unwrap()
}

#[test]
fn an_allowed_host_is_answered_and_the_stranger_not_even_seen() {
    require_root!();
    let (topology, setup) = playground();
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    daemon.client().set("key", b"value").unwrap();
    for address in topology.cache.addresses() {
        let dropped = daemon.dropped().unwrap();
        let stranger = asker(&topology.stranger, address);
        for _ in 0..10 {
            stranger.send(REQUEST).unwrap();
        }
        assert!(stranger.is_silent().unwrap(), "{address}: the stranger was answered");
        wait::until("10 datagrams in the guard's counters", || {
            (daemon.dropped().unwrap() >= dropped + 10).then_some(())
        });
        let mut allowed = asker(&topology.allowed[0], address);
        assert_eq!(allowed.text("get key\r\n").unwrap(), "VALUE key 0 5\r\nvalue\r\nEND\r\n");
    }
    assert_eq!(count(&daemon, "guard", "udp_rejected_by_list"), 0, "the daemon saw a stranger");
    assert_eq!(count(&daemon, "", "get_hits"), 2);
}

#[test]
fn without_the_kernel_the_daemon_itself_leaves_the_stranger_unanswered() {
    require_root!();
    let (topology, setup) = playground();
    let setup = setup.arg("--guard=user");
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    daemon.client().set("key", b"value").unwrap();
    for address in topology.cache.addresses() {
        let before = count(&daemon, "guard", "udp_rejected_by_list");
        let stranger = asker(&topology.stranger, address);
        stranger.send(REQUEST).unwrap();
        assert!(stranger.is_silent().unwrap(), "{address}: the stranger was answered");
        assert_eq!(count(&daemon, "guard", "udp_rejected_by_list"), before + 1);
        let mut allowed = asker(&topology.allowed[0], address);
        assert_eq!(allowed.text("get key\r\n").unwrap(), "VALUE key 0 5\r\nvalue\r\nEND\r\n");
    }
    assert_eq!(count(&daemon, "", "get_hits"), 2);
}

#[test]
fn a_source_that_is_denied_is_no_longer_answered() {
    require_root!();
    let (topology, setup) = playground();
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    let host = &topology.allowed[0];
    let mut udp = asker(host, topology.cache.v4.into());
    assert_eq!(udp.text("get none\r\n").unwrap(), "END\r\n");
    daemon.ctl(&["deny", &host.v4.to_string()]).unwrap();
    udp.send(REQUEST).unwrap();
    assert!(udp.is_silent().unwrap(), "a denied host was answered");
    daemon.ctl(&["allow", &host.v4.to_string()]).unwrap();
    assert_eq!(udp.text("get none\r\n").unwrap(), "END\r\n");
}
