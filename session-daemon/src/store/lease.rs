//! Lookups that do more than read: a new lifetime, an empty item where none is, and the choice of
//! the one client that is told to renew an item. It owns that choice.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::counters::Count;
use crate::store::item::{Marks, State, Times};
use crate::store::publish::Expect;
use crate::store::reader::Item;
use crate::store::reuse::tick;
use crate::store::types::{Key, LeaseTerms, Lifetime};

/// An item that was found or made.
#[derive(Clone, Debug)]
pub struct Leased<'w> {
    /// As it was found, or as it was made.
    pub item: Item<'w>,
    /// It was made by this lookup.
    pub created: bool,
    /// The caller is the one who has to renew it.
    pub won: bool,
}

/// An item as it was found, before the choice.
#[derive(Clone, Copy)]
struct Found {
    offset: u64,
    state: State,
    times: Times,
    /// This lookup has not changed them.
    is_unchanged: bool,
    won: bool,
}

impl Worker {
    /// The key's item, or the one that the terms make; none when there is no item, or no room for
    /// one. Of all lookups that may win an item, one does.
    pub fn lease(&mut self, key: Key<'_>, terms: &LeaseTerms, now: Now) -> Option<Leased<'_>> {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        loop {
            if let Some(found) = self.lease_present(hash, key, terms, now) {
                let Found { offset, state, times, is_unchanged, won } = found;
                let item = Item { worker: self, offset, state, times };
                self.note_lease(&item, is_unchanged, terms, now);
                return Some(Leased { item, created: false, won });
            }
            match self.vivify(hash, key, terms, now)? {
                None => {}
                Some(offset) => {
                    let state = self.shared().item_state(offset);
                    // As it was made: others may have touched or ended it since.
                    let lifetime = terms.vivify.unwrap_or(Lifetime::Never);
                    let times = Times::new(lifetime, tick(now)).with_win(true);
                    let item = Item { worker: self, offset, state, times };
                    if !terms.unmarked {
                        self.mark_access(&item, now);
                    }
                    return Some(Leased { item, created: true, won: true });
                }
            }
        }
    }

    /// Decides and touches in one step, in the word by which items are replaced too: what is won
    /// is what the key has.
    fn lease_present(
        &self,
        hash: u64,
        key: Key<'_>,
        terms: &LeaseTerms,
        now: Now,
    ) -> Option<Found> {
        loop {
            let found = self.find_living(hash, key)?;
            let (offset, state, times) = (found.offset, found.state, found.times);
            if self.shared().is_over(offset, times, now) {
                return None;
            }
            let access = if terms.unmarked { times.last_access_tick() } else { tick(now) };
            let touched = terms.touch.map(|lifetime| Times::new(lifetime, access));
            let judged = touched.filter(|_| terms.touch_first).unwrap_or(times);
            let won = !times.is_won() && (state.is_stale() || ends_before(judged, terms.recache));
            let new = touched.unwrap_or(times).with_win(won || times.is_won());
            if new != times && !self.retime(&found, new) {
                continue;
            }
            if touched.is_some() {
                self.note_deadline(offset, new);
            }
            return Some(Found { offset, state, times, is_unchanged: new == times, won });
        }
    }

    /// Counts and marks the access. The item that is returned shows the state before.
    fn note_lease(&self, item: &Item<'_>, is_unchanged: bool, terms: &LeaseTerms, now: Now) {
        let count = if terms.touch.is_some() { Count::TouchHits } else { Count::GetHits };
        self.count(item.state.class(), count, 1);
        if terms.unmarked {
            return;
        }
        if is_unchanged {
            return self.mark_access(item, now);
        }
        let times = self.shared().item_times(item.offset);
        if times.successor().is_none() {
            self.mark_access(&Item { times, ..item.clone() }, now);
        }
    }

    /// Makes an empty item. Nothing outside when none is asked for or there is no memory, nothing
    /// inside when another item has come up.
    fn vivify(
        &mut self,
        hash: u64,
        key: Key<'_>,
        terms: &LeaseTerms,
        now: Now,
    ) -> Option<Option<u64>> {
        let lifetime = terms.vivify?;
        if !self.prepare(now) {
            return None;
        }
        let LeaseTerms { key_is_binary, .. } = *terms;
        let marks =
            Marks { version: self.chosen(terms.version), key_is_binary, ..Marks::default() };
        let mut draft = self.draft(key, marks, 0, now)?;
        draft.won = true;
        let head = draft.head;
        let published = self.publish(hash, key, draft, Expect::Nothing, lifetime, now);
        Some(published.is_ok().then_some(head))
    }
}

/// Whether an item with these times ends, and before that.
fn ends_before(times: Times, limit: Option<Lifetime>) -> bool {
    let Some(Lifetime::Until(limit_s)) = limit else { return false };
    times.exptime_s() != 0 && times.exptime_s() < limit_s
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::types::{CasUnique, ClientFlags, Mode, Renewal, StoreConfig, Terms};
    use std::sync::atomic::{AtomicUsize, Ordering as Order};

    fn at(second: u64) -> Now {
        Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: second * 1_000_000_000 }
    }

