//! twemproxy (nutcracker) with ketama in front of several caches.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;

use anyhow::Result;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::topology::Host;

/// The port that it listens on.
pub const PROXY_PORT: u16 = 22121;

/// A running twemproxy.
#[derive(Debug)]
pub struct Proxy {
    _process: Process,
    _scratch: Scratch,
}

impl Proxy {
    /// Starts it on `host` in front of the caches, and returns when it accepts.
    ///
    /// # Errors
    /// When it is not installed.
    ///
    /// # Panics
    /// With its output, when it does not come up.
    pub fn start(host: &Host, caches: &[Ipv4Addr], port: u16) -> Result<Self> {
        let scratch = Scratch::new(&host.role)?;
        let servers: String =
            caches.iter().map(|cache| format!("   - {cache}:{port}:1\n")).collect();
        let text = format!(
            "shop:\n  listen: {}:{PROXY_PORT}\n  hash: fnv1a_64\n  distribution: ketama\n  \
             timeout: 2000\n  servers:\n{servers}",
            host.v4
        );
        fs::write(scratch.join("nutcracker.yml"), text)?;
        let mut command = Command::new("/usr/sbin/nutcracker");
        command.arg("-c").arg(scratch.join("nutcracker.yml"));
        command.arg("-o").arg(scratch.join("messages")).arg("-p").arg(scratch.join("pid"));
        command.args(["-a", "127.0.0.1"]);
        let mut process =
            Process::start(&mut command, Some(&host.namespace), &scratch.join("log"))?;
        let address = host.v4;
        process.until("twemproxy", || host.run(|| TcpStream::connect((address, PROXY_PORT)).ok()));
        Ok(Self { _process: process, _scratch: scratch })
    }
}
