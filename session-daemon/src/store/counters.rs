//! What each worker counts: one row of numbers for each class, written by that worker alone.
//! It owns the counters and their sums.
#![forbid(unsafe_code)]

use crate::store::Store;
use crate::store::classes::{ITEM_CLASS_FIRST, LINE_CLASS};
use crate::store::stats::{ClassStats, Totals};
use crate::store::sync::{AtomicU64, Ordering};
use crate::store::words::LINE_LEN;

/// What is counted for a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Count {
    Linked,
    Unlinked,
    BytesLinked,
    BytesUnlinked,
    /// Protected items: up and down, so that a worker's own may be below 0.
    ProtectedItems,
    /// Bytes of protected items of all classes: in the row of [`LINE_CLASS`], up and down.
    ProtectedBytes,
    Evicted,
    EvictedNonzero,
    EvictedUnfetched,
    EvictedActive,
    OutOfMemory,
    Reclaimed,
    ExpiredUnfetched,
    CrawlerChecked,
    CrawlerReclaimed,
    GetHits,
    GetExpired,
    GetFlushed,
    CmdSet,
    DeleteHits,
    IncrHits,
    DecrHits,
    CasHits,
    CasBadval,
    TouchHits,
    PagesMoved,
    /// Items that moved when their page drained.
    Moved,
    /// Protected items evicted.
    ProtectedLost,
}

const COUNTS: usize = Count::ProtectedLost as usize + 1;
/// Counts up to here are gauges or halves of them, which `stats reset` leaves alone.
const GAUGES: usize = Count::ProtectedBytes as usize + 1;

/// One worker's counters.
#[derive(Debug)]
pub(super) struct Counters {
    rows: Box<[AtomicU64]>,
}

