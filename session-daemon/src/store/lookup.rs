//! Lookups: get in its forms, and touch. It owns what an access writes, which is little.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::buckets::Buckets;
use crate::store::counters::Count;
use crate::store::evict::Reason;
use crate::store::item::{FREQ_MAX, State, TIMES, Times};
use crate::store::reader::{Item, second, stamp_of};
use crate::store::reuse::tick;
use crate::store::sync::Ordering;
use crate::store::types::{Key, Lifetime};
use crate::store::words::{PENDING, TAG_SHIFT, link, slot_item};
use crate::store::{Store, Worker};

/// Keys that are looked up together in a batch.
const BATCH: usize = 32;
/// The same where there are no more: clearing places for many would cost more than these.
const BATCH_SMALL: usize = 8;
/// Cache lines of an item that are brought near: header, key and a value of some 100 bytes.
const ITEM_LINES: usize = 3;

/// What the lookups of a batch hold items against.
#[derive(Clone, Copy)]
struct Moment {
    second: u32,
    tick: u32,
    stamp_least: u64,
}

/// A key whose memory is on its way.
#[derive(Clone, Copy, Default)]
struct Near {
    hash: u64,
    /// The line of slots that is looked at next; 0 for none.
    line: u64,
    /// The item that a slot with the key's tag leads to; 0 for none.
    item: u64,
}

/// Hits of a batch that are not counted yet: most are of one class.
#[derive(Default)]
struct Hits {
    class: u32,
    count: u64,
}

impl Worker {
    /// The key's item, if it is alive at `now`. Marks it fetched. Takes no lock.
    #[must_use]
    pub fn get(&self, key: Key<'_>, now: Now) -> Option<Item<'_>> {
        self.begin();
        let store = self.shared();
        let hash = store.secret.hash(key.bytes());
        let mut near = Near { hash, line: store.bucket(store.home(hash)), item: 0 };
        while store.look(&mut near) {}
        let moment = store.moment(now);
        let found = self.find_near(&near, key, moment, now)?;
        self.count(found.state.class(), Count::GetHits, 1);
        self.mark_at(&found, moment);
        Some(found)
    }

    /// [`Worker::get`] for many keys at a time: `items[i]` is the item of `keys[i]`. Buckets and
    /// items of several keys are on their way from memory together.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn get_batch<'w>(&'w self, keys: &[Key<'_>], now: Now, items: &mut [Option<Item<'w>>]) {
        // One lookup waits for its memory all the same.
        if let ([key], [item]) = (keys, &mut *items) {
            *item = self.get(*key, now);
            return;
        }
        self.get_batch_until(keys, now, items, |_| false);
    }

