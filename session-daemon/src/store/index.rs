//! The index of a store: its buckets' pages, their number and its growth.
//! It owns the directory; what happens in a bucket is `buckets`'s.
#![forbid(unsafe_code)]

use crate::store::Store;
use crate::store::buckets::Buckets;
use crate::store::failpoint::step;
use crate::store::moves::{Moved, Moves};
use crate::store::sync::{AtomicU64, Ordering, try_lock_word};
use crate::store::words::{
    LINE_LEN, SLOTS, depth, header_of, is_pending, is_unchanged, link, new_place, slot_item,
    slot_word, slots_of, tag,
};
use std::ops::Range;

/// Items for each bucket on average; few where a scheduler has to see buckets split soon.
pub(super) const ITEMS_PER_BUCKET: u64 = if cfg!(session_schedule) { 1 } else { 8 };

/// What became of an attempt to add a bucket.
#[derive(Debug)]
pub(super) enum Split {
    /// Done; these overflow lines are unlinked and wait to be retired.
    Done(Vec<u64>),
    /// Another worker splits, or others change the bucket all the time.
    Busy,
    /// A page of buckets must be added first.
    NeedsPage,
    /// So many overflow lines must be at hand.
    NeedsLines(usize),
}

impl Buckets for Store {
    fn word(&self, offset: u64) -> &AtomicU64 {
        self.region.word(offset)
    }

    fn has_key(&self, item: u64, key: &[u8]) -> bool {
        self.item_has_key(item, key)
    }

    fn hash_of(&self, item: u64) -> u64 {
        self.item_hash(item)
    }

    fn home(&self, hash: u64) -> u64 {
        let buckets = self.bucket_count();
        let level = buckets.ilog2();
        let low = hash & ((1 << level) - 1);
        let high = hash & ((2 << level) - 1);
        if high < buckets { high } else { low }
    }

    fn bucket(&self, number: u64) -> u64 {
        let shift = self.layout.page_shift - LINE_LEN.trailing_zeros();
        // Acquire: the page's buckets are zero; pairs with the Release in `index_add_page`.
        let entry = self.region.half(self.layout.directory(number >> shift));
        let page = entry.load(Ordering::Acquire) - 1;
        self.layout.page(page) + (number & ((1 << shift) - 1)) * LINE_LEN
    }

    fn is_splitting(&self, number: u64) -> bool {
        number >= self.bucket_count()
    }

    fn slots(&self, line: u64) -> impl Iterator<Item = (u64, &AtomicU64)> {
        slots_of(line).zip(&self.region.line_words(line)[1..])
    }

    fn incarnation(&self) -> u16 {
        self.incarnation
    }

    fn keeps_lines(&self) -> bool {
        self.is_checking()
    }

    fn shorten(&self, bucket: u64) -> Option<u64> {
        if !self.line_fits(bucket) {
            return None;
        }
        match try_lock_word(&self.superblock().split_lock) {
            Some(_guard) => {
                // Release: a start after a crash looks there for slots that were moved in part.
                self.superblock().compacted.store(bucket, Ordering::Release);
                self.compact_line(bucket)
            }
            // Slots are moved by one thread at a time: by another one now.
            None => self.unlink_empty(bucket),
        }
    }

    fn bring_near(&self, item: u64) {
        self.region.prefetch(item);
    }
}

impl Store {
    /// Number of buckets; may be old, which costs a lookup a redirection.
    pub(super) fn bucket_count(&self) -> u64 {
        // Acquire: the buckets below are complete; pairs with the Release in `split`.
        self.superblock().buckets.load(Ordering::Acquire)
    }

    /// Brings the bucket of `hash` near; where it is.
    pub(super) fn prefetch_bucket(&self, hash: u64) -> u64 {
        let offset = self.bucket(self.home(hash));
        self.region.prefetch(offset);
        offset
    }

    /// Brings the first overflow line near of the bucket of `hash`, which is near.
    pub(super) fn prefetch_line(&self, hash: u64) {
        // Relaxed: a hint.
        let line = link(self.word(self.bucket(self.home(hash))).load(Ordering::Relaxed));
        if line != 0 {
            self.region.prefetch(line);
        }
    }

