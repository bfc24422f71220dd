//! `cargo xtask bench guard`: what one refused packet costs, beside other ways to refuse it.
//!
//! It makes two namespaces and a veth pair, floods one end from a generator in the kernel and
//! refuses everything at the other. All rows are measured in turn, round after round, so that a
//! machine that is busy for a while hurts all of them alike. No real interface is touched.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use session_common::guard::{ACTION_ALLOW, ListWord, Rule};
use session_tests::attach::{Attachment, Mode, attach};
use session_tests::flood::{self, Flood, Packet};
use session_tests::guard_program::{GuardProgram, Hook};
use session_tests::netns::Namespace;
use session_tests::packet::TCP;
use session_tests::skip::{has_program, is_root};

const PORT: u16 = 11_211;
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The five allowed hosts of every row; no packet of the flood comes from one.
const ALLOWED: [u8; 5] = [11, 12, 13, 14, 15];
/// Nanoseconds that a refused packet may cost beyond a bare drop.
const GOAL_NS: u64 = 200;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Packets of each row in each round
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1000..=1_000_000))]
    packets: u32,
    /// Rounds
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// One way to refuse packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    BareNative,
    GuardFrags,
    GuardPlain,
    BareGeneric,
    GuardGeneric,
    BareTcx,
    GuardTcx,
    NftSet,
    IptablesDrop,
    IptablesReject,
}

impl Row {
    const ALL: [Self; 10] = [
        Self::BareNative,
        Self::GuardFrags,
        Self::GuardPlain,
        Self::BareGeneric,
        Self::GuardGeneric,
        Self::BareTcx,
        Self::GuardTcx,
        Self::NftSet,
        Self::IptablesDrop,
        Self::IptablesReject,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::BareNative => "XDP native, bare drop",
            Self::GuardFrags => "XDP native, guard_frags",
            Self::GuardPlain => "XDP native, guard",
            Self::BareGeneric => "XDP generic, bare drop",
            Self::GuardGeneric => "XDP generic, guard_frags",
            Self::BareTcx => "tcx, bare drop",
            Self::GuardTcx => "tcx, guard_tcx",
            Self::NftSet => "nft input, set of 5, drop",
            Self::IptablesDrop => "iptables INPUT, 5 accepts then DROP",
            Self::IptablesReject => "iptables INPUT, 5 accepts then REJECT",
        }
    }

    /// The program that the row cannot do without.
    const fn needs(self) -> Option<&'static str> {
        match self {
            Self::NftSet => Some("nft"),
            Self::IptablesDrop | Self::IptablesReject => Some("iptables"),
            Self::BareNative | Self::GuardFrags | Self::GuardPlain => None,
            // Their end of the veth pair receives redirected frames only with GRO.
            _ => Some("ethtool"),
        }
    }

    /// The row that does nothing but drop at the same place.
    const fn bare(self) -> Option<Self> {
        match self {
            Self::GuardFrags | Self::GuardPlain => Some(Self::BareNative),
            Self::GuardGeneric => Some(Self::BareGeneric),
            Self::GuardTcx => Some(Self::BareTcx),
            _ => None,
        }
    }

    fn is_possible(self) -> bool {
        self.needs().is_none_or(has_program)
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(is_root(), "needs root, to make network namespaces");
    let mut bench = Bench::new()?;
    let mut times: BTreeMap<Row, Vec<Duration>> = BTreeMap::new();
    for round in 1..=options.rounds {
        eprint!("\rround {round} of {}", options.rounds);
        for row in Row::ALL.into_iter().filter(|row| row.is_possible()) {
            let time = bench.measure(row, options.packets).with_context(|| row.name())?;
            times.entry(row).or_default().push(time);
        }
    }
    eprintln!();
    print(options, &times);
    Ok(())
}

/// The namespaces, and everything loaded once.
struct Bench {
    from: Namespace,
    host: Namespace,
    flood: Flood,
    guard: GuardProgram,
    bare: aya::Ebpf,
}