    /// [`Worker::get_batch`] up to the first item that is stale, which is left as it is; how many of
    /// the keys were looked up.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn get_fresh_batch<'w>(
        &'w self,
        keys: &[Key<'_>],
        now: Now,
        items: &mut [Option<Item<'w>>],
    ) -> usize {
        self.get_batch_until(keys, now, items, State::is_stale)
    }

    fn get_batch_until<'w>(
        &'w self,
        keys: &[Key<'_>],
        now: Now,
        items: &mut [Option<Item<'w>>],
        is_end: impl Fn(State) -> bool,
    ) -> usize {
        assert_eq!(keys.len(), items.len(), "one place for each key");
        self.begin();
        if keys.len() <= BATCH_SMALL {
            self.get_batches::<BATCH_SMALL>(keys, now, items, is_end)
        } else {
            self.get_batches::<BATCH>(keys, now, items, is_end)
        }
    }

    fn get_batches<'w, const COUNT: usize>(
        &'w self,
        keys: &[Key<'_>],
        now: Now,
        items: &mut [Option<Item<'w>>],
        is_end: impl Fn(State) -> bool,
    ) -> usize {
        let (moment, mut hits, mut done) = (self.shared().moment(now), Hits::default(), 0);
        'all: for (keys, items) in keys.chunks(COUNT).zip(items.chunks_mut(COUNT)) {
            let near = self.bring_near::<COUNT>(keys);
            for ((near, key), item) in near.iter().zip(keys).zip(items) {
                *item = self.find_near(near, *key, moment, now);
                if let Some(found) = item {
                    if is_end(found.state) {
                        *item = None;
                        break 'all;
                    }
                    self.count_hit(&mut hits, found.state.class());
                    self.mark_at(found, moment);
                }
                done += 1;
            }
        }
        self.count(hits.class, Count::GetHits, hits.count);
        done
    }

    fn count_hit(&self, hits: &mut Hits, class: u32) {
        if hits.class != class {
            self.count(hits.class, Count::GetHits, hits.count);
            *hits = Hits { class, count: 0 };
        }
        hits.count += 1;
    }

    /// The item of a key that was brought near, if it is alive.
    #[inline(always)]
    fn find_near(&self, near: &Near, key: Key<'_>, moment: Moment, now: Now) -> Option<Item<'_>> {
        let Some(found) = self.seen(near.item, key) else {
            return self.find_alive_item(near.hash, key, now);
        };
        if self.shared().is_over_by(&found, moment) {
            self.end_dead(&found, now);
            return None;
        }
        Some(found)
    }

    /// The item that a slot led to in this turn, if it has the key and has not ended: then it is what
    /// the key has now, as in [`Buckets::lookup`]. What is more to be done is left to that.
    #[inline(always)]
    fn seen(&self, offset: u64, key: Key<'_>) -> Option<Item<'_>> {
        if offset == 0 {
            return None;
        }
        let state = self.shared().item_state(offset);
        if !state.is_linked() || self.shared().key_of(offset, state) != key.bytes() {
            return None;
        }
        let times = self.shared().times(offset);
        times.successor().is_none().then_some(Item { worker: self, offset, state, times })
    }

    /// Brings buckets and items of keys that are looked up next near.
    pub fn prefetch(&self, keys: &[Key<'_>]) {
        self.begin();
        for keys in keys.chunks(BATCH) {
            self.bring_near::<BATCH>(keys);
        }
    }

    /// The buckets of all keys first, then what these lead to: items, or the next line of the bucket.
    fn bring_near<const COUNT: usize>(&self, keys: &[Key<'_>]) -> [Near; COUNT] {
        let store = self.shared();
        let mut all = [Near::default(); COUNT];
        for (near, key) in all.iter_mut().zip(keys) {
            near.hash = store.secret.hash(key.bytes());
            near.line = store.prefetch_bucket(near.hash);
        }
        let mut goes_on = true;
        while std::mem::take(&mut goes_on) {
            for near in all.iter_mut().take(keys.len()).filter(|near| near.line != 0) {
                goes_on |= store.look(near);
            }
        }
        all
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
        self.mark(found, age(found, now), tick(now));
    }

    #[inline]
    fn mark_at(&self, found: &Item<'_>, moment: Moment) {
        let age = moment.tick.saturating_sub(found.times.last_access_tick());
        if found.is_to_be_marked(age) {
            self.mark(found, age, moment.tick);
        }
    }

    /// [`Worker::mark_access`] at a tick that is `age` ticks after the last access.
    fn mark(&self, found: &Item<'_>, age: u32, tick: u32) {
        if self.count_access(found, age) && age > 0 {
            // A lost race is another access, a new lifetime, or the end of the item.
            let _ = self.retime(found, found.times.accessed_at(tick));
        }
    }

    /// Counts the use of an item, the first one for `age` ticks. False if that does not count.
    fn count_access(&self, found: &Item<'_>, age: u32) -> bool {
        let state = found.state;
        if !found.is_to_be_marked(age) {
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

impl Item<'_> {
    /// Whether a use, the first one for `age` ticks, is to be noted.
    fn is_to_be_marked(&self, age: u32) -> bool {
        let state = self.state;
        state.is_linked() && !(age == 0 && state.is_fetched() && state.freq() > 0)
    }
}

impl Store {
    fn moment(&self, now: Now) -> Moment {
        Moment { second: second(now), tick: tick(now), stamp_least: self.stamp_least(now) }
    }

    /// [`Store::is_over`] at a moment.
    fn is_over_by(&self, found: &Item<'_>, moment: Moment) -> bool {
        found.times.is_expired(moment.second)
            || stamp_of(self.item_cas(found.offset)) < moment.stamp_least
    }

    /// Looks at a line of slots: brings the item near that it leads to, or else the next line, which is
    /// to be looked at later; whether there is one. Where two slots have the tag, or one has that is
    /// not decided, a lookup has to tell.
    fn look(&self, near: &mut Near) -> bool {
        let [first, slots @ ..] = self.region.line_words(near.line);
        let tag = near.hash >> TAG_SHIFT << TAG_SHIFT;
        let mut found = 0;
        for slot in slots {
            // Acquire: the item's bytes are visible; pairs with the Release that stored it.
            let word = slot.load(Ordering::Acquire);
            // No branch: which slot it is cannot be guessed.
            found = if (word ^ tag) < PENDING { word } else { found };
        }
        near.item = slot_item(found);
        if near.item != 0 {
            near.line = 0;
            self.region.prefetch_lines(near.item, ITEM_LINES);
            return false;
        }
        // Acquire: the line that is linked can be read; pairs with the Release in `advance`.
        near.line = link(first.load(Ordering::Acquire));
        if near.line != 0 {
            self.region.prefetch(near.line);
        }
        near.line != 0
    }
}

#[cfg(all(test, not(session_schedule)))]
mod tests {
    use super::{BATCH, Near};
    use crate::clock::Now;
    use crate::store::buckets::Buckets;
    use crate::store::types::{ClientFlags, Key, Lifetime, Mode, Renewal, StoreConfig};
    use crate::store::{Item, Store};

    const NOW: Now = Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: 1_000_000_000_000 };

    /// So many keys that buckets have overflow lines, some of them several.
    const KEYS: usize = 40_000;

    #[test]
    fn keys_together_have_what_each_has_alone() {
        let config = StoreConfig { workers: 1, hash_seed: Some(3), ..StoreConfig::default() };
        let store = Store::create(&config).unwrap();
        let mut worker = store.worker().unwrap();
        let names: Vec<String> = (0..KEYS).map(|number| format!("key-{number}")).collect();
        for name in names.iter().step_by(2) {
            let (key, none) = (Key::new(name.as_bytes()).unwrap(), ClientFlags(0));
            worker.set(key, name.as_bytes(), none, Lifetime::Never, Mode::Set, NOW);
            worker.maintain(NOW);
        }
        let (mut in_overflow, mut others) = (0, 0);
        for names in names.chunks(50) {
            let keys = names.iter().map(|name| Key::new(name.as_bytes()).unwrap());
            let keys: Vec<Key<'_>> = keys.collect();
            let mut items = vec![None; keys.len()];
            worker.get_batch(&keys, NOW, &mut items);
            for (item, name) in items.iter().zip(names) {
                let value = item.as_ref().map(|item| item.value_in_one().unwrap().to_vec());
                let number: usize = name[4..].parse().unwrap();
                assert_eq!(
                    value,
                    (number.is_multiple_of(2)).then(|| name.clone().into_bytes()),
                    "{name}"
                );
            }
            // What is brought near is what a lookup finds, unless two slots have the same tag.
            for chunk in keys.chunks(BATCH) {
                let near = worker.bring_near::<BATCH>(chunk);
                for (near, key) in near.iter().zip(chunk) {
                    let found = worker.shared().lookup(near.hash, key.bytes());
                    others += usize::from(found.is_some_and(|found| near.item != found));
                    let home = worker.shared().bucket(worker.shared().home(near.hash));
                    let mut first = Near { hash: near.hash, line: home, item: 0 };
                    worker.shared().look(&mut first);
                    in_overflow += usize::from(found.is_some() && first.item != near.item);
                }
            }
        }
        assert!(in_overflow > 100 && others < 20, "{in_overflow} in overflow, {others} not near");
    }

    #[test]
    fn keys_together_are_looked_up_to_the_first_that_is_stale() {
        let store = Store::create(&StoreConfig { workers: 1, ..StoreConfig::default() }).unwrap();
        let mut worker = store.worker().unwrap();
        let keys = [b"a", b"b", b"c"].map(|name| Key::new(name).unwrap());
        for key in keys {
            worker.set(key, b"v", ClientFlags(0), Lifetime::Never, Mode::Set, NOW);
        }
        let mut items = [const { None }; 3];
        assert_eq!(worker.get_fresh_batch(&keys, NOW, &mut items), 3);
        let renewal = Renewal { stale: true, ..Renewal::default() };
        worker.renew(keys[1], &renewal, NOW);
        let mut items = [const { None }; 3];
        assert_eq!(worker.get_fresh_batch(&keys, NOW, &mut items), 1);
        assert_eq!(items.map(|item: Option<Item<'_>>| item.is_some()), [true, false, false]);
    }
}
