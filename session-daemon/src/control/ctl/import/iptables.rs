//! From `iptables-save` and `ip6tables-save` to chains.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;

use crate::control::ctl::import::chain::{Chain, Chains, Rule, Target};
use crate::control::ctl::import::ipset::Sets;
use crate::control::ctl::import::ranges::{Family, Ranges, number};
use crate::control::ctl::import::{Asked, Protocol};

/// Base chains that a packet to the host walks, with their tables, in order. `nat` is looked at
/// apart: it changes addresses and refuses nobody.
const BASE: [(&str, &str); 5] = [
    ("raw", "PREROUTING"),
    ("mangle", "PREROUTING"),
    ("mangle", "INPUT"),
    ("security", "INPUT"),
    ("filter", "INPUT"),
];

/// Targets after which a packet goes on through the chain.
const GOING_ON: [&str; 17] = [
    "LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "TRACE", "CT", "NOTRACK", "TOS", "DSCP", "TTL",
    "HL", "CLASSIFY", "SET", "AUDIT", "CHECKSUM", "TCPMSS",
];

/// Connection states of a packet that opens a connection.
const NEW_STATES: [&str; 2] = ["NEW", "UNTRACKED"];

/// What a file says.
pub(super) struct Saved {
    pub(super) chains: Chains,
    /// Tables that it has.
    pub(super) tables: Vec<String>,
    /// What the operator should know of it.
    pub(super) remarks: Vec<String>,
}

/// Reads what `iptables-save` or `ip6tables-save` wrote.
pub(super) fn read(text: &str, family: Family, sets: &Sets, asked: Asked) -> Result<Saved> {
    let mut tables: Vec<String> = Vec::new();
    let mut open: Option<String> = None;
    let mut chains: HashMap<String, Chain> = HashMap::new();
    let mut remarks = Vec::new();
    for (idx, line) in text.lines().enumerate() {
        let number = idx + 1;
        let line = line.trim();
        let rule = match line.bytes().next() {
            None | Some(b'#') => continue,
            Some(b'*') => {
                ensure!(open.is_none(), "line {number}: {line} before the last table's COMMIT");
                open = Some(line[1..].to_owned());
                tables.push(line[1..].to_owned());
                continue;
            }
            // Counters stand before a rule with `-c`.
            Some(b'[') => line.split_once(']').map_or(line, |(_, rule)| rule.trim_start()),
            _ => line,
        };
        let Some(table) = &open else {
            bail!("line {number}: `{line}` stands in no table; give the output of iptables-save");
        };
        if line == "COMMIT" {
            open = None;
        } else if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_whitespace();
            let name = words.next().unwrap_or_default();
            let accepts = match words.next() {
                Some("ACCEPT") => Some(true),
                Some("DROP") => Some(false),
                Some("-") => None,
                _ => bail!("line {number}: `{line}` has no policy that is known"),
            };
            chains.entry(format!("{table} {name}")).or_default().accepts = accepts;
        } else {
            let reader = Reader { family, sets, asked, table };
            let (chain, rule) = reader.rule(rule, number)?;
            if table == "nat" {
                remarks.extend(reader.translation(&rule)?);
            }
            chains.entry(format!("{table} {chain}")).or_default().rules.push(rule);
        }
    }
    if let Some(table) = open {
        bail!("table {table} ends without COMMIT: the file is cut off");
    }
    let base = BASE.map(|(table, chain)| format!("{table} {chain}"));
    let base = base.into_iter().filter(|name| chains.contains_key(name)).collect();
    Ok(Saved { chains: Chains { family, chains, base }, tables, remarks })
}

/// The words of a line; a quoted one may hold blanks.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => (quoted, begun) = (!quoted, true),
            '\\' if quoted => word.extend(chars.next()),
            char if char.is_whitespace() && !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            char => {
                word.push(char);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

struct Reader<'a> {
    family: Family,
    sets: &'a Sets,
    asked: Asked,
    table: &'a str,
}

/// One rule while its words are read.
struct Reading {
    rule: Rule,
    chain: String,
    /// What NAT makes of the destination.
    to: Option<String>,
}

impl Reading {
    /// A condition that the packet meets or does not.
    fn needs(&mut self, met: bool, negated: bool) {
        self.rule.matches &= met != negated;
    }

    /// A condition on the source.
    fn only(&mut self, sources: &Ranges, negated: bool, family: Family) {
        let sources = if negated { sources.complement(family) } else { sources.clone() };
        self.rule.sources = self.rule.sources.intersection(&sources);
    }

    /// A condition that a list of sources cannot say.
    fn unknown(&mut self, what: impl Into<String>) {
        self.rule.unknown.get_or_insert(what.into());
    }
}

