//! What stands where in the region: superblock, class table, page table, directory, pages.
//! It owns the shapes of the fixed parts and the arithmetic between pages and offsets.
//!
//! ```text
//! 0            4096                                                     page aligned
//! +------------+-------------+------------+------------------+----------+--------+--------+---
//! | superblock | class table | page table | bucket directory |  (fill)  | page 0 | page 1 | …
//! |  4096 B    | 64 B each   | 64 B each  | 4 B a page       |          |        |        |
//! +------------+-------------+------------+------------------+----------+--------+--------+---
//! ```
//! All of it together, with the ghosts that stand outside, is at most `-m`. The two tables have room for `pages_max` pages, so that
//! the limit may be raised, live or at a later start; what is beyond `pages` has no memory.

use crate::store::chunks::{CHUNKS_MAX, Kind, PageWord};
use crate::store::ghosts::ghosts_len;
use crate::store::pool::Pool;
use crate::store::region::{Region, Shared};
use crate::store::sync::{AtomicU32, AtomicU64, Ordering};
use crate::store::types::StoreError;
use std::ops::Range;

/// First word of the superblock: `session\0`, little-endian.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"session\0");
/// Version of everything in this module, of items, of buckets and of the hash.
pub const LAYOUT_VERSION: u32 = 6;
/// Bytes of the superblock.
const SUPERBLOCK_LEN: usize = 4096;
/// Bytes of an entry of the class table and of the page table.
const ENTRY_LEN: usize = 64;
/// Below this limit pages are small, because each class strands up to one.
const PAGE_SMALL_BELOW: usize = 64 << 20;
const PAGE_SHIFT_SMALL: u32 = 14;
const PAGE_SHIFT: u32 = 16;
/// Pages by which the tables of the largest region shorten it, generously.
const TABLES_SHARE: usize = 1 << 20;
/// Fewest pages that a store works with.
const PAGES_MIN: usize = 24;
/// Largest region: an index link has 36 bits and counts 64-byte lines.
const REGION_LEN_MAX: usize = 1 << 42;
/// By how much the limit may be raised above the first start's.
const GROWTH_MAX: usize = 16;
/// Bytes from the start within which superblock and class table end.
pub(super) const HEAD_LEN: usize = SUPERBLOCK_LEN + 256 * ENTRY_LEN;
/// Unit of fallocation and of the fixed parts.
const ALIGN: usize = 4096;
/// The words that the whole store turns on. Read-mostly words and written ones are apart.
#[repr(C, align(64))]
pub(super) struct Superblock {
    pub(super) magic: AtomicU64,
    pub(super) layout_version: AtomicU32,
    pub(super) page_shift: AtomicU32,
    pub(super) memory_limit: AtomicU64,
    pub(super) item_size_max: AtomicU64,
    pub(super) pages: AtomicU32,
    pub(super) classes: AtomicU32,
    /// Number of the boot in which the region is of use; its clock is that of all times in it.
    pub(super) boot_id: [AtomicU64; 2],
    /// Pages that the tables have room for.
    pub(super) pages_max: AtomicU64,
    /// Line 1, read by every lookup: versions up to this stamp are flushed.
    pub(super) flushed_stamp: AtomicU64,
    /// Boot-time second of a flush that is still to come, or has come; 0 for none.
    pub(super) flush_at_s: AtomicU64,
    /// The limit that was set while serving, 0 for none since the start. Read by a lookup never,
    /// and written so seldom that it may stand beside what is.
    pub(super) limit_set: AtomicU64,
    reserved1: [AtomicU64; 5],
    /// Line 2: number of buckets.
    pub(super) buckets: AtomicU64,
    reserved2: [AtomicU64; 7],
    /// Line 3: taken while slots are moved: by the split of a bucket, or within one.
    pub(super) split_lock: AtomicU32,
    reserved3: [AtomicU32; 1],
    /// Offset of the bucket within which slots were moved last, 0 for none.
    pub(super) compacted: AtomicU64,
    reserved4: [AtomicU32; 12],
    /// Line 4: the pool of free pages.
    pub(super) pool: Pool,
    reserved5: [AtomicU32; 12],
    /// From line 5: the hash secret.
    pub(super) secret: [AtomicU64; 40],
    /// Line 10: sum of all words that do not change from the first start on.
    pub(super) checksum: AtomicU64,
    /// Latest boot-time second that a worker has seen.
    pub(super) seen_s: AtomicU64,
    /// Sum over the note that a closed store leaves, 0 for none; see `close`.
    pub(super) closed: AtomicU64,
    /// Highest stamp of a version, noted now and then and when the store is closed.
    pub(super) noted_stamp: AtomicU64,
    /// Says in which file the region may be gone on with, 0 for none; see `adopt`.
    pub(super) trusted: AtomicU64,
    /// Number of the processes that have gone on with what a killed one left, see `check`; and in
    /// the high half how many of the last ones ended before they had checked all of it.
    pub(super) incarnation: AtomicU64,
    /// When the file of a closed store was changed last.
    pub(super) closed_changed_ns: AtomicU64,
    /// Real time that a worker has seen last, 1970's nanoseconds.
    pub(super) alive_ns: AtomicU64,
}

