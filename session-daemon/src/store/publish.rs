//! Publishing: the moment at which an item becomes what its key has, and ceases to be it.
//! It owns the order of words, slot and commit bit, and the making of versions.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::counters::Count;
use crate::store::draft::Draft;
use crate::store::failpoint::step;
use crate::store::item::{CAS, LINKED, PIECE_OWNER, STALE, State, TIMES, Times, WON};
use crate::store::reader::{CAS_WORKER_BITS, stamp_at, stamp_of};
use crate::store::reuse::tick;
use crate::store::sync::{Ordering, fence};
use crate::store::types::{CasUnique, Key, Lifetime, Stored};
use crate::store::{Store, Worker};

/// What must be in the index for an item to be published.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect {
    Anything,
    Nothing,
    Something,
    Version(CasUnique),
    /// That version, or a later one: the new item is stale then, and takes over lifetime and win.
    VersionOrLater(CasUnique),
    /// This very item, found in the same turn.
    Same(u64, Heritage),
}

/// What goes over from an item to the one that is made from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heritage {
    pub(super) lifetime: bool,
    /// Bits of the state word.
    pub(super) bits: u64,
}

impl Heritage {
    fn of(expect: Expect, cas: Option<CasUnique>) -> Option<Self> {
        match expect {
            Expect::Same(_, heritage) => Some(heritage),
            Expect::VersionOrLater(asked) if cas.is_some_and(|cas| cas != asked) => {
                Some(Self { lifetime: true, bits: WON })
            }
            _ => None,
        }
    }
}

/// Why an item was not published.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refused {
    Because(Stored),
    /// The item of [`Expect::Same`] is not there any more.
    Changed,
}

impl Worker {
    /// Whether an expectation holds for the item that was found, if any.
    /// No item has version 0, not even one without versions.
    pub(super) fn check(&self, expect: Expect, found: Option<u64>) -> Result<(), Stored> {
        let version = |item| self.shared().version(item);
        match (expect, found) {
            (Expect::Nothing, Some(_)) | (Expect::Something, None) => Err(Stored::NotStored),
            (Expect::Version(_) | Expect::VersionOrLater(_), None) => Err(Stored::NotFound),
            (Expect::Version(cas), Some(item)) if cas.0 == 0 || version(item) != cas => {
                Err(Stored::Exists)
            }
            (Expect::VersionOrLater(cas), Some(item)) if cas.0 == 0 || version(item) < cas => {
                Err(Stored::Exists)
            }
            _ => Ok(()),
        }
    }

    /// Takes the commit bit from an item that is to leave its slot, or has left it for a newer one.
    /// Under the bucket's lock. Before the slot is emptied: a start after a crash goes by the bit,
    /// and nobody may have missed an item that comes back.
    pub(super) fn unlink(&self, item: u64) -> State {
        let word = self.shared().region.word(item);
        // Release: a newer item is in the slot before; a start never finds neither linked.
        let state = State(word.fetch_and(!LINKED, Ordering::Release));
        debug_assert!(state.is_linked(), "an item in the index is linked");
        self.count(state.class(), Count::Unlinked, 1);
        self.count(state.class(), Count::BytesUnlinked, state.item_len() as u64);
        state
    }

