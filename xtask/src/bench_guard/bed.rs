//! Two namespaces, a veth pair, a flood from one end, and whatever filters at the other.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use session_common::guard::{ACTION_ALLOW, ListWord, Rule, SMALL_HOSTS_MAX};
use session_tests::attach::{Attachment, Mode, attach};
use session_tests::flood::{self, Flood, Packet};
use session_tests::guard_program::{GuardProgram, Hook};
use session_tests::netns::Namespace;
use session_tests::packet::{TCP, UDP};
use session_tests::skip::has_program;

use super::rows::{Backend, Filter, Place, Row, Traffic};

const PORT: u16 = 11_211;
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Where the sources of all packets are: of those to be refused no list holds one, and a prefix
/// holds those to be let in.
const SOURCES: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
/// The first host of every list.
const LISTED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// The namespaces, and everything loaded once.
pub(super) struct Bed {
    from: Namespace,
    host: Namespace,
    floods: [Flood; 2],
    /// Guards by their traffic and number of hosts.
    guards: BTreeMap<(Traffic, u32), GuardProgram>,
    bare: aya::Ebpf,
    /// Takes datagrams until its buffer is full.
    _socket: UdpSocket,
}

impl Bed {
    pub(super) fn new() -> Result<Self> {
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
        let ifindex = from.ifindex("far0")?;
        let flood = |protocol| {
            let packet = Packet {
                hardware: [0x02, 0, 0, 0, 0, 0x01],
                source: SOURCES,
                sources_log2: 16,
                destination: HOST,
                protocol,
                port: PORT,
            };
            Flood::new(ifindex, &packet)
        };
        let floods = [flood(TCP)?, flood(UDP)?];
        let bare = aya::EbpfLoader::new().load_file(flood::object_path())?;
        let socket = host.run(|| UdpSocket::bind((HOST, PORT)))?;
        Ok(Self { from, host, floods, guards: BTreeMap::new(), bare, _socket: socket })
    }

    /// Mean time of a packet under a row, generator and veth hop included.
    pub(super) fn measure(&mut self, row: Row, packets: u32) -> Result<Duration> {
        let (traffic, filter) = row;
        if let Filter::Guard(_, hosts) = filter
            && !self.guards.contains_key(&(traffic, hosts))
        {
            let guard = self.host.run(|| guard(traffic, hosts))?;
            self.guards.insert((traffic, hosts), guard);
        }
        let Self { from, host, floods, guards, bare, .. } = self;
        let flood = &floods[if traffic == Traffic::Refused { 0 } else { 1 }];
        let standing = host.run(|| Standing::start(row, host, guards, bare))?;
        let before = received(host)?;
        let time = from.run(|| {
            flood::stay_on_this_cpu()?;
            flood.send_here(packets / 10)?;
            flood.send_here(packets)
        })?;
        let arrived = received(host)? - before;
        let sent = u64::from(packets + packets / 10);
        standing.end(host)?;
        // A neighbour solicitation or an answer may come in between.
        ensure!((sent..sent + 100).contains(&arrived), "{arrived} of {sent} packets arrived");
        Ok(time)
    }
}

/// The guard over the port, with so many hosts on its list.
fn guard(traffic: Traffic, hosts: u32) -> Result<GuardProgram> {
    let list = ListWord::new(0, 1);
    // As the daemon does it.
    let list = if hosts > SMALL_HOSTS_MAX { list.in_large(false) } else { list };
    let mut guard = GuardProgram::load_for(hosts + 16)?;
    let rule = Rule { deadline_ns: 0, counter: 1, action: ACTION_ALLOW };
    for number in 0..hosts {
        guard.host(list, Ipv4Addr::from_bits(LISTED.to_bits() + number), rule)?;
    }
    if traffic == Traffic::Allowed {
        guard.prefix(list, SOURCES, 16, rule)?;
    }
    guard.own(HOST)?;
    guard.list(list)?;
    guard.endpoint(TCP, PORT, 0)?;
    guard.endpoint(UDP, PORT, 0)?;
    Ok(guard)
}

/// A filter in force.
enum Standing {
    Nothing,
    Program(Attachment),
    Nft,
    Iptables(Backend),
    Ipset,
}

