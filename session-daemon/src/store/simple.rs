//! One map behind one lock: the interface of the store with the plainest body.
//! It owns the items on the heap and counts them against the limit; it does not evict in order.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::stats::{ClassStats, Totals};
use crate::store::types::{
    Arithmetic, CasUnique, ClientFlags, Counted, Deleted, Flush, Key, Lifetime, Mode, StoreConfig,
    StoreError, Stored, UploadError,
};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const ITEM_OVERHEAD: usize = 59;

#[derive(Debug, Clone)]
struct Entry {
    key: Box<[u8]>,
    value: Arc<[u8]>,
    flags: ClientFlags,
    cas: CasUnique,
    lifetime: Lifetime,
    last_access_s: u32,
    fetched: bool,
}

#[derive(Debug, Default)]
struct State {
    items: HashMap<Box<[u8]>, Entry>,
    bytes: usize,
    cas: u64,
    flush_below: u64,
    flush_at: Option<(u32, u64)>,
    totals: Totals,
}

/// The store, shared by all workers.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    state: Mutex<State>,
    workers: AtomicUsize,
}

fn second(now: Now) -> u32 {
    u32::try_from(now.boottime_ns / 1_000_000_000).unwrap_or(u32::MAX)
}

fn size(key: usize, flags: ClientFlags, value: usize) -> usize {
    ITEM_OVERHEAD + key + value + if flags.0 == 0 { 0 } else { 4 }
}

impl State {
    fn settle(&mut self, now: Now) {
        if let Some((at, cas)) = self.flush_at
            && second(now) >= at
        {
            self.flush_below = cas.max(self.cas + 1);
            self.flush_at = None;
        }
    }

    fn alive(&self, entry: &Entry, now: Now) -> bool {
        entry.cas.0 >= self.flush_below
            && match entry.lifetime {
                Lifetime::Never => true,
                Lifetime::Until(at) => second(now) < at,
                Lifetime::Past => false,
            }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(old) = self.items.remove(key) {
            self.bytes -= size(old.key.len(), old.flags, old.value.len());
        }
    }

    fn find(&mut self, key: Key<'_>, now: Now) -> Option<&mut Entry> {
        self.settle(now);
        let alive = self.items.get(key.bytes()).is_some_and(|entry| self.alive(entry, now));
        if !alive {
            self.remove(key.bytes());
        }
        self.items.get_mut(key.bytes())
    }

    fn insert(&mut self, limit: usize, evictions: bool, mut entry: Entry, now: Now) -> Stored {
        let len = size(entry.key.len(), entry.flags, entry.value.len());
        let old = self
            .items
            .get(&entry.key)
            .map_or(0, |old| size(old.key.len(), old.flags, old.value.len()));
        if self.bytes - old + len > limit && !evictions {
            return Stored::NoMemory;
        }
        self.remove(&entry.key);
        while self.bytes + len > limit {
            let Some(victim) = self.items.keys().next().cloned() else { return Stored::NoMemory };
            self.remove(&victim);
            self.totals.evictions += 1;
        }
        self.cas += 1;
        entry.cas = CasUnique(self.cas);
        entry.last_access_s = second(now);
        self.bytes += len;
        self.totals.total_items += 1;
        self.items.insert(entry.key.clone(), entry);
        Stored::Stored(CasUnique(self.cas))
    }
}

impl Store {
    /// A store of this configuration.
    ///
    /// # Errors
    /// When a limit is out of range or the memory cannot be mapped.
    pub fn create(config: &StoreConfig) -> Result<Arc<Self>, StoreError> {
        if config.memory_limit < 1 << 20 {
            return Err(StoreError::MemoryLimit { limit: config.memory_limit, least: 1 << 20 });
        }
        let most = (config.memory_limit / 2).min(1 << 30);
        if !(1024..=most).contains(&config.item_size_max) {
            let limit = config.item_size_max;
            return Err(StoreError::ItemSizeMax { limit, least: 1024, most });
        }
        let state = Mutex::default();
        Ok(Arc::new(Self { config: *config, state, workers: AtomicUsize::new(0) }))
    }

    /// A worker for one thread. It gives its place back when dropped.
    ///
    /// # Errors
    /// When the configured number of workers exists already.
    pub fn worker(self: &Arc<Self>) -> Result<Worker, StoreError> {
        if self.workers.fetch_add(1, Ordering::Relaxed) >= self.config.workers {
            self.workers.fetch_sub(1, Ordering::Relaxed);
            return Err(StoreError::NoWorkerLeft(self.config.workers));
        }
        Ok(Worker { store: Arc::clone(self), _not_sync: PhantomData })
    }

    /// The configuration the store was made from.
    #[must_use]
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// Whether an item of these lengths is within `item_size_max`, counted as memcached does.
    #[must_use]
    pub fn fits(&self, key_len: usize, flags: ClientFlags, value_len: usize) -> bool {
        value_len <= self.config.item_size_max
            && size(key_len, flags, value_len) <= self.config.item_size_max
    }

