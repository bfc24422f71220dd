//! The other caches and maps. Keys and values are slices on the heap, as a cache's must be whose
//! clients choose their lengths; values are copied out. Those that can be bounded have the store's
//! limit, and room for every item below it. All that take a hasher have the same fast one.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use anyhow::{Result, anyhow};
use dashmap::DashMap;
use quick_cache::Weighter;
use quick_cache::sync::DefaultLifecycle;
use segcache::{Policy, Segcache};

use crate::load::{Cache, Handle, Key, LIMIT, Value};

/// What an item takes of a bound that counts bytes: key, value, and pointers to both.
const ITEM_LEN: usize = size_of::<Key>() + size_of::<Value>() + 4 * size_of::<usize>();

/// Copies a value out; whether there is one.
fn copy(value: Option<&[u8]>, out: &mut Value) -> bool {
    if let Some(value) = value {
        out.copy_from_slice(value);
    }
    value.is_some()
}

/// dashmap.
pub(crate) struct Dash(DashMap<Box<[u8]>, Box<[u8]>, RandomState>);

impl Cache for Dash {
    const NAME: &'static str = "dashmap";
    type Handle<'c> = &'c Self;

    fn new(items: usize) -> Result<Self> {
        Ok(Self(DashMap::with_capacity_and_hasher(items, RandomState::new())))
    }

    fn handle(&self) -> Result<&Self> {
        Ok(self)
    }
}

impl Handle for &Dash {
    fn get(&mut self, keys: &[Key], out: &mut Value, mut found: impl FnMut(usize, bool, &Value)) {
        for (idx, key) in keys.iter().enumerate() {
            let is_there = copy(self.0.get(&key[..]).as_deref().map(|value| &**value), out);
            found(idx, is_there, out);
        }
    }

    fn set(&mut self, key: &Key, value: &Value) {
        self.0.insert(key[..].into(), value[..].into());
    }
}

/// papaya.
pub(crate) struct Papaya(papaya::HashMap<Box<[u8]>, Box<[u8]>, RandomState>);

impl Cache for Papaya {
    const NAME: &'static str = "papaya";
    type Handle<'c> = &'c Self;

    fn new(items: usize) -> Result<Self> {
        Ok(Self(papaya::HashMap::with_capacity_and_hasher(items, RandomState::new())))
    }

    fn handle(&self) -> Result<&Self> {
        Ok(self)
    }
}

impl Handle for &Papaya {
    fn get(&mut self, keys: &[Key], out: &mut Value, mut found: impl FnMut(usize, bool, &Value)) {
        let map = self.0.pin();
        for (idx, key) in keys.iter().enumerate() {
            let is_there = copy(map.get(&key[..]).map(|value| &**value), out);
            found(idx, is_there, out);
        }
    }

    fn set(&mut self, key: &Key, value: &Value) {
        self.0.pin().insert(key[..].into(), value[..].into());
    }
}

/// scc's hash map.
pub(crate) struct Scc(scc::HashMap<Box<[u8]>, Box<[u8]>, RandomState>);

impl Cache for Scc {
    const NAME: &'static str = "scc";
    type Handle<'c> = &'c Self;

    fn new(items: usize) -> Result<Self> {
        Ok(Self(scc::HashMap::with_capacity_and_hasher(items, RandomState::new())))
    }

    fn handle(&self) -> Result<&Self> {
        Ok(self)
    }
}

impl Handle for &Scc {
    fn get(&mut self, keys: &[Key], out: &mut Value, mut found: impl FnMut(usize, bool, &Value)) {
        for (idx, key) in keys.iter().enumerate() {
            let is_there = self.0.read_sync(&key[..], |_, value| copy(Some(value), out));
            found(idx, is_there.is_some(), out);
        }
    }

    fn set(&mut self, key: &Key, value: &Value) {
        self.0.upsert_sync(key[..].into(), value[..].into());
    }
}

/// Bytes of an item.
#[derive(Clone)]
pub(crate) struct Bytes;

