//! A list in the kernel's tables: written under a generation of its own, switched to by one word.
//!
//! It owns which keys and rules an [`Allowlist`] becomes and which counter an entry has. It never
//! decides when to switch.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{IterableMap, LpmTrie, MapData, MapError, PerCpuValues};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use session_common::guard::{
    ACTION_ALLOW, ACTION_DENY, ACTION_DROP, ACTION_ICMP, ACTION_RESET, Counter, HostKey4, HostKey6,
    LISTS_MAX, LPM_LIST_BITS, ListWord, PrefixKey6, RULES_MAX, Rule,
};

use crate::allowlist::{Action, Allowlist, Entry};
use crate::guard::error::GuardError;
use crate::guard::maps::{self, Maps, write_error};
use crate::sys;

/// Generations have 24 bits.
const GENERATION_MAX: u32 = (1 << 24) - 1;

/// Counters of one list. They are split evenly, so that two daemons never share one.
const COUNTERS_PER_LIST: u32 = RULES_MAX / LISTS_MAX;

/// Waited where the kernel offers no wait for its readers: far longer than a packet takes.
const READERS_PAUSE: Duration = Duration::from_millis(50);

/// Where an entry stands.
enum Place {
    Host4(HostKey4),
    Host6(HostKey6),
    Prefix4(Key<HostKey4>),
    Prefix6(Key<PrefixKey6>),
}

impl Place {
    fn of(list: ListWord, prefix: IpNet) -> Self {
        let length = LPM_LIST_BITS + u32::from(prefix.prefix_len());
        match prefix {
            IpNet::V4(net) => {
                let key = HostKey4 { list, address: net.network().octets() };
                if net.prefix_len() == 32 {
                    Self::Host4(key)
                } else {
                    Self::Prefix4(Key::new(length, key))
                }
            }
            IpNet::V6(net) => {
                let address = net.network().octets();
                if net.prefix_len() == 128 {
                    Self::Host6(HostKey6 { list, address })
                } else {
                    Self::Prefix6(Key::new(length, PrefixKey6 { list, address, reserved: 0 }))
                }
            }
        }
    }
}

/// Keys of the four tables.
#[derive(Default)]
pub(super) struct Keys {
    hosts4: Vec<HostKey4>,
    hosts6: Vec<HostKey6>,
    prefixes4: Vec<Key<HostKey4>>,
    prefixes6: Vec<Key<PrefixKey6>>,
}

/// Keys with their rules, key by key.
#[derive(Default)]
struct Rules {
    hosts4: Vec<Rule>,
    hosts6: Vec<Rule>,
    prefixes4: Vec<Rule>,
    prefixes6: Vec<Rule>,
}

impl Keys {
    fn push(&mut self, place: &Place) {
        match place {
            Place::Host4(key) => self.hosts4.push(*key),
            Place::Host6(key) => self.hosts6.push(*key),
            Place::Prefix4(key) => self.prefixes4.push(*key),
            Place::Prefix6(key) => self.prefixes6.push(*key),
        }
    }

    /// The keys of a list under a word.
    pub(super) fn of(list: &Allowlist, word: ListWord) -> Self {
        let mut keys = Self::default();
        for entry in list.entries() {
            keys.push(&Place::of(word, entry.prefix));
        }
        keys
    }

    /// All keys in the tables that belong to a list, of whatever generation.
    pub(super) fn of_slot(maps: &Maps, slot: u32) -> Result<Self, GuardError> {
        let mut keys = Self {
            hosts4: maps::keys(maps.hosts4.keys(), "HOSTS4")?,
            hosts6: maps::keys(maps.hosts6.keys(), "HOSTS6")?,
            prefixes4: maps::keys(maps.prefixes4.keys(), "PREFIXES4")?,
            prefixes6: maps::keys(maps.prefixes6.keys(), "PREFIXES6")?,
        };
        keys.hosts4.retain(|key| key.list.list() == slot);
        keys.hosts6.retain(|key| key.list.list() == slot);
        keys.prefixes4.retain(|key| key.data().list.list() == slot);
        keys.prefixes6.retain(|key| key.data().list.list() == slot);
        Ok(keys)
    }

