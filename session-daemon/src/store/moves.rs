//! Moves of slots: the split of a bucket, and the emptying of overflow lines. It owns the copying
//! of slots while others change them; what a slot may hold is `buckets`'s.
//!
//! One thread at a time does this, and nobody waits for it: one that is stopped anywhere leaves
//! buckets with which all others go on.
#![forbid(unsafe_code)]

use crate::store::buckets::Buckets;
use crate::store::failpoint::step;
use crate::store::sync::Ordering;
use crate::store::words::{
    COPYING, DEPTH_SHIFT, LINE_LEN, NEW_SHIFT, PENDING, SLOTS, changed, depth, has_tag, header_of,
    is_pending, link, place_of, slot_item, slots_of,
};

/// Attempts at a split, and slots that are moved out of overflow lines after one.
const ROUNDS_MAX: u32 = 16;

/// What became of an attempt to split a bucket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// Done; these overflow lines are unlinked and wait to be retired.
    Done(Vec<u64>),
    /// Others have changed the bucket at each attempt.
    Busy,
    /// So many overflow lines must be at hand.
    NeedsLines(usize),
}

/// What moves slots.
pub(super) trait Moves: Buckets {
    /// Moves what belongs there from bucket `number` into the one that splits off, at `new`, of
    /// which nobody knows. One thread at a time. `lines` are overflow lines at hand.
    fn split_bucket(&self, number: u64, new: u64, lines: &mut Vec<u64>) -> Moved {
        let old = self.bucket(number);
        for _ in 0..ROUNDS_MAX {
            let Some(header) = self.begin_copy(old) else { continue };
            let bit = 1 << depth(header);
            let movers = self.movers(old, header, bit);
            let needed = movers.len().saturating_sub(SLOTS as usize).div_ceil(SLOTS as usize);
            if needed > lines.len() {
                return Moved::NeedsLines(needed);
            }
            let spare = lines.split_off(lines.len() - needed);
            self.fill_bucket(new, depth(header) + 1, &movers, &spare);
            step("split: new bucket filled");
            if !self.advance(old, header, changed(header) + (1 << DEPTH_SHIFT)) {
                lines.extend(spare);
                continue;
            }
            step("split: decided");
            for slot in self.lines(old, header).flat_map(slots_of) {
                self.expel(old, slot, bit);
            }
            step("split: old slots emptied");
            return Moved::Done(self.compact(old));
        }
        Moved::Busy
    }

    /// Makes a header say that slots are copied, and returns it; `None` if it has just changed.
    fn begin_copy(&self, bucket: u64) -> Option<u64> {
        let header = self.settle(bucket);
        let copying = header | COPYING;
        (header == copying || self.advance(bucket, header, copying)).then_some(copying)
    }

    /// Words of slots that belong into the bucket that splits off.
    fn movers(&self, old: u64, header: u64, bit: u64) -> Vec<u64> {
        // SeqCst (hence Acquire, as in `lookup`): see `finish`.
        let load = |slot| self.word(slot).load(Ordering::SeqCst);
        let slots = self.lines(old, header).flat_map(slots_of);
        let words: Vec<u64> =
            slots.map(load).filter(|word| *word != 0 && !is_pending(*word)).collect();
        words.iter().for_each(|word| self.bring_near(slot_item(*word)));
        words.into_iter().filter(|word| self.hash_of(slot_item(*word)) & bit != 0).collect()
    }

    /// Fills a bucket of which nobody knows.
    fn fill_bucket(&self, bucket: u64, depth: u64, words: &[u64], lines: &[u64]) {
        let (own, rest) = words.split_at(words.len().min(SLOTS as usize));
        let mut next = 0;
        for (part, line) in rest.chunks(SLOTS as usize).zip(lines) {
            self.fill_line(*line, part, next);
            next = *line;
        }
        for (idx, slot) in slots_of(bucket).enumerate() {
            // Relaxed: published by the old bucket's header.
            self.word(slot).store(own.get(idx).copied().unwrap_or(0), Ordering::Relaxed);
        }
        // Relaxed: as above.
        self.word(bucket).store(header_of(depth) | (next / LINE_LEN), Ordering::Relaxed);
    }

