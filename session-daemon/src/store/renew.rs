//! Items that are marked stale or emptied: a new item in place of the old one. It owns what such an
//! item takes over.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::draft::Draft;
use crate::store::item::{ACCESSES, Marks, STALE, State};
use crate::store::publish::{Expect, Heritage};
use crate::store::types::{Key, Lifetime, Renewal, Renewed};

impl Worker {
    /// Marks the key's item stale, empties it, or both, if it has the version asked for.
    pub fn renew(&mut self, key: Key<'_>, renewal: &Renewal, now: Now) -> Renewed {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        loop {
            let Some(old) = self.find_alive(hash, key, now) else { return Renewed::NotFound };
            if self.is_other_version(old, renewal.cas) {
                return Renewed::Exists;
            }
            if !self.prepare(now) {
                return Renewed::NoMemory;
            }
            let (marks, value_len) = self.renewed(old, renewal);
            let Some(draft) = self.draft(key, marks, value_len, now) else {
                return Renewed::NoMemory;
            };
            // The turn may have ended meanwhile: only what is found now may be read.
            let again = self.find_alive(hash, key, now).filter(|&old| {
                self.renewed(old, renewal) == (marks, value_len)
                    && !self.is_other_version(old, renewal.cas)
            });
            let Some(old) = again else {
                self.discard(draft);
                continue;
            };
            if self.publish_renewed(hash, key, old, draft, renewal, now) {
                return Renewed::Renewed;
            }
        }
    }

    /// What the new item carries, and the length of its value.
    fn renewed(&self, old: u64, renewal: &Renewal) -> (Marks, usize) {
        let Renewal { stale, emptied, .. } = *renewal;
        let kept = (!stale).then(|| self.shared().version(old));
        let marks = self.marks_of(old, renewal.version.or(kept));
        match emptied {
            Some(flags) => (Marks { flags, ..marks }, 0),
            None => (marks, self.shared().item_state(old).value_len()),
        }
    }

    /// False when another item has taken the place of `old`.
    fn publish_renewed(
        &mut self,
        hash: u64,
        key: Key<'_>,
        old: u64,
        mut draft: Draft,
        renewal: &Renewal,
        now: Now,
    ) -> bool {
        let mut bits = 0;
        if renewal.emptied.is_none() {
            let value = self.shared().value_slices(old, self.shared().item_state(old));
            self.fill(&mut draft.fill_point(), value);
            bits = ACCESSES;
        }
        if renewal.stale {
            draft.state = State(draft.state.0 | STALE);
        }
        let lifetime = renewal.lifetime.is_none();
        let expect = Expect::Same(old, Heritage { lifetime, win: false, bits });
        let lifetime = renewal.lifetime.unwrap_or(Lifetime::Never);
        self.publish(hash, key, draft, expect, lifetime, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::types::{CasUnique, ClientFlags, LeaseTerms, Mode, StoreConfig, Terms};

    fn at(second: u64) -> Now {
        Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: second * 1_000_000_000 }
    }

    fn with_item(test: impl FnOnce(&mut Worker, Key<'_>)) {
        let store = Store::create(&StoreConfig::default()).unwrap();
        let mut worker = store.worker().unwrap();
        let key = Key::new(b"k").unwrap();
        let terms = Terms::new(ClientFlags(7), Lifetime::Until(50), Mode::Set);
        worker.put(key, &vec![b'v'; 20_000], &terms, at(10));
        test(&mut worker, key);
        worker.quiesce();
        store.validate().unwrap();
    }

    #[test]
    fn stale_items_keep_all_but_the_version() {
        with_item(|worker, key| {
            let before = worker.get(key, at(10)).unwrap().cas();
            let renewal = Renewal { stale: true, ..Renewal::default() };
            assert_eq!(worker.renew(key, &renewal, at(11)), Renewed::Renewed);
            let item = worker.get(key, at(11)).unwrap();
            assert!(item.is_stale() && !item.is_won() && item.fetched());
            assert!(item.cas() > before);
            assert_eq!((item.flags(), item.lifetime()), (ClientFlags(7), Lifetime::Until(50)));
            assert!(item.value().flatten().all(|byte| *byte == b'v'));
            assert_eq!(item.value_len(), 20_000);
        });
    }

    #[test]
    fn emptied_items_keep_the_version() {
        with_item(|worker, key| {
            let before = worker.get(key, at(10)).unwrap().cas();
            let emptied = Some(ClientFlags(0));
            let renewal = Renewal { emptied, cas: Some(before), ..Renewal::default() };
            assert_eq!(worker.renew(key, &renewal, at(11)), Renewed::Renewed);
            let item = worker.get(key, at(11)).unwrap();
            assert_eq!((item.value_len(), item.flags(), item.cas()), (0, ClientFlags(0), before));
            assert_eq!(item.lifetime(), Lifetime::Until(50));
            assert!(!item.is_stale() && !item.fetched());
        });
    }

    #[test]
    fn conditions_and_choices() {
        with_item(|worker, key| {
            let other = Some(CasUnique(5));
            let renewal = Renewal { stale: true, cas: other, ..Renewal::default() };
            assert_eq!(worker.renew(key, &renewal, at(10)), Renewed::Exists);
            let lifetime = Some(Lifetime::Until(30));
            let renewal = Renewal { stale: true, version: other, lifetime, ..Renewal::default() };
            assert_eq!(worker.renew(key, &renewal, at(10)), Renewed::Renewed);
            let item = worker.get(key, at(10)).unwrap();
            assert_eq!((item.cas(), item.lifetime()), (CasUnique(5), Lifetime::Until(30)));
            assert_eq!(worker.renew(key, &renewal, at(30)), Renewed::NotFound);
            assert!(worker.lease(key, &LeaseTerms::default(), at(30)).is_none());
        });
    }
}