    /// The items of the bucket that has `hash`, and its depth.
    pub(super) fn bucket_items(&self, hash: u64) -> (Vec<u64>, u32) {
        loop {
            let spot = self.open(hash);
            let words = self.slot_words(spot.bucket, spot.header);
            let words = words.into_iter().filter(|word| !is_pending(*word));
            let items = words.filter_map(|word| self.current(slot_item(word))).collect();
            // Acquire: behind the loads of the slots, as in `lookup`.
            let after = self.region.word(spot.bucket).load(Ordering::Acquire);
            if is_unchanged(spot.header, after) {
                return (items, depth(spot.header) as u32);
            }
        }
    }

    fn slot_words(&self, bucket: u64, header: u64) -> Vec<u64> {
        let slots = self.lines(bucket, header).flat_map(slots_of);
        // Acquire: as in `lookup`.
        let words = slots.map(|slot| self.region.word(slot).load(Ordering::Acquire));
        words.filter(|word| *word != 0).collect()
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

    pub(super) fn buckets_per_page(&self) -> u64 {
        self.layout.page_len() as u64 / LINE_LEN
    }

    /// Empties the buckets of some pages of the directory.
    fn empty_buckets(&self, pages: Range<usize>, buckets: u64) {
        let (level, per_page) = (buckets.ilog2(), self.buckets_per_page());
        for number in pages.start as u64 * per_page..pages.end as u64 * per_page {
            let is_split = number < buckets - (1 << level) || number >= 1 << level;
            let offset = self.bucket(number);
            // Relaxed throughout: as in `index_format`.
            let header = header_of(u64::from(level) + u64::from(is_split));
            self.region.word(offset).store(header, Ordering::Relaxed);
            for idx in 1..=SLOTS {
                self.region.word(offset + idx * 8).store(0, Ordering::Relaxed);
            }
        }
    }

    /// Makes a zeroed page the next page of buckets. False when another one has become that, or
    /// another worker splits.
    pub(super) fn index_add_page(&self, page: u32) -> bool {
        let Some(_guard) = try_lock_word(&self.superblock().split_lock) else { return false };
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
        match self.split_bucket(buckets - (1 << level), self.bucket(buckets), lines) {
            Moved::Done(emptied) => {
                step("split: compacted");
                // Release: the new bucket is complete; pairs with `bucket_count`.
                superblock.buckets.store(buckets + 1, Ordering::Release);
                Split::Done(emptied)
            }
            Moved::Busy => Split::Busy,
            Moved::NeedsLines(needed) => Split::NeedsLines(needed),
        }
    }

    /// Calls `visit` with each bucket. Nobody may change the index meanwhile.
    pub(super) fn for_each_bucket(&self, mut visit: impl FnMut(BucketView<'_>)) {
        for number in 0..self.bucket_count() {
            let offset = self.bucket(number);
            let header = self.region.word(offset).load(Ordering::Acquire);
            let lines: Vec<u64> = self.lines(offset, header).collect();
            let words = self.slot_words(offset, header);
            let unfinished = new_place(header) != 0 || words.iter().any(|word| is_pending(*word));
            visit(BucketView {
                number,
                depth: depth(header),
                unfinished,
                overflow: &lines[1..],
                slots: words.into_iter().map(|word| (slot_item(word), tag(word))).collect(),
            });
        }
    }
}

/// A bucket as the check of the whole store sees it.
pub(super) struct BucketView<'a> {
    pub(super) number: u64,
    pub(super) depth: u64,
    /// Whether an insertion is under way.
    pub(super) unfinished: bool,
    /// Offsets of the overflow lines.
    pub(super) overflow: &'a [u64],
    /// Offsets of the items, and tags.
    pub(super) slots: Vec<(u64, u64)>,
}

impl BucketView<'_> {
    /// Whether an item of this hash and tag belongs here.
    pub(super) fn owns(&self, hash: u64, word_tag: u64) -> bool {
        hash & ((1 << self.depth) - 1) == self.number && tag(slot_word(hash, 0)) == word_tag
    }
}