    /// Generations that any of the keys is of.
    fn generations(&self) -> HashSet<u32> {
        let hosts4 = self.hosts4.iter().map(|key| key.list);
        let hosts6 = self.hosts6.iter().map(|key| key.list);
        let prefixes4 = self.prefixes4.iter().map(|key| key.data().list);
        let prefixes6 = self.prefixes6.iter().map(|key| key.data().list);
        hosts4.chain(hosts6).chain(prefixes4).chain(prefixes6).map(ListWord::generation).collect()
    }

    /// Networks, without hosts, that stand under `word`.
    fn prefixes(&self, word: ListWord) -> HashSet<IpNet> {
        let v4 = self.prefixes4.iter().filter(|key| key.data().list == word).filter_map(|key| {
            let length = u8::try_from(key.prefix_len().checked_sub(LPM_LIST_BITS)?).ok()?;
            Some(IpNet::V4(Ipv4Net::new(key.data().address.into(), length).ok()?))
        });
        let v6 = self.prefixes6.iter().filter(|key| key.data().list == word).filter_map(|key| {
            let length = u8::try_from(key.prefix_len().checked_sub(LPM_LIST_BITS)?).ok()?;
            Some(IpNet::V6(Ipv6Net::new(key.data().address.into(), length).ok()?))
        });
        v4.chain(v6).collect()
    }

    /// A generation after `current` that none of the keys is of: what a crashed start left
    /// behind must not come into force.
    pub(super) fn next_generation(&self, current: u32) -> u32 {
        let taken = self.generations();
        let after = |generation: u32| if generation >= GENERATION_MAX { 1 } else { generation + 1 };
        let mut next = after(current);
        while taken.contains(&next) {
            next = after(next);
        }
        next
    }
}

/// Which counter an entry has, for the entries that have one of their own.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleCounters {
    by_prefix: HashMap<IpNet, u32>,
    free: Vec<u32>,
}

impl RuleCounters {
    /// No entry has one yet. Index 0 is for all entries without their own.
    pub(super) fn new(slot: u32) -> Self {
        let first = slot * COUNTERS_PER_LIST;
        // Reversed, because they are taken from the end.
        let free = (first..first + COUNTERS_PER_LIST).rev().filter(|idx| *idx != 0).collect();
        Self { by_prefix: HashMap::new(), free }
    }

    /// The counters of `list`, where entries that had one keep it, and those that are new.
    fn successor(&self, list: &Allowlist, slot: u32) -> (Self, Vec<u32>) {
        let mut next = Self::new(slot);
        for entry in list.entries() {
            if let Some(idx) = self.by_prefix.get(&entry.prefix) {
                next.by_prefix.insert(entry.prefix, *idx);
            }
        }
        let kept: HashSet<u32> = next.by_prefix.values().copied().collect();
        next.free.retain(|idx| !kept.contains(idx));
        let mut fresh = Vec::new();
        for entry in list.entries() {
            if next.free.is_empty() {
                break;
            }
            fresh.extend(next.take(entry.prefix));
        }
        (next, fresh)
    }

    /// A counter for `prefix`, if it has none and one is left.
    fn take(&mut self, prefix: IpNet) -> Option<u32> {
        if self.by_prefix.contains_key(&prefix) {
            return None;
        }
        let idx = self.free.pop()?;
        self.by_prefix.insert(prefix, idx);
        Some(idx)
    }

    fn give_back(&mut self, prefix: IpNet) {
        self.free.extend(self.by_prefix.remove(&prefix));
    }

    /// Entries with a counter of their own, and its index.
    pub(super) fn all(&self) -> impl Iterator<Item = (IpNet, u32)> {
        self.by_prefix.iter().map(|(prefix, idx)| (*prefix, *idx))
    }

    /// The entry's own counter.
    pub(super) fn get(&self, prefix: IpNet) -> Option<u32> {
        self.by_prefix.get(&prefix).copied()
    }