impl Weighter<Box<[u8]>, Arc<[u8]>> for Bytes {
    fn weight(&self, _key: &Box<[u8]>, _value: &Arc<[u8]>) -> u64 {
        ITEM_LEN as u64
    }
}

/// quick_cache.
pub(crate) struct Quick(quick_cache::sync::Cache<Box<[u8]>, Arc<[u8]>, Bytes, RandomState>);

impl Cache for Quick {
    const NAME: &'static str = "quick_cache";
    type Handle<'c> = &'c Self;

    fn new(items: usize) -> Result<Self> {
        let (hasher, lifecycle) = (RandomState::new(), DefaultLifecycle::default());
        let cache = quick_cache::sync::Cache::with(items, LIMIT as u64, Bytes, hasher, lifecycle);
        Ok(Self(cache))
    }

    fn handle(&self) -> Result<&Self> {
        Ok(self)
    }
}

impl Handle for &Quick {
    fn get(&mut self, keys: &[Key], out: &mut Value, mut found: impl FnMut(usize, bool, &Value)) {
        for (idx, key) in keys.iter().enumerate() {
            let is_there = copy(self.0.get(&key[..]).as_deref(), out);
            found(idx, is_there, out);
        }
    }

    fn set(&mut self, key: &Key, value: &Value) {
        self.0.insert(key[..].into(), value[..].into());
    }
}

/// moka.
pub(crate) struct Moka(moka::sync::Cache<Box<[u8]>, Arc<[u8]>, RandomState>);

impl Cache for Moka {
    const NAME: &'static str = "moka";
    type Handle<'c> = &'c Self;

    fn new(items: usize) -> Result<Self> {
        let builder = moka::sync::Cache::builder()
            .initial_capacity(items)
            .weigher(|_: &Box<[u8]>, _: &Arc<[u8]>| ITEM_LEN as u32)
            .max_capacity(LIMIT as u64);
        Ok(Self(builder.build_with_hasher(RandomState::new())))
    }

    fn handle(&self) -> Result<&Self> {
        Ok(self)
    }
}

impl Handle for &Moka {
    fn get(&mut self, keys: &[Key], out: &mut Value, mut found: impl FnMut(usize, bool, &Value)) {
        for (idx, key) in keys.iter().enumerate() {
            let is_there = copy(self.0.get(&key[..]).as_deref(), out);
            found(idx, is_there, out);
        }
    }

    fn set(&mut self, key: &Key, value: &Value) {
        self.0.insert(key[..].into(), value[..].into());
    }
}

/// segcache, as of the crates that Pelikan publishes, with the eviction of its paper.
pub(crate) struct Seg(Segcache);

impl Cache for Seg {
    const NAME: &'static str = "segcache";
    type Handle<'c> = &'c Self;

    fn new(items: usize) -> Result<Self> {
        // Of eight words seven are for items, and it needs some to spare.
        let hash_power = (items * 3 / 2).next_power_of_two().ilog2() as u8;
        let cache = Segcache::builder()
            .heap_size(LIMIT)
            .hash_power(hash_power.max(7))
            .eviction(Policy::Merge { max: 8, merge: 4, compact: 2 })
            .build();
        cache.map(Self).map_err(|error| anyhow!("segcache: {error}"))
    }

    fn handle(&self) -> Result<&Self> {
        Ok(self)
    }
}

impl Handle for &Seg {
    fn get(&mut self, keys: &[Key], out: &mut Value, mut found: impl FnMut(usize, bool, &Value)) {
        for (idx, key) in keys.iter().enumerate() {
            let item = self.0.get(key);
            let is_there = item.is_some_and(|item| match item.value() {
                segcache::Value::Bytes(bytes) => copy(Some(bytes), out),
                segcache::Value::U64(_) => false,
            });
            found(idx, is_there, out);
        }
    }

    fn set(&mut self, key: &Key, value: &Value) {
        // What it refuses is a miss later, and counted.
        let _ = self.0.insert(key, &value[..], None, Duration::ZERO);
    }
}
