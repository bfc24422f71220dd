//! A host with a bare wire: frames are put on it byte by byte, and what reaches the host's
//! sockets is told by the source port that each case has for itself.
//!
//! ```text
//!   host 198.18.0.1, 198.18.0.2     eth0 ------- eth0   far 198.18.0.66
//!   2001:db8::1                                         2001:db8::66
//!     eth1 ------- eth0 behind 198.18.1.5, 2001:db8:1::5 (the host forwards to it)
//! ```
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};
use socket2::{Domain, Protocol, Socket, Type};

use crate::flood::stay_on_this_cpu;
use crate::netns::Namespace;
use crate::packet::{TCP, UDP};
use crate::wait;

/// The host's first address of each family.
pub const HOST: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 18, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// The address of the machine behind the host.
pub const BEHIND: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 18, 1, 5), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5));

/// Addresses at the far end that no machine has, so that nothing there answers a SYN-ACK: one to
/// allow, and a stranger's.
pub const SOURCES: [(Ipv4Addr, Ipv6Addr); 2] = [
    (Ipv4Addr::new(198, 18, 0, 11), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11)),
    (Ipv4Addr::new(198, 18, 0, 77), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77)),
];

/// What reached a socket: whether it was over IPv6, the protocol, and the source port.
pub type Arrival = (bool, u8, u16);

/// The wire and both of its ends.
#[derive(Debug)]
pub struct Wire {
    /// The host.
    pub host: Namespace,
    /// Whoever sends.
    pub far: Namespace,
    behind: Namespace,
    sender: OwnedFd,
}

/// Sockets on one port of one machine, for every address of both families.
#[derive(Debug)]
pub struct Ears<'a> {
    on: &'a Namespace,
    port: u16,
    udp: [Socket; 2],
    _tcp: [Socket; 2],
}

impl Wire {
    /// Three machines. The host takes what a careful one would not: source routes, packets for
    /// 127/8, sources without a way back.
    ///
    /// # Errors
    /// Without root.
    pub fn new() -> Result<Self> {
        let (host, far, behind) =
            (Namespace::new("wired")?, Namespace::new("far")?, Namespace::new("behind")?);
        for setting in ["all", "default"] {
            for (name, value) in [
                ("ipv4/conf", "rp_filter 0"),
                ("ipv4/conf", "accept_source_route 1"),
                ("ipv4/conf", "route_localnet 1"),
                ("ipv6/conf", "accept_source_route 1"),
                ("ipv4/conf", "forwarding 1"),
                ("ipv6/conf", "forwarding 1"),
            ] {
                let (knob, value) = value.split_once(' ').context("a knob and its value")?;
                host.sysctl(&format!("net/{name}/{setting}/{knob}"), value)?;
            }
        }
        host.ip_batch(&format!(
            "link add eth0 address 02:00:00:00:00:01 type veth \
               peer name eth0 address 02:00:00:00:00:02 netns {}
             link add eth1 type veth peer name eth0 netns {}
             addr add 198.18.0.1/24 dev eth0
             addr add 198.18.0.2/24 dev eth0
             addr add 2001:db8::1/64 dev eth0 nodad
             addr add 198.18.1.1/24 dev eth1
             addr add 2001:db8:1::1/64 dev eth1 nodad
             link set eth0 up
             link set eth1 up",
            far.name(),
            behind.name()
        ))?;
        far.ip_batch(
            "addr add 198.18.0.66/24 dev eth0\naddr add 2001:db8::66/64 dev eth0 nodad\n\
             link set eth0 up",
        )?;
        behind.ip_batch(
            "addr add 198.18.1.5/24 dev eth0\naddr add 2001:db8:1::5/64 dev eth0 nodad\n\
             link set eth0 up\nroute add default via 198.18.1.1\n\
             route add default via 2001:db8:1::1",
        )?;
        // Where nobody says what machine has an address, the kernel gives up after three seconds, and
        // forgets what was half open from there: before it was looked for, on a slow machine.
        for (v4, v6) in SOURCES {
            host.ip_batch(&format!(
                "neigh add {v4} lladdr 02:00:00:00:00:02 dev eth0 nud permanent\n\
                 neigh add {v6} lladdr 02:00:00:00:00:02 dev eth0 nud permanent"
            ))?;
        }
        // A way back to every source, so that nothing is held back for want of one; and addresses
        // that are the host's own by routing alone.
        host.ip_batch(
            "route add default via 198.18.0.66\nroute add default via 2001:db8::66\n\
             route add local 198.18.9.0/24 dev lo\nroute add local 2001:db8:9::/64 dev lo",
        )?;
        let sender =
            far.run(|| socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None))?;
        Ok(Self { host, far, behind, sender })
    }

    /// Listens on the host.
    ///
    /// # Errors
    /// When something does already.
    pub fn listen(&self, port: u16) -> Result<Ears<'_>> {
        Ears::new(&self.host, port)
    }

    /// Listens on the machine behind the host.
    ///
    /// # Errors
    /// When something does already.
    pub fn listen_behind(&self, port: u16) -> Result<Ears<'_>> {
        Ears::new(&self.behind, port)
    }

    /// Puts frames on the wire, in this order and handled in it: by one CPU.
    ///
    /// # Errors
    /// When the kernel does not take one.
    pub fn send<'f>(&self, frames: impl Iterator<Item = &'f Vec<u8>> + Send) -> Result<()> {
        self.far.run(|| {
            stay_on_this_cpu()?;
            // Names the device as the address of a packet socket, which has no constructor.
            let device = getifaddrs()?
                .filter(|one| one.interface_name == "eth0")
                .find_map(|one| one.address?.as_link_addr().copied())
                .context("eth0 has no link-layer address")?;
            for frame in frames {
                let sent = sendto(self.sender.as_raw_fd(), frame, &device, MsgFlags::empty())
                    .with_context(|| format!("{} bytes: {frame:02x?}", frame.len()))?;
                ensure!(sent == frame.len(), "sent {sent} of {}", frame.len());
            }
            Ok(())
        })
    }
}

