//! The real memcached, to compare with.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;

use anyhow::Result;

use crate::client::Client;
use crate::netns::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;

/// A running memcached.
#[derive(Debug)]
pub struct Memcached {
    /// The address that it listens on.
    pub address: IpAddr,
    /// The TCP port that it listens on.
    pub port: u16,
    /// The process.
    pub process: Process,
    _scratch: Scratch,
}

impl Memcached {
    /// Starts memcached on a free loopback port and returns when it accepts.
    ///
    /// # Errors
    /// When it is not installed.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self::start_in(None, address, free_port(), arguments)
    }

    /// Starts memcached in a namespace.
    ///
    /// # Errors
    /// When it is not installed.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_in(
        namespace: Option<&Namespace>,
        address: IpAddr,
        port: u16,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut command = Command::new("memcached");
        command.args(arguments);
        Self::start_by(command, namespace, address, port)
    }

    /// Starts memcached in a namespace, with variables of its environment.
    ///
    /// # Errors
    /// When it is not installed.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with(
        namespace: Option<&Namespace>,
        address: IpAddr,
        port: u16,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let mut command = Command::new("memcached");
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Self::start_by(command, namespace, address, port)
    }

    fn start_by(
        mut command: Command,
        namespace: Option<&Namespace>,
        address: IpAddr,
        port: u16,
    ) -> Result<Self> {
        let scratch = Scratch::new("memcached")?;
        command.args(["-l", &address.to_string(), "-p", &port.to_string(), "-U", "0"]);
        command.args(["-u", "nobody"]);
        let mut process = Process::start(&mut command, namespace, &scratch.join("log"))?;
        let connect = || Client::connect(address, port).ok();
        process.until("connection to memcached", || match namespace {
            Some(namespace) => namespace.run(connect),
            None => connect(),
        });
        Ok(Self { address, port, process, _scratch: scratch })
    }
}

/// A port that was free for TCP and UDP on the loopback a moment ago.
///
/// # Panics
/// When the machine has none.
#[must_use]
pub fn free_port() -> u16 {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback to bind on");
        let port = tcp.local_addr().expect("a bound socket has an address").port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free for both TCP and UDP");
}
