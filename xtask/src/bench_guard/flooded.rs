//! What a flood leaves to those who are let in: a server under load, beside the same without a flood.
//!
//! The server and its load have one processor, the flood another one, with what receives it: a
//! network card spreads a flood over all of them, and here the generator takes more than the guard.
//! Each way to refuse is measured without and with the flood, one after the other, round by round.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use session_load::report::Report;
use session_tests::attach::{Attachment, Mode, attach};
use session_tests::flood::{self, Flood, Packet};
use session_tests::netns::Namespace;
use session_tests::packet::TCP;
use session_tests::process::{Process, children};
use session_tests::scratch::Scratch;
use session_tests::skip::has_program;
use session_tests::wait;

use super::bed::inside;
use super::{Options, plot};
use crate::bench::statistics;
use crate::{bench, shell};

const PORT: u16 = 11_211;
/// The server, on the wire to those who are let in and on the flood's.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const FLOODED: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
/// Who is let in.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 11);
/// The flood's sources.
const SOURCES: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);

/// Packets of one call of the generator, between two of which some milliseconds go by.
const BURST: u32 = 500_000;

/// Share of throughput and of the 99th percentile that the guard is to keep.
const GOAL: f64 = 0.95;
/// Share of the throughput behind a bare pass that it is to have without a flood.
const PASS_GOAL: f64 = 0.97;

/// A way to refuse the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    GuardNative,
    GuardTcx,
    NftSet,
    /// As people write it: ten sources, then REJECT.
    Chain,
    Nothing,
    /// Refuses nothing either, by a program that passes every packet: what the driver's own way of
    /// running programs costs.
    BarePass,
}

const WAYS: [Way; 6] =
    [Way::GuardNative, Way::GuardTcx, Way::NftSet, Way::Chain, Way::Nothing, Way::BarePass];

impl Way {
    fn needs(self) -> &'static str {
        match self {
            Self::GuardNative | Self::GuardTcx | Self::Nothing | Self::BarePass => "ethtool",
            Self::NftSet => "nft",
            Self::Chain => "iptables-legacy",
        }
    }

    fn flags(self) -> Vec<String> {
        let mode = match self {
            Self::GuardNative => "native",
            Self::GuardTcx => "tcx",
            Self::NftSet | Self::Chain | Self::Nothing | Self::BarePass => {
                return vec!["--guard=off".to_owned()];
            }
        };
        vec![format!("--allow={CLIENT}"), format!("--guard-mode={mode}")]
    }

    fn is_ours(self) -> bool {
        matches!(self, Self::GuardNative | Self::GuardTcx)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::GuardNative => "guard, native",
            Self::GuardTcx => "guard, tcx",
            Self::NftSet => "nft input, set of 11 hosts",
            Self::Chain => "iptables-legacy, chain of 11 hosts, REJECT",
            Self::Nothing => "no filter",
            Self::BarePass => "no filter, bare pass, native",
        })
    }
}

/// One round of one way.
struct Round {
    quiet: Report,
    flooded: Report,
    /// Packets of the flood a second.
    rate: f64,
}

/// The three machines.
struct Scene {
    host: Namespace,
    client: Namespace,
    from: Namespace,
    flood: Flood,
    /// The server's and its load's processor, and the flood's.
    cpus: [usize; 2],
}

/// Runs the command.
pub(super) fn run(options: &Options) -> Result<()> {
    bench::build(true)?;
    let scene = Scene::new()?;
    let mut rounds: BTreeMap<Way, Vec<Round>> = BTreeMap::new();
    for number in 1..=options.rounds {
        for way in WAYS.into_iter().filter(|way| has_program(way.needs())) {
            eprint!("\rround {number} of {}: {way:42}", options.rounds);
            let round = scene.measure(way, options.seconds).with_context(|| way.to_string())?;
            rounds.entry(way).or_default().push(round);
        }
    }
    eprintln!();
    print(options, &rounds);
    if let Some(directory) = &options.svg {
        draw(directory, &rounds)?;
    }
    Ok(())
}

