//! The allowlist as user space judges it: entries, longest match, differences between two lists.
//! It owns what an entry means; it never reads a clock, a socket or a map. `parse` reads text.
//!
//! The kernel must give the same verdict for every source, so the rules are the kernel's: a host
//! entry is asked first and is skipped once its deadline has passed; then the longest prefix alone
//! decides, and refuses once its deadline has passed, because a trie cannot be asked for the next
//! shorter one.
#![forbid(unsafe_code)]

pub mod parse;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use session_common::guard::{LARGE_HOSTS_MAX, PREFIXES_MAX, Reason};

/// Most hosts of one family in one list.
pub const LIST_HOSTS_MAX: usize = LARGE_HOSTS_MAX as usize;

/// Most prefixes of one family in one list: half of the kernel's table, because a list that is
/// replaced stands beside its successor until the switch.
pub const LIST_PREFIXES_MAX: usize = PREFIXES_MAX as usize / 2;

/// What an entry says about its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// They may reach the guarded ports.
    Allow,
    /// They may not, in the style that `--refuse` names.
    Deny,
    /// They may not, and are not answered.
    Drop,
    /// They may not: a TCP reset tells them.
    Reset,
    /// They may not: ICMP tells them.
    Icmp,
}

impl Action {
    /// The word before a prefix in a list.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Drop => "drop",
            Self::Reset => "reset",
            Self::Icmp => "icmp",
        }
    }

    /// What was done to a prefix, for a message.
    #[must_use]
    pub const fn participle(self) -> &'static str {
        match self {
            Self::Allow => "allowed",
            Self::Deny => "denied",
            Self::Drop => "dropped",
            Self::Reset => "reset",
            Self::Icmp => "refused by icmp",
        }
    }
}

/// Where an entry came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The command line or the configuration (`--allow`).
    Config,
    /// The allow file (`--allow-file`).
    File,
    /// `sessionctl`.
    Control,
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The sources: a network without host bits, a full-length prefix being one host.
    pub prefix: IpNet,
    /// What it says about them.
    pub action: Action,
    /// `CLOCK_BOOTTIME` nanoseconds after which the entry is over; the module says what then.
    pub deadline_ns: Option<u64>,
    /// Where it came from.
    pub origin: Origin,
    /// What the operator calls its sources, as [`parse::check_name`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the operator wrote beside it.
    pub comment: Option<String>,
}

/// What an operator says of entries beside the prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// What the sources are called.
    pub name: Option<String>,
    /// Why they are listed.
    pub comment: Option<String>,
}

impl Entry {
    /// An entry without deadline, name and comment.
    #[must_use]
    pub fn new(prefix: IpNet, action: Action, origin: Origin) -> Self {
        let prefix = canonical(prefix);
        Self { prefix, action, deadline_ns: None, origin, name: None, comment: None }
    }

    /// The same entry with a note.
    #[must_use]
    pub fn noted(self, note: Note) -> Self {
        Self { name: note.name, comment: note.comment, ..self }
    }

    /// Whether the deadline, if there is one, has passed at `boottime_ns`.
    #[must_use]
    pub fn is_over(&self, boottime_ns: u64) -> bool {
        self.deadline_ns.is_some_and(|deadline_ns| boottime_ns > deadline_ns)
    }

    /// Whether the entry names one host and not a network.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.prefix.prefix_len() == self.prefix.max_prefix_len()
    }

    fn verdict(&self, boottime_ns: u64) -> Verdict<'_> {
        let (allowed, reason) = match self.action {
            _ if self.is_over(boottime_ns) => (false, Reason::Deadline),
            Action::Allow => (true, Reason::Allowed),
            Action::Deny | Action::Drop | Action::Reset | Action::Icmp => {
                (false, Reason::DenyEntry)
            }
        };
        Verdict { allowed, reason, entry: Some(self) }
    }
}

/// What the list says about one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// Whether the source may reach the guarded ports.
    pub allowed: bool,
    /// Why, in the guard's words.
    pub reason: Reason,
    /// The entry that decided; none for loopback and for a source that no entry names.
    pub entry: Option<&'a Entry>,
}

