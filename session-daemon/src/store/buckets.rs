//! Buckets: which item a key has, for readers and writers none of whom waits for another.
//! It owns the words of buckets and the moment at which an item becomes what its key has and
//! ceases to be it. It asks a trait for memory and keys, so that the model checker runs this code.
//!
//! words.rs draws buckets, headers and slots.
//! docs/store.md has the states of slots and items, and argues why this is right.
#![forbid(unsafe_code)]

use crate::store::failpoint::step;
use crate::store::item::{GONE, LINKED, State, TIMES, Times};
use crate::store::sync::{AtomicU64, Ordering, after_seq_cst};
use crate::store::words::{
    LINE_LEN, LINK_MASK, NEW_SHIFT, PENDING, changed, depth, has_tag, is_copying, is_pending,
    is_unchanged, link, new_place, place_of, place_offset, redirect, settled, slot_item,
    slot_of_other, slot_word, slots_of,
};

/// A bucket, and its header when no insertion was unfinished.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    number: u64,
    pub(super) bucket: u64,
    pub(super) header: u64,
}

/// What a writer found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) spot: Spot,
    /// The item that the key has.
    pub(super) item: Option<u64>,
    /// A free slot that an insertion can take.
    free: Option<u64>,
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// The key has the item.
    Done,
    /// It has, and the overflow line is the bucket's.
    DoneInLine,
    /// The bucket has changed: look again.
    Changed,
}

/// The memory that buckets and items are in, and what is done with them. All is done in a turn:
/// what was found in a slot is not reused before the turn ends.
pub(super) trait Buckets {
    /// The word at an offset.
    fn word(&self, offset: u64) -> &AtomicU64;
    /// Whether an item has this key.
    fn has_key(&self, item: u64, key: &[u8]) -> bool;
    /// The hash of an item's key.
    fn hash_of(&self, item: u64) -> u64;
    /// The bucket at which a search for a hash begins.
    fn home(&self, hash: u64) -> u64;
    /// Offset of a bucket that exists.
    fn bucket(&self, number: u64) -> u64;
    /// Whether the bucket from which this one split off may still have slots of its keys.
    fn is_splitting(&self, number: u64) -> bool;
    /// A number that tells items that end now from those that ended under a process that is gone.
    fn incarnation(&self) -> u16 {
        0
    }
    /// Whether overflow lines stay in their chains although they are empty.
    fn keeps_lines(&self) -> bool {
        false
    }

    /// Makes a chain of overflow lines shorter, if it can be, after a slot of its bucket was
    /// emptied. Returns the line that was unlinked.
    fn shorten(&self, bucket: u64) -> Option<u64> {
        self.unlink_empty(bucket)
    }

    /// The lines of a bucket, by its header.
    fn lines(&self, bucket: u64, header: u64) -> impl Iterator<Item = u64> {
        let mut line = bucket;
        std::iter::from_fn(move || {
            let this = line;
            // Acquire: pairs with the Release of the header that linked the line. The link of an
            // overflow line never changes while the line can be found.
            let next = |at: u64| link(self.word(at).load(Ordering::Acquire));
            line = match this {
                0 => return None,
                _ if this == bucket => link(header),
                _ => next(this),
            };
            Some(this)
        })
    }

    /// The slots of a line: their offsets and words.
    fn slots(&self, line: u64) -> impl Iterator<Item = (u64, &AtomicU64)> {
        slots_of(line).map(|slot| (slot, self.word(slot)))
    }

    /// The item that a key has, or had when this began. Writes nothing, unless the item was
    /// published this very moment.
    fn lookup(&self, hash: u64, key: &[u8]) -> Option<u64> {
        let mut number = self.home(hash);
        loop {
            let bucket = self.bucket(number);
            // Acquire: what was moved into the bucket is visible; pairs with `advance`.
            let header = self.word(bucket).load(Ordering::Acquire);
            if let Some(next) = redirect(header, number, hash) {
                number = next;
                continue;
            }
            let mut stable = true;
            for line in self.lines(bucket, header) {
                for (slot, word) in self.slots(line) {
                    // Acquire: the item's bytes are visible; pairs with the Release that stored it.
                    let word = word.load(Ordering::Acquire);
                    if !has_tag(word, hash) {
                        continue;
                    }
                    if is_pending(word) && !self.is_named(bucket, header, slot, &mut stable) {
                        continue;
                    }
                    let item = slot_item(word);
                    if self.has_key(item, key)
                        && let Some(item) = self.current(item)
                    {
                        return Some(item);
                    }
                }
            }
            // Relaxed is enough behind the Acquire loads of the slots: who saw a slot emptied by
            // a move sees the header that was stored before.
            let after = self.word(bucket).load(Ordering::Relaxed);
            if stable && is_unchanged(header, after) {
                return None;
            }
        }
    }

