//! A list in the kernel's tables: written under a word of its own, brought into force by storing that
//! word, removed when no packet reads it any more.
//!
//! It owns what an entry becomes there. When to switch is decided elsewhere.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use session_common::guard::{
    ACTION_ALLOW, ACTION_DENY, ACTION_DROP, ACTION_ICMP, ACTION_RESET, ListWord, Rule,
};

use crate::allowlist::{Action, Allowlist, Entry, Sizes};
use crate::clock;
use crate::guard::counters::{self, RuleCounters};
use crate::guard::error::GuardError;
use crate::guard::maps::{Maps, Rules};
use crate::guard::tables::{Keys, Place, RuleColumns, Tables, are_large};
use crate::sys;

/// Waited where the kernel offers no wait for its readers: far longer than a packet takes.
const READERS_PAUSE: Duration = Duration::from_millis(50);

/// A list that stands in the tables.
pub(super) struct Written {
    pub(super) word: ListWord,
    pub(super) sizes: Sizes,
    pub(super) counters: RuleCounters,
    tables: Tables,
    rules: Rules,
    /// Entries in tables that other lists use too: these have to be removed one by one.
    shared: HashSet<IpNet>,
}

impl fmt::Debug for Written {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = formatter.debug_struct("Written");
        fields.field("word", &self.word).field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

/// The word of a list with so many entries, beside the one in force.
pub(super) fn next_word(slot: u32, generation: u32, sizes: &Sizes, in_force: ListWord) -> ListWord {
    let word = ListWord::new(slot, generation);
    if are_large(sizes) { word.in_large(!in_force.half()) } else { word }
}

impl Written {
    /// Tables for a list of so many entries, none of which is there yet.
    pub(super) fn begin(
        maps: &Maps,
        word: ListWord,
        sizes: Sizes,
        counters: RuleCounters,
    ) -> Result<Self, GuardError> {
        let (tables, rules) = (Tables::new(maps, word, &sizes)?, maps.copy("RULES")?);
        Ok(Self { word, sizes, counters, tables, rules, shared: HashSet::new() })
    }

    /// Writes the list, which has as many entries as was said. On an error nothing is left of it.
    pub(super) fn fill(&mut self, list: &Allowlist, writing: &Writing) -> Result<(), GuardError> {
        let (counters, fresh) = self.counters.successor(list, self.word.list());
        self.counters = counters;
        counters::clear(&mut self.rules, fresh)?;
        let (mut keys, mut rules) = (Keys::default(), RuleColumns::default());
        for entry in list.entries() {
            let place = Place::of(self.word, entry.prefix);
            if self.is_shared(entry.prefix) {
                self.shared.insert(entry.prefix);
            }
            keys.push_with(place, rule(entry, &self.counters), &mut rules);
        }
        writing.begin(self.sizes.total());
        let outcome = self.tables.write(&keys, &rules, writing);
        writing.end();
        if outcome.is_err() {
            self.tables.clear(&keys);
        }
        outcome
    }

    /// Writes one entry, in place of one with the same prefix.
    pub(super) fn insert(&mut self, entry: &Entry) -> Result<(), GuardError> {
        let place = Place::of(self.word, entry.prefix);
        let mut sizes = self.sizes;
        if !self.holds(entry.prefix, &place) {
            *sizes.of(entry.prefix) += 1;
            sizes.check()?;
            if !self.word.is_large() && are_large(&sizes) {
                return Err(GuardError::Outgrown);
            }
        }
        let fresh = self.counters.take(entry.prefix, entry.action);
        let outcome = counters::clear(&mut self.rules, fresh)
            .and_then(|()| self.tables.put(&place, rule(entry, &self.counters)));
        if let Err(error) = outcome {
            if fresh.is_some() {
                self.counters.give_back(entry.prefix);
            }
            let is_own = self.word.is_large() && entry.is_host();
            return Err(match error {
                GuardError::Full { .. } if is_own => GuardError::Outgrown,
                error => error,
            });
        }
        self.counters.note(entry.prefix, entry.action);
        self.sizes = sizes;
        if self.is_shared(entry.prefix) {
            self.shared.insert(entry.prefix);
        }
        Ok(())
    }