/// One slab class.
#[repr(C, align(64))]
pub(super) struct ClassMeta {
    pub(super) pages: AtomicU32,
    /// Chunks of those pages that could be handed out. For a moment it may be off, even below 0.
    pub(super) free: AtomicU32,
    /// Seconds since last access of evicted items, smoothed; times 8.
    pub(super) age_s_x8: AtomicU32,
    /// Evictions since the class last took a page from another.
    pub(super) evictions: AtomicU32,
    /// Bytes of a chunk.
    pub(super) chunk_len: AtomicU32,
    /// Items and their bytes, noted now and then and when the store is closed; low halves first.
    pub(super) noted_items: [AtomicU32; 2],
    pub(super) noted_bytes: [AtomicU32; 2],
    reserved: [AtomicU32; 7],
}

/// One page.
#[repr(C, align(64))]
pub(super) struct PageMeta {
    /// What it is used for, and which chunks are free.
    pub(super) word: PageWord,
    /// Its class while it is used for one. Written before the word says so.
    pub(super) class: AtomicU32,
    /// The next page in the pool.
    pub(super) next: AtomicU32,
    /// No item of the page expires before this boot-time second.
    pub(super) deadline_s: AtomicU32,
    /// Not 0 while it is not known which chunks are free; see `check`.
    pub(super) unchecked: AtomicU32,
    /// 1 until the hand of the class has passed the page by once.
    pub(super) is_new: AtomicU32,
    /// While the page drains: the chunk that is looked at next.
    pub(super) drain_next: AtomicU32,
    /// Slices that ended for want of a free chunk.
    pub(super) drain_waits: AtomicU32,
    /// Items worth less than this are evicted; those worth as much or more move. A `Worth`'s bits.
    pub(super) drain_least: AtomicU32,
    /// 1 when every chunk was looked at: what is left was private then.
    pub(super) drain_passed: AtomicU32,
    /// The class that gets the page when it has drained, and 1; 0 for the pool.
    pub(super) heir: AtomicU32,
    reserved: [AtomicU32; 4],
}

/// Least bytes of a chunk: an item's header.
const CHUNK_LEN_MIN: usize = 24;
/// Place of a chunk's size in an entry of the class table, in half words.
pub(super) const CHUNK_LEN_HALF: u64 = (std::mem::offset_of!(ClassMeta, chunk_len) / 4) as u64;

// SAFETY: `repr(C)`, atomics only, 64-byte aligned.
unsafe impl Shared for Superblock {}
// SAFETY: as for `Superblock`.
unsafe impl Shared for ClassMeta {}
// SAFETY: as for `Superblock`.
unsafe impl Shared for PageMeta {}

const _: () = {
    assert!(size_of::<Superblock>() <= SUPERBLOCK_LEN);
    assert!(size_of::<Superblock>() == 11 * 64);
    assert!(size_of::<ClassMeta>() == ENTRY_LEN);
    assert!(size_of::<PageMeta>() == ENTRY_LEN);
    assert!((1 << PAGE_SHIFT) / CHUNK_LEN_MIN <= CHUNKS_MAX);
};

impl Superblock {
    /// Number of the boot in which the region is of use.
    pub(super) fn boot_id(&self) -> u128 {
        // Relaxed: written before a region is served from.
        let [low, high] = [0, 1].map(|idx| u128::from(self.boot_id[idx].load(Ordering::Relaxed)));
        high << 64 | low
    }