/// A list has more entries than the kernel's tables hold beside a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the list has {count} {family} {kind}, the most is {max}; merge neighbouring entries into prefixes"
)]
pub struct TooLong {
    family: &'static str,
    kind: &'static str,
    count: usize,
    max: usize,
}

/// How many entries of each kind a list has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// IPv4 hosts.
    pub hosts4: usize,
    /// IPv4 prefixes.
    pub prefixes4: usize,
    /// IPv6 hosts.
    pub hosts6: usize,
    /// IPv6 prefixes.
    pub prefixes6: usize,
}

impl Sizes {
    /// The number that a prefix counts in.
    pub fn of(&mut self, prefix: IpNet) -> &mut usize {
        match (prefix, prefix.prefix_len() == prefix.max_prefix_len()) {
            (IpNet::V4(_), true) => &mut self.hosts4,
            (IpNet::V4(_), false) => &mut self.prefixes4,
            (IpNet::V6(_), true) => &mut self.hosts6,
            (IpNet::V6(_), false) => &mut self.prefixes6,
        }
    }

    /// All entries.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.hosts4 + self.prefixes4 + self.hosts6 + self.prefixes6
    }

    /// Whether the kernel's tables hold such a list beside a successor of the same size.
    ///
    /// # Errors
    /// The first kind of which there are too many.
    pub fn check(&self) -> Result<(), TooLong> {
        for (family, kind, count, max) in [
            ("IPv4", "hosts", self.hosts4, LIST_HOSTS_MAX),
            ("IPv4", "prefixes", self.prefixes4, LIST_PREFIXES_MAX),
            ("IPv6", "hosts", self.hosts6, LIST_HOSTS_MAX),
            ("IPv6", "prefixes", self.prefixes6, LIST_PREFIXES_MAX),
        ] {
            if count > max {
                return Err(TooLong { family, kind, count, max });
            }
        }
        Ok(())
    }
}

/// How one list differs from another, each part sorted by prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// Entries that only the other list has.
    pub added: Vec<Entry>,
    /// Entries that only this list has.
    pub removed: Vec<Entry>,
    /// Entries of both that differ in anything but the prefix: this list's, the other's.
    pub changed: Vec<(Entry, Entry)>,
}

impl Diff {
    /// Whether the lists are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many prefixes differ.
    #[must_use]
    pub fn len(&self) -> usize {
        self.added.len() + self.removed.len() + self.changed.len()
    }
}

/// Entries by prefix, at most one each.
#[derive(Clone, Debug, Default)]
pub struct Allowlist {
    entries: Vec<Entry>,
    v4: Index<u32>,
    v6: Index<u128>,
}

/// Prefix length to network bits to position in `Allowlist::entries`; no length maps to an empty
/// table, so that a look-up costs one probe for each length in use.
type Index<Bits> = BTreeMap<u8, HashMap<Bits, u32>>;

impl Allowlist {
    /// The empty list, which refuses everything but loopback.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, in no particular order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// All entries, in no particular order, out of the list.
    pub fn into_entries(self) -> impl ExactSizeIterator<Item = Entry> {
        self.entries.into_iter()
    }

    /// The entry of exactly this prefix.
    #[must_use]
    pub fn get(&self, prefix: IpNet) -> Option<&Entry> {
        let prefix = canonical(prefix);
        let position = match prefix {
            IpNet::V4(net) => self.v4.get(&net.prefix_len())?.get(&net.network().to_bits()),
            IpNet::V6(net) => self.v6.get(&net.prefix_len())?.get(&net.network().to_bits()),
        };
        position.map(|position| &self.entries[*position as usize])
    }

    /// The entry of the longest prefix that holds `prefix` and is not of it alone.
    #[must_use]
    pub fn covering(&self, prefix: IpNet) -> Option<&Entry> {
        let prefix = canonical(prefix);
        let position = match prefix {
            IpNet::V4(net) => shorter(&self.v4, net.network().to_bits(), net.prefix_len()),
            IpNet::V6(net) => shorter(&self.v6, net.network().to_bits(), net.prefix_len()),
        };
        position.map(|position| &self.entries[position as usize])
    }

