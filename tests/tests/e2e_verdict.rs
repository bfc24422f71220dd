//! Allowed hosts reach the daemon and the stranger does not: both families, TCP and UDP, in
//! native mode, and only on the guarded port.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use session_tests::client::{Client, REFUSAL_TIMEOUT, REPLY_TIMEOUT, is_refusal, is_timeout};
use session_tests::require_root;
use session_tests::sessiond::{PORT, Setup};
use session_tests::topology::{Host, Topology};
use session_tests::wait;

/// A playground and the set-up of a daemon that allows its allowed hosts.
fn playground(allowed: u8) -> (Topology, Setup) {
    let topology = Topology::new(allowed).unwrap();
    let setup = Setup::guarded()
        .unwrap()
        .arg("--guard-mode=native")
        .arg(format!("--allow={}", topology.allow_argument()));
    (topology, setup)
}

#[test]
fn allowed_hosts_are_served_and_the_stranger_times_out_over_both_families() {
    require_root!();
    let (topology, setup) = playground(2);
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    for address in topology.cache.addresses() {
        for host in &topology.allowed {
            let value = format!("{} over {address}", host.role);
            let mut client = host.run(|| Client::connect(address, PORT)).unwrap();
            assert_eq!(client.set(&host.role, value.as_bytes()).unwrap(), "STORED");
            assert_eq!(client.get(&host.role).unwrap().unwrap(), value.as_bytes());
        }
        let before = daemon.dropped().unwrap();
        let refused =
            topology.stranger.run(|| Client::connect_within(address, PORT, REFUSAL_TIMEOUT));
        // Silence and not a reset: the packet has not met the network stack.
        assert!(is_timeout(refused.as_ref().unwrap_err()), "{address}: {refused:?}");
        assert!(daemon.dropped().unwrap() > before, "{address}: the guard has not counted it");
    }
    let interface = daemon.interface("eth0").unwrap();
    assert_eq!(interface["state"], "guarded", "{interface}");
    assert!(interface["mode"].as_str().unwrap().starts_with("native"), "{interface}");
    assert_eq!(interface["pinned"], true, "{interface}");
}

#[test]
fn the_daemons_own_host_is_served_over_its_loopback() {
    require_root!();
    let (topology, setup) = playground(1);
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    assert_eq!(daemon.client().set("own", b"1").unwrap(), "STORED");
    let mut client = daemon.client_at("::1".parse().unwrap());
    assert_eq!(client.get("own").unwrap().unwrap(), b"1");
}

#[test]
fn a_datagram_to_the_guarded_port_arrives_from_allowed_hosts_only() {
    require_root!();
    let (topology, setup) = playground(2);
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    for address in topology.cache.addresses() {
        // The daemon serves no UDP, so a plain socket stands where its socket would.
        let socket = topology.cache.run(|| UdpSocket::bind((address, PORT))).unwrap();
        let before = daemon.dropped().unwrap();
        for _ in 0..10 {
            send(&topology.stranger, address, b"stranger");
        }
        // Counted is dropped: what was going to arrive has arrived.
        wait::until("10 datagrams in the guard's counters", || {
            (daemon.dropped().unwrap() >= before + 10).then_some(())
        });
        for host in &topology.allowed {
            send(host, address, host.role.as_bytes());
        }
        socket.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
        for host in &topology.allowed {
            let (text, from) = receive(&socket).unwrap();
            assert_eq!(text, host.role);
            assert!(host.addresses().contains(&from), "{from}");
        }
        socket.set_nonblocking(true).unwrap();
        assert_eq!(receive(&socket).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn other_ports_and_other_protocols_answer_the_stranger_as_ever() {
    require_root!();
    let (topology, setup) = playground(1);
    let _daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    for address in topology.cache.addresses() {
        let closed = topology
            .stranger
            .run(|| TcpStream::connect_timeout(&SocketAddr::new(address, PORT + 1), REPLY_TIMEOUT));
        assert!(is_refusal(&closed.unwrap_err()), "a closed port must answer with a reset");
        let listener = topology.cache.run(|| TcpListener::bind((address, 0))).unwrap();
        let open = listener.local_addr().unwrap();
        topology.stranger.run(|| TcpStream::connect_timeout(&open, REPLY_TIMEOUT)).unwrap();
    }
}

#[test]
fn without_the_kernel_the_daemon_itself_resets_the_stranger() {
    require_root!();
    let (topology, setup) = playground(1);
    let setup = setup.arg("--guard=user");
    let _daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    for address in topology.cache.addresses() {
        let mut allowed = topology.allowed[0].run(|| Client::connect(address, PORT)).unwrap();
        assert!(allowed.command("version").unwrap().starts_with("VERSION "));
        // The kernel completes the handshake; the daemon reads nothing and resets.
        let refused = topology.stranger.run(|| {
            let mut client = Client::connect_within(address, PORT, REPLY_TIMEOUT)?;
            client.command("version")
        });
        let error = refused.unwrap_err();
        assert!(is_refusal(&error) || error.kind() == ErrorKind::UnexpectedEof, "{error:?}");
    }
}

fn send(from: &Host, to: IpAddr, text: &[u8]) {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    from.run(|| UdpSocket::bind((any, 0))).unwrap().send_to(text, (to, PORT)).unwrap();
}

fn receive(socket: &UdpSocket) -> std::io::Result<(String, IpAddr)> {
    let mut bytes = [0; 64];
    let (len, from) = socket.recv_from(&mut bytes)?;
    Ok((String::from_utf8_lossy(&bytes[..len]).into_owned(), from.ip()))
}