    /// Publishes a draft in place of what is there, if that is as expected. Discards it if not.
    pub(super) fn publish(
        &mut self,
        hash: u64,
        key: Key<'_>,
        mut draft: Draft,
        expect: Expect,
        lifetime: Lifetime,
        now: Now,
    ) -> Result<CasUnique, Refused> {
        let line = self.lines.pop().expect("lines_at_hand was called in this command");
        let mut bucket = self.shared().lock_bucket(hash);
        let found = bucket.find(hash, key.bytes());
        let alive = found.map(|(_, item)| item).filter(|&item| !self.shared().is_dead(item, now));
        let verdict = match expect {
            Expect::Same(item, _) if alive != Some(item) => Err(Refused::Changed),
            _ => self.check(expect, alive).map_err(Refused::Because),
        };
        if let Err(refused) = verdict {
            drop(bucket);
            self.lines.push(line);
            self.discard(draft);
            return Err(refused);
        }
        let old = found.map(|(_, item)| item);
        // A key keeps its count of accesses when its value is replaced, and when it was evicted.
        let freq = match alive {
            Some(old) => self.shared().item_state(old).freq(),
            None => self.returning(hash, now),
        };
        let mut times = Times::new(lifetime, tick(now));
        draft.state = draft.state.with_freq(freq);
        let heritage = Heritage::of(expect, alive.map(|old| self.shared().version(old)));
        if let (Some(old), Some(heritage)) = (alive, heritage) {
            // Under the lock, under which lifetimes change and items are won.
            draft.state = draft.state.with_bits_of(self.shared().item_state(old), heritage.bits);
            if heritage.lifetime {
                times = Times::new(self.shared().item_times(old).lifetime(), tick(now));
            }
            if matches!(expect, Expect::VersionOrLater(_)) {
                draft.state = State(draft.state.0 | STALE);
            }
        }
        let cas = self.next_cas(old, now);
        step("set: private");
        self.commit(&draft, times, cas);
        step("set: linked");
        let mut line_used = false;
        match found {
            Some((slot, _)) => bucket.replace(slot, hash, draft.head),
            None => line_used = bucket.insert(hash, draft.head, line),
        }
        step("set: in the slot");
        if let Some(old) = old {
            self.unlink(old);
            step("set: old unlinked");
        }
        drop(bucket);
        if !line_used {
            self.lines.push(line);
        }
        match old {
            Some(old) => self.retire_item(old),
            None => self.keys_added.set(self.keys_added.get() + 1),
        }
        self.note_deadline(draft.head, times);
        Ok(self.shared().version(draft.head))
    }

    /// Makes a draft a whole item. It is found once its slot is written.
    fn commit(&self, draft: &Draft, times: Times, cas: CasUnique) {
        let region = &self.shared().region;
        // Relaxed: published by the state word.
        region.word(draft.head + TIMES).store(times.0, Ordering::Relaxed);
        region.word(draft.head + CAS).store(cas.0, Ordering::Relaxed);
        // Release: the item's bytes are complete; pairs with the Acquire in `item_state`.
        region.word(draft.head).store(draft.state.linked().0, Ordering::Release);
        let mut piece = draft.first;
        while piece != 0 {
            // Release: who finds the piece finds a whole item; pairs with `owner`.
            region.word(piece + PIECE_OWNER).store(draft.head, Ordering::Release);
            piece = self.piece(piece).next();
            step("set: owned in part");
        }
        self.count(draft.state.class(), Count::Linked, 1);
        self.count(draft.state.class(), Count::BytesLinked, draft.state.item_len() as u64);
    }

    /// A version above the old item's, above this worker's last one, and above every flush.
    fn next_cas(&self, old: Option<u64>, now: Now) -> CasUnique {
        let store = self.shared();
        let after_old = old.map_or(0, |old| stamp_of(store.item_cas(old)) + 1);
        let stamp = stamp_at(now.boottime_ns)
            .max(self.stamp.get() + 1)
            .max(after_old)
            .max(store.stamp_least(now));
        // Release: a flush that starts later covers this version; pairs with `flush_all`.
        store.workers[self.id].stamp.0.store(stamp, Ordering::Release);
        self.stamp.set(stamp);
        CasUnique(stamp << CAS_WORKER_BITS | self.id as u64)
    }

    /// Lowers the deadline of an item's page to that of the item. After the item is linked.
    pub(super) fn note_deadline(&self, item: u64, times: Times) {
        if times.exptime_s() == 0 {
            return;
        }
        let page = self.shared().layout.page_of(item);
        let deadline = &self.shared().page_meta(page).deadline_s;
        // SeqCst: the item's times are visible before the deadline is read; pairs with the fence
        // in `remove_dead`. Either that walk sees the times, or this sees that it has begun.
        fence(Ordering::SeqCst);
        if deadline.load(Ordering::Acquire) > times.exptime_s() {
            deadline.fetch_min(times.exptime_s(), Ordering::AcqRel);
        }
    }
}

impl Store {
    /// The version that clients see of an item that is, or was, published.
    pub(super) fn version(&self, item: u64) -> CasUnique {
        let state = self.item_state(item);
        if !self.config.cas {
            return CasUnique(0);
        }
        if state.has_version() { self.item_version(item, state) } else { self.item_cas(item) }
    }
}