impl Bench {
    fn new() -> Result<Self> {
        let (from, host) = (Namespace::new("from")?, Namespace::new("host")?);
        host.ip(&format!("link add eth0 type veth peer name far0 netns {}", from.name()))?;
        // What is rejected is answered: to one neighbour, so that nobody asks for thousands.
        host.ip_batch(
            "link set eth0 address 02:00:00:00:00:01
             addr add 198.18.0.1/24 dev eth0
             link set eth0 up
             neigh add 198.18.0.9 lladdr 02:00:00:00:00:02 dev eth0 nud permanent
             route add 198.19.0.0/16 via 198.18.0.9",
        )?;
        from.ip("link set far0 up")?;
        if has_program("ethtool") {
            inside(&host, "ethtool", "-K eth0 gro on", "")?;
        }
        let flood = Flood::new(
            from.ifindex("far0")?,
            &Packet {
                hardware: [0x02, 0, 0, 0, 0, 0x01],
                source: Ipv4Addr::new(198, 19, 0, 0),
                sources_log2: 16,
                destination: HOST,
                protocol: TCP,
                port: PORT,
            },
        )?;
        let bare = aya::EbpfLoader::new().load_file(flood::object_path())?;
        Ok(Self { from, host, flood, guard: guard()?, bare })
    }

    /// Mean time of a packet that the row refuses, generator and veth hop included.
    fn measure(&mut self, row: Row, packets: u32) -> Result<Duration> {
        let Self { from, host, flood, guard, bare } = self;
        let refusal = host.run(|| Refusal::start(row, host, guard, bare))?;
        let before = received(host)?;
        let time = from.run(|| {
            flood::stay_on_this_cpu()?;
            flood.send_here(packets / 10)?;
            flood.send_here(packets)
        })?;
        let arrived = received(host)? - before;
        let sent = u64::from(packets + packets / 10);
        refusal.end(host)?;
        // A neighbour solicitation or an answer may come in between.
        ensure!((sent..sent + 100).contains(&arrived), "{arrived} of {sent} packets arrived");
        Ok(time)
    }
}

/// The guard over the port, with the five hosts.
fn guard() -> Result<GuardProgram> {
    let list = ListWord::new(0, 1);
    let mut guard = GuardProgram::load()?;
    for host in ALLOWED {
        let rule = Rule { deadline_ns: 0, counter: u32::from(host), action: ACTION_ALLOW };
        guard.host(list, Ipv4Addr::new(198, 18, 0, host), rule)?;
    }
    guard.own(HOST)?;
    guard.list(list)?;
    guard.endpoint(TCP, PORT, 0)?;
    Ok(guard)
}

/// A row in force.
enum Refusal {
    Program(Attachment),
    Nft,
    Iptables,
}

impl Refusal {
    fn start(
        row: Row,
        host: &Namespace,
        guard: &mut GuardProgram,
        bare: &mut aya::Ebpf,
    ) -> Result<Self> {
        let attachment = match row {
            Row::BareNative => attach(bare, "bare_drop", "eth0", Mode::Native),
            Row::BareGeneric => attach(bare, "bare_drop", "eth0", Mode::Generic),
            Row::BareTcx => attach(bare, "bare_drop_tcx", "eth0", Mode::Tcx),
            Row::GuardFrags => guard.attach(Hook::NativeFrags, "eth0", Mode::Native),
            Row::GuardPlain => guard.attach(Hook::Native, "eth0", Mode::Native),
            Row::GuardGeneric => guard.attach(Hook::NativeFrags, "eth0", Mode::Generic),
            Row::GuardTcx => guard.attach(Hook::Tcx, "eth0", Mode::Tcx),
            Row::NftSet => {
                inside(host, "nft", "-f -", &nft_rules())?;
                return Ok(Self::Nft);
            }
            Row::IptablesDrop => return iptables(host, "DROP"),
            Row::IptablesReject => {
                return iptables(host, "REJECT --reject-with icmp-host-prohibited");
            }
        };
        attachment.map(Self::Program)
    }

