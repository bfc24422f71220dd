//! A killed daemon leaves a guarded port, and the next one takes the guard over without a gap.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use session_tests::client::{Client, REFUSAL_TIMEOUT, REPLY_TIMEOUT, is_timeout};
use session_tests::require_root;
use session_tests::sessiond::{PORT, Setup};
use session_tests::topology::{Host, Topology};
use session_tests::wait::{self, EndOnDrop};

/// Datagrams that the stranger sends at a closed port at most, whatever the daemon does.
const DATAGRAMS_MAX: usize = 200_000;

fn playground() -> (Topology, Setup) {
    let topology = Topology::new(1).unwrap();
    let setup = Setup::guarded().unwrap().arg(format!("--allow={}", topology.allow_argument()));
    (topology, setup)
}

#[test]
fn after_kill_9_a_plain_listener_on_the_port_hears_allowed_hosts_only() {
    require_root!();
    let (topology, setup) = playground();
    let cache = &topology.cache;
    let mut daemon = setup.start(Some(&cache.namespace)).unwrap();
    daemon.process.kill();
    for address in cache.addresses() {
        let listener = cache.run(|| listener_once_free(address));
        let target = SocketAddr::new(address, PORT);
        let refused =
            topology.stranger.run(|| TcpStream::connect_timeout(&target, REFUSAL_TIMEOUT));
        assert!(is_timeout(refused.as_ref().unwrap_err()), "{address}: {refused:?}");
        let allowed =
            topology.allowed[0].run(|| TcpStream::connect_timeout(&target, REPLY_TIMEOUT));
        assert!(allowed.is_ok(), "{address}: {allowed:?}");
        listener.set_nonblocking(true).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert!(topology.allowed[0].addresses().contains(&peer.ip()), "{peer}");
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn the_next_daemon_adopts_the_link_and_not_one_datagram_slips_through() {
    require_root!();
    let (topology, setup) = playground();
    let cache = &topology.cache;
    // A socket on the guarded UDP port, open all the while, hears what the guard lets through.
    let ears: Vec<_> = cache
        .addresses()
        .map(|address| cache.run(|| UdpSocket::bind((address, PORT)).unwrap()))
        .into();
    let mut daemon = setup.start(Some(&cache.namespace)).unwrap();
    let link = daemon.interface("eth0").unwrap()["link_id"].clone();
    assert!(link.is_u64(), "{link}");

    let end = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let _end = EndOnDrop(&end);
        let floods: Vec<_> = cache
            .addresses()
            .map(|address| {
                let (stranger, end) = (&topology.stranger, &end);
                scope.spawn(move || flood(stranger, address, end))
            })
            .into();
        for _ in 0..3 {
            let before = daemon.dropped().unwrap();
            wait::until("the flood", || (daemon.dropped().unwrap() > before + 50).then_some(()));
            daemon.process.kill();
            daemon = setup.start(Some(&cache.namespace)).unwrap();
            assert_eq!(daemon.interface("eth0").unwrap()["link_id"], link, "another link");
        }
        end.store(true, Ordering::Relaxed);
        floods.into_iter().map(|flood| flood.join().unwrap()).sum::<usize>()
    });

    assert!(sent > 150, "only {sent} datagrams were sent");
    for ear in ears {
        ear.set_nonblocking(true).unwrap();
        let heard = ear.recv_from(&mut [0; 64]);
        assert_eq!(heard.unwrap_err().kind(), ErrorKind::WouldBlock, "of {sent} one was heard");
    }
    // The daemon that adopted the guard also serves.
    let allowed = &topology.allowed[0];
    let mut client = allowed.run(|| Client::connect(cache.v6.into(), PORT)).unwrap();
    assert_eq!(client.set("a", b"1").unwrap(), "STORED");
}

#[test]
fn a_daemon_that_is_asked_to_end_leaves_the_port_guarded_too() {
    require_root!();
    let (topology, setup) = playground();
    let cache = &topology.cache;
    let mut daemon = setup.start(Some(&cache.namespace)).unwrap();
    daemon.process.signal(nix::sys::signal::Signal::SIGTERM);
    let status = daemon.process.wait(wait::PATIENCE).expect("SIGTERM ends it");
    assert!(status.success(), "{status}: {}", daemon.process.log());
    let _listener = cache.run(|| listener_once_free(cache.v4.into()));
    let target = SocketAddr::new(cache.v4.into(), PORT);
    let refused = topology.stranger.run(|| TcpStream::connect_timeout(&target, REFUSAL_TIMEOUT));
    assert!(is_timeout(&refused.unwrap_err()));
}

/// Binds the port as soon as the killed daemon's other process has let go of it.
fn listener_once_free(address: IpAddr) -> TcpListener {
    wait::until("the port to be free", || TcpListener::bind((address, PORT)).ok())
}

/// Sends datagrams to the guarded port until told to end; how many.
fn flood(from: &Host, to: IpAddr, end: &AtomicBool) -> usize {
    from.run(|| {
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        let mut sent = 0;
        while sent < DATAGRAMS_MAX && !end.load(Ordering::Relaxed) {
            // A full queue of the device is no failure of the test: this one is not counted.
            sent += usize::from(socket.send_to(b"stranger", (to, PORT)).is_ok());
        }
        sent
    })
}