    /// Figures of the whole store.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let state = self.lock();
        Totals {
            curr_items: state.items.len() as u64,
            bytes: state.bytes as u64,
            limit_maxbytes: self.config.memory_limit as u64,
            ..state.totals
        }
    }

    /// Figures of each slab class that has pages, in order.
    #[must_use]
    pub fn classes(&self, _now: Now) -> Vec<ClassStats> {
        Vec::new()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread's access to the store.
#[derive(Debug)]
pub struct Worker {
    store: Arc<Store>,
    _not_sync: PhantomData<std::cell::Cell<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.store.workers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An item as it was when it was looked up. Alive until the worker is next borrowed mutably.
#[derive(Debug)]
pub struct Item<'w> {
    entry: Entry,
    cas: bool,
    _worker: PhantomData<&'w Worker>,
}

impl Item<'_> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.entry.key
    }

    /// Bytes of the value.
    #[must_use]
    pub fn value_len(&self) -> usize {
        self.entry.value.len()
    }

    /// The value in order as slices; most values have one.
    #[must_use]
    pub fn value(&self) -> ValueSlices<'_> {
        ValueSlices { value: Some(&self.entry.value) }
    }

    /// The client's flags.
    #[must_use]
    pub fn flags(&self) -> ClientFlags {
        self.entry.flags
    }

    /// The version; 0 when the store runs without cas.
    #[must_use]
    pub fn cas(&self) -> CasUnique {
        if self.cas { self.entry.cas } else { CasUnique(0) }
    }

    /// How long the item lives.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        self.entry.lifetime
    }

    /// Boot-time second of the last access before this one.
    #[must_use]
    pub fn last_access_s(&self) -> u32 {
        self.entry.last_access_s
    }

    /// Whether the item had been fetched before.
    #[must_use]
    pub fn fetched(&self) -> bool {
        self.entry.fetched
    }
}

/// Slices of a value, in order; together they are the value.
#[derive(Clone, Debug)]
pub struct ValueSlices<'a> {
    value: Option<&'a [u8]>,
}

impl<'a> Iterator for ValueSlices<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.value.take()
    }
}

/// A value on its way in. Dropped before it is stored, it gives its memory back.
#[derive(Debug)]
pub struct Upload {
    value: Vec<u8>,
    value_len: usize,
}

impl Upload {
    /// Takes the next bytes of the value, up to [`Upload::missing`]; more is a caller's error
    /// and panics.
    ///
    /// # Errors
    /// [`UploadError::NoMemory`]: the upload can only be dropped then.
    pub fn write(
        &mut self,
        _worker: &mut Worker,
        bytes: &[u8],
        _now: Now,
    ) -> Result<(), UploadError> {
        assert!(bytes.len() <= self.missing(), "more bytes than announced");
        self.value.extend_from_slice(bytes);
        Ok(())
    }

    /// Bytes still to come.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.value_len - self.value.len()
    }
}

impl Worker {
    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The key's item, if it is alive at `now`. Marks it fetched.
    #[must_use]
    pub fn get(&self, key: Key<'_>, now: Now) -> Option<Item<'_>> {
        let mut state = self.store.lock();
        let entry = state.find(key, now)?;
        let copy = entry.clone();
        entry.fetched = true;
        entry.last_access_s = second(now);
        Some(Item { entry: copy, cas: self.store.config.cas, _worker: PhantomData })
    }

    /// [`Worker::get`] for many keys at a time: `items[i]` is the item of `keys[i]`.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn get_batch<'w>(&'w self, keys: &[Key<'_>], now: Now, items: &mut [Option<Item<'w>>]) {
        assert_eq!(keys.len(), items.len(), "one place for each key");
        for (key, item) in keys.iter().zip(items) {
            *item = self.get(*key, now);
        }
    }

