//! Lookups that may win an item, and removals that leave one. It owns which counters they move.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::counters::Counter;
use super::execute::{Executor, store_key};
use super::expiry;
use super::observe::{Event, Seen};
use super::request::{Key, Lease, Outcome, Removal};
use crate::store::types::{CasUnique, ClientFlags, Deleted, LeaseTerms, Renewal, Renewed};
use crate::store::{Item, Leased};

impl Executor<'_> {
    /// The key's item, or the one that is made; where only reads are done, as it is. memcached counts a hit with a new expiry time
    /// among the touches, and what is made among the hits.
    pub fn lease(&mut self, key: Key<'_>, lease: &Lease) -> Option<Leased<'_>> {
        let lifetime = |exptime| expiry::lifetime(exptime, self.now);
        let terms = LeaseTerms {
            touch: lease.touch.map(lifetime),
            vivify: lease.vivify.map(lifetime),
            recache: lease.recache.map(lifetime),
            touch_first: lease.touch_first,
            version: lease.version.map(CasUnique),
            key_is_binary: lease.key_is_binary,
            unmarked: lease.unmarked,
        };
        let (counters, observer) = (self.counters, self.observer);
        let leased = if self.reads_only {
            let item = self.store.peek(store_key(key), self.now);
            item.map(|item| Leased { item, created: false, won: false })
        } else {
            self.store.lease(store_key(key), &terms, self.now)
        };
        let (command, outcome) = match &leased {
            Some(_) if lease.touch.is_some() => (Counter::CmdTouch, Counter::TouchHits),
            Some(_) => (Counter::CmdGet, Counter::GetHits),
            None => (Counter::CmdGet, Counter::GetMisses),
        };
        counters.add_one(command);
        counters.add_one(outcome);
        if let Some(observer) = observer {
            let found = leased.as_ref().map(|leased| Seen::of(&leased.item));
            observer.note(&Event::Fetched { key: key.bytes(), found });
        }
        leased
    }

    /// The key's item without a trace of the lookup, not even in the counters.
    #[must_use]
    pub fn peek(&self, key: Key<'_>) -> Option<Item<'_>> {
        self.store.peek(store_key(key), self.now)
    }

    /// The key's item as it is told, while somebody watches.
    pub(super) fn seen(&self, key: Key<'_>) -> Option<Seen> {
        self.observer.and_then(|_| self.peek(key).as_ref().map(Seen::of))
    }

    /// Removes an item, or leaves it stale or empty.
    pub fn remove(&mut self, removal: &Removal<'_>) -> Outcome {
        let seen = self.seen(removal.key);
        let outcome = self.remove_unnoted(removal);
        let found = seen.filter(|_| outcome == Outcome::Deleted);
        self.note(&Event::Deleted { key: removal.key.bytes(), command: "md", found });
        outcome
    }

    fn remove_unnoted(&mut self, removal: &Removal<'_>) -> Outcome {
        let key = store_key(removal.key);
        let cas = removal.cas.map(CasUnique);
        if !removal.stale && removal.emptied.is_none() {
            let deleted = self.store.delete(key, cas, self.now);
            return self.deleted(deleted);
        }
        let renewal = Renewal {
            cas,
            stale: removal.stale,
            emptied: removal.emptied.map(ClientFlags),
            lifetime: removal.exptime.map(|exptime| expiry::lifetime(exptime, self.now)),
            version: removal.version.map(CasUnique),
        };
        match self.store.renew(key, &renewal, self.now) {
            // memcached counts no hit for an item that stays and is stale.
            Renewed::Renewed if removal.stale => Outcome::Deleted,
            Renewed::Renewed => self.counted(Counter::DeleteHits, Outcome::Deleted),
            Renewed::NotFound => self.counted(Counter::DeleteMisses, Outcome::NotFound),
            Renewed::Exists => self.counted(Counter::DeleteMisses, Outcome::Exists),
            // What must not be served as fresh goes, rather than stay for want of memory.
            Renewed::NoMemory => {
                let deleted = self.store.delete(key, cas, self.now);
                self.deleted(deleted)
            }
        }
    }

    fn deleted(&self, deleted: Deleted) -> Outcome {
        match deleted {
            Deleted::Deleted => self.counted(Counter::DeleteHits, Outcome::Deleted),
            Deleted::NotFound => self.counted(Counter::DeleteMisses, Outcome::NotFound),
            Deleted::Exists => self.counted(Counter::DeleteMisses, Outcome::Exists),
        }
    }
}