impl Reader<'_> {
    fn rule(&self, line: &str, number: usize) -> Result<(String, Rule)> {
        let text = format!("line {number}: `{line}`");
        let mut reading = Reading {
            rule: Rule {
                text: text.clone(),
                comment: None,
                matches: true,
                sources: Ranges::all(self.family),
                unknown: None,
                target: Target::Continue,
            },
            chain: String::new(),
            to: None,
        };
        let words = words(line);
        let mut rest = words.iter().map(String::as_str);
        let mut negated = false;
        while let Some(word) = rest.next() {
            if word == "!" {
                negated = true;
                continue;
            }
            let taken = self.option(word, negated, &mut rest, &mut reading);
            taken.with_context(|| text.clone())?;
            negated = false;
        }
        ensure!(
            !reading.chain.is_empty(),
            "{text}: not a rule of iptables-save, which begins with -A"
        );
        if let Some(to) = reading.to {
            reading.rule.target = Target::Unknown(format!("translates to {to}"));
        }
        Ok((reading.chain, reading.rule))
    }

    /// Reads one option with its values.
    fn option<'w>(
        &self,
        word: &str,
        negated: bool,
        rest: &mut impl Iterator<Item = &'w str>,
        reading: &mut Reading,
    ) -> Result<()> {
        let mut value = || rest.next().with_context(|| format!("{word} without a value"));
        match word {
            "-A" | "--append" => value()?.clone_into(&mut reading.chain),
            "-p" | "--protocol" => {
                let protocol = value()?;
                let met = matches!(protocol, "all" | "0") || self.asked.protocol.is(protocol);
                reading.needs(met, negated);
            }
            "-s" | "--source" | "--src" => {
                let sources = self.networks(value()?)?;
                reading.only(&sources, negated, self.family);
            }
            "--src-range" => {
                let sources = self.range(value()?)?;
                reading.only(&sources, negated, self.family);
            }
            "--match-set" => self.set(value()?, value()?, negated, reading)?,
            "--dport" | "--destination-port" | "--dports" | "--destination-ports" => {
                reading.needs(self.has_port(value()?)?, negated);
            }
            "--ports" => {
                if !self.has_port(value()?)? || negated {
                    reading.unknown("it depends on the source port");
                }
            }
            "--sport" | "--source-port" | "--sports" | "--source-ports" => {
                if value()? != "0:65535" {
                    reading.unknown("it depends on the source port");
                }
            }
            "-i" | "--in-interface" => match value()? {
                // Over lo this host's own traffic comes, which is always allowed.
                "lo" => reading.needs(false, negated),
                "+" => reading.needs(true, negated),
                _ => reading.unknown("it depends on the interface"),
            },
            "-d" | "--destination" | "--dst" => self.destination(value()?, negated, reading)?,
            "--state" | "--ctstate" => {
                let states = value()?;
                let new = states.split(',').any(|state| NEW_STATES.contains(&state));
                reading.needs(new, negated);
            }
            "--syn" => reading.needs(self.asked.protocol == Protocol::Tcp, negated),
            "--tcp-flags" => {
                let (mask, set) = (value()?, value()?);
                let has = |list: &str| list.split(',').any(|flag| flag == "SYN" || flag == "ALL");
                let others = set.split(',').any(|flag| !matches!(flag, "SYN" | "NONE"));
                reading.needs(has(mask) == has(set) && !others, negated);
            }
            "-f" | "--fragment" => reading.needs(false, negated),
            "--comment" => reading.rule.comment = Some(value()?.to_owned()),
            "-m" | "--match" => self.module(value()?, reading),
            "-j" | "--jump" => reading.rule.target = self.target(value()?),
            "-g" | "--goto" => {
                reading.rule.target = Target::Goto(format!("{} {}", self.table, value()?));
            }
            "--to-destination" | "--to-ports" => reading.to = Some(value()?.to_owned()),
            "--reject-with" | "--log-prefix" | "--log-level" | "--nflog-group"
            | "--nflog-prefix" | "--set-xmark" | "--set-mark" | "--zone" | "--icmp-type"
            | "--icmpv6-type" | "--queue-num" | "-c" | "--set-counters" => drop(value()?),
            other => reading.unknown(format!("it depends on {other}")),
        }
        Ok(())
    }

    /// A match extension that needs a word only when it depends on more than the source.
    fn module(&self, name: &str, reading: &mut Reading) {
        match name {
            "tcp" | "udp" | "multiport" | "iprange" | "state" | "conntrack" | "comment" | "set"
            | "icmp" | "icmp6" => {}
            other => reading.unknown(format!("it depends on the match {other}")),
        }
    }

    fn target(&self, name: &str) -> Target {
        match name {
            "ACCEPT" => Target::Accept,
            "DROP" | "REJECT" => Target::Drop,
            "RETURN" => Target::Return,
            "DNAT" | "REDIRECT" | "NETMAP" => Target::Unknown(format!("{name} changes the port")),
            "SNAT" | "MASQUERADE" => Target::Continue,
            name if GOING_ON.contains(&name) => Target::Continue,
            "NFQUEUE" | "QUEUE" | "TPROXY" | "SYNPROXY" | "TARPIT" => {
                Target::Unknown(format!("what {name} does with a packet is not in the rules"))
            }
            chain => Target::Jump(format!("{} {chain}", self.table)),
        }
    }

    /// What a rule of `nat` means for the port: it must not lead away from it.
    fn translation(&self, rule: &Rule) -> Result<Option<String>> {
        let Target::Unknown(what) = &rule.target else { return Ok(None) };
        let port = self.asked.port.to_string();
        let leads_here = what.rsplit([' ', ':']).next() == Some(port.as_str());
        if rule.matches && !rule.sources.is_empty() && rule.text.contains("dport") {
            bail!("{}: packets to port {port} are sent elsewhere ({what})", rule.text);
        }
        Ok(leads_here.then(|| {
            format!(
                "{}: another port leads to {port}; the guard judges ports on the wire",
                rule.text
            )
        }))
    }

    fn set(&self, name: &str, direction: &str, negated: bool, reading: &mut Reading) -> Result<()> {
        if direction != "src" {
            reading.unknown(format!("it matches the set {name} by {direction}"));
            return Ok(());
        }
        match self.sets.get(name, self.family)? {
            Some(sources) => reading.only(&sources, negated, self.family),
            None => reading.unknown(format!(
                "the set {name} is not known; pass what `ipset save` writes with --ipset FILE"
            )),
        }
        Ok(())
    }

    /// Which of the host's addresses is asked for is not in a list; what no packet from outside
    /// is sent to does not matter.
    fn destination(&self, text: &str, negated: bool, reading: &mut Reading) -> Result<()> {
        let net = network(text, self.family)?;
        let never = |net: &IpNet| {
            let (first, last) = (net.network(), net.broadcast());
            let loopback = first.is_loopback() && last.is_loopback();
            let group = first.is_multicast() && last.is_multicast();
            loopback || (group && self.asked.protocol == Protocol::Tcp)
        };
        match net.prefix_len() {
            0 => reading.needs(true, negated),
            _ if never(&net) => reading.needs(false, negated),
            _ => reading.unknown("it depends on the destination address"),
        }
        Ok(())
    }

    fn has_port(&self, text: &str) -> Result<bool> {
        for part in text.split(',') {
            let (first, last) = part.split_once(':').unwrap_or((part, part));
            let first: u16 = if first.is_empty() { 0 } else { port(first)? };
            let last: u16 = if last.is_empty() { u16::MAX } else { port(last)? };
            if (first..=last).contains(&self.asked.port) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn networks(&self, text: &str) -> Result<Ranges> {
        text.split(',').try_fold(Ranges::default(), |all, part| {
            Ok(all.union(&Ranges::of(network(part, self.family)?)))
        })
    }

    fn range(&self, text: &str) -> Result<Ranges> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let address = |text: &str| -> Result<u128> {
            let address: IpAddr =
                text.parse().with_context(|| format!("`{text}` is no address"))?;
            ensure!(Family::of(address) == self.family, "{text} is of the other family");
            Ok(number(address))
        };
        Ok(Ranges::between(address(first)?, address(last)?))
    }
}

fn port(text: &str) -> Result<u16> {
    text.parse().with_context(|| format!("`{text}` is no port; names are not known: use -n forms"))
}

/// An address, a prefix, or an address with a netmask.
pub(super) fn network(text: &str, family: Family) -> Result<IpNet> {
    let net = match text.split_once('/') {
        Some((address, mask)) if mask.contains(['.', ':']) => {
            let (address, mask): (IpAddr, IpAddr) = (address.parse()?, mask.parse()?);
            IpNet::with_netmask(address, mask)
                .with_context(|| format!("`{text}`: the mask has holes, which no prefix has"))?
        }
        Some(_) => text.parse().with_context(|| format!("`{text}` is no prefix"))?,
        None => {
            let address: IpAddr =
                text.parse().with_context(|| format!("`{text}` is no address"))?;
            IpNet::from(address)
        }
    };
    ensure!(Family::of(net.addr()) == family, "{text} is of the other family");
    Ok(net.trunc())
}