    /// [`Worker::get`], and gives the item a new lifetime. The item shows the new one.
    #[must_use]
    pub fn get_and_touch(&self, key: Key<'_>, lifetime: Lifetime, now: Now) -> Option<Item<'_>> {
        let mut state = self.store.lock();
        let entry = state.find(key, now)?;
        entry.lifetime = lifetime;
        let copy = entry.clone();
        entry.fetched = true;
        entry.last_access_s = second(now);
        Some(Item { entry: copy, cas: self.store.config.cas, _worker: PhantomData })
    }

    /// Stores `value` as `mode` says.
    pub fn set(
        &mut self,
        key: Key<'_>,
        value: &[u8],
        flags: ClientFlags,
        lifetime: Lifetime,
        mode: Mode,
        now: Now,
    ) -> Stored {
        let config = self.store.config;
        let mut state = self.store.lock();
        let old = state.find(key, now).cloned();
        let mut entry = Entry {
            key: key.bytes().into(),
            value: value.into(),
            flags,
            cas: CasUnique(0),
            lifetime,
            last_access_s: 0,
            fetched: false,
        };
        match (mode, old) {
            (Mode::Add, Some(_)) | (Mode::Replace | Mode::Append | Mode::Prepend, None) => {
                return Stored::NotStored;
            }
            (Mode::Cas(_), None) => return Stored::NotFound,
            (Mode::Cas(cas), Some(old)) if old.cas != cas => return Stored::Exists,
            (Mode::Append, Some(old)) => {
                entry = Entry { value: [&*old.value, value].concat().into(), ..old };
            }
            (Mode::Prepend, Some(old)) => {
                entry = Entry { value: [value, &*old.value].concat().into(), ..old };
            }
            _ => {}
        }
        if !self.store.fits(entry.key.len(), entry.flags, entry.value.len()) {
            return Stored::TooLarge;
        }
        state.insert(config.memory_limit, config.evictions, entry, now)
    }

    /// Begins to receive a value of `value_len` bytes for a key. Memory is charged as the bytes
    /// come, not for what is announced.
    ///
    /// # Errors
    /// [`UploadError::TooLarge`] when such an item is above `item_size_max`.
    pub fn begin_upload(
        &mut self,
        key: Key<'_>,
        flags: ClientFlags,
        value_len: usize,
    ) -> Result<Upload, UploadError> {
        if !self.store.fits(key.bytes().len(), flags, value_len) {
            return Err(UploadError::TooLarge);
        }
        Ok(Upload { value: Vec::new(), value_len })
    }

    /// [`Worker::set`] with a value that was received before.
    ///
    /// # Panics
    /// When bytes are [missing](Upload::missing).
    pub fn store_upload(
        &mut self,
        key: Key<'_>,
        upload: Upload,
        flags: ClientFlags,
        lifetime: Lifetime,
        mode: Mode,
        now: Now,
    ) -> Stored {
        assert_eq!(upload.missing(), 0, "the upload is complete");
        self.set(key, &upload.value, flags, lifetime, mode, now)
    }

    /// Deletes the key's item; with `cas`, only if it has this version.
    pub fn delete(&mut self, key: Key<'_>, cas: Option<CasUnique>, now: Now) -> Deleted {
        let mut state = self.store.lock();
        let Some(old) = state.find(key, now) else { return Deleted::NotFound };
        if cas.is_some_and(|cas| cas != old.cas) {
            return Deleted::Exists;
        }
        state.remove(key.bytes());
        Deleted::Deleted
    }

    /// Adds to or takes from the decimal number that the item holds; with `cas`, only if it has
    /// this version. Flags and lifetime stay. A number that gets shorter by `decr` keeps its
    /// length, padded with spaces behind, as memcached does.
    pub fn arithmetic(
        &mut self,
        key: Key<'_>,
        arithmetic: Arithmetic,
        delta: u64,
        cas: Option<CasUnique>,
        now: Now,
    ) -> Counted {
        let config = self.store.config;
        let mut state = self.store.lock();
        let Some(old) = state.find(key, now).cloned() else { return Counted::NotFound };
        if cas.is_some_and(|cas| cas != old.cas) {
            return Counted::Exists;
        }
        let Some(number) = parse(&old.value) else { return Counted::NonNumeric };
        let value = match arithmetic {
            Arithmetic::Increment => number.wrapping_add(delta),
            Arithmetic::Decrement => number.saturating_sub(delta),
        };
        let mut digits = value.to_string().into_bytes();
        if digits.len() < old.value.len() {
            digits.resize(old.value.len(), b' ');
        }
        let entry = Entry { value: digits.into(), ..old };
        match state.insert(config.memory_limit, config.evictions, entry, now) {
            Stored::Stored(cas) => Counted::Value { value, cas },
            _ => Counted::NoMemory,
        }
    }

    /// Gives the key's item a new lifetime; false when there is none.
    pub fn touch(&mut self, key: Key<'_>, lifetime: Lifetime, now: Now) -> bool {
        self.get_and_touch(key, lifetime, now).is_some()
    }

    /// Makes every item that is stored before that moment disappear at that moment.
    pub fn flush_all(&mut self, flush: Flush, now: Now) {
        let mut state = self.store.lock();
        state.settle(now);
        match flush {
            Flush::Now => {
                state.flush_at = None;
                state.flush_below = state.cas + 1;
            }
            Flush::At(at) => state.flush_at = Some((at, 0)),
        }
    }

    /// Ends a turn: the worker holds no item any more. To be called before the thread sleeps.
    pub fn quiesce(&mut self) {}

    /// A bounded slice of the work that nobody waits for: expiry, moving pages between classes.
    /// To be called about once a turn; returns true when there is more to do at once.
    pub fn maintain(&mut self, now: Now) -> bool {
        self.store.lock().settle(now);
        false
    }
}

fn parse(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii_end();
    if digits.is_empty() || digits.len() > 20 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}