    /// Whether a slot that is pending counts: the header names it, before and after the slot was
    /// read. Clears `stable` if the header has changed.
    fn is_named(&self, bucket: u64, header: u64, slot: u64, stable: &mut bool) -> bool {
        // Acquire: as in `lookup`.
        let now = self.word(bucket).load(Ordering::Acquire);
        *stable &= now == header;
        now == header && new_place(now) != 0 && place_of(bucket, now, slot) == new_place(now)
    }

    /// The item that the key of `item` has by now, along the chain of successors; `None` when that
    /// ends. `item` was found in a slot in this turn.
    fn current(&self, mut item: u64) -> Option<u64> {
        loop {
            match self.times(item).successor() {
                None => {
                    self.link(item);
                    return Some(item);
                }
                Some(0) => return None,
                Some(next) => item = next,
            }
        }
    }

    /// The times word of an item.
    fn times(&self, item: u64) -> Times {
        // SeqCst (hence Acquire): the successor is whole; pairs with `supersede`. The order with
        // headers decides who corrects a slot that was copied meanwhile; see `finish`.
        Times(self.word(item + TIMES).load(Ordering::SeqCst))
    }

    /// Marks an item that was published as linked, unless it was already, or is gone again.
    fn link(&self, item: u64) {
        let word = self.word(item);
        // Acquire: as in `times`.
        let mut state = word.load(Ordering::Acquire);
        while state & (LINKED | GONE) == 0 {
            // Release: the item is whole; pairs with scans of pages that see the bit.
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            match word.compare_exchange_weak(state, state | LINKED, success, failure) {
                Ok(_) => return,
                Err(other) => state = other,
            }
        }
    }

    /// The bucket of a hash, with no insertion unfinished.
    fn open(&self, hash: u64) -> Spot {
        let mut number = self.home(hash);
        loop {
            let bucket = self.bucket(number);
            let header = self.settle(bucket);
            match redirect(header, number, hash) {
                Some(next) => number = next,
                None => return Spot { number, bucket, header },
            }
        }
    }