impl Scene {
    fn new() -> Result<Self> {
        let set = sched_getaffinity(Pid::from_raw(0))?;
        let mut cpus = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false));
        let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else {
            bail!("needs two processors");
        };
        let (host, client) = (Namespace::new("host")?, Namespace::new("client")?);
        let from = Namespace::new("from")?;
        host.ip_batch(&format!(
            "link add eth0 type veth peer name eth0 netns {}
             link add eth1 type veth peer name far0 netns {}
             addr add {SERVER}/24 dev eth0
             addr add {FLOODED}/24 dev eth1
             link set eth1 address 02:00:00:00:00:01
             link set eth0 up
             link set eth1 up
             neigh add 198.18.1.9 lladdr 02:00:00:00:00:02 dev eth1 nud permanent
             route add 198.19.0.0/16 via 198.18.1.9",
            client.name(),
            from.name()
        ))?;
        client.ip_batch(&format!("addr add {CLIENT}/24 dev eth0\nlink set eth0 up"))?;
        from.ip("link set far0 up")?;
        // Redirected frames are received by XDP or by GRO.
        inside(&host, "ethtool", "-K eth1 gro on", "")?;
        let packet = Packet {
            hardware: [0x02, 0, 0, 0, 0, 0x01],
            source: SOURCES,
            sources_log2: 16,
            destination: FLOODED,
            protocol: TCP,
            port: PORT,
        };
        let flood = Flood::new(from.ifindex("far0")?, &packet)?;
        Ok(Self { host, client, from, flood, cpus: [first, second] })
    }

    fn measure(&self, way: Way, seconds: f64) -> Result<Round> {
        let passing = self.filter(way)?;
        let scratch = Scratch::new("flooded")?;
        let server = self.start(way, &scratch)?;
        let quiet = self.load(&server, &scratch, seconds)?;
        let (stop, start) = (AtomicBool::new(false), Instant::now());
        let (flooded, sent) = thread::scope(|scope| {
            let sender = scope.spawn(|| self.send_until(&stop));
            let flooded = self.load(&server, &scratch, seconds);
            stop.store(true, Ordering::Relaxed);
            (flooded, sender.join().expect("it does not panic"))
        });
        let rate = sent? as f64 / start.elapsed().as_secs_f64();
        drop((server, passing));
        self.unfilter(way)?;
        Ok(Round { quiet, flooded: flooded?, rate })
    }

    /// Sets up what filters. The program, where that is one of no daemon's, ends with its handle.
    fn filter(&self, way: Way) -> Result<Option<Attachment>> {
        let hosts = (1..=10).map(|number| format!("10.0.0.{number}")).chain([CLIENT.to_string()]);
        match way {
            Way::GuardNative | Way::GuardTcx | Way::Nothing => {}
            Way::BarePass => {
                let mut bare = aya::EbpfLoader::new().load_file(flood::object_path())?;
                let attached =
                    self.host.run(|| attach(&mut bare, "bare_pass", "eth0", Mode::Native))?;
                return Ok(Some(attached));
            }
            Way::NftSet => {
                let hosts: Vec<String> = hosts.collect();
                let rules = format!(
                    "table inet bench {{
                       set allowed {{ type ipv4_addr; elements = {{ {} }} }}
                       chain input {{
                         type filter hook input priority 0;
                         tcp dport {PORT} ip saddr != @allowed drop
                       }}
                     }}",
                    hosts.join(", ")
                );
                inside(&self.host, "nft", "-f -", &rules)?;
            }
            Way::Chain => {
                let accepts: String = hosts
                    .map(|host| format!("-A INPUT -p tcp --dport {PORT} -s {host} -j ACCEPT\n"))
                    .collect();
                let rules = format!(
                    "*filter\n:INPUT ACCEPT [0:0]\n{accepts}-A INPUT -p tcp --dport {PORT} \
                     -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n"
                );
                inside(&self.host, "iptables-legacy-restore", "", &rules)?;
            }
        }
        Ok(None)
    }

    fn unfilter(&self, way: Way) -> Result<()> {
        match way {
            Way::GuardNative | Way::GuardTcx | Way::Nothing | Way::BarePass => Ok(()),
            Way::NftSet => inside(&self.host, "nft", "flush ruleset", ""),
            Way::Chain => inside(&self.host, "iptables-legacy", "--flush INPUT", ""),
        }
    }

    fn start(&self, way: Way, scratch: &Scratch) -> Result<Process> {
        let mut command = self.on_server_cpu("sessiond");
        command.args(["-t", "1", "-m", "64", "-u", "nobody", "-p", &PORT.to_string()]);
        command.arg("--bpffs").arg(scratch.mount_bpffs()?);
        command.arg("--control").arg(scratch.join("control"));
        command.arg("--state").arg(scratch.join("state"));
        command.args(way.flags());
        let mut process = Process::start(&mut command, Some(&self.host), &scratch.join("log"))?;
        process.until("answer of the server", || {
            self.client.run(|| {
                let mut client =
                    session_tests::client::Client::connect(SERVER.into(), PORT).ok()?;
                client.command("version").ok()
            })
        });
        Ok(process)
    }

    /// A program of ours that was built with optimisation, on the server's processor.
    fn on_server_cpu(&self, name: &str) -> Command {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &self.cpus[0].to_string()]);
        command.arg(shell::target_directory().join("release").join(name)).stdin(Stdio::null());
        command
    }

    fn load(&self, server: &Process, scratch: &Scratch, seconds: f64) -> Result<Report> {
        let pids = [vec![server.pid()], children(server.pid())].concat();
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let mut command = self.on_server_cpu("session-load");
        command.args(["--json", "--tcp", &format!("{SERVER}:{PORT}"), "--connections", "16"]);
        command.args(["--fill", "--keys", "10000", "--gets", "0.9", "--server", &pids.join(",")]);
        command.args(["--seconds", &seconds.to_string()]);
        let output = scratch.join("load");
        let mut load = Process::start(&mut command, Some(&self.client), &output)?;
        let limit = wait::patience() + Duration::from_secs_f64(4.0 * seconds);
        ensure!(load.wait(limit).is_some(), "the load does not end");
        let text = std::fs::read_to_string(&output)?;
        let report: Report = serde_json::from_str(text.lines().last().context("no report")?)?;
        ensure!(report.is_sound() && report.requests > 0, "{report}");
        Ok(report)
    }

    /// Floods until told to stop; how many packets were sent.
    fn send_until(&self, stop: &AtomicBool) -> Result<u64> {
        self.from.run(|| {
            let mut cpus = CpuSet::new();
            cpus.set(self.cpus[1])?;
            sched_setaffinity(Pid::from_raw(0), &cpus)?;
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                self.flood.send_here(BURST)?;
                sent += u64::from(BURST);
            }
            Ok(sent)
        })
    }
}