    /// Entries that could go without a difference: a larger prefix says the same.
    pub fn redundant(&self) -> impl Iterator<Item = (&Entry, &Entry)> {
        self.entries.iter().filter_map(|entry| {
            let larger = self.covering(entry.prefix)?;
            let same = larger.action == entry.action
                && larger.deadline_ns.is_none()
                && entry.deadline_ns.is_none();
            same.then_some((entry, larger))
        })
    }

    /// Judges `source` at `boottime_ns` (`CLOCK_BOOTTIME`). A v4-mapped IPv6 address is judged as
    /// its IPv4 address; loopback is always allowed.
    #[must_use]
    pub fn verdict(&self, source: IpAddr, boottime_ns: u64) -> Verdict<'_> {
        let source = source.to_canonical();
        if source.is_loopback() {
            return Verdict { allowed: true, reason: Reason::Allowed, entry: None };
        }
        let (host, prefix) = match source {
            IpAddr::V4(address) => matches(&self.v4, address.to_bits(), 32),
            IpAddr::V6(address) => matches(&self.v6, address.to_bits(), 128),
        };
        let host = host.map(|position| &self.entries[position as usize]);
        let prefix = prefix.map(|position| &self.entries[position as usize]);
        match (host, prefix) {
            (Some(host), _) if !host.is_over(boottime_ns) => host.verdict(boottime_ns),
            (_, Some(prefix)) => prefix.verdict(boottime_ns),
            (Some(host), None) => host.verdict(boottime_ns),
            (None, None) => Verdict { allowed: false, reason: Reason::NotListed, entry: None },
        }
    }

    /// Adds `entry`, in place of one with the same prefix, which is returned. Host bits are cut
    /// off and a v4-mapped IPv6 prefix becomes the IPv4 prefix that it stands for.
    pub fn insert(&mut self, mut entry: Entry) -> Option<Entry> {
        entry.prefix = canonical(entry.prefix);
        let next =
            u32::try_from(self.entries.len()).expect("fewer than 2^32 entries fit in memory");
        let position = match entry.prefix {
            IpNet::V4(net) => slot(&mut self.v4, net.prefix_len(), net.network().to_bits(), next),
            IpNet::V6(net) => slot(&mut self.v6, net.prefix_len(), net.network().to_bits(), next),
        };
        if position == next {
            self.entries.push(entry);
            return None;
        }
        Some(std::mem::replace(&mut self.entries[position as usize], entry))
    }

    /// Removes the entry of exactly this prefix.
    pub fn remove(&mut self, prefix: IpNet) -> Option<Entry> {
        let position = match canonical(prefix) {
            IpNet::V4(net) => take(&mut self.v4, net.prefix_len(), net.network().to_bits()),
            IpNet::V6(net) => take(&mut self.v6, net.prefix_len(), net.network().to_bits()),
        }?;
        let removed = self.entries.swap_remove(position as usize);
        // The last entry now stands where the removed one was.
        if let Some(moved) = self.entries.get(position as usize) {
            match moved.prefix {
                IpNet::V4(net) => {
                    place(&mut self.v4, net.prefix_len(), net.network().to_bits(), position);
                }
                IpNet::V6(net) => {
                    place(&mut self.v6, net.prefix_len(), net.network().to_bits(), position);
                }
            }
        }
        Some(removed)
    }

    /// Whether the kernel's tables hold this list beside a successor of the same size.
    pub fn check_size(&self) -> Result<(), TooLong> {
        self.sizes().check()
    }

    /// How many entries of each kind there are.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let (hosts4, prefixes4) = sizes_of(&self.v4, 32);
        let (hosts6, prefixes6) = sizes_of(&self.v6, 128);
        Sizes { hosts4, prefixes4, hosts6, prefixes6 }
    }

    /// What changes when `other` takes this list's place.
    #[must_use]
    pub fn diff(&self, other: &Self) -> Diff {
        let mut diff = Diff::default();
        for theirs in &other.entries {
            match self.get(theirs.prefix) {
                None => diff.added.push(theirs.clone()),
                Some(ours) if ours == theirs => {}
                Some(ours) => diff.changed.push((ours.clone(), theirs.clone())),
            }
        }
        let gone = self.entries.iter().filter(|ours| other.get(ours.prefix).is_none());
        diff.removed.extend(gone.cloned());
        diff.added.sort_by_key(|entry| entry.prefix);
        diff.removed.sort_by_key(|entry| entry.prefix);
        diff.changed.sort_by_key(|(ours, _)| ours.prefix);
        diff
    }
}