    /// Moves slots from the first overflow line into free slots of the bucket while that empties
    /// the line. Returns the lines that were unlinked. One thread at a time.
    fn compact(&self, bucket: u64) -> Vec<u64> {
        let mut unlinked = Vec::new();
        for _ in 0..ROUNDS_MAX {
            if !self.line_fits(bucket) {
                break;
            }
            unlinked.extend(self.compact_line(bucket));
        }
        unlinked
    }

    /// Whether the bucket has an overflow line, and room for all that is in the first one.
    fn line_fits(&self, bucket: u64) -> bool {
        let line = link(self.settle(bucket));
        // Acquire: as in `lookup`.
        let load = |slot: &u64| self.word(*slot).load(Ordering::Acquire);
        let taken = || slots_of(line).filter(|slot| load(slot) != 0).count();
        line != 0 && taken() <= slots_of(bucket).filter(|slot| load(slot) == 0).count()
    }

    /// Moves slots from the first overflow line into the bucket, which has room for them. Returns
    /// the line if it is unlinked. One thread at a time.
    fn compact_line(&self, bucket: u64) -> Option<u64> {
        let line = link(self.settle(bucket));
        if line == 0 {
            return None;
        }
        // Acquire: as in `lookup`.
        let mut taken = slots_of(line).filter(|slot| self.word(*slot).load(Ordering::Acquire) != 0);
        let moved = taken.all(|slot| self.move_slot(bucket, slot));
        moved.then(|| self.unlink_empty(bucket)).flatten()
    }

    /// Moves a slot of an overflow line into the bucket itself; false if that did not come about.
    fn move_slot(&self, bucket: u64, from: u64) -> bool {
        let Some(header) = self.begin_copy(bucket) else { return false };
        // SeqCst (hence Acquire, as in `lookup`): see `finish`.
        let load = |slot: u64| self.word(slot).load(Ordering::SeqCst);
        let word = load(from);
        if word == 0 {
            return true;
        }
        let Some(to) = slots_of(bucket).find(|slot| load(*slot) == 0) else { return false };
        // Release: as in `insert`.
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        if is_pending(word)
            || self.word(to).compare_exchange(0, word | PENDING, success, failure).is_err()
        {
            return false;
        }
        step("compaction: copied");
        let named = changed(header) | place_of(bucket, header, to) << NEW_SHIFT;
        if !self.advance(bucket, header, named) {
            // Release: as in `insert`.
            self.word(to).store(0, Ordering::Release);
            return false;
        }
        step("compaction: decided");
        self.settle(bucket);
        self.drop_original(bucket, from, to)
    }

    /// Empties a slot that was copied to another of the same bucket; false if it has something
    /// else by now.
    fn drop_original(&self, bucket: u64, from: u64, to: u64) -> bool {
        // Acquire: as in `lookup`.
        let load = |slot: u64| self.word(slot).load(Ordering::Acquire);
        let ended = |word: u64| self.times(slot_item(word)).successor().is_some();
        loop {
            let original = load(from);
            if original == 0 || is_pending(original) {
                return original == 0;
            }
            // Where both slots follow the same items, correcting both makes them alike.
            let hash = self.hash_of(slot_item(original));
            self.heal(bucket, to, hash);
            self.heal(bucket, from, hash);
            let copy = load(to);
            let is_of_key = has_tag(copy, hash) && !is_pending(copy);
            if copy == original {
                self.correct(bucket, from, original, 0);
            } else if load(from) == original && !ended(original) && !(is_of_key && ended(copy)) {
                return false;
            }
        }
    }
}

impl<T: Buckets> Moves for T {}