    pub(super) fn set_boot_id(&self, boot_id: u128) {
        // Relaxed: as in `boot_id`.
        self.boot_id[0].store(boot_id as u64, Ordering::Relaxed);
        self.boot_id[1].store((boot_id >> 64) as u64, Ordering::Relaxed);
    }
}

/// Sizes of chunks as the class table of a region has them; `None` for an impossible number.
pub(super) fn chunk_lens(head: &Region) -> Option<Vec<u32>> {
    let superblock: &Superblock = head.shared(0);
    // Relaxed: written before a region is served from.
    let classes = superblock.classes.load(Ordering::Relaxed);
    let entry = |class: u32| (SUPERBLOCK_LEN + class as usize * ENTRY_LEN) as u64;
    let len = |class| head.shared::<ClassMeta>(entry(class)).chunk_len.load(Ordering::Relaxed);
    (1..=255).contains(&classes).then(|| (0..classes).map(len).collect())
}

/// A sum over the words of superblock and class table that never change.
pub(super) fn checksum(head: &Region) -> u64 {
    let superblock: &Superblock = head.shared(0);
    // Relaxed throughout: as in `chunk_lens`.
    let relaxed = Ordering::Relaxed;
    let fixed = [
        u64::from(superblock.layout_version.load(relaxed)),
        u64::from(superblock.page_shift.load(relaxed)),
        u64::from(superblock.classes.load(relaxed)),
        superblock.pages_max.load(relaxed),
    ];
    let secret = superblock.secret.iter().chain(&superblock.boot_id).map(|word| word.load(relaxed));
    let sizes = chunk_lens(head).unwrap_or_default().into_iter().map(u64::from);
    folded(fixed.into_iter().chain(secret).chain(sizes))
}

/// A sum over words in their order: a guard against damage, not against malice.
pub(super) fn folded(words: impl Iterator<Item = u64>) -> u64 {
    // MurmurHash3's multiplier, after FNV's fashion.
    let step =
        |sum: u64, word: u64| (sum ^ word).rotate_left(29).wrapping_mul(0xff51_afd7_ed55_8ccd);
    words.fold(0x5e55_1051, step)
}

/// What a page is used for.
///
/// ```text
///            take              mark (no allocation any more)
///   FREE ----------> SLAB(class) ----------> DRAINING(class) --+
///    ^  \---------> INDEX                                      |  all chunks back
///    |   \--------> EXTENT ----------> RETIRED <---------------+
///    +-----------------------------------+
///                                no turn left from before
/// ```
/// Whoever reads SLAB or EXTENT in a turn can read the page as such until the turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageState {
    Free,
    Index,
    Slab(u32),
    Draining(u32),
    Extent,
    Retired,
}

impl PageState {
    /// Of the kind that a page's word names, and the class beside it.
    pub(super) fn new(kind: Kind, class: impl FnOnce() -> u32) -> Self {
        match kind {
            Kind::Free => Self::Free,
            Kind::Index => Self::Index,
            Kind::Slab => Self::Slab(class()),
            Kind::Draining => Self::Draining(class()),
            Kind::Extent => Self::Extent,
            Kind::Retired => Self::Retired,
        }
    }
}

/// Offsets of the parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) page_shift: u32,
    pub(super) pages: u32,
    pub(super) pages_max: u32,
    pub(super) classes: u32,
    page_table: u64,
    directory: u64,
    first_page: u64,
}

impl Layout {
    /// Bytes of a page for this limit.
    pub(super) fn page_len_for(memory_limit: usize) -> usize {
        1 << if memory_limit < PAGE_SMALL_BELOW { PAGE_SHIFT_SMALL } else { PAGE_SHIFT }
    }

    /// Pages that fit into `memory_limit` with this layout's page length, at most all.
    pub(super) fn pages_within(&self, memory_limit: usize) -> u32 {
        // What the tables have no pages for has no memory either.
        let [tables, directory, _] =
            self.extents().map(|part| ((part.end - part.start) as usize).next_multiple_of(ALIGN));
        let fixed_len = tables + directory;
        let left = memory_limit.saturating_sub(fixed_len + ghosts_len(memory_limit));
        let pages = left >> self.page_shift;
        (pages as u32).min(self.pages)
    }