impl FromIterator<Entry> for Allowlist {
    fn from_iter<T: IntoIterator<Item = Entry>>(entries: T) -> Self {
        let mut list = Self::new();
        list.extend(entries);
        list
    }
}

impl Extend<Entry> for Allowlist {
    fn extend<T: IntoIterator<Item = Entry>>(&mut self, entries: T) {
        for entry in entries {
            self.insert(entry);
        }
    }
}

/// The prefix without host bits, as IPv4 if it lies inside `::ffff:0:0/96`.
#[must_use]
pub fn canonical(prefix: IpNet) -> IpNet {
    if let IpNet::V6(net) = prefix
        && let (Some(mapped), Some(prefix_len)) =
            (net.network().to_ipv4_mapped(), net.prefix_len().checked_sub(96))
        && let Ok(net) = Ipv4Net::new(mapped, prefix_len)
    {
        return IpNet::V4(net.trunc());
    }
    prefix.trunc()
}

trait Bits: Copy + Eq + std::hash::Hash {
    /// The first `length` bits, the rest zero.
    fn network(self, length: u8) -> Self;
}

impl Bits for u32 {
    fn network(self, length: u8) -> Self {
        self & Self::MAX.checked_shl(Self::BITS - u32::from(length)).unwrap_or(0)
    }
}

impl Bits for u128 {
    fn network(self, length: u8) -> Self {
        self & Self::MAX.checked_shl(Self::BITS - u32::from(length)).unwrap_or(0)
    }
}

/// Positions of the host entry and of the longest shorter prefix that hold `source`.
fn matches<B: Bits>(index: &Index<B>, source: B, host_len: u8) -> (Option<u32>, Option<u32>) {
    let host = index.get(&host_len).and_then(|hosts| hosts.get(&source)).copied();
    (host, shorter(index, source, host_len))
}

/// Position of the longest prefix shorter than `length` that holds `source`.
fn shorter<B: Bits>(index: &Index<B>, source: B, length: u8) -> Option<u32> {
    index
        .range(..length)
        .rev()
        .find_map(|(length, networks)| networks.get(&source.network(*length)))
        .copied()
}

fn slot<B: Bits>(index: &mut Index<B>, length: u8, network: B, next: u32) -> u32 {
    *index.entry(length).or_default().entry(network).or_insert(next)
}

fn place<B: Bits>(index: &mut Index<B>, length: u8, network: B, position: u32) {
    index.entry(length).or_default().insert(network, position);
}

fn take<B: Bits>(index: &mut Index<B>, length: u8, network: B) -> Option<u32> {
    let networks = index.get_mut(&length)?;
    let position = networks.remove(&network);
    if networks.is_empty() {
        index.remove(&length);
    }
    position
}

/// Numbers of hosts and of prefixes.
fn sizes_of<B>(index: &Index<B>, host_len: u8) -> (usize, usize) {
    let hosts = index.get(&host_len).map_or(0, HashMap::len);
    (hosts, index.range(..host_len).map(|(_, networks)| networks.len()).sum())
}

/// The prefix that stands for one host.
#[must_use]
pub fn host(address: IpAddr) -> IpNet {
    canonical(IpNet::from(address))
}

/// Whether `prefix` stands for every address of its family.
#[must_use]
pub fn is_any(prefix: IpNet) -> bool {
    prefix.prefix_len() == 0
}

#[cfg(test)]
mod tests;