    /// Finishes an insertion that has been decided: its item is linked, its slot not pending.
    /// Returns the header, in which no place is named.
    fn settle(&self, bucket: u64) -> u64 {
        loop {
            // SeqCst: see `finish`. Acquire: as in `lookup`.
            let header = self.word(bucket).load(Ordering::SeqCst);
            let place = new_place(header);
            if place == 0 {
                return header;
            }
            let slot = self.word(place_offset(bucket, header, place));
            let word = slot.load(Ordering::Acquire);
            // Acquire: later than the slot. While the header names a place, what is pending there
            // is what it was named for.
            if self.word(bucket).load(Ordering::Acquire) != header {
                continue;
            }
            if is_pending(word) {
                self.link(slot_item(word));
                // Release: the bit of the item comes first, in memory that outlives the process.
                let _ = slot.compare_exchange(
                    word,
                    word & !PENDING,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                step("insert: slot settled");
            }
            self.advance(bucket, header, settled(header));
        }
    }

    /// Changes a header; false if it has changed before.
    fn advance(&self, bucket: u64, header: u64, new: u64) -> bool {
        // SeqCst (hence Release): what was written for the new header is visible with it; pairs
        // with the loads of headers. Its order with times words: see `finish`.
        let (success, failure) = (Ordering::SeqCst, Ordering::Relaxed);
        let done = self.word(bucket).compare_exchange(header, new, success, failure).is_ok();
        after_seq_cst();
        done
    }

    /// What a key has, for a writer. Corrects the slots of items of the key that have ended.
    #[inline]
    fn find(&self, hash: u64, key: &[u8]) -> Found {
        loop {
            let spot = self.open(hash);
            let (item, free) = self.search(spot, hash, key);
            if item.is_some() {
                return Found { spot, item, free };
            }
            // Relaxed: as in `lookup`.
            let after = self.word(spot.bucket).load(Ordering::Relaxed);
            if is_unchanged(spot.header, after) {
                return Found { spot, item, free };
            }
        }
    }

    /// The item of a key in a bucket, and a free slot.
    fn search(&self, spot: Spot, hash: u64, key: &[u8]) -> (Option<u64>, Option<u64>) {
        let mut free = None;
        for slot in self.lines(spot.bucket, spot.header).flat_map(slots_of) {
            loop {
                // Acquire: as in `lookup`.
                let word = self.word(slot).load(Ordering::Acquire);
                if word == 0 && place_of(spot.bucket, spot.header, slot) != 0 {
                    free = free.or(Some(slot));
                }
                // What is pending was not decided when the bucket was opened.
                if !has_tag(word, hash) || is_pending(word) || !self.has_key(slot_item(word), key) {
                    break;
                }
                let item = slot_item(word);
                match self.times(item).successor() {
                    None => {
                        self.link(item);
                        return (Some(item), free);
                    }
                    Some(next) => self.correct(spot.bucket, slot, word, next),
                }
            }
        }
        (None, free)
    }

    /// Puts the successor of an item that has ended into its slot, or empties the slot.
    fn correct(&self, bucket: u64, slot: u64, word: u64, successor: u64) {
        let new = if successor == 0 {
            self.unname(bucket, slot);
            0
        } else {
            self.link(successor);
            slot_of_other(word, successor)
        };
        // SeqCst (hence Release): the successor is whole and linked; pairs with the Acquire loads
        // of slots, and with `copy`.
        let (success, failure) = (Ordering::SeqCst, Ordering::Relaxed);
        let _ = self.word(slot).compare_exchange(word, new, success, failure);
    }

    /// Sees to it that the header does not name a slot whose word is not pending: what is pending
    /// there next must not count.
    fn unname(&self, bucket: u64, slot: u64) {
        loop {
            // Acquire: later than the slot's word, which was not pending. So it is not named
            // again before the slot is emptied.
            let header = self.word(bucket).load(Ordering::Acquire);
            let is_named =
                new_place(header) != 0 && place_of(bucket, header, slot) == new_place(header);
            if !is_named || self.advance(bucket, header, settled(header)) {
                return;
            }
        }
    }

    /// Makes an item what its key has, if the bucket is as it was when nothing was found there.
    /// `line` is an overflow line at hand, of which nobody knows.
    fn insert(&self, found: &Found, hash: u64, item: u64, line: u64) -> Inserted {
        let Spot { bucket, header, .. } = found.spot;
        let word = slot_word(hash, item);
        let Some(slot) = found.free else {
            self.fill_line(line, &[word], link(header));
            let linked = changed(header) & !LINK_MASK | (line / LINE_LEN);
            if !self.advance(bucket, header, linked) {
                return Inserted::Changed;
            }
            step("insert: decided");
            self.link(item);
            return Inserted::DoneInLine;
        };
        // Release: the item is whole; pairs with the Acquire loads of slots.
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        if self.word(slot).compare_exchange(0, word | PENDING, success, failure).is_err() {
            return Inserted::Changed;
        }
        step("insert: pending");
        let named = changed(header) | place_of(bucket, header, slot) << NEW_SHIFT;
        if !self.advance(bucket, header, named) {
            // What is pending and not named is its owner's alone. Release: nothing was written.
            self.word(slot).store(0, Ordering::Release);
            return Inserted::Changed;
        }
        step("insert: decided");
        self.settle(bucket);
        Inserted::Done
    }

    /// Writes an overflow line that nobody knows.
    fn fill_line(&self, line: u64, slots: &[u64], next: u64) {
        // Relaxed: published by the header that links the line.
        self.word(line).store(next / LINE_LEN, Ordering::Relaxed);
        for (idx, slot) in slots_of(line).enumerate() {
            self.word(slot).store(slots.get(idx).copied().unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// Ends an item for a successor, or for none (0), if its times are as they were seen. False if
    /// they are not. The caller then has to [`Buckets::finish`] it.
    fn supersede(&self, item: u64, seen: Times, successor: u64) -> bool {
        debug_assert!(seen.successor().is_none(), "an item ends once");
        // SeqCst (hence Release): the successor is whole; pairs with `times`.
        let (success, failure) = (Ordering::SeqCst, Ordering::Relaxed);
        let new = Times::ended(successor).in_incarnation(self.incarnation()).0;
        let word = self.word(item + TIMES);
        let done = word.compare_exchange(seen.0, new, success, failure).is_ok();
        after_seq_cst();
        done
    }

    /// Takes an item that the caller has ended out of the index, and marks it gone. Returns its
    /// last state, and the overflow line that it left empty, unlinked, to be retired.
    fn finish(&self, hash: u64, item: u64, successor: u64) -> (State, Option<u64>) {
        if successor != 0 {
            self.link(successor);
            step("end: successor linked");
        }
        let left = self.correct_all(hash).filter(|_| !self.keeps_lines());
        // AcqRel: after the slot in memory that outlives the process; and before the chunk is
        // retired, which scans of pages that see LINKED rely on.
        let last = State(self.word(item).fetch_xor(LINKED | GONE, Ordering::AcqRel));
        debug_assert!(last.is_linked(), "an item is linked before it ends");
        step("end: gone");
        (last, left.and_then(|bucket| self.shorten(bucket)))
    }

    /// Takes items that have ended out of the index, as far as they have this hash. Returns the
    /// bucket if one of them has left it and it has an overflow line.
    ///
    /// No slot leads to the item then, nor to one that it succeeded: all that have ended are
    /// corrected. Of slots that are copied meanwhile either the copy is made after the correction,
    /// or this sees COPYING and spoils the copy, or it sees the header that made the copy count,
    /// and looks again: this changes slots, then loads the header; `copy` changes the header,
    /// then loads slots; all four are SeqCst.
    #[inline(always)]
    fn correct_all(&self, hash: u64) -> Option<u64> {
        let mut left = None;
        loop {
            let spot = self.open(hash);
            let Spot { bucket, header, .. } = spot;
            for slot in self.lines(bucket, header).flat_map(slots_of) {
                let emptied = self.heal(bucket, slot, hash);
                left = left.or((emptied && link(header) != 0).then_some(bucket));
            }
            if self.is_splitting(spot.number) {
                self.expel_from_parent(spot, hash);
            }
            step("end: out of the slot");
            after_seq_cst();
            // SeqCst: see above.
            let after = self.word(bucket).load(Ordering::SeqCst);
            let spoilt = || !is_copying(after) || self.advance(bucket, after, changed(after));
            if is_unchanged(header, after) && spoilt() {
                return left;
            }
        }
    }

    /// Brings a slot that may be of a key to what its key has by now; true if that emptied it.
    fn heal(&self, bucket: u64, slot: u64, hash: u64) -> bool {
        loop {
            // SeqCst (hence Acquire, as in `lookup`): see `finish`.
            let word = self.word(slot).load(Ordering::SeqCst);
            if !has_tag(word, hash) || is_pending(word) {
                return false;
            }
            let Some(next) = self.times(slot_item(word)).successor() else { return false };
            self.correct(bucket, slot, word, next);
            if next == 0 {
                return true;
            }
        }
    }

    /// Empties slots that may be of a key in the bucket that its bucket has just split off from.
    fn expel_from_parent(&self, spot: Spot, hash: u64) {
        let bit = 1 << (depth(spot.header) - 1);
        let parent = self.bucket(spot.number & !bit);
        let header = self.settle(parent);
        for slot in self.lines(parent, header).flat_map(slots_of) {
            // Acquire: as in `lookup`.
            if has_tag(self.word(slot).load(Ordering::Acquire), hash) {
                self.expel(parent, slot, bit);
            }
        }
    }

    /// Takes the first overflow line out of the chain if it is empty.
    fn unlink_empty(&self, bucket: u64) -> Option<u64> {
        let header = self.settle(bucket);
        let line = link(header);
        // Acquire: as in `lookup`. What is inserted after this changes the header.
        let is_empty = |slot| self.word(slot).load(Ordering::Acquire) == 0;
        if line == 0 || !slots_of(line).all(is_empty) {
            return None;
        }
        // Acquire: as in `lines`. The line keeps its link for lookups in it.
        let next = self.word(line).load(Ordering::Acquire);
        let new = changed(header) & !LINK_MASK | next;
        if !self.advance(bucket, header, new) {
            return None;
        }
        step("line: unlinked");
        Some(line)
    }

    /// Gives the bucket of a hash a new version, as after a move that it does not show.
    fn touch_version(&self, hash: u64) {
        loop {
            let Spot { bucket, header, .. } = self.open(hash);
            if self.advance(bucket, header, changed(header)) {
                return;
            }
        }
    }

    /// A hint that an item will be looked at.
    fn bring_near(&self, _item: u64) {}

    /// Empties a slot of a bucket that was split, if its item belongs into the other one.
    fn expel(&self, bucket: u64, slot: u64, bit: u64) {
        loop {
            // Acquire: as in `lookup`.
            let word = self.word(slot).load(Ordering::Acquire);
            if word == 0 || is_pending(word) || self.hash_of(slot_item(word)) & bit == 0 {
                return;
            }
            // Somebody may put a successor in its place: that goes too.
            self.correct(bucket, slot, word, 0);
        }
    }
}
