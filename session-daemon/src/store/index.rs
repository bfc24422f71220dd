//! The index: which item a key has. It owns the buckets, their overflow lines and their growth.
//! It compares keys through the region, and never allocates.
//!
//! ```text
//! bucket  | header | slot | slot | slot | slot | slot | slot | slot |     64 bytes
//! line    | next   | slot | slot | slot | slot | slot | slot | slot |     64 bytes
//!
//! header   63      43   42    41   36 35              0
//!         | version  | LOCK | depth  | overflow line   |    line: offset / 64, 0 for none
//! slot     63   48 47    40 39                         0
//!         | tag    |   0   | offset of the item / 8     |    0: empty
//! ```
//! Bucket `i` of depth `d` holds the keys whose hash has `i` in its low `d` bits. docs/store.md
//! argues why a lookup, which takes no lock, never misses a key that is there all the time.
#![forbid(unsafe_code)]

use crate::store::Store;
use crate::store::failpoint::step;
use crate::store::sync::{AtomicU64, Ordering, backoff, lock_word, try_lock_word};
use std::ops::Range;

/// Slots of a bucket and of an overflow line.
pub(super) const SLOTS: u64 = 7;
/// Bytes of a bucket and of an overflow line.
pub(super) const LINE_LEN: u64 = 64;
/// Items for each bucket on average.
pub(super) const ITEMS_PER_BUCKET: u64 = 6;

const LINK_MASK: u64 = (1 << 36) - 1;
const DEPTH_SHIFT: u32 = 36;
const DEPTH_MASK: u64 = 0x3f;
const LOCK: u64 = 1 << 42;
const VERSION_SHIFT: u32 = 43;
/// What a lookup that found nothing must find unchanged: slots have moved otherwise.
const MOVED_MASK: u64 = !(LINK_MASK | LOCK);
const TAG_SHIFT: u32 = 48;
const OFFSET_MASK: u64 = (1 << 40) - 1;

pub(super) fn depth(header: u64) -> u64 {
    header >> DEPTH_SHIFT & DEPTH_MASK
}

/// A header or a line's link, whoever changes the bucket now.
pub(super) fn unlocked(header: u64) -> u64 {
    header & !LOCK
}

pub(super) fn link(header: u64) -> u64 {
    (header & LINK_MASK) * LINE_LEN
}

/// The bucket to look at instead of `bucket`, one split level on.
pub(super) fn redirect(header: u64, bucket: u64, hash: u64) -> Option<u64> {
    let strange = (hash ^ bucket) & ((1 << depth(header)) - 1);
    (strange != 0).then(|| bucket | strange & strange.wrapping_neg())
}

fn slot_word(hash: u64, item: u64) -> u64 {
    (hash >> TAG_SHIFT << TAG_SHIFT) | (item / 8)
}

pub(super) fn slot_item(slot: u64) -> u64 {
    (slot & OFFSET_MASK) * 8
}

/// Whether a slot may hold an item of this hash.
pub(super) fn has_tag(slot: u64, hash: u64) -> bool {
    slot != 0 && slot >> TAG_SHIFT == hash >> TAG_SHIFT
}

/// What became of an attempt to split a bucket.
#[derive(Debug)]
pub(super) enum Split {
    /// Done; these overflow lines are unlinked and wait to be retired.
    Done(Vec<u64>),
    /// Another worker splits.
    Busy,
    /// A page of buckets must be added first.
    NeedsPage,
    /// So many overflow lines must be at hand.
    NeedsLines(usize),
}

/// A bucket that this thread may change. Dropping it lets others do so.
#[derive(Debug)]
pub(super) struct LockedBucket<'s> {
    store: &'s Store,
    offset: u64,
    /// The header to be, without LOCK.
    header: u64,
}

impl Drop for LockedBucket<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `lock_bucket` and in `find_item`.
        self.word().store(self.header, Ordering::Release);
    }
}