impl Standing {
    fn start(
        (traffic, filter): Row,
        host: &Namespace,
        guards: &mut BTreeMap<(Traffic, u32), GuardProgram>,
        bare: &mut aya::Ebpf,
    ) -> Result<Self> {
        Ok(match filter {
            Filter::None => Self::Nothing,
            Filter::Bare(place) => {
                let program = if place == Place::Tcx { "bare_drop_tcx" } else { "bare_drop" };
                Self::Program(attach(bare, program, "eth0", mode(place))?)
            }
            Filter::Guard(place, hosts) => {
                let guard = guards.get_mut(&(traffic, hosts)).context("loaded before")?;
                Self::Program(guard.attach(hook(place), "eth0", mode(place))?)
            }
            Filter::NftSet(hosts) => {
                inside(host, "nft", "-f -", &nft_rules(traffic, hosts))?;
                Self::Nft
            }
            Filter::Chain(backend, hosts) => {
                chain(host, backend, &accepts(traffic, hosts), "DROP")?
            }
            Filter::ChainRejects(backend, hosts) => {
                let rejects = "REJECT --reject-with icmp-host-prohibited";
                chain(host, backend, &accepts(traffic, hosts), rejects)?
            }
            Filter::Ipset(hosts) => {
                inside(host, "ipset", "restore", &ipset(traffic, hosts))?;
                let accept = "-A INPUT -m set --match-set bench src -j ACCEPT\n";
                chain(host, Backend::Legacy, accept, "DROP")?;
                Self::Ipset
            }
        })
    }

    fn end(self, host: &Namespace) -> Result<()> {
        match self {
            Self::Nothing => {}
            Self::Program(attachment) => drop(attachment),
            Self::Nft => inside(host, "nft", "flush ruleset", "")?,
            Self::Iptables(backend) => inside(host, backend.program(), "--flush INPUT", "")?,
            Self::Ipset => {
                inside(host, Backend::Legacy.program(), "--flush INPUT", "")?;
                inside(host, "ipset", "destroy bench", "")?;
            }
        }
        Ok(())
    }
}

const fn mode(place: Place) -> Mode {
    match place {
        Place::Native | Place::NativePlain => Mode::Native,
        Place::Generic => Mode::Generic,
        Place::Tcx => Mode::Tcx,
    }
}

const fn hook(place: Place) -> Hook {
    match place {
        Place::NativePlain => Hook::Native,
        Place::Native | Place::Generic => Hook::NativeFrags,
        Place::Tcx => Hook::Tcx,
    }
}

/// The hosts of a list, and the network of the traffic that is to come in.
fn listed(traffic: Traffic, hosts: u32) -> impl Iterator<Item = String> {
    let network = (traffic == Traffic::Allowed).then(|| format!("{SOURCES}/16"));
    let hosts = (0..hosts).map(|number| Ipv4Addr::from_bits(LISTED.to_bits() + number).to_string());
    hosts.chain(network)
}

fn nft_rules(traffic: Traffic, hosts: u32) -> String {
    let listed: Vec<String> = listed(traffic, hosts).collect();
    let flags = if traffic == Traffic::Allowed { "flags interval;" } else { "" };
    format!(
        "table inet bench {{
           set allowed {{ type ipv4_addr; {flags} elements = {{ {} }} }}
           chain input {{
             type filter hook input priority 0;
             meta l4proto {{ tcp, udp }} th dport {PORT} ip saddr != @allowed drop
           }}
         }}",
        listed.join(", ")
    )
}

fn ipset(traffic: Traffic, hosts: u32) -> String {
    let mut lines = format!("create bench hash:net maxelem {}\n", hosts + 16);
    for one in listed(traffic, hosts) {
        let _ = writeln!(lines, "add bench {one}");
    }
    lines
}

/// A rule a host.
fn accepts(traffic: Traffic, hosts: u32) -> String {
    let mut lines = String::new();
    for one in listed(traffic, hosts) {
        for protocol in ["tcp", "udp"] {
            // One protocol a chain, as people write it: the flood's own.
            if (protocol == "tcp") == (traffic == Traffic::Refused) {
                let _ = writeln!(lines, "-A INPUT -p {protocol} --dport {PORT} -s {one} -j ACCEPT");
            }
        }
    }
    lines
}

fn chain(host: &Namespace, backend: Backend, accepts: &str, verdict: &str) -> Result<Standing> {
    let rules = format!(
        "*filter\n:INPUT ACCEPT [0:0]\n{accepts}\
         -A INPUT -p tcp --dport {PORT} -j {verdict}\n\
         -A INPUT -p udp --dport {PORT} -j {verdict}\nCOMMIT\n"
    );
    inside(host, &format!("{}-restore", backend.program()), "", &rules)?;
    Ok(Standing::Iptables(backend))
}

/// Runs a program in a namespace, with arguments in one line and something to read.
pub(super) fn inside(
    namespace: &Namespace,
    program: &str,
    arguments: &str,
    input: &str,
) -> Result<()> {
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
