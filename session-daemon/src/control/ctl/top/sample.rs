//! One look at the daemon, and what has happened between two of them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use serde_json::Value;

use crate::control::ctl::client::Client;
use crate::control::protocol::Request;

/// What the daemon says at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    /// The answer to `status`.
    pub(super) status: Value,
    /// `stats items` and `stats slabs` by class.
    pub(super) classes: BTreeMap<u32, Class>,
    /// Open connections by the client's address.
    pub(super) clients: BTreeMap<String, u64>,
}

/// One slab class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) chunk_size: u64,
    pub(super) items: u64,
    pub(super) bytes: u64,
    pub(super) pages: u64,
    pub(super) evicted: u64,
    pub(super) evicted_nonzero: u64,
}

impl Sample {
    /// Asks the daemon.
    pub(super) fn take(client: &mut Client) -> Result<Self> {
        let status = client.ask([&Request::Status])?;
        let at = Instant::now();
        let mut stats = |topic: &str| -> Result<String> {
            let answer = client.ask([&Request::Admin { line: format!("stats {topic}") }])?;
            Ok(answer["answer"].as_str().unwrap_or_default().to_owned())
        };
        let classes = classes(&stats("items")?, &stats("slabs")?);
        let clients = clients(&stats("conns")?);
        Ok(Self { at, status, classes, clients })
    }

    /// A figure of `stats`.
    pub(super) fn figure(&self, name: &str) -> f64 {
        let value = &self.status["statistics"][name];
        value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0.0)
    }

    /// How much a figure grew a second since an earlier look.
    pub(super) fn rate(&self, before: &Self, name: &str) -> f64 {
        self.per_second(before, self.figure(name) - before.figure(name))
    }

    /// A difference since an earlier look, a second. A restarted daemon begins at 0.
    pub(super) fn per_second(&self, before: &Self, grown: f64) -> f64 {
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64();
        if seconds > 0.0 { grown.max(0.0) / seconds } else { 0.0 }
    }

    /// Workers' turns since an earlier look, of those that were looked at: an upper bound in
    /// microseconds, and how many there were between it and the bound before.
    pub(super) fn turns(&self, before: &Self) -> Vec<(f64, u64)> {
        let grown = |name: &str| (self.figure(name) - before.figure(name)).max(0.0) as u64;
        let bounds = (0..64).map(|bits| 1_u64 << bits);
        let named = bounds.map(|bound| (bound as f64, format!("turns_below_us:{bound}")));
        let told = named.take_while(|(_, name)| !self.status["statistics"][name].is_null());
        let longer = (f64::INFINITY, grown("turns_longer"));
        told.map(|(bound, name)| (bound, grown(&name))).chain([longer]).collect()
    }

    /// Packets by reason, with their fate.
    pub(super) fn packets(&self) -> BTreeMap<String, (bool, u64)> {
        let reasons = self.status["guard"]["reasons"].as_array().into_iter().flatten();
        let count = |one: &Value| {
            let reason = one["reason"].as_str()?.to_owned();
            Some((reason, (one["dropped"] == true, one["packets"].as_u64()?)))
        };
        reasons.filter_map(count).collect()
    }

    /// What the list calls an address, if one of its entries has counted packets of it.
    pub(super) fn name_of(&self, address: &str) -> Option<&str> {
        let counts = self.status["guard"]["counts"].as_array()?;
        let is_of = |count: &&Value| {
            let prefix = count["prefix"].as_str().unwrap_or_default();
            prefix.split('/').next() == Some(address)
        };
        counts.iter().find(is_of)?["name"].as_str()
    }
}

/// `STAT name value` lines.
fn stats(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.strip_prefix("STAT ")?.trim_end().split_once(' '))
}

/// The classes of `stats items` and `stats slabs`.
pub(super) fn classes(items: &str, slabs: &str) -> BTreeMap<u32, Class> {
    let mut classes: BTreeMap<u32, Class> = BTreeMap::new();
    let items =
        stats(items).filter_map(|(name, value)| Some((name.strip_prefix("items:")?, value)));
    for (name, value) in items.chain(stats(slabs)) {
        let Some((class, name)) = name.split_once(':') else { continue };
        let (Ok(class), Ok(value)) = (class.parse(), value.parse::<u64>()) else { continue };
        let class = classes.entry(class).or_default();
        match name {
            "chunk_size" => class.chunk_size = value,
            "number" => class.items = value,
            "mem_requested" => class.bytes = value,
            "total_pages" => class.pages = value,
            "evicted" => class.evicted = value,
            "evicted_nonzero" => class.evicted_nonzero = value,
            _ => {}
        }
    }
    classes
}

/// Addresses of `stats conns` with the number of their connections.
pub(super) fn clients(text: &str) -> BTreeMap<String, u64> {
    let mut clients = BTreeMap::new();
    for (address, _) in connections(text) {
        *clients.entry(address).or_insert(0) += 1;
    }
    clients
}

/// The connections of `stats conns`: the client's address, and the seconds since it last asked.
pub(in crate::control::ctl) fn connections(text: &str) -> Vec<(String, u64)> {
    let mut open: BTreeMap<&str, (Option<String>, u64)> = BTreeMap::new();
    for (name, value) in stats(text) {
        match name.split_once(':') {
            Some((fd, "addr")) => open.entry(fd).or_default().0 = address(value),
            Some((fd, "secs_since_last_cmd")) => {
                open.entry(fd).or_default().1 = value.parse().unwrap_or(0);
            }
            Some((fd, "state")) if value == "conn_listening" => drop(open.remove(fd)),
            _ => {}
        }
    }
    open.into_values().filter_map(|(address, silent_s)| Some((address?, silent_s))).collect()
}

/// The address in `tcp:198.18.0.11:40000`, `tcp6:[2001:db8::11]:40000` or `unix:PATH`.
fn address(notation: &str) -> Option<String> {
    let (kind, rest) = notation.split_once(':')?;
    match kind {
        "tcp" | "tcp6" => {
            let (address, _) = rest.rsplit_once(':')?;
            Some(address.trim_matches(['[', ']']).to_owned())
        }
        "unix" => Some("unix socket".to_owned()),
        _ => None,
    }
}
