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
//! All of it together is at most `-m`.

use crate::store::region::Shared;
use crate::store::sync::{AtomicU32, AtomicU64};
use crate::store::types::StoreError;

/// First word of the superblock: `session\0`, little-endian.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"session\0");
/// Version of everything in this module, of items, of buckets and of the hash.
pub(super) const LAYOUT_VERSION: u32 = 1;
/// Bytes of the superblock.
const SUPERBLOCK_LEN: usize = 4096;
/// Bytes of an entry of the class table and of the page table.
const ENTRY_LEN: usize = 64;
/// Below this limit pages are small, because each class strands up to one.
const PAGE_SMALL_BELOW: usize = 64 << 20;
const PAGE_SHIFT_SMALL: u32 = 14;
const PAGE_SHIFT: u32 = 16;
/// Fewest pages that a store works with.
const PAGES_MIN: usize = 24;
/// Largest region: an index link has 36 bits and counts 64-byte lines.
const REGION_LEN_MAX: usize = 1 << 42;
/// Number of no page.
pub(super) const NO_PAGE: u32 = u32::MAX;

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
    reserved0: [AtomicU64; 3],
    /// Line 1, read by every lookup: versions up to this stamp are flushed.
    pub(super) flushed_stamp: AtomicU64,
    /// Boot-time second of a flush that is still to come, or has come; 0 for none.
    pub(super) flush_at_s: AtomicU64,
    reserved1: [AtomicU64; 6],
    /// Line 2: number of buckets.
    pub(super) buckets: AtomicU64,
    reserved2: [AtomicU64; 7],
    /// Line 3: taken while a bucket is split.
    pub(super) split_lock: AtomicU32,
    reserved3: [AtomicU32; 15],
    /// Line 4: the pool of free pages.
    pub(super) pool_lock: AtomicU32,
    /// First page of the pool's list, or [`NO_PAGE`].
    pub(super) pool_head: AtomicU32,
    /// Pages on that list.
    pub(super) pool_len: AtomicU32,
    /// Pages below this were used before; those from it on are untouched zeros.
    pub(super) pool_fresh: AtomicU32,
    reserved4: [AtomicU32; 12],
    /// From line 5: the hash secret.
    pub(super) secret: [AtomicU64; 40],
}

/// One slab class. All but `lock` is written under `lock` only.
#[repr(C, align(64))]
pub(super) struct ClassMeta {
    pub(super) lock: AtomicU32,
    /// Ring of all pages of the class: any of them, or [`NO_PAGE`].
    pub(super) ring: AtomicU32,
    /// List of pages with free chunks, or [`NO_PAGE`].
    pub(super) partial: AtomicU32,
    pub(super) pages: AtomicU32,
    /// Free chunks of those pages.
    pub(super) free: AtomicU32,
    /// The clock's hand: a page of the ring and a chunk of it.
    pub(super) hand_page: AtomicU32,
    pub(super) hand_chunk: AtomicU32,
    /// Seconds since last access of evicted items, smoothed; times 8.
    pub(super) age_s_x8: AtomicU32,
    /// Evictions since the class last took a page from another.
    pub(super) evictions: AtomicU32,
    reserved: [AtomicU32; 7],
}

/// One page.
#[repr(C, align(64))]
pub(super) struct PageMeta {
    /// A [`PageState`].
    pub(super) state: AtomicU32,
    /// First free chunk (its number and one), 0 for none.
    pub(super) free_head: AtomicU32,
    /// Chunks on that list.
    pub(super) free: AtomicU32,
    /// Chunks below this have been handed out at least once.
    pub(super) carved: AtomicU32,
    /// Neighbours in the ring of the class; `next` also links the pool.
    pub(super) next: AtomicU32,
    pub(super) prev: AtomicU32,
    /// Neighbours in the list of partial pages.
    pub(super) partial_next: AtomicU32,
    pub(super) partial_prev: AtomicU32,
    /// 1 when no turn from before the page began to drain is left.
    pub(super) drain_ripe: AtomicU32,
    /// Threads that walk the page while it drains.
    pub(super) sweepers: AtomicU32,
    /// No item of the page expires before this boot-time second.
    pub(super) deadline_s: AtomicU32,
    reserved: [AtomicU32; 5],
}

