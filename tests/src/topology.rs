//! The playground: hosts in namespaces of their own, joined by a bridge in a namespace of its own.
//!
//! ```text
//!   cache 198.18.0.1   web1 198.18.0.11   web2 198.18.0.12 ...   stranger 198.18.0.66
//!   2001:db8::1        2001:db8::11       2001:db8::12           2001:db8::66
//!        |eth0              |eth0              |eth0                  |eth0
//!        +------------------+-------- bridge --+----------------------+
//! ```
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::netns::Namespace;

/// One machine of the playground.
#[derive(Debug)]
pub struct Host {
    /// Its role: `cache`, `web1`, `stranger`.
    pub role: String,
    /// The namespace that it lives in.
    pub namespace: Namespace,
    /// The IPv4 address of `eth0`, in 198.18.0.0/24.
    pub v4: Ipv4Addr,
    /// The IPv6 address of `eth0`, in 2001:db8::/64.
    pub v6: Ipv6Addr,
}

impl Host {
    /// Both addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Runs `work` on a thread inside the host.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }
}

/// A cache host, allowed hosts and a stranger on one link.
#[derive(Debug)]
pub struct Topology {
    /// The host that the daemon under test runs on.
    pub cache: Host,
    /// The hosts that the test puts on the allowlist.
    pub allowed: Vec<Host>,
    /// The host that it does not.
    pub stranger: Host,
    switch: Namespace,
}

/// Last byte of the stranger's addresses.
const STRANGER: u8 = 66;

impl Topology {
    /// A playground with `allowed` allowed hosts, at most 50.
    ///
    /// # Errors
    /// Without root, or without iproute2.
    pub fn new(allowed: u8) -> Result<Self> {
        assert!(allowed <= 50, "host numbers from 61 on are taken");
        let switch = Namespace::new("switch")?;
        switch.ip_batch("link add bridge type bridge forward_delay 0\nlink set bridge up")?;
        let hosts = (1..=allowed).map(|n| join(&switch, &format!("web{n}"), 10 + n));
        Ok(Self {
            cache: join(&switch, "cache", 1)?,
            allowed: hosts.collect::<Result<_>>()?,
            stranger: join(&switch, "stranger", STRANGER)?,
            switch,
        })
    }

    /// Joins one more host to the link, with the last decimal byte `number` in its addresses.
    ///
    /// # Errors
    /// When the number is taken, or as for [`Topology::new`].
    pub fn join(&self, role: &str, number: u8) -> Result<Host> {
        join(&self.switch, role, number)
    }

    /// The namespace of the bridge.
    #[must_use]
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// All hosts: the cache host, the allowed ones, the stranger.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        std::iter::once(&self.cache).chain(&self.allowed).chain(std::iter::once(&self.stranger))
    }

    /// The addresses of the allowed hosts as `--allow` takes them.
    #[must_use]
    pub fn allow_argument(&self) -> String {
        let addresses = self.allowed.iter().flat_map(Host::addresses);
        addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(",")
    }
}

fn join(switch: &Namespace, role: &str, number: u8) -> Result<Host> {
    let v4 = Ipv4Addr::new(198, 18, 0, number);
    // The decimal digits of the number stand as they are in the last group.
    let group =
        u16::from(number / 100) << 8 | u16::from(number / 10 % 10) << 4 | u16::from(number % 10);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, group);
    let namespace = Namespace::new(role)?;
    switch.ip_batch(&format!(
        "link add port{number} type veth peer name eth0 netns {}\n\
         link set port{number} master bridge up",
        namespace.name()
    ))?;
    namespace.ip_batch(&format!(
        "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up"
    ))?;
    Ok(Host { role: role.to_owned(), namespace, v4, v6 })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::Topology;
    use crate::require_root;

    #[test]
    fn every_host_reaches_the_cache_host_over_both_families_and_nothing_remains() {
        require_root!();
        let topology = Topology::new(2).unwrap();
        for address in topology.cache.addresses() {
            let listener = topology.cache.run(|| TcpListener::bind((address, 0))).unwrap();
            let target: SocketAddr = listener.local_addr().unwrap();
            for host in topology.hosts() {
                let mut stream = host.run(|| TcpStream::connect(target)).unwrap();
                stream.write_all(b"x").unwrap();
                let (mut accepted, peer) = listener.accept().unwrap();
                accepted.read_exact(&mut [0]).unwrap();
                assert!(host.addresses().contains(&peer.ip()), "{peer}");
            }
        }
        let paths: Vec<_> = topology.hosts().map(|host| host.namespace.path()).collect();
        assert!(paths.iter().all(|path| path.exists()));
        drop(topology);
        assert!(paths.iter().all(|path| !path.exists()), "{paths:?}");
    }

    #[test]
    fn a_panic_inside_a_namespace_reaches_the_caller_and_removes_it() {
        require_root!();
        let mut path = None;
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let namespace = crate::netns::Namespace::new("panic").unwrap();
            path = Some(namespace.path());
            namespace.run(|| panic!("on purpose"));
        }));
        assert!(panic.is_err());
        assert!(!path.unwrap().exists());
    }
}