impl LockedBucket<'_> {
    fn word(&self) -> &AtomicU64 {
        self.store.region.word(self.offset)
    }

    /// Makes the changed header visible and keeps the bucket.
    fn publish_move(&mut self) {
        self.header = self.header.wrapping_add(1 << VERSION_SHIFT);
        // Release: the copies of moved slots are visible before; pairs with the Acquire loads of
        // the header in `find_item`.
        self.word().store(self.header | LOCK, Ordering::Release);
    }

    /// Offsets of the bucket and its overflow lines.
    fn lines(&self) -> Lines<'_> {
        self.store.lines(self.offset, self.header)
    }

    /// Offsets of all slots.
    fn slots(&self) -> impl Iterator<Item = u64> + '_ {
        self.lines().flat_map(|line| (1..=SLOTS).map(move |idx| line + idx * 8))
    }

    fn load(&self, slot: u64) -> u64 {
        // Relaxed: slots change under the lock only, and this thread holds it.
        self.store.region.word(slot).load(Ordering::Relaxed)
    }

    /// The slot and the item of a key.
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<(u64, u64)> {
        self.slots().find_map(|slot| {
            let word = self.load(slot);
            let item = slot_item(word);
            (has_tag(word, hash) && self.store.item_has_key(item, key)).then_some((slot, item))
        })
    }

    /// The slot of an item that may be there.
    pub(super) fn find_item(&self, hash: u64, item: u64) -> Option<u64> {
        self.slots().find(|&slot| self.load(slot) == slot_word(hash, item))
    }

    /// Puts a copy of an item into its slot. The version changes, so that a reader outside the
    /// reclamation scheme cannot take the place for what stood there before it moved twice.
    pub(super) fn replace_moved(&mut self, slot: u64, hash: u64, item: u64) {
        self.replace(slot, hash, item);
        self.header = self.header.wrapping_add(1 << VERSION_SHIFT);
    }

    /// Puts an item into a slot in place of another one of the same key.
    pub(super) fn replace(&mut self, slot: u64, hash: u64, item: u64) {
        // Release: the item's bytes are visible before; pairs with the Acquire in `find_item`.
        self.store.region.word(slot).store(slot_word(hash, item), Ordering::Release);
    }

    /// Puts an item of a new key into a slot; takes `line` if all are full. True if it did.
    pub(super) fn insert(&mut self, hash: u64, item: u64, line: u64) -> bool {
        let free = self.slots().find(|&slot| self.load(slot) == 0);
        if let Some(slot) = free {
            self.replace(slot, hash, item);
            return false;
        }
        self.fill_line(line, &[slot_word(hash, item)], link(self.header));
        self.header = self.header & !LINK_MASK | (line / LINE_LEN);
        true
    }

    /// Whether every slot is taken.
    pub(super) fn is_full(&self) -> bool {
        self.slots().all(|slot| self.load(slot) != 0)
    }

    /// Writes an overflow line that no lookup sees yet.
    fn fill_line(&self, line: u64, slots: &[u64], next: u64) {
        // Relaxed: published by the header that links the line.
        self.store.region.word(line).store(next / LINE_LEN, Ordering::Relaxed);
        for idx in 0..SLOTS {
            let word = slots.get(idx as usize).copied().unwrap_or(0);
            self.store.region.word(line + 8 + idx * 8).store(word, Ordering::Relaxed);
        }
    }

    /// Empties a slot. Returns the overflow line that it left empty, unlinked, to be retired.
    pub(super) fn remove(&mut self, slot: u64) -> Option<u64> {
        // Release: pairs with the Acquire in `find_item`; a lookup that sees the slot empty sees
        // a move that came before.
        self.store.region.word(slot).store(0, Ordering::Release);
        let line = slot / LINE_LEN * LINE_LEN;
        (line != self.offset && self.is_empty(line)).then(|| self.unlink(line))
    }

    fn is_empty(&self, line: u64) -> bool {
        (1..=SLOTS).all(|idx| self.load(line + idx * 8) == 0)
    }

    /// Takes an empty overflow line out of the chain. It keeps its own link for lookups in it.
    fn unlink(&mut self, line: u64) -> u64 {
        let next = self.load(line);
        let before = self.lines().find(|&at| at != self.offset && link(self.load(at)) == line);
        match before {
            // Release: pairs with the Acquire of links in `find_item`.
            Some(at) => self.store.region.word(at).store(next, Ordering::Release),
            None => self.header = self.header & !LINK_MASK | next,
        }
        step("line: unlinked");
        line
    }
}

/// The lines of a chain; each link is read when it is followed.
struct Lines<'s> {
    store: &'s Store,
    bucket: u64,
    /// First overflow line, by the bucket's header; 0 for none.
    overflow: u64,
    /// The line returned last; 0 before the first.
    last: u64,
}

impl Iterator for Lines<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let next = match self.last {
            0 => self.bucket,
            last if last == self.bucket => self.overflow,
            // Acquire: pairs with the Release that linked the next line.
            last => link(self.store.region.word(last).load(Ordering::Acquire)),
        };
        if next == 0 {
            return None;
        }
        self.last = next;
        Some(next)
    }
}