    fn key() -> Key<'static> {
        Key::new(b"k").unwrap()
    }

    fn put(worker: &mut Worker, lifetime: Lifetime) {
        let terms = Terms::new(ClientFlags(1), lifetime, Mode::Set);
        worker.put(key(), b"value", &terms, at(10));
    }

    #[test]
    fn what_is_missing_is_made_once() {
        let store = Store::create(&StoreConfig::default()).unwrap();
        let mut worker = store.worker().unwrap();
        assert!(worker.lease(key(), &LeaseTerms::default(), at(10)).is_none());
        let version = Some(CasUnique(77));
        let vivify = Some(Lifetime::Until(30));
        let terms = LeaseTerms { vivify, version, key_is_binary: true, ..LeaseTerms::default() };
        let made = worker.lease(key(), &terms, at(10)).unwrap();
        assert!(made.created && made.won && made.item.is_won());
        assert_eq!((made.item.value_len(), made.item.cas()), (0, CasUnique(77)));
        assert_eq!(made.item.lifetime(), Lifetime::Until(30));
        assert!(made.item.key_is_binary());
        let found = worker.lease(key(), &terms, at(10)).unwrap();
        assert!(!found.created && !found.won && found.item.is_won());
        assert!(worker.lease(key(), &LeaseTerms::default(), at(30)).is_none());
    }

    #[test]
    fn an_end_that_is_near_is_won_once() {
        let store = Store::create(&StoreConfig::default()).unwrap();
        let mut worker = store.worker().unwrap();
        put(&mut worker, Lifetime::Until(50));
        let until = |second| Some(Lifetime::Until(second));
        let near = LeaseTerms { recache: until(50), ..LeaseTerms::default() };
        assert!(!worker.lease(key(), &near, at(10)).unwrap().won);
        let near = LeaseTerms { recache: until(51), ..LeaseTerms::default() };
        let leased = worker.lease(key(), &near, at(10)).unwrap();
        assert!(leased.won && !leased.item.is_won());
        let leased = worker.lease(key(), &near, at(10)).unwrap();
        assert!(!leased.won && leased.item.is_won());
        put(&mut worker, Lifetime::Never);
        assert!(!worker.lease(key(), &near, at(10)).unwrap().won);
    }

    #[test]
    fn the_order_of_touch_and_recache_counts() {
        for (touch_first, wins) in [(true, false), (false, true)] {
            let store = Store::create(&StoreConfig::default()).unwrap();
            let mut worker = store.worker().unwrap();
            put(&mut worker, Lifetime::Until(20));
            let (touch, recache) = (Some(Lifetime::Until(90)), Some(Lifetime::Until(40)));
            let terms = LeaseTerms { touch, recache, touch_first, ..LeaseTerms::default() };
            let leased = worker.lease(key(), &terms, at(10)).unwrap();
            assert_eq!((leased.won, leased.item.lifetime()), (wins, Lifetime::Until(20)));
            let after = worker.get(key(), at(10)).unwrap();
            assert_eq!(after.lifetime(), Lifetime::Until(90));
        }
    }

    #[test]
    fn unmarked_lookups_leave_no_trace() {
        let store = Store::create(&StoreConfig::default()).unwrap();
        let mut worker = store.worker().unwrap();
        put(&mut worker, Lifetime::Never);
        let unmarked = LeaseTerms { unmarked: true, ..LeaseTerms::default() };
        for _ in 0..2 {
            let item = worker.lease(key(), &unmarked, at(15)).unwrap().item;
            assert_eq!((item.fetched(), item.last_access_s()), (false, 10));
        }
        assert!(!worker.lease(key(), &LeaseTerms::default(), at(15)).unwrap().item.fetched());
        let item = worker.lease(key(), &unmarked, at(20)).unwrap().item;
        assert_eq!((item.fetched(), item.last_access_s()), (true, 15));
    }

    #[test]
    fn one_of_many_wins_each_round() {
        const ROUNDS: usize = 300;
        const THREADS: usize = 3;
        let config = StoreConfig { workers: THREADS + 1, ..StoreConfig::default() };
        let store = Store::create(&config).unwrap();
        let mut keeper = store.worker().unwrap();
        put(&mut keeper, Lifetime::Never);
        let wins = AtomicUsize::new(0);
        let renewal = Renewal { stale: true, ..Renewal::default() };
        for round in 0..ROUNDS {
            keeper.renew(key(), &renewal, at(10));
            keeper.quiesce();
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    let mut worker = store.worker().unwrap();
                    let wins = &wins;
                    scope.spawn(move || {
                        let leased = worker.lease(key(), &LeaseTerms::default(), at(10)).unwrap();
                        wins.fetch_add(usize::from(leased.won), Order::Relaxed);
                    });
                }
            });
            assert_eq!(wins.load(Order::Relaxed), round + 1);
        }
    }
}
