//! Which counter in the kernel an entry of the list has.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

use aya::maps::PerCpuValues;
use ipnet::IpNet;
use session_common::guard::{Counter, LISTS_MAX, ListWord, RULES_MAX};

use crate::allowlist::{Action, Allowlist};
use crate::guard::error::GuardError;
use crate::guard::maps::{Maps, Rules, write_error};
use crate::guard::tables::{Keys, Place};

/// Counters of one list. They are split evenly, so that two daemons never share one.
const COUNTERS_PER_LIST: u32 = RULES_MAX / LISTS_MAX;

/// The entries that have a counter of their own.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleCounters {
    by_prefix: HashMap<IpNet, (u32, Action)>,
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
    pub(super) fn successor(&self, list: &Allowlist, slot: u32) -> (Self, Vec<u32>) {
        let mut next = Self::new(slot);
        for (prefix, (idx, _)) in &self.by_prefix {
            if let Some(entry) = list.get(*prefix) {
                next.by_prefix.insert(*prefix, (*idx, entry.action));
            }
        }
        let kept: HashSet<u32> = next.by_prefix.values().map(|(idx, _)| *idx).collect();
        next.free.retain(|idx| !kept.contains(idx));
        let mut fresh = Vec::new();
        for entry in list.entries() {
            if next.free.is_empty() {
                break;
            }
            fresh.extend(next.take(entry.prefix, entry.action));
        }
        (next, fresh)
    }

    /// A counter for `prefix`, if it has none and one is left.
    pub(super) fn take(&mut self, prefix: IpNet, action: Action) -> Option<u32> {
        if self.by_prefix.contains_key(&prefix) {
            return None;
        }
        let idx = self.free.pop()?;
        self.by_prefix.insert(prefix, (idx, action));
        Some(idx)
    }

    /// What the entry says now.
    pub(super) fn note(&mut self, prefix: IpNet, action: Action) {
        if let Some((_, noted)) = self.by_prefix.get_mut(&prefix) {
            *noted = action;
        }
    }

    pub(super) fn give_back(&mut self, prefix: IpNet) {
        self.free.extend(self.by_prefix.remove(&prefix).map(|(idx, _)| idx));
    }

    /// Entries with a counter of their own, what they say, and the counter's index.
    pub(super) fn all(&self) -> impl Iterator<Item = (IpNet, Action, u32)> {
        self.by_prefix.iter().map(|(prefix, (idx, action))| (*prefix, *action, *idx))
    }

    /// The entry's own counter.
    pub(super) fn get(&self, prefix: IpNet) -> Option<u32> {
        self.by_prefix.get(&prefix).map(|(idx, _)| *idx)
    }

    /// What the tables say, for a list that an earlier process wrote and that `list` succeeds.
    pub(super) fn recover(maps: &Maps, before: &Keys, word: ListWord, list: &Allowlist) -> Self {
        let mut counters = Self::new(word.list());
        let first = word.list() * COUNTERS_PER_LIST;
        let own = first.max(1)..first + COUNTERS_PER_LIST;
        let prefixes = before.prefixes(word);
        let hosts = maps.hosts_of(word);
        let mut seen = HashSet::new();
        for entry in list.entries() {
            if counters.by_prefix.len() == own.len() {
                break;
            }
            let rule = match Place::of(word, entry.prefix) {
                Place::Host4(key) => hosts.as_ref().and_then(|hosts| hosts.v4.get(&key, 0).ok()),
                Place::Host6(key) => hosts.as_ref().and_then(|hosts| hosts.v6.get(&key, 0).ok()),
                // A trie answers with a shorter prefix when asked for one that is absent.
                _ if !prefixes.contains(&entry.prefix) => None,
                Place::Prefix4(key) => maps.prefixes4.get(&key, 0).ok(),
                Place::Prefix6(key) => maps.prefixes6.get(&key, 0).ok(),
            };
            let Some(idx) = rule.map(|rule| rule.counter) else { continue };
            if own.contains(&idx) && seen.insert(idx) {
                counters.by_prefix.insert(entry.prefix, (idx, entry.action));
            }
        }
        counters.free.retain(|idx| !seen.contains(idx));
        counters
    }
}

/// Sets counters to zero that get a new entry.
pub(super) fn clear(
    rules: &mut Rules,
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
        rules.set(idx, values, 0).map_err(|error| write_error("RULES", &error))?;
    }
    Ok(())
}
