//! The start that goes on with what a killed process left, without a look at its items.
//! It owns what has to be whole before the first command: the pages' uses, the lists of pages, the
//! pool, and the one bucket that may have been split when the process ended. What else is left
//! over, the check finds while the store serves.
//!
//! Nothing here depends on how far an earlier start of this kind came: it is simply done again.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Store;
use crate::store::backing::Identity;
use crate::store::buckets::Buckets;
use crate::store::check::{Adopted, Check};
use crate::store::chunks::Kind;
use crate::store::classes::LINE_CLASS;
use crate::store::counters::Count;
use crate::store::failpoint::step;
use crate::store::layout::{PageState, folded};
use crate::store::reader::stamp_at;
use crate::store::recover::Kept;
use crate::store::sync::Ordering;
use crate::store::words::{LINE_LEN, depth, is_pending, slot_item, slots_of};
use std::ops::Range;

/// Relaxed throughout this module: nobody else has the store, or a start alone asks for the word.
const RELAXED: Ordering = Ordering::Relaxed;

/// How long after a process has noted the time, at the end of a turn, it may have changed the file:
/// in the next turn, before it noted the time again. Who has changed it later was not the process,
/// and may have changed anything. After a longer turn the start looks at all items, for nothing.
const ALIVE_NS: u64 = 25_000_000;
/// So many starts may go on with what is there although none of the processes came to the end of
/// its check: perhaps what is there is what ended them.
const UNFINISHED_MAX: u64 = 3;
const UNFINISHED_SHIFT: u32 = 32;

impl Identity {
    /// The word of a region that may be gone on with in this file.
    fn trust(self) -> u64 {
        folded([self.inode].into_iter()) | 1
    }
}

impl Store {
    /// Says that what the region holds may be gone on with.
    pub(super) fn trust(&self, file: Identity) {
        // Release: after all that makes it so; pairs with the Acquire in `is_trusted`.
        self.superblock().trusted.store(file.trust(), Ordering::Release);
    }

    /// Whether what the region holds is what a process has stored that served from this file.
    pub(super) fn is_trusted(&self, file: Identity) -> bool {
        // Acquire: pairs with the Release in `trust`, though another process did that.
        self.superblock().trusted.load(Ordering::Acquire) == file.trust()
    }

    /// Says that it may not, until `trust`.
    pub(super) fn distrust(&self) {
        // SeqCst: before anything of it is changed.
        self.superblock().trusted.swap(0, Ordering::SeqCst);
    }

    /// Makes the store serve a region with `pages` pages in a file that was `file` before this
    /// start. `None` if somebody else has changed the file, or it has fewer pages now, or what it
    /// says does not fit together: then nothing may be gone on with before all was looked at.
    pub(super) fn adopt(&mut self, pages: u32, file: Identity, now: Now) -> Option<Kept> {
        let superblock = self.superblock();
        let alive_ns = superblock.alive_ns.load(RELAXED);
        let unfinished = superblock.incarnation.load(RELAXED) >> UNFINISHED_SHIFT;
        let is_ours = self.is_trusted(file) && file.changed_ns <= alive_ns.saturating_add(ALIVE_NS);
        let is_fit = is_ours && unfinished < UNFINISHED_MAX && self.layout.pages >= pages;
        if !is_fit || !self.is_index_whole() {
            return None;
        }
        let estimate: Vec<_> = (0..self.classes.count()).map(|class| self.noted(class)).collect();
        let incarnation = (superblock.incarnation.load(RELAXED) as u16).wrapping_add(1).max(1);
        let begun = (unfinished + 1) << UNFINISHED_SHIFT;
        superblock.incarnation.store(begun | u64::from(incarnation), RELAXED);
        self.incarnation = incarnation;
        step("adopt: begun");
        let mut adopted = self.adopt_pages(pages)?;
        step("adopt: pages");
        self.mend_moves();
        step("adopt: split mended");
        let (mut items, mut bytes) = (0, 0);
        for (class, counts) in (0..).zip(&estimate) {
            (items, bytes) = (items + counts.0, bytes + counts.1);
            self.workers[0].counters.add(class, Count::Linked, counts.0);
            self.workers[0].counters.add(class, Count::BytesLinked, counts.1);
        }
        adopted.estimate = estimate;
        let stamp = self.superblock().noted_stamp.load(RELAXED).max(stamp_at(now.boottime_ns));
        self.go_on(items, stamp, now);
        let lines_per_page = self.chunks_per_page(LINE_CLASS);
        self.check =
            Some(Check::new(adopted, self.layout.pages, self.bucket_count(), lines_per_page));
        step("adopt: done");
        Some(Kept { items, bytes, in_place: true, ..Kept::default() })
    }

    /// Notes that nothing is left of what a killed process held back.
    pub(super) fn note_incarnation(&self) {
        self.superblock().incarnation.store(u64::from(self.incarnation), RELAXED);
    }

