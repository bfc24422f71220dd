//! A playground for the guard: a cache host that listens, allowed hosts, a stranger, a bpffs.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use session_daemon::guard::lists::Protocol;
use session_daemon::guard::status::{GuardStatus, InterfaceStatus};

use crate::guard_holder::{Holder, Setup};
use crate::scratch::Scratch;
use crate::topology::{Host, Topology};

/// memcached's port.
pub const PORT: u16 = 11211;

/// How long a packet that must not arrive is given to arrive.
const REFUSAL: Duration = Duration::from_millis(300);

/// How long one that must arrive may take.
const ARRIVAL: Duration = Duration::from_secs(5);

/// The playground.
#[derive(Debug)]
pub struct Bed {
    /// The hosts.
    pub topology: Topology,
    /// A directory for this test.
    pub scratch: Scratch,
    /// A bpffs for this test.
    pub bpffs: PathBuf,
}

/// Sockets on the cache host, on port [`PORT`] of both its addresses.
#[derive(Debug)]
pub struct Sockets {
    tcp: Vec<TcpListener>,
    udp: Vec<(IpAddr, UdpSocket)>,
}

impl Bed {
    /// A playground with so many allowed hosts.
    ///
    /// # Errors
    /// Without root.
    pub fn new(allowed: u8) -> Result<Self> {
        let scratch = Scratch::new("guard")?;
        let bpffs = scratch.mount_bpffs()?;
        Ok(Self { topology: Topology::new(allowed)?, scratch, bpffs })
    }

    /// A guard of every interface for the allowed hosts.
    #[must_use]
    pub fn setup(&self) -> Setup {
        Setup::new(&self.bpffs, &self.topology.allow_argument())
    }

    /// Starts a holder on the cache host.
    ///
    /// # Errors
    /// With the guard's own message.
    pub fn start(&self, setup: &Setup) -> Result<(Holder, GuardStatus)> {
        Holder::start(&self.topology.cache.namespace, setup)
    }

    /// Listens on the cache host.
    ///
    /// # Errors
    /// When something listens there already.
    pub fn listen(&self) -> Result<Sockets> {
        self.listen_on(&self.topology.cache.addresses())
    }

    /// Listens on other addresses of the cache host.
    ///
    /// # Errors
    /// When they are not its own, or something listens there already.
    pub fn listen_on(&self, addresses: &[IpAddr]) -> Result<Sockets> {
        let cache = &self.topology.cache;
        let mut sockets = Sockets { tcp: Vec::new(), udp: Vec::new() };
        for &address in addresses {
            let (tcp, udp) = cache
                .run(|| (TcpListener::bind((address, PORT)), UdpSocket::bind((address, PORT))));
            sockets.tcp.push(tcp?);
            sockets.udp.push((address, udp?));
        }
        Ok(sockets)
    }

    /// Asserts that allowed hosts reach the port and the stranger does not, over TCP and UDP,
    /// IPv4 and IPv6.
    ///
    /// # Panics
    /// With who got what.
    pub fn assert_guarded(&self, sockets: &Sockets) {
        for host in &self.topology.allowed {
            assert_eq!(sockets.reached_by(host), EVERY_WAY, "{}", host.role);
        }
        let stranger = &self.topology.stranger;
        assert_eq!(sockets.reached_by(stranger), [], "{}", stranger.role);
    }

    /// Runs a command on the cache host and returns what it wrote.
    ///
    /// # Errors
    /// With what it wrote to standard error, when it fails.
    pub fn on_cache(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.topology.cache.namespace.output(Command::new(program).args(arguments))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {arguments:?}: {}", stderr.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Number of the XDP program on an interface of the cache host, as `ip` shows it.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn program_on(&self, interface: &str) -> Result<Option<u64>> {
        let links = self.topology.cache.namespace.ip("-json -details link show")?;
        let links: serde_json::Value = serde_json::from_str(&links)?;
        let link = links.as_array().into_iter().flatten().find(|link| link["ifname"] == interface);
        Ok(link.and_then(|link| link["xdp"]["prog"]["id"].as_u64()))
    }
}

/// All ways to reach the port.
pub const EVERY_WAY: [(Protocol, &str); 4] = [
    (Protocol::Tcp, "IPv4"),
    (Protocol::Udp, "IPv4"),
    (Protocol::Tcp, "IPv6"),
    (Protocol::Udp, "IPv6"),
];

impl Sockets {
    /// The ways by which `host` reaches the port.
    #[must_use]
    pub fn reached_by(&self, host: &Host) -> Vec<(Protocol, &'static str)> {
        let mut ways = Vec::new();
        // What must not arrive is waited for briefly; the first arrival shows that it is worth
        // waiting longer, on a machine that is slow today.
        let mut patience = REFUSAL;
        for (tcp, (address, udp)) in self.tcp.iter().zip(&self.udp) {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            if reached_by_tcp(host, tcp, patience) {
                ways.push((Protocol::Tcp, family));
                patience = ARRIVAL;
            }
            if reached_by_udp(host, udp, patience) {
                ways.push((Protocol::Udp, family));
                patience = ARRIVAL;
            }
        }
        ways
    }
}

fn reached_by_tcp(host: &Host, listener: &TcpListener, patience: Duration) -> bool {
    let target = listener.local_addr().expect("it is bound");
    match host.run(|| TcpStream::connect_timeout(&target, patience)) {
        Ok(stream) => {
            let ours = stream.local_addr().expect("it is connected");
            // Others may have connected before, and left.
            while listener.accept().expect("one is waiting").1 != ours {}
            true
        }
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => false,
        Err(error) => panic!("{} to {target}: {error}", host.role),
    }
}

fn reached_by_udp(host: &Host, socket: &UdpSocket, patience: Duration) -> bool {
    let target = socket.local_addr().expect("it is bound");
    let any: SocketAddr =
        if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let sent = host.run(|| -> Result<SocketAddr> {
        let sender = UdpSocket::bind(any)?;
        sender.connect(target)?;
        sender.send(b"ping").context("sending")?;
        Ok(sender.local_addr()?)
    });
    let source = sent.expect("a datagram can be sent");
    socket.set_read_timeout(Some(patience)).expect("not zero");
    let mut buffer = [0; 64];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((_, from)) if from == source => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// The entry of an interface.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn interface<'a>(status: &'a GuardStatus, name: &str) -> &'a InterfaceStatus {
    let found = status.interfaces.iter().find(|one| one.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {status:?}"))
}

/// Packets with one fate.
///
/// # Panics
/// When there is no such reason.
#[must_use]
pub fn packets(status: &GuardStatus, reason: &str) -> u64 {
    let found = status.reasons.iter().find(|one| one.reason == reason);
    found.unwrap_or_else(|| panic!("no {reason} in {status:?}")).packets
}