    /// Removes one entry. Whether there was one of that prefix.
    pub(super) fn remove(&mut self, prefix: IpNet) -> Result<bool, GuardError> {
        let place = Place::of(self.word, prefix);
        let was_there = self.holds(prefix, &place);
        self.tables.take(&place)?;
        if was_there {
            *self.sizes.of(prefix) -= 1;
            self.shared.remove(&prefix);
            self.counters.give_back(prefix);
        }
        Ok(was_there)
    }

    /// Removes all of it. Waits first for packets that read its word before it changed. What cannot
    /// be removed is tried again at the next start.
    pub(super) fn clear(mut self) {
        wait_for_readers();
        let mut keys = Keys::default();
        for prefix in &self.shared {
            keys.push(Place::of(self.word, *prefix));
        }
        self.tables.clear(&keys);
    }

    /// Whether an entry stands in a table that other lists use too.
    fn is_shared(&self, prefix: IpNet) -> bool {
        !self.word.is_large() || prefix.prefix_len() != prefix.max_prefix_len()
    }

    fn holds(&self, prefix: IpNet, place: &Place) -> bool {
        if self.is_shared(prefix) {
            self.shared.contains(&prefix)
        } else {
            self.tables.has_host(place)
        }
    }
}

/// Returns when no packet reads a word that was in force before.
pub(super) fn wait_for_readers() {
    if sys::wait_for_readers().is_err() {
        std::thread::sleep(READERS_PAUSE);
    }
}

fn rule(entry: &Entry, counters: &RuleCounters) -> Rule {
    Rule {
        // By the kernel's clock. Zero stands for no deadline; a deadline at boot is as over a
        // nanosecond later.
        deadline_ns: entry
            .deadline_ns
            .map_or(0, |deadline_ns| deadline_ns.saturating_sub_signed(clock::ahead_ns()).max(1)),
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

/// How far a list is on its way into the kernel's tables, for whoever waits for it.
#[derive(Debug, Default)]
pub struct Writing {
    done: AtomicUsize,
    of: AtomicUsize,
}

/// Relaxed throughout: the numbers are for people's eyes, and nothing is published with them.
impl Writing {
    fn begin(&self, of: usize) {
        self.done.store(0, Ordering::Relaxed);
        self.of.store(of, Ordering::Relaxed);
    }

    pub(super) fn add(&self, entries: usize) {
        self.done.fetch_add(entries, Ordering::Relaxed);
    }

    fn end(&self) {
        self.of.store(0, Ordering::Relaxed);
    }

    /// Entries that are written, and that there will be; none while nothing is being written.
    #[must_use]
    pub fn now(&self) -> Option<(usize, usize)> {
        let of = self.of.load(Ordering::Relaxed);
        (of > 0).then(|| (self.done.load(Ordering::Relaxed).min(of), of))
    }
}

/// A list on its way into the kernel's tables, beside the one in force. It may be filled on another
/// thread, while the guard is watched.
#[derive(Debug)]
pub struct Successor(pub(super) Written);

impl Successor {
    /// Writes the list, which no packet meets yet. It must have the sizes that were announced.
    ///
    /// # Errors
    /// The kernel refuses; nothing is left of it then.
    pub fn fill(&mut self, list: &Allowlist, writing: &Writing) -> Result<(), GuardError> {
        self.0.fill(list, writing)
    }
}

/// A list that is no longer in force and still in the kernel's tables.
#[derive(Debug)]
pub struct Predecessor(pub(super) Written);

impl Predecessor {
    /// Removes it, when packets under way no longer read it. May take place on another thread.
    pub fn remove(self) {
        self.0.clear();
    }
}
