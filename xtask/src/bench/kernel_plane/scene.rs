//! The two machines, the wire between them, and whose processor time what counts for.
#![forbid(unsafe_code)]

use std::fs;
use std::net::Ipv4Addr;
use std::process::{self, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use session_load::account::Account;
use session_tests::exchange::{Draw, Exchange, Outcome, Reads, Wire};
use session_tests::netns::Namespace;
use session_tests::process::children;

use super::servers::Running;
use crate::bench::machine::Placement;

pub(super) const PORT: u16 = 11_211;
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 11);

/// Hardware addresses of the client and of the server.
const STATIONS: [[u8; 6]; 2] = [[0x02, 0, 0, 0, 0, 2], [0x02, 0, 0, 0, 0, 1]];

/// Both machines.
pub(super) struct Scene {
    pub(super) host: Namespace,
    client: Namespace,
    exchange: Exchange,
    /// The thread of the kernel that receives for the server.
    receiver: u32,
    /// The server's processor, with all that is done for it, and the client's.
    pub(super) cpus: [usize; 2],
}

impl Scene {
    pub(super) fn new() -> Result<Self> {
        let placement = Placement::of(1)?;
        let cpus = [placement.server[0], placement.load[0]];
        let (host, client) = (Namespace::new("host")?, Namespace::new("client")?);
        // Threads of the kernel are named after interfaces, for all namespaces together.
        let id = process::id() % 10_000_000;
        let (near, far) = (format!("s{id}"), format!("c{id}"));
        let [client_station, server_station] = STATIONS.map(station);
        host.ip_batch(&format!(
            "link add {near} numrxqueues 1 numtxqueues 1 address {server_station} type veth \
             peer name {far} numrxqueues 1 numtxqueues 1 address {client_station} netns {}
             addr add {SERVER}/24 dev {near}
             link set {near} up
             neigh add {CLIENT} lladdr {client_station} dev {near} nud permanent",
            client.name()
        ))?;
        client.ip(&format!("link set {far} up"))?;
        // What is redirected is received by XDP or by GRO, and memcached has no XDP program.
        host.run(|| run(Command::new("ethtool").args(["-K", &near, "gro", "on"])))?;
        let wire =
            Wire { interface: &far, stations: STATIONS, addresses: [CLIENT, SERVER], port: PORT };
        let exchange = Exchange::new(&client, &wire)?;
        let receiver = thread_of(&host, &near, cpus[0])?;
        let hearing = thread_of(&client, &far, cpus[1])?;
        // The client asks on the same processor for as long as it is let.
        run(Command::new("chrt").args(["--fifo", "--pid", "1", &hearing.to_string()]))?;
        Ok(Self { host, client, exchange, receiver, cpus })
    }

    /// See [`Exchange::prepare`].
    pub(super) fn prepare(
        &mut self,
        reads: Reads,
        window: u64,
        next: impl FnMut() -> Draw,
    ) -> Result<()> {
        self.exchange.prepare(reads, window, next)
    }

    /// Asks for so long.
    pub(super) fn load(&mut self, seconds: f64) -> Result<Outcome> {
        let Self { client, exchange, cpus, .. } = self;
        let cpu = cpus[1];
        client.run(|| {
            let mut set = CpuSet::new();
            set.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &set)?;
            let end = Instant::now() + Duration::from_secs_f64(seconds);
            exchange.run_here(|_| Instant::now() >= end)
        })
    }

    /// What was taken of the server's processor so far.
    pub(super) fn account(&self, server: &Running) -> Result<Used> {
        let pid = server.process.pid();
        let pids = [vec![pid], children(pid)].concat();
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let name = format!("cpu{} ", self.cpus[0]);
        let line = text.lines().find_map(|line| line.strip_prefix(&name)).context("no such cpu")?;
        // user nice system idle iowait irq softirq steal; guest time is in user time already.
        let ticks: Vec<u64> =
            line.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<_, _>>()?;
        let of = |place: usize| ticks.get(place).copied().unwrap_or(0);
        Ok(Used {
            receiving_ns: Account::of(&[self.receiver])?.run_ns,
            serving_ns: Account::of(&pids)?.run_ns,
            idle_ticks: of(3) + of(4),
            stolen_ticks: of(7),
            all_ticks: ticks.iter().sum(),
        })
    }
}

/// What was taken of the server's processor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// To receive for the server, and by the server itself.
    pub(super) receiving_ns: u64,
    pub(super) serving_ns: u64,
    /// Of /proc/stat: by nobody, by the hypervisor, and all there were.
    idle_ticks: u64,
    stolen_ticks: u64,
    all_ticks: u64,
}

impl Used {
    /// What was taken since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            receiving_ns: self.receiving_ns - earlier.receiving_ns,
            serving_ns: self.serving_ns - earlier.serving_ns,
            idle_ticks: self.idle_ticks.saturating_sub(earlier.idle_ticks),
            stolen_ticks: self.stolen_ticks.saturating_sub(earlier.stolen_ticks),
            all_ticks: self.all_ticks.saturating_sub(earlier.all_ticks),
        }
    }

    /// Shares of the processor that others took, of this machine and beside it.
    pub(super) fn others(&self, seconds: f64) -> [f64; 2] {
        let share = |ticks: u64| ticks as f64 / self.all_ticks.max(1) as f64;
        let ours = (self.receiving_ns + self.serving_ns) as f64 / 1e9 / seconds;
        let (idle, stolen) = (share(self.idle_ticks), share(self.stolen_ticks));
        [(1.0 - idle - stolen - ours).max(0.0), stolen]
    }
}

fn station(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

/// Has an interface's packets received by a thread of the kernel, on one processor; its number.
fn thread_of(namespace: &Namespace, interface: &str, cpu: usize) -> Result<u32> {
    // The machine's own /sys shows its own interfaces: this command mounts the namespace's.
    let set = format!("echo 1 > /sys/class/net/{interface}/threaded");
    let inside = ["netns", "exec", namespace.name(), "sh", "-c", &set];
    run(Command::new("ip").args(inside))
        .context("receiving by a thread of the kernel (Linux 5.12)")?;
    let begin = format!("napi/{interface}-");
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with(&begin) {
            let mut set = CpuSet::new();
            set.set(cpu)?;
            sched_setaffinity(Pid::from_raw(pid.cast_signed()), &set)?;
            return Ok(pid);
        }
    }
    bail!("no thread of the kernel receives at {interface}")
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", stderr.trim());
    Ok(())
}