    fn end(self, host: &Namespace) -> Result<()> {
        match self {
            Self::Program(attachment) => drop(attachment),
            Self::Nft => inside(host, "nft", "flush ruleset", "")?,
            Self::Iptables => inside(host, "iptables", "--flush INPUT", "")?,
        }
        Ok(())
    }
}

fn nft_rules() -> String {
    let hosts = ALLOWED.map(|host| format!("198.18.0.{host}")).join(", ");
    format!(
        "table inet bench {{
           set allowed {{ type ipv4_addr; elements = {{ {hosts} }} }}
           chain input {{
             type filter hook input priority 0;
             tcp dport {PORT} ip saddr != @allowed drop
           }}
         }}"
    )
}

fn iptables(host: &Namespace, verdict: &str) -> Result<Refusal> {
    for allowed in ALLOWED {
        let rule = format!("-A INPUT -p tcp --dport {PORT} -s 198.18.0.{allowed} -j ACCEPT");
        inside(host, "iptables", &rule, "")?;
    }
    inside(host, "iptables", &format!("-A INPUT -p tcp --dport {PORT} -j {verdict}"), "")?;
    Ok(Refusal::Iptables)
}

/// Runs a program in a namespace, with arguments in one line and something to read.
fn inside(namespace: &Namespace, program: &str, arguments: &str, input: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = namespace.spawn(&mut command)?;
    let mut stdin = child.stdin.take().context("piped")?;
    std::io::Write::write_all(&mut stdin, input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Packets that the host's end has received, whoever refused them then.
fn received(host: &Namespace) -> Result<u64> {
    let links: serde_json::Value =
        serde_json::from_str(&host.ip("-json -statistics link show eth0")?)?;
    links[0]["stats64"]["rx"]["packets"].as_u64().context("ip tells no statistics")
}

/// Median of some times, in nanoseconds.
fn median_ns(times: &[Duration]) -> u64 {
    let mut sorted: Vec<u64> =
        times.iter().map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).collect();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

fn print(options: &Options, times: &BTreeMap<Row, Vec<Duration>>) {
    println!(
        "one refused packet, a TCP SYN of 60 bytes from one of 65536 sources; generator and veth \
         hop included\n{} rounds of {} packets; median, least and most of the rounds, in ns\n",
        options.rounds, options.packets
    );
    for row in Row::ALL {
        let Some(rounds) = times.get(&row) else {
            println!("{:38} not installed: {}", row.name(), row.needs().unwrap_or_default());
            continue;
        };
        let (least, most) = (rounds.iter().min(), rounds.iter().max());
        let spread = least.zip(most).map_or_else(String::new, |(least, most)| {
            format!("{:>5} .. {:<5}", least.as_nanos(), most.as_nanos())
        });
        println!("{:38} {:>5}   {spread} {}", row.name(), median_ns(rounds), beyond(row, times));
    }
    let beyond_ns = beyond_bare_ns(Row::GuardFrags, times).unwrap_or_default();
    let outcome = if beyond_ns <= GOAL_NS { "met" } else { "MISSED" };
    println!(
        "\ngoal: the guard costs at most {GOAL_NS} ns beyond a bare drop: {beyond_ns}, {outcome}"
    );
}

fn beyond(row: Row, times: &BTreeMap<Row, Vec<Duration>>) -> String {
    match (row.bare(), beyond_bare_ns(row, times)) {
        (Some(bare), Some(beyond_ns)) => format!("{beyond_ns:>5} beyond {}", bare.name()),
        _ => String::new(),
    }
}

/// Median over the rounds of what a row takes beyond the bare drop of the same round.
fn beyond_bare_ns(row: Row, times: &BTreeMap<Row, Vec<Duration>>) -> Option<u64> {
    let (own, bare) = (times.get(&row)?, times.get(&row.bare()?)?);
    let beyond: Vec<Duration> =
        own.iter().zip(bare).map(|(own, bare)| own.saturating_sub(*bare)).collect();
    Some(median_ns(&beyond))
}