    /// As many pages as fit into `memory_limit` beside the fixed parts and the ghosts, and room in
    /// the tables for a larger limit.
    pub(super) fn new(memory_limit: usize, classes: u32) -> Result<Self, StoreError> {
        let page_len = Self::page_len_for(memory_limit);
        let pages = Self::pages_for(memory_limit, classes, page_len)?;
        let most = REGION_LEN_MAX / page_len - TABLES_SHARE;
        Ok(Self::of(pages, (pages * GROWTH_MAX).min(most), classes, page_len))
    }

    /// [`Layout::new`] without that room, for memory that is taken whether it is touched or not.
    pub(super) fn tight(memory_limit: usize, classes: u32) -> Result<Self, StoreError> {
        let page_len = Self::page_len_for(memory_limit);
        let pages = Self::pages_for(memory_limit, classes, page_len)?;
        Ok(Self::of(pages, pages, classes, page_len))
    }

    /// The same with no more pages than a file of `len` bytes has; `None` if those are too few.
    pub(super) fn within_file(&self, len: u64) -> Option<Self> {
        let room = usize::try_from(len.checked_sub(self.first_page)? >> self.page_shift).ok()?;
        let (pages, room_max) = (room.min(self.pages as usize), self.pages_max as usize);
        (pages >= PAGES_MIN).then(|| Self::of(pages, room_max, self.classes, self.page_len()))
    }

    /// The layout that a region says it has, if there can be such a one.
    pub(super) fn found(pages: u32, pages_max: u64, classes: u32, page_len: usize) -> Option<Self> {
        let lens = [1 << PAGE_SHIFT_SMALL, 1 << PAGE_SHIFT];
        let most = lens.contains(&page_len).then(|| REGION_LEN_MAX / page_len - TABLES_SHARE)?;
        let pages_max = usize::try_from(pages_max).ok().filter(|room| *room <= most)?;
        let pages = pages as usize;
        let is_possible = (PAGES_MIN..=pages_max).contains(&pages);
        is_possible.then(|| Self::of(pages, pages_max, classes, page_len))
    }

    /// The layout of `before` under a limit. `None` if its tables have no room for that.
    pub(super) fn again(memory_limit: usize, before: Self) -> Result<Option<Self>, StoreError> {
        let (pages_max, page_len) = (before.pages_max as usize, before.page_len());
        let pages = Self::pages_for(memory_limit, before.classes, page_len)?;
        Ok((pages <= pages_max).then(|| Self::of(pages, pages_max, before.classes, page_len)))
    }

    fn pages_for(limit: usize, classes: u32, page_len: usize) -> Result<usize, StoreError> {
        let charged = |pages: usize| {
            let page_table = SUPERBLOCK_LEN + (classes as usize + pages) * ENTRY_LEN;
            let directory = pages * size_of::<u32>();
            ghosts_len(limit)
                + page_table.next_multiple_of(ALIGN)
                + directory.next_multiple_of(ALIGN)
                + pages * page_len
        };
        let mut pages = limit.min(REGION_LEN_MAX / 2) / page_len;
        while pages > 0 && charged(pages) > limit {
            pages -= 1;
        }
        if pages < PAGES_MIN {
            let least = charged(PAGES_MIN).next_multiple_of(1 << 20);
            return Err(StoreError::MemoryLimit { limit, least });
        }
        Ok(pages)
    }

    fn of(pages: usize, pages_max: usize, classes: u32, page_len: usize) -> Self {
        let page_table = SUPERBLOCK_LEN + classes as usize * ENTRY_LEN;
        let directory = (page_table + pages_max * ENTRY_LEN).next_multiple_of(ALIGN);
        let first_page = (directory + pages_max * size_of::<u32>()).next_multiple_of(ALIGN);
        Self {
            page_shift: page_len.trailing_zeros(),
            pages: pages as u32,
            pages_max: pages_max as u32,
            classes,
            page_table: page_table as u64,
            directory: directory as u64,
            first_page: first_page as u64,
        }
    }

    /// The parts of the region that hold anything; they must have memory.
    pub(super) fn extents(&self) -> [Range<u64>; 3] {
        let pages = u64::from(self.pages);
        let tables = self.page_table + pages * ENTRY_LEN as u64;
        let directory = self.directory + pages * size_of::<u32>() as u64;
        [0..tables, self.directory..directory, self.first_page..self.region_len() as u64]
    }