    /// What the tables say, for a list that an earlier process wrote and that `list` succeeds.
    pub(super) fn recover(maps: &Maps, before: &Keys, word: ListWord, list: &Allowlist) -> Self {
        let mut counters = Self::new(word.list());
        let first = word.list() * COUNTERS_PER_LIST;
        let own = first.max(1)..first + COUNTERS_PER_LIST;
        let prefixes = before.prefixes(word);
        let mut seen = HashSet::new();
        for entry in list.entries() {
            if counters.by_prefix.len() == own.len() {
                break;
            }
            let rule = match Place::of(word, entry.prefix) {
                Place::Host4(key) => maps.hosts4.get(&key, 0).ok(),
                Place::Host6(key) => maps.hosts6.get(&key, 0).ok(),
                // A trie answers with a shorter prefix when asked for one that is absent.
                _ if !prefixes.contains(&entry.prefix) => None,
                Place::Prefix4(key) => maps.prefixes4.get(&key, 0).ok(),
                Place::Prefix6(key) => maps.prefixes6.get(&key, 0).ok(),
            };
            let Some(idx) = rule.map(|rule| rule.counter) else { continue };
            if own.contains(&idx) && seen.insert(idx) {
                counters.by_prefix.insert(entry.prefix, idx);
            }
        }
        counters.free.retain(|idx| !seen.contains(idx));
        counters
    }
}

/// A list that is in the tables but not in force.
pub(super) struct Staged {
    pub(super) word: ListWord,
    pub(super) counters: RuleCounters,
    keys: Keys,
}

/// Writes `list` under `word`, which no packet reads yet. On an error nothing is left of it.
pub(super) fn stage(
    maps: &mut Maps,
    list: &Allowlist,
    word: ListWord,
    before: &RuleCounters,
) -> Result<Staged, GuardError> {
    let (counters, fresh) = before.successor(list, word.list());
    clear_counters(maps, fresh)?;
    let (mut keys, mut rules) = (Keys::default(), Rules::default());
    for entry in list.entries() {
        let rule = rule(entry, &counters);
        let place = Place::of(word, entry.prefix);
        keys.push(&place);
        match place {
            Place::Host4(_) => rules.hosts4.push(rule),
            Place::Host6(_) => rules.hosts6.push(rule),
            Place::Prefix4(_) => rules.prefixes4.push(rule),
            Place::Prefix6(_) => rules.prefixes6.push(rule),
        }
    }
    let outcome = write(maps, &keys, &rules);
    if let Err(error) = outcome {
        delete(maps, &keys);
        return Err(error);
    }
    Ok(Staged { word, counters, keys })
}

impl Staged {
    /// Takes it out again.
    pub(super) fn withdraw(self, maps: &mut Maps) {
        delete(maps, &self.keys);
    }
}

/// Writes one entry into the list in force, in place of one with the same prefix.
pub(super) fn insert(
    maps: &mut Maps,
    word: ListWord,
    entry: &Entry,
    counters: &mut RuleCounters,
) -> Result<(), GuardError> {
    let fresh = counters.take(entry.prefix);
    clear_counters(maps, fresh)?;
    let rule = rule(entry, counters);
    let (table, outcome) = match Place::of(word, entry.prefix) {
        Place::Host4(key) => ("HOSTS4", maps.hosts4.insert(key, rule, 0)),
        Place::Host6(key) => ("HOSTS6", maps.hosts6.insert(key, rule, 0)),
        Place::Prefix4(key) => ("PREFIXES4", maps.prefixes4.insert(&key, rule, 0)),
        Place::Prefix6(key) => ("PREFIXES6", maps.prefixes6.insert(&key, rule, 0)),
    };
    outcome.map_err(|error| {
        if fresh.is_some() {
            counters.give_back(entry.prefix);
        }
        write_error(table, &error)
    })
}

/// Removes one entry from the list in force; none of that prefix is no error.
pub(super) fn remove(
    maps: &mut Maps,
    word: ListWord,
    prefix: IpNet,
    counters: &mut RuleCounters,
) -> Result<(), GuardError> {
    let (table, outcome) = match Place::of(word, prefix) {
        Place::Host4(key) => ("HOSTS4", maps.hosts4.remove(&key)),
        Place::Host6(key) => ("HOSTS6", maps.hosts6.remove(&key)),
        Place::Prefix4(key) => ("PREFIXES4", maps.prefixes4.remove(&key)),
        Place::Prefix6(key) => ("PREFIXES6", maps.prefixes6.remove(&key)),
    };
    match outcome {
        Ok(()) => {}
        Err(error) if maps::is_absent(&error) => {}
        Err(error) => return Err(write_error(table, &error)),
    }
    counters.give_back(prefix);
    Ok(())
}