/// Median over the rounds.
fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    statistics::median(rounds.iter().map(of))
}

/// Shares kept, round by round: of the requests a second, of the 99th percentile, and of the
/// requests that a second of the server's processor serves.
fn kept(rounds: &[Round]) -> [f64; 3] {
    let ns = |report: &Report| report.server_ns().unwrap_or(f64::NAN);
    [
        median(rounds, |round| round.flooded.requests_per_s() / round.quiet.requests_per_s()),
        median(rounds, |round| {
            round.quiet.latency_ns.p99 as f64 / round.flooded.latency_ns.p99 as f64
        }),
        median(rounds, |round| ns(&round.quiet) / ns(&round.flooded)),
    ]
}

fn print(options: &Options, rounds: &BTreeMap<Way, Vec<Round>>) {
    println!(
        "What a flood of SYNs from 65,536 sources leaves to one allowed host: {} rounds of {} s, \
         medians.\n",
        options.rounds, options.seconds
    );
    println!(
        "| | flood, packets/s | requests/s without | with | kept | p99 kept | \
         requests per server CPU kept |\n|---|--:|--:|--:|--:|--:|--:|"
    );
    for (way, rounds) in rounds {
        let [throughput, p99, processor] = kept(rounds);
        println!(
            "| {way} | {:.0} | {:.0} | {:.0} | {:.1} % | {:.1} % | {:.1} % |",
            median(rounds, |round| round.rate),
            median(rounds, |round| round.quiet.requests_per_s()),
            median(rounds, |round| round.flooded.requests_per_s()),
            100.0 * throughput,
            100.0 * p99,
            100.0 * processor,
        );
    }
    if let Some(rounds) = rounds.get(&Way::GuardNative) {
        let [throughput, p99, _] = kept(rounds);
        let outcome = if throughput.min(p99) >= GOAL { "met" } else { "MISSED" };
        println!("\ngoal: {:.0} % of throughput and p99 kept: {outcome}", 100.0 * GOAL);
    }
    if let (Some(guarded), Some(passed)) =
        (rounds.get(&Way::GuardNative), rounds.get(&Way::BarePass))
    {
        let share = of_bare_pass(guarded, passed);
        let outcome = if share >= PASS_GOAL { "met" } else { "MISSED" };
        println!(
            "goal: without a flood {:.0} % of the requests behind a bare pass: {:.1} %, {outcome}",
            100.0 * PASS_GOAL,
            100.0 * share
        );
    }
}

/// Requests a second without a flood, as a share of those behind a bare pass in the same round: on a
/// processor that server and load share, all that a packet costs is in them.
fn of_bare_pass(guarded: &[Round], passed: &[Round]) -> f64 {
    let rate = |round: &Round| round.quiet.requests_per_s();
    statistics::median(guarded.iter().zip(passed).map(|(ours, bare)| rate(ours) / rate(bare)))
}

fn draw(directory: &Path, rounds: &BTreeMap<Way, Vec<Round>>) -> Result<()> {
    let bars: Vec<plot::Share> = rounds
        .iter()
        .map(|(way, rounds)| plot::Share {
            name: way.to_string(),
            kept: kept(rounds)[0],
            rate: median(rounds, |round| round.rate),
            is_ours: way.is_ours(),
        })
        .collect();
    let path = directory.join("guard-flooded.svg");
    std::fs::write(&path, plot::draw_shares(&bars)).with_context(|| path.display().to_string())
}
