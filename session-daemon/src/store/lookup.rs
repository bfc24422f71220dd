//! Lookups: get in its forms, and touch. It owns what an access writes, which is little.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::buckets::Buckets;
use crate::store::counters::Count;
use crate::store::evict::Reason;
use crate::store::item::{FREQ_MAX, TIMES, Times};
use crate::store::reader::{Item, second};
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
        let found = self.find_alive_item(hash, key, now)?;
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
        // One lookup waits for its memory all the same.
        if let ([key], [item]) = (keys, &mut *items) {
            *item = self.get_hashed(self.shared().secret.hash(key.bytes()), *key, now);
            return;
        }
        for (keys, items) in keys.chunks(BATCH).zip(items.chunks_mut(BATCH)) {
            let hashes = self.bring_near(keys);
            for ((hash, key), item) in hashes.iter().zip(keys).zip(items) {
                *item = self.get_hashed(*hash, *key, now);
            }
        }
    }

    /// Brings buckets and items of keys that are looked up next near.
    pub fn prefetch(&self, keys: &[Key<'_>]) {
        self.begin();
        for keys in keys.chunks(BATCH) {
            self.bring_near(keys);
        }
    }

    /// All buckets first, then all items; the hashes of at most [`BATCH`] keys.
    fn bring_near(&self, keys: &[Key<'_>]) -> [u64; BATCH] {
        let (mut hashes, mut buckets) = ([0; BATCH], [0; BATCH]);
        for ((hash, bucket), key) in hashes.iter_mut().zip(&mut buckets).zip(keys) {
            *hash = self.shared().secret.hash(key.bytes());
            *bucket = self.shared().prefetch_bucket(*hash);
        }
        for (hash, bucket) in hashes.iter().zip(&buckets).take(keys.len()) {
            self.shared().prefetch_item(*bucket, *hash);
        }
        hashes
    }

    /// The key's item as nobody had looked: neither marked nor counted.
    #[must_use]
    pub fn peek(&self, key: Key<'_>, now: Now) -> Option<Item<'_>> {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        self.find_alive_item(hash, key, now)
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

    /// Changes the lifetime in the word by which an item is replaced or ended, so that no append,
    /// counter or expiry that runs at the same time can lose it.
    fn touch_item(&self, key: Key<'_>, lifetime: Lifetime, now: Now) -> Option<Item<'_>> {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        loop {
            let found = self.find_living(hash, key)?;
            if self.shared().is_over(found.offset, found.times, now) {
                self.count_dead(&found, now);
                return None;
            }
            let new = Times::new(lifetime, tick(now)).with_win(found.times.is_won());
            if !self.retime(&found, new) {
                continue;
            }
            self.note_deadline(found.offset, new);
            self.count(found.state.class(), Count::TouchHits, 1);
            self.count_access(&found, age(&found, now));
            let times = new.accessed_at(found.times.last_access_tick());
            return Some(Item { times, ..found });
        }
    }

    /// Changes the times of an item; false if they are not what they were.
    pub(super) fn retime(&self, found: &Item<'_>, new: Times) -> bool {
        let word = self.shared().region.word(found.offset + TIMES);
        // Relaxed: one word, complete in itself; what else has to see it goes by this word.
        let relaxed = Ordering::Relaxed;
        word.compare_exchange(found.times.0, new.0, relaxed, relaxed).is_ok()
    }

    /// The item of a key, with times that it had when nothing had ended it; it may be dead.
    pub(super) fn find_living(&self, hash: u64, key: Key<'_>) -> Option<Item<'_>> {
        loop {
            let offset = self.shared().lookup(hash, key.bytes())?;
            let (state, times) = (self.shared().item_state(offset), self.shared().times(offset));
            if times.successor().is_none() {
                return Some(Item { worker: self, offset, state, times });
            }
        }
    }

    pub(super) fn find_alive(&self, hash: u64, key: Key<'_>, now: Now) -> Option<u64> {
        self.find_alive_item(hash, key, now).map(|item| item.offset)
    }

    #[inline]
    fn find_alive_item(&self, hash: u64, key: Key<'_>, now: Now) -> Option<Item<'_>> {
        let found = self.find_living(hash, key)?;
        if self.shared().is_over(found.offset, found.times, now) {
            self.end_dead(&found, now);
            return None;
        }
        Some(found)
    }

    /// Removes a dead item that a lookup met.
    #[cold]
    fn end_dead(&self, found: &Item<'_>, now: Now) {
        self.count_dead(found, now);
        self.remove_item(found.offset, Reason::Swept, now);
    }

    /// Counts a lookup that met a dead item by what it died of.
    #[cold]
    fn count_dead(&self, found: &Item<'_>, now: Now) {
        let expired = found.times.is_expired(second(now));
        let count = if expired { Count::GetExpired } else { Count::GetFlushed };
        self.count(found.state.class(), count, 1);
    }

    /// Writes what an access changes: nothing for an item that was used a moment ago.
    pub(super) fn mark_access(&self, found: &Item<'_>, now: Now) {
        let age = age(found, now);
        if self.count_access(found, age) && age > 0 {
            // A lost race is another access, a new lifetime, or the end of the item.
            let _ = self.retime(found, found.times.accessed_at(tick(now)));
        }
    }

    /// Counts the use of an item, the first one for `age` ticks. False if that does not count.
    fn count_access(&self, found: &Item<'_>, age: u32) -> bool {
        let state = found.state;
        if !state.is_linked() || age == 0 && state.is_fetched() && state.freq() > 0 {
            return false;
        }
        if state.freq() < FREQ_MAX || !state.is_fetched() {
            let new = state.accessed().0;
            let word = self.shared().region.word(found.offset);
            // Relaxed: the bits order nothing. A lost race is another access, or the removal.
            let relaxed = Ordering::Relaxed;
            let _ = word.compare_exchange(state.0, new, relaxed, relaxed);
        }
        self.note_use(state.freq(), age);
        true
    }
}

/// Ticks since the last access before this one.
fn age(found: &Item<'_>, now: Now) -> u32 {
    tick(now).saturating_sub(found.times.last_access_tick())
}