    /// Whether an offset lies in a page, at a multiple of 8.
    pub(super) fn is_in_page(&self, offset: u64) -> bool {
        offset.is_multiple_of(8) && (self.first_page..self.region_len() as u64).contains(&offset)
    }

    /// The same with so many pages, which the tables have room for.
    pub(super) fn with_pages(self, pages: u32) -> Self {
        debug_assert!(pages <= self.pages_max);
        Self { pages, ..self }
    }

    /// Bytes of the region with all the pages that the tables have room for.
    pub(super) fn room_len(&self) -> usize {
        self.with_pages(self.pages_max).region_len()
    }

    /// Bytes of the whole region.
    pub(super) fn region_len(&self) -> usize {
        self.first_page as usize + ((self.pages as usize) << self.page_shift)
    }

    /// Bytes of a page.
    pub(super) fn page_len(&self) -> usize {
        1 << self.page_shift
    }

    /// Offset of a page.
    pub(super) fn page(&self, page: u32) -> u64 {
        debug_assert!(page < self.pages_max);
        self.first_page + (u64::from(page) << self.page_shift)
    }

    /// Offsets of the bucket directory and of the first page.
    pub(super) fn index_places(&self) -> (u64, u64) {
        (self.directory, self.first_page)
    }

    /// The page of an offset that lies in one.
    pub(super) fn page_of(&self, offset: u64) -> u32 {
        ((offset - self.first_page) >> self.page_shift) as u32
    }

    /// Offset of a page's entry in the page table.
    pub(super) fn page_meta(&self, page: u32) -> u64 {
        debug_assert!(page < self.pages_max);
        self.page_table + u64::from(page) * ENTRY_LEN as u64
    }

    /// Offset of a class's entry in the class table.
    pub(super) fn class_meta(&self, class: u32) -> u64 {
        (SUPERBLOCK_LEN + class as usize * ENTRY_LEN) as u64
    }

    /// Offset of the directory's entry for the `idx`th page of buckets: its page and one.
    pub(super) fn directory(&self, idx: u64) -> u64 {
        self.directory + idx * size_of::<u32>() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_for_everything_together() {
        for limit in [1 << 20, 2_000_000, 8 << 20, 64 << 20, 100_000_001, 1 << 30] {
            let layout = Layout::new(limit, 140).unwrap();
            let part_len = |part: &Range<u64>| (part.end - part.start) as usize;
            let region_len: usize = layout.extents().iter().map(part_len).sum();
            let used = region_len + ghosts_len(limit);
            assert!(used <= limit);
            assert!(used + layout.page_len() + 4 * 4096 + 68 > limit);
            let last = layout.page(layout.pages - 1) + layout.page_len() as u64;
            assert_eq!(last, layout.region_len() as u64);
            assert_eq!(layout.page_of(last - 1), layout.pages - 1);
        }
    }

    #[test]
    fn room_in_the_tables_lets_the_limit_grow_and_moves_no_page() {
        for limit in [1 << 20, 8 << 20, 64 << 20, 100_000_001] {
            let first = Layout::new(limit, 140).unwrap();
            let len = |layout: &Layout| -> u64 {
                layout.extents().iter().map(|part| part.end - part.start).sum()
            };
            assert!(len(&first) <= limit as u64);
            for later in [limit, limit * 3 / 2, limit * 15] {
                let grown = Layout::again(later, first).unwrap().unwrap();
                assert!(len(&grown) <= later as u64 && grown.pages >= first.pages);
                assert_eq!(grown.page(7), first.page(7));
                assert_eq!(grown.page_meta(7), first.page_meta(7));
                assert_eq!(grown.directory(7), first.directory(7));
            }
            assert!(Layout::again(limit * 20, first).unwrap().is_none());
            let room = u64::from(first.pages_max);
            assert!(Layout::found(first.pages, room, 140, first.page_len()).is_some());
            assert!(Layout::found(first.pages, room, 140, 12_345).is_none());
            assert!(Layout::found(first.pages, u64::MAX, 140, first.page_len()).is_none());
            assert!(Layout::found(0, room, 140, first.page_len()).is_none());
        }
    }

    #[test]
    fn a_limit_below_the_least_names_the_least() {
        let Err(StoreError::MemoryLimit { least, .. }) = Layout::new(100_000, 140) else {
            panic!("too little memory was accepted")
        };
        assert_eq!(least, 1 << 20);
        assert!(Layout::new(least, 140).is_ok());
    }
}
