//! The store of this tree: with gets in batches, as the server makes them, and one by one.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use crate::clock::Now;
use crate::load::{Cache, Handle, Key, LIMIT, Value};
use crate::store::types::{self, ClientFlags, Lifetime, Mode, StoreConfig, Stored};
use crate::store::{Item, Store, Worker};

/// Keys that are looked up together.
const LOOKED_UP: usize = 32;

/// The store.
pub(crate) struct Ours(Arc<Store>);

/// The store, looked into for one key at a time.
pub(crate) struct OursSingly(Arc<Store>);

/// A store for each of two threads, which have nothing in common: what the machine would let two
/// threads of one store do.
pub(crate) struct OursApart {
    stores: [Arc<Store>; 2],
    handles: AtomicUsize,
}

/// A thread's worker.
pub(crate) struct Thread<const BATCHED: bool> {
    worker: Worker,
    now: Now,
}

fn store() -> Result<Arc<Store>> {
    Ok(Store::create(&StoreConfig { memory_limit: LIMIT, ..StoreConfig::default() })?)
}

impl Cache for Ours {
    const NAME: &'static str = "session";
    type Handle<'c> = Thread<true>;

    fn new(_items: usize) -> Result<Self> {
        Ok(Self(store()?))
    }

    fn handle(&self) -> Result<Thread<true>> {
        Ok(Thread { worker: self.0.worker()?, now: Now::sample() })
    }
}

impl Cache for OursSingly {
    const NAME: &'static str = "session, one by one";
    type Handle<'c> = Thread<false>;

    fn new(_items: usize) -> Result<Self> {
        Ok(Self(store()?))
    }

    fn handle(&self) -> Result<Thread<false>> {
        Ok(Thread { worker: self.0.worker()?, now: Now::sample() })
    }
}

impl Cache for OursApart {
    const NAME: &'static str = "session, two stores";
    type Handle<'c> = Thread<true>;

    fn new(_items: usize) -> Result<Self> {
        Ok(Self { stores: [store()?, store()?], handles: AtomicUsize::new(0) })
    }

    /// Two handles that are made one after the other are of different stores.
    fn handle(&self) -> Result<Thread<true>> {
        let store = &self.stores[self.handles.fetch_add(1, Ordering::Relaxed) % 2];
        Ok(Thread { worker: store.worker()?, now: Now::sample() })
    }

    fn parts(&self) -> Result<Vec<Thread<true>>> {
        Ok(vec![self.handle()?, self.handle()?])
    }
}

fn named(key: &Key) -> types::Key<'_> {
    types::Key::new(key).expect("a key of 24 bytes is short enough")
}

fn copy(item: Option<&Item<'_>>, out: &mut Value) -> bool {
    let Some(item) = item else { return false };
    let mut at = 0;
    for slice in item.value() {
        out[at..at + slice.len()].copy_from_slice(slice);
        at += slice.len();
    }
    true
}

impl<const BATCHED: bool> Handle for Thread<BATCHED> {
    fn get(&mut self, keys: &[Key], out: &mut Value, mut found: impl FnMut(usize, bool, &Value)) {
        if !BATCHED {
            for (idx, key) in keys.iter().enumerate() {
                let is_there = copy(self.worker.get(named(key), self.now).as_ref(), out);
                found(idx, is_there, out);
            }
            return;
        }
        for (chunk, keys) in keys.chunks(LOOKED_UP).enumerate() {
            let mut names = [named(&keys[0]); LOOKED_UP];
            for (name, key) in names.iter_mut().zip(keys) {
                *name = named(key);
            }
            let mut items = [const { None }; LOOKED_UP];
            self.worker.get_batch(&names[..keys.len()], self.now, &mut items[..keys.len()]);
            for (idx, item) in items[..keys.len()].iter().enumerate() {
                let is_there = copy(item.as_ref(), out);
                found(chunk * LOOKED_UP + idx, is_there, out);
            }
        }
    }

    fn set(&mut self, key: &Key, value: &Value) {
        let (flags, never) = (ClientFlags(0), Lifetime::Never);
        let stored = self.worker.set(named(key), value, flags, never, Mode::Set, self.now);
        assert!(matches!(stored, Stored::Stored(_)), "there is room for every item");
    }

    fn end_turn(&mut self) {
        self.worker.maintain(self.now);
        self.worker.quiesce();
        self.now = Now::sample();
    }
}
