//! The servers that are held against each other, one at a time, and what they say of themselves.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use session_tests::client::Client;
use session_tests::exchange;
use session_tests::netns::Namespace;
use session_tests::process::Process;
use session_tests::scratch::Scratch;

use super::results::Side;
use super::scene::{CLIENT, PORT, Scene};
use crate::bench::servers::Program;

/// `-m` of all servers: everything fits.
const MEMORY_MB: &str = "64";
/// Items that are stored before the server is asked whether it follows.
const BURST: u32 = 2000;

/// A running server, with its directory.
pub(super) struct Running {
    pub(super) process: Process,
    side: Side,
    _scratch: Scratch,
}

/// What a server has counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) gets: u64,
    pub(super) hits: u64,
    pub(super) sets: u64,
    /// Answers of the kernel plane.
    pub(super) in_kernel: u64,
}

impl Counts {
    /// What has been counted since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            gets: self.gets - earlier.gets,
            hits: self.hits - earlier.hits,
            sets: self.sets - earlier.sets,
            in_kernel: self.in_kernel - earlier.in_kernel,
        }
    }
}

impl Running {
    /// Starts the server on its processor and returns when it answers.
    pub(super) fn start(program: &Program, side: Side, scene: &Scene) -> Result<Self> {
        let scratch = Scratch::new("plane")?;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &scene.cpus[0].to_string()]).arg(program.path());
        let port = PORT.to_string();
        command.args(["-t", "1", "-m", MEMORY_MB, "-u", "nobody", "-p", &port, "-U", &port]);
        if side != Side::Memcached {
            command.arg("--bpffs").arg(scratch.mount_bpffs()?);
            command.arg("--control").arg(scratch.join("control"));
            command.arg("--state").arg(scratch.join("state"));
            command.arg(format!("--allow={CLIENT}"));
            command.args(["--guard-mode=native", "--udp-writes"]);
        }
        if side == Side::Plane {
            command.arg("--kernel-plane");
        }
        command.stdin(Stdio::null());
        let mut process = Process::start(&mut command, Some(&scene.host), &scratch.join("log"))?;
        process.until("answer of the server", || {
            let mut client = connect(&scene.host).ok()?;
            client.command("version").ok()
        });
        Ok(Self { process, side, _scratch: scratch })
    }

    /// Stores all items.
    pub(super) fn fill(&self, host: &Namespace, keys: u32) -> Result<()> {
        let mut client = connect(host)?;
        for first in (0..keys).step_by(BURST as usize) {
            let mut sets = Vec::new();
            for number in first..keys.min(first + BURST) {
                let (key, value) = (exchange::key(number), exchange::value(number));
                write!(sets, "set {key} 0 0 {} noreply\r\n", value.len())?;
                sets.extend(value);
                sets.extend(b"\r\n");
            }
            client.send(&sets)?;
            client.command("version")?;
        }
        let items = number(&client.stats("")?, "curr_items")?;
        ensure!(items == u64::from(keys), "{items} of {keys} items are there");
        Ok(())
    }

    /// What it has counted so far.
    pub(super) fn counts(&self, host: &Namespace) -> Result<Counts> {
        let stats = connect(host)?.stats("")?;
        let in_kernel = match self.side {
            Side::Plane => {
                number(&stats, "kernel_plane_hits")? + number(&stats, "kernel_plane_misses")?
            }
            Side::Memcached | Side::Daemon => 0,
        };
        Ok(Counts {
            gets: number(&stats, "cmd_get")?,
            hits: number(&stats, "get_hits")?,
            sets: number(&stats, "cmd_set")?,
            in_kernel,
        })
    }
}

fn number(stats: &BTreeMap<String, String>, name: &str) -> Result<u64> {
    Ok(stats.get(name).with_context(|| format!("no {name}"))?.parse()?)
}

fn connect(host: &Namespace) -> Result<Client> {
    Ok(host.run(|| Client::connect(Ipv4Addr::LOCALHOST.into(), PORT))?)
}