// SAFETY: `repr(C)`, atomics only, 64-byte aligned.
unsafe impl Shared for Superblock {}
// SAFETY: as for `Superblock`.
unsafe impl Shared for ClassMeta {}
// SAFETY: as for `Superblock`.
unsafe impl Shared for PageMeta {}

const _: () = {
    assert!(size_of::<Superblock>() <= SUPERBLOCK_LEN);
    assert!(size_of::<Superblock>() == 5 * 64 + 320);
    assert!(size_of::<ClassMeta>() == ENTRY_LEN);
    assert!(size_of::<PageMeta>() == ENTRY_LEN);
};

/// What a page is used for.
///
/// ```text
///            take              mark (no allocation any more)
///   FREE ----------> SLAB(class) ----------> DRAINING(class) --+  all chunks back and no turn
///    ^  \---------> INDEX                                      |  left from before the mark
///    |   \--------> EXTENT ----------> RETIRED --+             |
///    +-------------------------------------------+-------------+
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
    /// `kind` in the low byte, class above it.
    pub(super) fn to_word(self) -> u32 {
        match self {
            Self::Free => 0,
            Self::Index => 1,
            Self::Slab(class) => 2 | class << 8,
            Self::Draining(class) => 3 | class << 8,
            Self::Extent => 4,
            Self::Retired => 5,
        }
    }

    pub(super) fn from_word(word: u32) -> Self {
        match word & 0xff {
            0 => Self::Free,
            1 => Self::Index,
            2 => Self::Slab(word >> 8),
            3 => Self::Draining(word >> 8),
            4 => Self::Extent,
            _ => Self::Retired,
        }
    }
}

/// Offsets of the parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) page_shift: u32,
    pub(super) pages: u32,
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
        let fixed_len = self.first_page as usize;
        let pages = memory_limit.saturating_sub(fixed_len) >> self.page_shift;
        (pages as u32).min(self.pages)
    }

    /// As many pages as fit into `memory_limit` beside the fixed parts.
    pub(super) fn new(memory_limit: usize, classes: u32) -> Result<Self, StoreError> {
        let page_len = Self::page_len_for(memory_limit);
        let page_table = SUPERBLOCK_LEN + classes as usize * ENTRY_LEN;
        let fixed = |pages: usize| {
            (page_table + pages * ENTRY_LEN + pages * size_of::<u32>()).next_multiple_of(4096)
        };
        let mut pages = memory_limit.min(REGION_LEN_MAX) / page_len;
        while pages > 0 && fixed(pages) + pages * page_len > memory_limit {
            pages -= 1;
        }
        if pages < PAGES_MIN {
            let least = (fixed(PAGES_MIN) + PAGES_MIN * page_len).next_multiple_of(1 << 20);
            return Err(StoreError::MemoryLimit { limit: memory_limit, least });
        }
        Ok(Self {
            page_shift: page_len.trailing_zeros(),
            pages: pages as u32,
            page_table: page_table as u64,
            directory: (page_table + pages * ENTRY_LEN) as u64,
            first_page: fixed(pages) as u64,
        })
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
        debug_assert!(page < self.pages);
        self.first_page + (u64::from(page) << self.page_shift)
    }

    /// The page of an offset that lies in one.
    pub(super) fn page_of(&self, offset: u64) -> u32 {
        ((offset - self.first_page) >> self.page_shift) as u32
    }

    /// Offset of a page's entry in the page table.
    pub(super) fn page_meta(&self, page: u32) -> u64 {
        debug_assert!(page < self.pages);
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
            assert!(layout.region_len() <= limit);
            assert!(layout.region_len() + layout.page_len() + 4096 + 68 > limit);
            let last = layout.page(layout.pages - 1) + layout.page_len() as u64;
            assert_eq!(last, layout.region_len() as u64);
            assert_eq!(layout.page_of(last - 1), layout.pages - 1);
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

    #[test]
    fn page_states_survive_their_word() {
        use PageState::{Draining, Extent, Free, Index, Retired, Slab};
        for state in [Free, Index, Slab(0), Slab(254), Draining(3), Extent, Retired] {
            assert_eq!(PageState::from_word(state.to_word()), state);
        }
    }
}