/// Removes entries of generations that are no longer in force. Waits first for packets that read
/// the word before it changed. What cannot be removed is tried again at the next start.
pub(super) fn sweep(maps: &mut Maps, keys: &Keys) {
    if sys::wait_for_readers().is_err() {
        std::thread::sleep(READERS_PAUSE);
    }
    delete(maps, keys);
}

fn rule(entry: &Entry, counters: &RuleCounters) -> Rule {
    Rule {
        // Zero stands for no deadline; a deadline at boot is as over a nanosecond later.
        deadline_ns: entry.deadline_ns.map_or(0, |deadline_ns| deadline_ns.max(1)),
        counter: counters.get(entry.prefix).unwrap_or(0),
        action: match entry.action {
            Action::Allow => ACTION_ALLOW,
            Action::Deny => ACTION_DENY,
            Action::Drop => ACTION_DROP,
            Action::Reset => ACTION_RESET,
            Action::Icmp => ACTION_ICMP,
        },
    }
}

fn clear_counters(
    maps: &mut Maps,
    indices: impl IntoIterator<Item = u32>,
) -> Result<(), GuardError> {
    let mut zeros = None;
    for idx in indices {
        let cpus = match &mut zeros {
            Some(cpus) => cpus,
            none => none
                .insert(aya::util::nr_cpus().map_err(|(what, error)| GuardError::io(what, error))?),
        };
        let values = PerCpuValues::try_from(vec![Counter::default(); *cpus])
            .map_err(|error| GuardError::io("counting CPUs", error))?;
        maps.rules.set(idx, values, 0).map_err(|error| write_error("RULES", &error))?;
    }
    Ok(())
}

fn write(maps: &mut Maps, keys: &Keys, rules: &Rules) -> Result<(), GuardError> {
    write_all(&mut maps.hosts4, &keys.hosts4, &rules.hosts4, "HOSTS4")?;
    write_all(&mut maps.hosts6, &keys.hosts6, &rules.hosts6, "HOSTS6")?;
    write_all(&mut maps.prefixes4, &keys.prefixes4, &rules.prefixes4, "PREFIXES4")?;
    write_all(&mut maps.prefixes6, &keys.prefixes6, &rules.prefixes6, "PREFIXES6")
}

fn write_all<K: Pod, T: Table<K>>(
    table: &mut T,
    keys: &[K],
    rules: &[Rule],
    name: &'static str,
) -> Result<(), GuardError> {
    let (written, _) = sys::map_update_batch(table.fd(), keys, rules);
    // Where the kernel has no batches, or stopped one, it says why for a single key.
    for (key, rule) in keys.iter().zip(rules).skip(written) {
        table.put(key, *rule).map_err(|error| write_error(name, &error))?;
    }
    Ok(())
}

fn delete(maps: &mut Maps, keys: &Keys) {
    delete_all(&mut maps.hosts4, &keys.hosts4);
    delete_all(&mut maps.hosts6, &keys.hosts6);
    delete_all(&mut maps.prefixes4, &keys.prefixes4);
    delete_all(&mut maps.prefixes6, &keys.prefixes6);
}

/// Removes what is there. A key that stays is of a generation that no word names.
fn delete_all<K: Pod, T: Table<K>>(table: &mut T, keys: &[K]) {
    let (deleted, _) = sys::map_delete_batch(table.fd(), keys);
    for key in &keys[deleted..] {
        let _ = table.take(key);
    }
}

/// What both kinds of table can do.
trait Table<K: Pod> {
    fn fd(&self) -> BorrowedFd<'_>;
    fn put(&mut self, key: &K, rule: Rule) -> Result<(), MapError>;
    fn take(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K: Pod> Table<K> for aya::maps::HashMap<MapData, K, Rule> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.map().fd().as_fd()
    }

    fn put(&mut self, key: &K, rule: Rule) -> Result<(), MapError> {
        self.insert(key, rule, 0)
    }

    fn take(&mut self, key: &K) -> Result<(), MapError> {
        self.remove(key)
    }
}

impl<K: Pod> Table<Key<K>> for LpmTrie<MapData, K, Rule> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.map().fd().as_fd()
    }

    fn put(&mut self, key: &Key<K>, rule: Rule) -> Result<(), MapError> {
        self.insert(key, rule, 0)
    }

    fn take(&mut self, key: &Key<K>) -> Result<(), MapError> {
        self.remove(key)
    }
}