    /// Whether the directory leads to pages of buckets, enough of them, and the number of buckets
    /// is that of their depths. Counts the last bucket, if the process ended before it did.
    fn is_index_whole(&self) -> bool {
        let buckets = self.superblock().buckets.load(RELAXED);
        let most = u64::from(self.layout.pages) * self.buckets_per_page();
        if !(1..most).contains(&buckets) {
            return false;
        }
        let needed = buckets.div_ceil(self.buckets_per_page());
        let is_there = |idx: u64| {
            let page = self.directory_page(idx);
            page.is_some_and(|page| self.page_state(page) == PageState::Index)
        };
        if !(0..needed).all(is_there) {
            return false;
        }
        let level = buckets.ilog2();
        let parent = self.bucket(buckets - (1 << level));
        match depth(self.word(parent).load(RELAXED)).checked_sub(u64::from(level)) {
            Some(0) => true,
            // Decided, and not counted: the new bucket is complete.
            Some(1) if is_there(buckets / self.buckets_per_page()) => {
                self.superblock().buckets.store(buckets + 1, RELAXED);
                true
            }
            _ => false,
        }
    }

    /// The page of an entry of the directory that may hold anything.
    fn directory_page(&self, idx: u64) -> Option<u32> {
        let entry = self.region.half(self.layout.directory(idx)).load(RELAXED);
        entry.checked_sub(1).filter(|page| *page < self.layout.pages)
    }

    /// Puts every page into the lists that it belongs to, and says what is to be checked.
    fn adopt_pages(&self, pages: u32) -> Option<Adopted> {
        let superblock = self.superblock();
        superblock.split_lock.store(0, RELAXED);
        self.format_classes();
        self.clear_tables(pages..self.layout.pages);
        let mut adopted = Adopted::default();
        let mut index: Vec<u32> =
            (0..u64::from(self.layout.pages)).map_while(|idx| self.directory_page(idx)).collect();
        index.sort_unstable();
        // What was never taken is zeros, and in no list.
        let used = superblock.pool.fresh().min(self.layout.pages);
        superblock.pool.format(used, used);
        for page in (0..used).rev() {
            match self.page_state(page) {
                PageState::Slab(class) | PageState::Draining(class)
                    if class < self.classes.count()
                        && self.page_carved(page) <= self.chunks_per_page(class) =>
                {
                    self.class_adopt_unchecked(class, page);
                    let of =
                        if class == LINE_CLASS { &mut adopted.lines } else { &mut adopted.pages };
                    of.push(page);
                }
                PageState::Slab(_) | PageState::Draining(_) => return None,
                PageState::Extent => adopted.extents.push(page),
                PageState::Index if index.binary_search(&page).is_ok() => {}
                PageState::Index | PageState::Free | PageState::Retired => self.pool_give(page),
            }
        }
        Some(adopted)
    }

    /// Clears what a larger store left in tables that were too large for the last one: the
    /// entries of pages that nobody knows yet.
    pub(super) fn clear_tables(&self, pages: Range<u32>) {
        for page in pages {
            self.set_page_kind(page, Kind::Free);
            self.region.half(self.layout.directory(u64::from(page))).store(0, RELAXED);
        }
    }

    /// Finishes what the process that ended may have been at: in the bucket that was split last,
    /// and in the one within which slots were moved last.
    fn mend_moves(&self) {
        let last = self.bucket_count() - 1;
        if last > 0 {
            let bit = 1 << last.ilog2();
            self.mend_bucket(self.bucket(last & !bit), bit);
        }
        let compacted = self.superblock().compacted.load(RELAXED);
        let is_bucket = compacted.is_multiple_of(LINE_LEN)
            && self.layout.is_in_page(compacted)
            && self.page_state(self.layout.page_of(compacted)) == PageState::Index;
        if is_bucket {
            self.mend_bucket(compacted, 0);
        }
    }

    /// Empties slots of items that have moved to another bucket, which have `bit` in their hash,
    /// or from an overflow line to the bucket.
    fn mend_bucket(&self, bucket: u64, bit: u64) {
        let header = self.settle(bucket);
        let mut seen = Vec::new();
        for slot in self.lines(bucket, header).flat_map(slots_of) {
            let word = self.word(slot).load(RELAXED);
            if is_pending(word) {
                // No header names it, and nobody is left who would.
                self.word(slot).store(0, RELAXED);
                continue;
            }
            if word == 0 {
                continue;
            }
            self.expel(bucket, slot, bit);
            self.heal(bucket, slot, self.hash_of(slot_item(word)));
            let word = self.word(slot).load(RELAXED);
            if word != 0 && seen.contains(&word) {
                self.word(slot).store(0, RELAXED);
            }
            seen.push(word);
        }
    }
}
