//! The kernel's tables that entries stand in: keys, and writing and removing many of them.
//!
//! Hosts of a small list stand in tables that all lists share. A large list has tables of its own,
//! made for its size, so that little memory is taken where lists are short; they go as a whole.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{IterableMap, LpmTrie, MapData, MapError};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use session_common::guard::{
    HostKey4, HostKey6, LARGE_HOSTS_MAX, LPM_LIST_BITS, ListWord, PrefixKey6, Rule, SMALL_HOSTS_MAX,
};

use crate::allowlist::Sizes;
use crate::guard::error::GuardError;
use crate::guard::inner;
use crate::guard::maps::{self, Hosts, Maps, Prefixes4, Prefixes6, write_error};
use crate::guard::written::Writing;
use crate::sys;

/// Generations have 24 bits.
const GENERATION_MAX: u32 = (1 << 24) - 1;

/// Pairs that one call of the kernel writes or removes: between two of them others have their turn.
const BATCH: usize = 8_192;

/// Where an entry stands.
pub(super) enum Place {
    Host4(HostKey4),
    Host6(HostKey6),
    Prefix4(Key<HostKey4>),
    Prefix6(Key<PrefixKey6>),
}

impl Place {
    pub(super) fn of(list: ListWord, prefix: IpNet) -> Self {
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

/// Rules of the four tables, key by key.
#[derive(Default)]
pub(super) struct RuleColumns {
    hosts4: Vec<Rule>,
    hosts6: Vec<Rule>,
    prefixes4: Vec<Rule>,
    prefixes6: Vec<Rule>,
}

impl Keys {
    pub(super) fn push(&mut self, place: Place) {
        match place {
            Place::Host4(key) => self.hosts4.push(key),
            Place::Host6(key) => self.hosts6.push(key),
            Place::Prefix4(key) => self.prefixes4.push(key),
            Place::Prefix6(key) => self.prefixes6.push(key),
        }
    }

    /// A key with its rule.
    pub(super) fn push_with(&mut self, place: Place, rule: Rule, rules: &mut RuleColumns) {
        match place {
            Place::Host4(_) => rules.hosts4.push(rule),
            Place::Host6(_) => rules.hosts6.push(rule),
            Place::Prefix4(_) => rules.prefixes4.push(rule),
            Place::Prefix6(_) => rules.prefixes6.push(rule),
        }
        self.push(place);
    }

    /// All keys in the shared tables that belong to a list, of whatever generation.
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
    pub(super) fn prefixes(&self, word: ListWord) -> HashSet<IpNet> {
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

/// A list's tables. The handles are of their own: they may go to another thread.
pub(super) struct Tables {
    hosts: Hosts,
    prefixes4: Prefixes4,
    prefixes6: Prefixes6,
    /// The places of tables that are the list's own.
    places: Option<Places>,
}

/// A place in `LARGE4` and in `LARGE6`.
pub(super) struct Places {
    index: u32,
    large4: OwnedFd,
    large6: OwnedFd,
}

/// Whether so many hosts need tables of their own.
pub(super) fn are_large(sizes: &Sizes) -> bool {
    sizes.hosts4.max(sizes.hosts6) > SMALL_HOSTS_MAX as usize
}

/// How many hosts a table is made for: some more than there are, so that single entries fit in.
fn room(hosts: usize) -> u32 {
    let hosts = u32::try_from(hosts).unwrap_or(u32::MAX);
    hosts.saturating_add(hosts / 4).saturating_add(SMALL_HOSTS_MAX).min(LARGE_HOSTS_MAX)
}

impl Tables {
    /// The tables for a list under `word`; made, where that says they are the list's own.
    pub(super) fn new(maps: &Maps, word: ListWord, sizes: &Sizes) -> Result<Self, GuardError> {
        let (prefixes4, prefixes6) = (maps.copy("PREFIXES4")?, maps.copy("PREFIXES6")?);
        if !word.is_large() {
            let hosts = Hosts { v4: maps.copy("HOSTS4")?, v6: maps.copy("HOSTS6")? };
            return Ok(Self { hosts, prefixes4, prefixes6, places: None });
        }
        let fault = |error| GuardError::io("making a list's own table", error);
        let hosts = Hosts {
            v4: inner::create(room(sizes.hosts4)).map_err(fault)?,
            v6: inner::create(room(sizes.hosts6)).map_err(fault)?,
        };
        let places = Places::of(maps, word)?;
        places.fill(&hosts)?;
        Ok(Self { hosts, prefixes4, prefixes6, places: Some(places) })
    }

    pub(super) fn write(
        &mut self,
        keys: &Keys,
        rules: &RuleColumns,
        writing: &Writing,
    ) -> Result<(), GuardError> {
        write_all(&mut self.hosts.v4, (&keys.hosts4, &rules.hosts4), "HOSTS4", writing)?;
        write_all(&mut self.hosts.v6, (&keys.hosts6, &rules.hosts6), "HOSTS6", writing)?;
        let (prefixes4, prefixes6) = (&mut self.prefixes4, &mut self.prefixes6);
        write_all(prefixes4, (&keys.prefixes4, &rules.prefixes4), "PREFIXES4", writing)?;
        write_all(prefixes6, (&keys.prefixes6, &rules.prefixes6), "PREFIXES6", writing)
    }

    pub(super) fn put(&mut self, place: &Place, rule: Rule) -> Result<(), GuardError> {
        let (table, outcome) = match place {
            Place::Host4(key) => ("HOSTS4", self.hosts.v4.insert(key, rule, 0)),
            Place::Host6(key) => ("HOSTS6", self.hosts.v6.insert(key, rule, 0)),
            Place::Prefix4(key) => ("PREFIXES4", self.prefixes4.insert(key, rule, 0)),
            Place::Prefix6(key) => ("PREFIXES6", self.prefixes6.insert(key, rule, 0)),
        };
        outcome.map_err(|error| write_error(table, &error))
    }

    /// Removes an entry; none of that prefix is no error.
    pub(super) fn take(&mut self, place: &Place) -> Result<(), GuardError> {
        let (table, outcome) = match place {
            Place::Host4(key) => ("HOSTS4", self.hosts.v4.remove(key)),
            Place::Host6(key) => ("HOSTS6", self.hosts.v6.remove(key)),
            Place::Prefix4(key) => ("PREFIXES4", self.prefixes4.remove(key)),
            Place::Prefix6(key) => ("PREFIXES6", self.prefixes6.remove(key)),
        };
        match outcome {
            Err(error) if !maps::is_absent(&error) => Err(write_error(table, &error)),
            _ => Ok(()),
        }
    }

    /// Whether a host has an entry. Of a prefix a trie cannot tell.
    pub(super) fn has_host(&self, place: &Place) -> bool {
        match place {
            Place::Host4(key) => self.hosts.v4.get(key, 0).is_ok(),
            Place::Host6(key) => self.hosts.v6.get(key, 0).is_ok(),
            Place::Prefix4(_) | Place::Prefix6(_) => false,
        }
    }

    /// Removes what is there of `keys`, and tables that are the list's own. A key that stays is of
    /// a generation that no word names.
    pub(super) fn clear(&mut self, keys: &Keys) {
        match &self.places {
            Some(places) => places.clear(),
            None => {
                delete_all(&mut self.hosts.v4, &keys.hosts4);
                delete_all(&mut self.hosts.v6, &keys.hosts6);
            }
        }
        delete_all(&mut self.prefixes4, &keys.prefixes4);
        delete_all(&mut self.prefixes6, &keys.prefixes6);
    }
}

impl Places {
    /// The place that `word` names.
    pub(super) fn of(maps: &Maps, word: ListWord) -> Result<Self, GuardError> {
        let copy = |name| {
            let copy = maps.fd(name).try_clone_to_owned();
            copy.map_err(|error| GuardError::io("copying a map's descriptor", error))
        };
        Ok(Self { index: word.large_place(), large4: copy("LARGE4")?, large6: copy("LARGE6")? })
    }

    fn fill(&self, hosts: &Hosts) -> Result<(), GuardError> {
        let set = |outer: &OwnedFd, inner: BorrowedFd<'_>| {
            sys::map_set_inner(outer.as_fd(), self.index, inner)
                .map_err(|error| GuardError::io("giving a list its own table", error))
        };
        set(&self.large4, hosts.v4.fd())?;
        set(&self.large6, hosts.v6.fd())
    }

    /// Lets the tables go that stand there, if any do.
    pub(super) fn clear(&self) {
        let _ = sys::map_delete(self.large4.as_fd(), &self.index);
        let _ = sys::map_delete(self.large6.as_fd(), &self.index);
    }
}

/// Removes keys of the shared tables.
pub(super) fn clear_shared(maps: &mut Maps, keys: &Keys) {
    delete_all(&mut maps.hosts4, &keys.hosts4);
    delete_all(&mut maps.hosts6, &keys.hosts6);
    delete_all(&mut maps.prefixes4, &keys.prefixes4);
    delete_all(&mut maps.prefixes6, &keys.prefixes6);
}

fn write_all<K: Pod, T: Table<K>>(
    table: &mut T,
    (keys, rules): (&[K], &[Rule]),
    name: &'static str,
    writing: &Writing,
) -> Result<(), GuardError> {
    for (keys, rules) in keys.chunks(BATCH).zip(rules.chunks(BATCH)) {
        let (written, _) = sys::map_update_batch(table.fd(), keys, rules);
        // Where the kernel has no batches, or stopped one, it says why for a single key.
        for (key, rule) in keys.iter().zip(rules).skip(written) {
            table.put(key, *rule).map_err(|error| write_error(name, &error))?;
        }
        writing.add(keys.len());
    }
    Ok(())
}

fn delete_all<K: Pod, T: Table<K>>(table: &mut T, keys: &[K]) {
    for keys in keys.chunks(BATCH) {
        let (deleted, _) = sys::map_delete_batch(table.fd(), keys);
        for key in &keys[deleted..] {
            let _ = table.take(key);
        }
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