impl Counters {
    pub(super) fn new(classes: u32) -> Self {
        Self { rows: (0..classes as usize * COUNTS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds to a count. Only the worker whose counters these are may call it.
    pub(super) fn add(&self, class: u32, count: Count, by: u64) {
        let cell = &self.rows[class as usize * COUNTS + count as usize];
        // Relaxed load and store: one writer; readers want no order with anything else.
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }
}

/// Numbers that a reset of statistics takes off, for so many classes.
pub(super) fn baseline(classes: u32) -> Box<[AtomicU64]> {
    (0..classes as usize * COUNTS).map(|_| AtomicU64::new(0)).collect()
}

/// Sums of all workers' counters.
struct Sums(Vec<u64>);

impl Sums {
    fn of(&self, class: u32, count: Count) -> u64 {
        self.0[class as usize * COUNTS + count as usize]
    }

    fn total(&self, count: Count) -> u64 {
        self.0.iter().skip(count as usize).step_by(COUNTS).fold(0, |sum, n| sum.wrapping_add(*n))
    }
}

/// What a difference of counts shows: until a check has ended it may be of estimates, and wrap.
fn shown(difference: u64) -> u64 {
    if difference > u64::MAX / 2 { 0 } else { difference }
}

impl Store {
    /// Puts the counts of events back to 0; what is there stays counted.
    pub fn reset_stats(&self) {
        for (base, sum) in self.baseline.iter().zip(self.raw_sums()) {
            // Relaxed: figures for people; who reads them meanwhile sees some old and some new.
            base.store(sum, Ordering::Relaxed);
        }
    }

    /// Gets that found an item of a class, since the start.
    pub(super) fn class_hits(&self, class: u32) -> u64 {
        self.class_sum(class, Count::GetHits)
    }

    /// A count of a class since the start, of all workers.
    pub(super) fn class_sum(&self, class: u32, count: Count) -> u64 {
        let cell = class as usize * COUNTS + count as usize;
        let counts = self.workers.iter().map(|shared| &shared.counters.rows[cell]);
        // Relaxed: as in `Counters::add`.
        counts.fold(0, |sum, count| sum.wrapping_add(count.load(Ordering::Relaxed)))
    }

    /// A count of all classes since the statistics were reset.
    pub(super) fn sum_of(&self, count: Count) -> u64 {
        self.sums().0.total(count)
    }

    /// Items of a class, and their bytes.
    pub(super) fn linked(&self, class: u32) -> (u64, u64) {
        let of = |count| self.class_sum(class, count);
        let gauge = |up, down| shown(of(up).wrapping_sub(of(down)));
        let items = gauge(Count::Linked, Count::Unlinked);
        (items, gauge(Count::BytesLinked, Count::BytesUnlinked))
    }

    fn raw_sums(&self) -> Vec<u64> {
        let mut sums = vec![0_u64; self.classes.count() as usize * COUNTS];
        for shared in &self.workers {
            for (sum, cell) in sums.iter_mut().zip(&shared.counters.rows) {
                *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
            }
        }
        sums
    }

    fn sums(&self) -> (Sums, u64) {
        let mut sums = self.raw_sums();
        let mut linked_before = 0_u64;
        for (idx, (sum, base)) in sums.iter_mut().zip(&self.baseline).enumerate() {
            // Relaxed: as in `reset_stats`.
            let base = base.load(Ordering::Relaxed);
            if idx % COUNTS >= GAUGES {
                *sum = sum.wrapping_sub(base);
            } else if idx % COUNTS == Count::Linked as usize {
                linked_before = linked_before.wrapping_add(base);
            }
        }
        (Sums(sums), linked_before)
    }

    /// Figures of the whole store.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (sums, linked_before) = self.sums();
        let linked = sums.total(Count::Linked);
        let page_len = self.layout.page_len() as u64;
        let index = self.index_pages();
        let pages_free = u64::from(self.pool_len());
        // Relaxed: figures for people.
        let items = u64::from(self.pool_used()).saturating_sub(index);
        let gauge = |up, down| shown(sums.total(up).wrapping_sub(sums.total(down)));
        Totals {
            curr_items: gauge(Count::Linked, Count::Unlinked),
            total_items: linked.wrapping_sub(linked_before),
            bytes: gauge(Count::BytesLinked, Count::BytesUnlinked),
            limit_maxbytes: self.memory_limit() as u64,
            evictions: sums.total(Count::Evicted),
            reclaimed: sums.total(Count::Reclaimed),
            get_expired: sums.total(Count::GetExpired),
            get_flushed: sums.total(Count::GetFlushed),
            expired_unfetched: sums.total(Count::ExpiredUnfetched),
            evicted_unfetched: sums.total(Count::EvictedUnfetched),
            evicted_active: sums.total(Count::EvictedActive),
            outofmemory: sums.total(Count::OutOfMemory),
            slabs_moved: sums.total(Count::PagesMoved),
            items_moved: sums.total(Count::Moved),
            crawler_items_checked: sums.total(Count::CrawlerChecked),
            crawler_reclaimed: sums.total(Count::CrawlerReclaimed),
            hash_bytes: index * page_len,
            hash_power_level: (self.bucket_count() * 8).ilog2(),
            pages_used: index + items,
            pages_free,
            pages_draining: (self.pages_draining() + self.pages_ripening()) as u64,
            page_len,
            total_malloced: items * page_len,
        }
    }

    /// Pages of buckets and of overflow lines; not a walk over all pages.
    fn index_pages(&self) -> u64 {
        let buckets_len = self.bucket_count() * LINE_LEN;
        // Relaxed: a figure for people.
        let lines = self.class_meta(LINE_CLASS).pages.load(Ordering::Relaxed);
        buckets_len.div_ceil(self.layout.page_len() as u64) + u64::from(lines)
    }

    /// Bytes of the largest chunk; longer items are made of several.
    #[must_use]
    pub fn chunk_len_max(&self) -> usize {
        self.classes.chunk_max()
    }

    /// Figures of each slab class that has pages or has had items, in order.
    #[must_use]
    pub fn classes(&self) -> Vec<ClassStats> {
        let (sums, _) = self.sums();
        (ITEM_CLASS_FIRST..self.classes.count())
            .map(|class| self.class_stats(class, &sums))
            .filter(|stats| stats.total_pages > 0 || stats.total_items > 0)
            .collect()
    }

    /// Free chunks that workers took ahead.
    fn chunks_ahead(&self, class: u32) -> u64 {
        let places = self.workers.iter().flat_map(|worker| worker.magazines.of(class));
        places.filter(|place| place.load(Ordering::Relaxed) != 0).count() as u64
    }

    fn class_stats(&self, class: u32, sums: &Sums) -> ClassStats {
        let meta = self.class_meta(class);
        // Relaxed: figures for people, not decisions.
        let pages = u64::from(meta.pages.load(Ordering::Relaxed));
        let free = meta.free.load(Ordering::Relaxed).cast_signed().max(0);
        let free = u64::from(free.unsigned_abs()) + self.chunks_ahead(class);
        let per_page = u64::from(self.chunks_per_page(class));
        let of = |count| sums.of(class, count);
        ClassStats {
            class,
            chunk_size: self.classes.size(class) as u64,
            chunks_per_page: per_page,
            total_pages: pages,
            total_chunks: pages * per_page,
            used_chunks: (pages * per_page).saturating_sub(free),
            free_chunks: free,
            mem_requested: shown(of(Count::BytesLinked).wrapping_sub(of(Count::BytesUnlinked))),
            number: shown(of(Count::Linked).wrapping_sub(of(Count::Unlinked))),
            total_items: of(Count::Linked),
            evicted_time: u64::from(meta.age_s_x8.load(Ordering::Relaxed) / 8),
            evicted: of(Count::Evicted),
            evicted_nonzero: of(Count::EvictedNonzero),
            evicted_unfetched: of(Count::EvictedUnfetched),
            evicted_active: of(Count::EvictedActive),
            outofmemory: of(Count::OutOfMemory),
            reclaimed: of(Count::Reclaimed),
            expired_unfetched: of(Count::ExpiredUnfetched),
            crawler_items_checked: of(Count::CrawlerChecked),
            crawler_reclaimed: of(Count::CrawlerReclaimed),
            get_hits: of(Count::GetHits),
            cmd_set: of(Count::CmdSet),
            delete_hits: of(Count::DeleteHits),
            incr_hits: of(Count::IncrHits),
            decr_hits: of(Count::DecrHits),
            cas_hits: of(Count::CasHits),
            cas_badval: of(Count::CasBadval),
            touch_hits: of(Count::TouchHits),
        }
    }
}