impl<'a> Ears<'a> {
    fn new(on: &'a Namespace, port: u16) -> Result<Self> {
        let open = |domain, kind, protocol| -> Result<Socket> {
            let socket = Socket::new(domain, kind, Some(protocol))?;
            let any: IpAddr = if domain == Domain::IPV4 {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                socket.set_only_v6(true)?;
                Ipv6Addr::UNSPECIFIED.into()
            };
            socket.bind(&SocketAddr::new(any, port).into())?;
            if kind == Type::STREAM {
                // Room for every half-open connection of a run, so that none needs a cookie.
                socket.listen(4096)?;
            } else {
                socket.set_recv_buffer_size(8 << 20)?;
                socket.set_nonblocking(true)?;
            }
            Ok(socket)
        };
        on.sysctl("net/core/somaxconn", "4096")?;
        on.sysctl("net/ipv4/tcp_max_syn_backlog", "4096")?;
        let ears = on.run(|| -> Result<Self> {
            let both = |kind, protocol| -> Result<[Socket; 2]> {
                Ok([open(Domain::IPV4, kind, protocol)?, open(Domain::IPV6, kind, protocol)?])
            };
            let udp = both(Type::DGRAM, Protocol::UDP)?;
            Ok(Self { on, port, udp, _tcp: both(Type::STREAM, Protocol::TCP)? })
        })?;
        // The kernel forgets what is half open to a socket that was closed when it would send
        // the next SYN-ACK, and not before.
        wait::until("the half-open connections of an earlier run to end", || {
            let mut heard = BTreeSet::new();
            (ears.hear(&mut heard).is_err() || heard.is_empty()).then_some(())
        });
        Ok(ears)
    }

    /// Everything that came since the last call or is still half open, once all of `awaited` is
    /// there; gives up when they do not come.
    ///
    /// # Errors
    /// When one of `awaited` does not come, or the sockets fail.
    pub fn heard(&self, awaited: &[Arrival]) -> Result<BTreeSet<Arrival>> {
        let mut heard = BTreeSet::new();
        let all = wait::within(wait::patience(), || {
            self.hear(&mut heard)
                .err()
                .map(Err)
                .or_else(|| awaited.iter().all(|one| heard.contains(one)).then_some(Ok(())))
        });
        all.with_context(|| format!("{awaited:?} did not come, only {heard:?}"))??;
        Ok(heard)
    }

    /// What is there now.
    fn hear(&self, heard: &mut BTreeSet<Arrival>) -> Result<()> {
        for (socket, is_v6) in self.udp.iter().zip([false, true]) {
            let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
            loop {
                match socket.recv_from(&mut buffer) {
                    Ok((_, from)) => {
                        let from = from.as_socket().context("an Internet address")?;
                        heard.insert((is_v6, UDP, from.port()));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // An answer to nobody: none is sent here.
                    Err(error) => return Err(error.into()),
                }
            }
        }
        for (table, is_v6) in [("tcp", false), ("tcp6", true)] {
            let path = format!("/proc/thread-self/net/{table}");
            let table = self.on.run(|| std::fs::read_to_string(&path))?;
            heard.extend(half_open(&table, self.port).map(|from| (is_v6, TCP, from)));
        }
        Ok(())
    }
}

/// Remote ports of the connections to `port` in one of the kernel's tables that got as far as a
/// SYN-ACK (state 03, proc(5)).
fn half_open(table: &str, port: u16) -> impl Iterator<Item = u16> {
    let end = format!(":{port:04X}");
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        let is_ours = local.ends_with(&end) && state == "03";
        is_ours.then(|| u16::from_str_radix(remote.rsplit(':').next()?, 16).ok())?
    })
}

/// How long an answer from the host may take.
const ANSWER: Duration = Duration::from_secs(5);

impl Wire {
    /// Whether the host answers the far end's echo requests, for which it needs ARP or neighbour
    /// discovery as well.
    ///
    /// # Errors
    /// When the sockets fail.
    pub fn echoes(&self, address: IpAddr) -> Result<bool> {
        let (domain, protocol, kind) = match address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
        };
        self.far.ip("neigh flush all")?;
        self.far.run(|| {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_read_timeout(Some(ANSWER))?;
            let mut request = [kind, 0, 0, 0, 0x5e, 0x55, 0, 1];
            if address.is_ipv4() {
                let sum = crate::packet::checksum(&request);
                request[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            socket.send_to(&request, &SocketAddr::new(address, 0).into())?;
            let mut buffer = [std::mem::MaybeUninit::uninit(); 256];
            loop {
                match socket.recv_from(&mut buffer) {
                    // Others of ICMPv6 come by the same socket: what counts is who answers.
                    Ok((len, from))
                        if len >= 8
                            && from.as_socket().is_some_and(|from| from.ip() == address) =>
                    {
                        return Ok(true);
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }
}
