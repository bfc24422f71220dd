//! The packet generator itself: every packet arrives, whole and with valid checksums.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::EbpfLoader;
use session_tests::attach::{Attachment, Mode, attach};
use session_tests::flood::{self, Flood, Packet, object_path};
use session_tests::netns::Namespace;
use session_tests::packet::UDP;
use session_tests::require_root;

const HARDWARE: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// `from` sends by `far0` to `host`, whose `eth0` is the other end.
fn pair() -> Result<(Namespace, Namespace)> {
    let (from, host) = (Namespace::new("from")?, Namespace::new("host")?);
    host.ip(&format!("link add eth0 type veth peer name far0 netns {}", from.name()))?;
    host.ip_batch(
        "link set eth0 address 02:00:00:00:00:01
         addr add 198.18.0.1/16 dev eth0
         link set eth0 up",
    )?;
    from.ip("link set far0 up")?;
    Ok((from, host))
}

/// A program that passes everything makes the veth end receive redirected frames.
fn receive(host: &Namespace) -> Result<Attachment> {
    let mut ebpf = EbpfLoader::new().load_file(object_path())?;
    host.run(|| attach(&mut ebpf, "bare_pass", "eth0", Mode::Native))
}

#[test]
fn every_packet_reaches_the_socket() -> Result<()> {
    require_root!();
    let (from, host) = pair()?;
    let _attached = receive(&host)?;
    let socket = host.run(|| UdpSocket::bind((HOST, 0)))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let packet = Packet {
        hardware: HARDWARE,
        source: Ipv4Addr::new(198, 18, 16, 0),
        sources_log2: 6,
        destination: HOST,
        protocol: UDP,
        port: socket.local_addr()?.port(),
    };
    let flood = Flood::new(from.ifindex("far0")?, &packet)?;
    let mut arrived = [0; 64];
    from.run(|| -> Result<()> {
        flood::stay_on_this_cpu()?;
        // Few enough at a time for the socket's receive buffer.
        for _ in 0..16 {
            flood.send_here(16)?;
            for _ in 0..16 {
                let mut buffer = [0; 64];
                let (len, source) = socket.recv_from(&mut buffer)?;
                ensure!(len == 18, "a datagram of {len} bytes");
                let IpAddr::V4(source) = source.ip() else { unreachable!("an IPv4 socket") };
                arrived[usize::from(source.octets()[3])] += 1;
            }
        }
        Ok(())
    })?;
    // Each CPU counts the sources through by itself, so a call that the kernel runs on another
    // CPU than the rest repeats 16 sources and leaves 16 others to the next call.
    let even = arrived.iter().all(|count| (3..=5).contains(count));
    assert!(even, "each source sends each 64th packet: {arrived:?}");
    Ok(())
}
