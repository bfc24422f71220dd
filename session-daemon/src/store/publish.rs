//! Publishing: what must hold for an item to become what its key has, what it takes over from the
//! one before, and the making of versions. The moment itself is `buckets`'s.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::buckets::{Buckets, Inserted};
use crate::store::counters::Count;
use crate::store::draft::Draft;
use crate::store::epoch::Retired;
use crate::store::evict::Reason;
use crate::store::failpoint::step;
use crate::store::item::{CAS, PIECE_OWNER, STALE, State, TIMES, Times};
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
    /// Whether somebody has to renew the item.
    pub(super) win: bool,
    /// Bits of the state word.
    pub(super) bits: u64,
}

impl Heritage {
    fn of(expect: Expect, cas: Option<CasUnique>) -> Option<Self> {
        match expect {
            Expect::Same(_, heritage) => Some(heritage),
            Expect::VersionOrLater(asked) if cas.is_some_and(|cas| cas != asked) => {
                Some(Self { lifetime: true, win: true, bits: 0 })
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

    /// Takes an item that this worker has ended out of the index, and retires it. Returns its last
    /// state.
    pub(super) fn bury(&self, hash: u64, item: u64, successor: u64) -> State {
        let (state, line) = self.shared().finish(hash, item, successor);
        self.protected_unlinked(item, state);
        self.count(state.class(), Count::Unlinked, 1);
        self.count(state.class(), Count::BytesUnlinked, state.item_len() as u64);
        if let Some(line) = line {
            self.shared().epochs.retire(self.id, Retired::Alone(line));
        }
        self.retire_item(item);
        if successor == 0 {
            self.keys_added.set(self.keys_added.get() - 1);
        }
        state
    }

    /// Publishes a draft in place of what is there, if that is as expected. Discards it if not.
    pub(super) fn publish(
        &mut self,
        hash: u64,
        key: Key<'_>,
        draft: Draft,
        expect: Expect,
        lifetime: Lifetime,
        now: Now,
    ) -> Result<CasUnique, Refused> {
        let mut returned = None;
        let mut owned = false;
        loop {
            let store = self.shared();
            let found = store.find(hash, key.bytes());
            let old = found.item.map(|item| (item, store.times(item)));
            if old.is_some_and(|(_, times)| times.successor().is_some()) {
                continue;
            }
            let alive = old.filter(|&(item, times)| !store.is_over(item, times, now));
            let verdict = match expect {
                Expect::Same(item, _) if alive.map(|alive| alive.0) != Some(item) => {
                    Err(Refused::Changed)
                }
                _ => self.check(expect, alive.map(|alive| alive.0)).map_err(Refused::Because),
            };
            if let Err(refused) = verdict {
                if owned && draft.first != 0 {
                    // Scans may have found the head by its pieces.
                    self.retire_item(draft.head);
                } else {
                    self.discard(draft);
                }
                return Err(refused);
            }
            // A key keeps its count of accesses when its value is replaced, and when it was
            // evicted.
            let freq = match alive {
                Some((old, _)) => store.item_state(old).freq(),
                None => *returned.get_or_insert_with(|| self.returning(hash, now)),
            };
            let (state, times) = self.inherit(&draft, freq, alive, expect, lifetime, now);
            self.write(draft.head, state, times, self.next_cas(old.map(|old| old.0), now));
            if !std::mem::replace(&mut owned, true) {
                self.own_pieces(&draft);
            }
            match old {
                Some((old, seen)) if store.supersede(old, seen, draft.head) => {
                    step("replace: decided");
                    self.count_linked(draft.head, state);
                    let state = self.bury(hash, old, draft.head);
                    if alive.is_none() {
                        self.count_removal(state, seen, Reason::Dead, now);
                    }
                }
                Some(_) => continue,
                None => {
                    let line = *self.lines.last().expect("lines_at_hand was called");
                    match store.insert(&found, hash, draft.head, line) {
                        Inserted::Changed => continue,
                        Inserted::DoneInLine => drop(self.lines.pop()),
                        Inserted::Done => {}
                    }
                    self.keys_added.set(self.keys_added.get() + 1);
                    self.count_linked(draft.head, state);
                }
            }
            self.note_deadline(draft.head, times);
            return Ok(self.shared().version(draft.head));
        }
    }

    pub(super) fn count_linked(&self, item: u64, state: State) {
        self.protected_linked(item, state);
        self.count(state.class(), Count::Linked, 1);
        self.count(state.class(), Count::BytesLinked, state.item_len() as u64);
    }

    /// State and times of a draft that takes the place of `old`.
    fn inherit(
        &self,
        draft: &Draft,
        freq: u64,
        old: Option<(u64, Times)>,
        expect: Expect,
        lifetime: Lifetime,
        now: Now,
    ) -> (State, Times) {
        let store = self.shared();
        let mut state = draft.state.with_freq(freq);
        let mut times = Times::new(lifetime, tick(now)).with_win(draft.won);
        let heritage = Heritage::of(expect, old.map(|(old, _)| store.version(old)));
        if let (Some((old, seen)), Some(heritage)) = (old, heritage) {
            state = state.with_bits_of(store.item_state(old), heritage.bits);
            if heritage.lifetime {
                times = Times::new(seen.lifetime(), tick(now)).with_win(draft.won);
            }
            times = times.with_win(heritage.win && seen.is_won());
            if matches!(expect, Expect::VersionOrLater(_)) {
                state = State(state.0 | STALE);
            }
        }
        (state, times)
    }

    /// Makes a draft a whole item, of which nobody knows yet.
    fn write(&self, head: u64, state: State, times: Times, cas: CasUnique) {
        let region = &self.shared().region;
        // Relaxed: published by the state word.
        region.word(head + TIMES).store(times.0, Ordering::Relaxed);
        region.word(head + CAS).store(cas.0, Ordering::Relaxed);
        step("set: private");
        // Release: the item's bytes are complete; pairs with the Acquire in `item_state`.
        region.word(head).store(state.0, Ordering::Release);
        step("set: whole");
    }

    /// Tells the pieces of a draft whose they are. The head does not count before it is linked.
    fn own_pieces(&self, draft: &Draft) {
        let is_protected = draft.first != 0 && self.shared().is_protected(draft.head);
        let mut piece = draft.first;
        while piece != 0 {
            // Release: who finds the piece finds a whole item; pairs with `owner`.
            let owner = self.shared().region.word(piece + PIECE_OWNER);
            owner.store(self.shared().owner_word(draft.head), Ordering::Release);
            if is_protected {
                self.shared().note_piece(piece, true);
            }
            piece = self.piece(piece).next();
            step("set: owned in part");
        }
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