impl Store {
    /// Offset of a bucket that exists.
    fn bucket(&self, bucket: u64) -> u64 {
        let shift = self.layout.page_shift - LINE_LEN.trailing_zeros();
        // Acquire: the page's buckets are zero; pairs with the Release in `index_add_page`.
        let entry = self.region.half(self.layout.directory(bucket >> shift));
        let page = entry.load(Ordering::Acquire) - 1;
        self.layout.page(page) + (bucket & ((1 << shift) - 1)) * LINE_LEN
    }

    fn lines(&self, bucket: u64, header: u64) -> Lines<'_> {
        Lines { store: self, bucket, overflow: link(header), last: 0 }
    }

    /// Number of buckets; may be old, which costs a lookup a redirection.
    pub(super) fn bucket_count(&self) -> u64 {
        // Acquire: the buckets below are complete; pairs with the Release in `split`.
        self.superblock().buckets.load(Ordering::Acquire)
    }

    fn home(&self, hash: u64) -> u64 {
        let buckets = self.bucket_count();
        let level = buckets.ilog2();
        let low = hash & ((1 << level) - 1);
        let high = hash & ((2 << level) - 1);
        if high < buckets { high } else { low }
    }

    /// Brings the bucket of `hash` near.
    pub(super) fn prefetch_bucket(&self, hash: u64) {
        self.region.prefetch(self.bucket(self.home(hash)));
    }

    /// Brings the items that `hash` may have near.
    pub(super) fn prefetch_item(&self, hash: u64) {
        let offset = self.bucket(self.home(hash));
        for idx in 1..=SLOTS {
            // Relaxed: a hint.
            let slot = self.region.word(offset + idx * 8).load(Ordering::Relaxed);
            if has_tag(slot, hash) {
                self.region.prefetch(slot_item(slot));
            }
        }
    }

    /// The item of a key. Takes no lock and writes nothing. The caller is in a turn.
    pub(super) fn find_item(&self, hash: u64, key: &[u8]) -> Option<u64> {
        let mut bucket = self.home(hash);
        loop {
            let offset = self.bucket(bucket);
            // Acquire: what a split copied is visible; pairs with `publish_move` and `drop`.
            let header = self.region.word(offset).load(Ordering::Acquire);
            if let Some(next) = redirect(header, bucket, hash) {
                bucket = next;
                continue;
            }
            for line in self.lines(offset, header) {
                if let Some(item) = self.find_in_line(line, hash, key) {
                    return Some(item);
                }
            }
            // Relaxed is enough after the Acquire loads of the slots: who saw a slot emptied by a
            // move sees the header that was stored before.
            let after = self.region.word(offset).load(Ordering::Relaxed);
            if (header ^ after) & MOVED_MASK == 0 {
                return None;
            }
        }
    }

    fn find_in_line(&self, line: u64, hash: u64, key: &[u8]) -> Option<u64> {
        (1..=SLOTS).find_map(|idx| {
            // Acquire: the item's bytes are visible; pairs with the Release in `replace`.
            let slot = self.region.word(line + idx * 8).load(Ordering::Acquire);
            let item = slot_item(slot);
            (has_tag(slot, hash) && self.item_has_key(item, key)).then_some(item)
        })
    }

    /// Takes the bucket of `hash` for changes; waits for another who has it.
    pub(super) fn lock_bucket(&self, hash: u64) -> LockedBucket<'_> {
        let mut bucket = self.home(hash);
        let mut step = 0;
        loop {
            let offset = self.bucket(bucket);
            let word = self.region.word(offset);
            let header = word.load(Ordering::Acquire);
            if let Some(next) = redirect(header, bucket, hash) {
                bucket = next;
                continue;
            }
            // Acquire: pairs with the Release in `drop`. The depth is part of what is compared.
            if header & LOCK == 0
                && word
                    .compare_exchange_weak(
                        header,
                        header | LOCK,
                        Ordering::Acquire,
                        Ordering::Relaxed,
                    )
                    .is_ok()
            {
                return LockedBucket { store: self, offset, header };
            }
            backoff(&mut step);
        }
    }

    /// The items of the bucket that has `hash`, and its depth.
    pub(super) fn bucket_items(&self, hash: u64) -> (Vec<u64>, u32) {
        let bucket = self.lock_bucket(hash);
        let words = bucket.slots().map(|slot| bucket.load(slot)).filter(|word| *word != 0);
        (words.map(slot_item).collect(), depth(bucket.header) as u32)
    }

    /// Makes empty buckets of all of these pages. Nobody else has the store.
    pub(super) fn index_format(&self, pages: &[u32], threads: usize) {
        // Relaxed throughout: nobody else has the store.
        let relaxed = Ordering::Relaxed;
        for idx in 0..self.layout.pages {
            let entry = pages.get(idx as usize).map_or(0, |page| page + 1);
            self.region.half(self.layout.directory(u64::from(idx))).store(entry, relaxed);
        }
        let buckets = pages.len() as u64 * self.buckets_per_page();
        self.superblock().buckets.store(buckets, relaxed);
        let share = pages.len().div_ceil(threads);
        std::thread::scope(|scope| {
            for start in (0..pages.len()).step_by(share).skip(1) {
                let end = pages.len().min(start + share);
                scope.spawn(move || self.empty_buckets(start..end, buckets));
            }
            self.empty_buckets(0..share, buckets);
        });
    }

    fn buckets_per_page(&self) -> u64 {
        self.layout.page_len() as u64 / LINE_LEN
    }

    /// Empties the buckets of some pages of the directory.
    fn empty_buckets(&self, pages: Range<usize>, buckets: u64) {
        let (level, per_page) = (buckets.ilog2(), self.buckets_per_page());
        for number in pages.start as u64 * per_page..pages.end as u64 * per_page {
            let is_split = number < buckets - (1 << level) || number >= 1 << level;
            let offset = self.bucket(number);
            // Relaxed throughout: as in `index_format`.
            let header = (u64::from(level) + u64::from(is_split)) << DEPTH_SHIFT;
            self.region.word(offset).store(header, Ordering::Relaxed);
            for idx in 1..=SLOTS {
                self.region.word(offset + idx * 8).store(0, Ordering::Relaxed);
            }
        }
    }

    /// Makes a zeroed page the next page of buckets. False when another one has become that.
    pub(super) fn index_add_page(&self, page: u32) -> bool {
        let _guard = lock_word(&self.superblock().split_lock);
        let shift = self.layout.page_shift - LINE_LEN.trailing_zeros();
        let entry = self.region.half(self.layout.directory(self.bucket_count() >> shift));
        // Relaxed: written under the split lock only.
        if entry.load(Ordering::Relaxed) != 0 {
            return false;
        }
        // Release: the zeros are visible before; pairs with the Acquire in `bucket`.
        entry.store(page + 1, Ordering::Release);
        step("index: page added");
        true
    }

    /// Adds a bucket, and moves into it what belongs there from the bucket that it splits.
    /// `lines` are overflow lines at hand.
    pub(super) fn split(&self, lines: &mut Vec<u64>) -> Split {
        let superblock = self.superblock();
        let Some(_guard) = try_lock_word(&superblock.split_lock) else { return Split::Busy };
        let buckets = self.bucket_count();
        let level = buckets.ilog2();
        let shift = self.layout.page_shift - LINE_LEN.trailing_zeros();
        // Relaxed: written under the split lock only.
        let entry = self.region.half(self.layout.directory(buckets >> shift));
        if entry.load(Ordering::Relaxed) == 0 {
            return Split::NeedsPage;
        }
        let mut old = self.lock_bucket(buckets - (1 << level));
        let movers = self.movers(&old, level);
        let needed = movers.len().saturating_sub(SLOTS as usize).div_ceil(SLOTS as usize);
        if needed > lines.len() {
            return Split::NeedsLines(needed);
        }
        let new = self.fill_bucket(&old, self.bucket(buckets), &movers, level, lines);
        step("split: new bucket filled");
        old.header += 1 << DEPTH_SHIFT;
        old.publish_move();
        step("split: header moved");
        for (slot, _) in &movers {
            // Release: a lookup that sees the slot empty sees the move; pairs with `find_item`.
            self.region.word(*slot).store(0, Ordering::Release);
        }
        step("split: old slots emptied");
        let emptied = self.compact(&mut old);
        step("split: compacted");
        // Release: the new bucket is complete; pairs with the Acquire in `bucket_count`.
        superblock.buckets.store(buckets + 1, Ordering::Release);
        drop(new);
        drop(old);
        Split::Done(emptied)
    }

    /// Slots of `old`, and their words, that belong into the bucket that splits from it.
    fn movers(&self, old: &LockedBucket<'_>, level: u32) -> Vec<(u64, u64)> {
        let slots = old.slots().map(|slot| (slot, old.load(slot))).filter(|(_, word)| *word != 0);
        let all: Vec<(u64, u64)> = slots.collect();
        for (_, word) in &all {
            self.region.prefetch(slot_item(*word));
        }
        let moves = |word: u64| self.item_hash(slot_item(word)) >> level & 1 == 1;
        all.into_iter().filter(|(_, word)| moves(*word)).collect()
    }

    /// Fills the new bucket, which no lookup can see yet, and returns it locked.
    fn fill_bucket(
        &self,
        old: &LockedBucket<'_>,
        offset: u64,
        movers: &[(u64, u64)],
        level: u32,
        lines: &mut Vec<u64>,
    ) -> LockedBucket<'_> {
        let words: Vec<u64> = movers.iter().map(|(_, word)| *word).collect();
        let (own, rest) = words.split_at(words.len().min(SLOTS as usize));
        for (idx, word) in own.iter().enumerate() {
            // Relaxed: published by the old bucket's header.
            self.region.word(offset + 8 + idx as u64 * 8).store(*word, Ordering::Relaxed);
        }
        let mut next = 0;
        for part in rest.chunks(SLOTS as usize) {
            let line = lines.pop().expect("the caller has counted the lines");
            old.fill_line(line, part, next);
            next = line;
        }
        let header = (u64::from(level + 1) << DEPTH_SHIFT) | (next / LINE_LEN);
        // Relaxed: as above.
        self.region.word(offset).store(header | LOCK, Ordering::Relaxed);
        LockedBucket { store: self, offset, header }
    }

    /// Moves slots from overflow lines into free slots of the bucket itself, and unlinks lines
    /// that are empty then.
    fn compact(&self, old: &mut LockedBucket<'_>) -> Vec<u64> {
        if link(old.header) == 0 {
            return Vec::new();
        }
        let own: Vec<u64> = old.slots().take(SLOTS as usize).collect();
        let mut free = own.into_iter().filter(|slot| old.load(*slot) == 0).collect::<Vec<_>>();
        let overflow: Vec<u64> = old.slots().skip(SLOTS as usize).collect();
        let mut moved = Vec::new();
        for slot in overflow {
            let word = old.load(slot);
            if word == 0 {
                continue;
            }
            let Some(target) = free.pop() else { break };
            // Release: as in `replace`.
            self.region.word(target).store(word, Ordering::Release);
            moved.push(slot);
        }
        if !moved.is_empty() {
            step("compaction: copied");
            old.publish_move();
        }
        for slot in moved {
            // Release: as in `split`.
            self.region.word(slot).store(0, Ordering::Release);
        }
        let lines: Vec<u64> = old.lines().skip(1).filter(|line| old.is_empty(*line)).collect();
        lines.into_iter().map(|line| old.unlink(line)).collect()
    }

    /// Calls `visit` with each bucket's number and depth and its slots' items and tags. Nobody
    /// may change the index meanwhile.
    pub(super) fn for_each_bucket(&self, mut visit: impl FnMut(BucketView<'_>)) {
        for number in 0..self.bucket_count() {
            let offset = self.bucket(number);
            let header = self.region.word(offset).load(Ordering::Acquire);
            let lines: Vec<u64> = self.lines(offset, header).collect();
            let slots: Vec<(u64, u64)> = lines
                .iter()
                .flat_map(|line| (1..=SLOTS).map(move |idx| line + idx * 8))
                .map(|slot| self.region.word(slot).load(Ordering::Acquire))
                .filter(|word| *word != 0)
                .map(|word| (slot_item(word), word >> TAG_SHIFT))
                .collect();
            let locked = header & LOCK != 0;
            visit(BucketView {
                number,
                depth: depth(header),
                locked,
                overflow: &lines[1..],
                slots,
            });
        }
    }
}

/// A bucket as the check of the whole store sees it.
pub(super) struct BucketView<'a> {
    pub(super) number: u64,
    pub(super) depth: u64,
    pub(super) locked: bool,
    /// Offsets of the overflow lines.
    pub(super) overflow: &'a [u64],
    /// Offsets of the items, and tags.
    pub(super) slots: Vec<(u64, u64)>,
}

impl BucketView<'_> {
    /// Whether an item of this hash and tag belongs here.
    pub(super) fn owns(&self, hash: u64, tag: u64) -> bool {
        hash & ((1 << self.depth) - 1) == self.number && hash >> TAG_SHIFT == tag
    }
}
