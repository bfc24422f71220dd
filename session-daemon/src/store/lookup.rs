//! Lookups: get in its forms, and touch. It owns what an access writes, which is little.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::counters::Count;
use crate::store::evict::Reason;
use crate::store::item::{FREQ_MAX, TIMES, Times};
use crate::store::reader::Item;
use crate::store::reuse::tick;
use crate::store::sync::Ordering;
use crate::store::types::{Key, Lifetime};

/// Keys that are looked up together in a batch.
const BATCH: usize = 16;

impl Worker {
    /// The key's item, if it is alive at `now`. Marks it fetched. Takes no lock.
    #[must_use]
    pub fn get(&self, key: Key<'_>, now: Now) -> Option<Item<'_>> {
        self.begin();
        self.get_hashed(self.shared().secret.hash(key.bytes()), key, now)
    }

    fn get_hashed(&self, hash: u64, key: Key<'_>, now: Now) -> Option<Item<'_>> {
        let item = self.find_alive(hash, key, now)?;
        let found = self.item(item);
        self.count(found.state.class(), Count::GetHits, 1);
        self.mark_access(&found, now);
        Some(found)
    }

    /// [`Worker::get`] for many keys at a time: `items[i]` is the item of `keys[i]`. Buckets and
    /// items of several keys are on their way from memory together.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn get_batch<'w>(&'w self, keys: &[Key<'_>], now: Now, items: &mut [Option<Item<'w>>]) {
        assert_eq!(keys.len(), items.len(), "one place for each key");
        self.begin();
        for (keys, items) in keys.chunks(BATCH).zip(items.chunks_mut(BATCH)) {
            let mut hashes = [0; BATCH];
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = self.shared().secret.hash(key.bytes());
                self.shared().prefetch_bucket(*hash);
            }
            for hash in &hashes[..keys.len()] {
                self.shared().prefetch_item(*hash);
            }
            for ((hash, key), item) in hashes.iter().zip(keys).zip(items) {
                *item = self.get_hashed(*hash, *key, now);
            }
        }
    }

    /// Brings buckets and items of keys that are looked up next near.
    pub fn prefetch(&self, keys: &[Key<'_>]) {
        self.begin();
        for keys in keys.chunks(BATCH) {
            let mut hashes = [0; BATCH];
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = self.shared().secret.hash(key.bytes());
                self.shared().prefetch_bucket(*hash);
            }
            for hash in &hashes[..keys.len()] {
                self.shared().prefetch_item(*hash);
            }
        }
    }

    /// The key's item as nobody had looked: neither marked nor counted.
    #[must_use]
    pub fn peek(&self, key: Key<'_>, now: Now) -> Option<Item<'_>> {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        self.find_alive(hash, key, now).map(|item| self.item(item))
    }

    /// [`Worker::get`], and gives the item a new lifetime. The item shows the new one.
    #[must_use]
    pub fn get_and_touch(&self, key: Key<'_>, lifetime: Lifetime, now: Now) -> Option<Item<'_>> {
        let found = self.touch_item(key, lifetime, now)?;
        self.count(found.state.class(), Count::GetHits, 1);
        Some(found)
    }

    /// Gives the key's item a new lifetime; false when there is none.
    pub fn touch(&mut self, key: Key<'_>, lifetime: Lifetime, now: Now) -> bool {
        self.touch_item(key, lifetime, now).is_some()
    }

    /// Changes the lifetime under the bucket's lock, so that no append, counter or expiry that
    /// runs at the same time can lose it.
    fn touch_item(&self, key: Key<'_>, lifetime: Lifetime, now: Now) -> Option<Item<'_>> {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        let bucket = self.shared().lock_bucket(hash);
        let (_, item) = bucket.find(hash, key.bytes())?;
        if self.shared().is_dead(item, now) {
            return None;
        }
        let found = self.item(item);
        self.mark_access(&found, now);
        let new = Times::new(lifetime, tick(now));
        // Relaxed: one word, complete in itself; lookups may see the old or the new lifetime.
        self.shared().region.word(item + TIMES).store(new.0, Ordering::Relaxed);
        drop(bucket);
        self.note_deadline(item, new);
        self.count(found.state.class(), Count::TouchHits, 1);
        let times = Times::new(lifetime, found.times.last_access_tick());
        Some(Item { times, ..found })
    }

    fn item(&self, offset: u64) -> Item<'_> {
        let (state, times) = (self.shared().item_state(offset), self.shared().item_times(offset));
        Item { worker: self, offset, state, times }
    }

    pub(super) fn find_alive(&self, hash: u64, key: Key<'_>, now: Now) -> Option<u64> {
        let item = self.shared().find_item(hash, key.bytes())?;
        if self.shared().is_dead(item, now) {
            self.remove_item(item, Reason::Swept, now);
            return None;
        }
        Some(item)
    }

    /// Writes what an access changes: nothing for an item that was used a moment ago.
    pub(super) fn mark_access(&self, found: &Item<'_>, now: Now) {
        let region = &self.shared().region;
        let (state, times, tick) = (found.state, found.times, tick(now));
        let age = tick.saturating_sub(times.last_access_tick());
        if !state.is_linked() || age == 0 && state.is_fetched() && state.freq() > 0 {
            return;
        }
        if state.freq() < FREQ_MAX || !state.is_fetched() {
            let new = state.accessed().0;
            // Relaxed: the bits order nothing. A lost race is another access, or the removal.
            let relaxed = Ordering::Relaxed;
            let _ = region.word(found.offset).compare_exchange(state.0, new, relaxed, relaxed);
        }
        if age > 0 {
            let new = Times::new(times.lifetime(), tick).0;
            // Relaxed: as above.
            let relaxed = Ordering::Relaxed;
            let word = region.word(found.offset + TIMES);
            let _ = word.compare_exchange(times.0, new, relaxed, relaxed);
        }
        self.note_use(state.freq(), age);
    }
}
