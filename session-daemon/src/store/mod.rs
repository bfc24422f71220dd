//! The slab store: keys, values, lifetimes, eviction. It owns all items and their index.
//! It never sees a wire byte, a socket, a clock or a log line: `now` is an argument everywhere.
//!
//! One [`Store`] is shared by all threads; each thread has a [`Worker`] and works through it.
//!
//! ```text
//! turn:  now = sample
//!        worker.get / get_batch   -> Item<'_>, borrows the worker
//!        ... replies are copied or written from the items ...
//!        worker.set / delete / …  (need &mut, so no Item is alive)
//!        worker.maintain(now), worker.quiesce()
//!                                 at the end of the turn, before the thread may sleep
//! ```
//! Memory that others removed is reused only after every worker that is in a turn has ended it.
//! A worker is in a turn from its first operation to its next [`Worker::quiesce`]: one that
//! sleeps without having called it holds all reuse of memory back. There is nothing else to call
//! before or after sleeping. docs/store.md describes the protocols.
#![allow(unsafe_code)]

use crate::clock::Now;
use crate::store::admin::Limit;
use crate::store::check::Check;
use crate::store::chunks::Kind;
use crate::store::classes::{Classes, HEADER_LEN};
use crate::store::counters::{Counters, baseline};
use crate::store::epoch::Epochs;
use crate::store::ghosts::{Ghosts, ghosts_len};
use crate::store::hash::HashSecret;
use crate::store::heat::Heat;
use crate::store::layout::{CHUNK_LEN_HALF, ClassMeta, Layout, MAGIC, checksum};
use crate::store::magazines::Magazines;
use crate::store::pages::PageLists;
use crate::store::pins::Pins;
use crate::store::pool::TakenPage;
use crate::store::protect::Protection;
use crate::store::reader::second;
use crate::store::region::Region;
use crate::store::reuse::{Reuse, Tally};
use crate::store::sync::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering, Padded};
use crate::store::types::{ClientFlags, StoreConfig, StoreError};
use std::sync::{Arc, OnceLock};

mod admin;
mod adopt;
mod arithmetic;
mod attach;
mod backing;
mod buckets;
mod check;
mod chunks;
mod classes;
mod close;
mod commands;
mod counters;
mod draft;
mod epoch;
mod evict;
mod expire;
mod failpoint;
mod filling;
mod ghosts;
mod growth;
mod hash;
mod heat;
mod index;
mod item;
mod layout;
mod lease;
mod lookup;
mod magazines;
mod moves;
mod outside;
mod page_set;
mod pages;
mod pinned;
mod pins;
mod plane;
mod pool;
mod protect;
mod publish;
mod reader;
mod rebalance;
mod recover;
mod region;
mod renew;
mod reuse;
pub mod scan;
#[cfg(session_schedule)]
mod scheduled;
pub mod stats;
mod sync;
#[cfg(test)]
mod tests;
pub mod types;
mod upload;
mod validate;
mod words;
mod worker;

pub use attach::{Cold, Inspected, Start};
pub use backing::{MapFacts, MemoryFile};
pub use check::Checked;
pub use layout::LAYOUT_VERSION;
pub use lease::Leased;
pub use outside::OutsideReader;
pub use pinned::PinnedValue;
pub use protect::{PROTECTED_PREFIXES_MAX, Protected};
pub use reader::{Item, ValueSlices};
pub use recover::Kept;
pub use upload::Upload;
pub use validate::{Census, Violation};
pub use worker::Worker;

/// Most workers: their number has 8 bits in a cas unique.
pub const WORKERS_MAX: usize = 255;
/// Least `item_size_max`, memcached's.
const ITEM_SIZE_MAX_LEAST: usize = 1024;
/// Largest `item_size_max`, memcached's.
const ITEM_SIZE_MAX_MOST: usize = 1 << 30;
/// What memcached adds to key and value when it compares an item with `-I`: header, cas, two
/// bytes behind the value and one behind the key.
const ITEM_OVERHEAD: usize = 48 + 8 + 2 + 1;
/// What it adds for client flags that are not 0.
const FLAGS_OVERHEAD: usize = 4;

/// What the store keeps of one worker outside the region: nothing that a restart would need.
#[derive(Debug)]
struct WorkerShared {
    taken: AtomicBool,
    /// Stamp of the version made last.
    stamp: Padded<AtomicU64>,
    magazines: Magazines,
    counters: Counters,
    tally: Tally,
}

/// The store, shared by all workers.
#[derive(Debug)]
pub struct Store {
    region: Region,
    /// The file that the region is in, which this keeps locked.
    memory: Option<MemoryFile>,
    start: Option<Start>,
    /// Tells this process from those that served from the region before and were killed.
    incarnation: u16,
    /// What is still to be looked at after a start that went on with what a killed one left.
    check: Option<Check>,
    /// As it was at the start; see `page_count`.
    layout: Layout,
    /// Pages that the region has by now: more than at the start when the limit was raised.
    pages: AtomicU32,
    classes: Classes,
    config: StoreConfig,
    secret: HashSecret,
    epochs: Epochs,
    /// Items that are kept beyond their epoch.
    pins: Pins,
    workers: Box<[WorkerShared]>,
    /// Keys in the index, as far as the workers have told.
    keys: Padded<AtomicI64>,
    /// Which pages have which use.
    lists: PageLists,
    /// What evicted items were.
    ghosts: Ghosts,
    /// What items are worth.
    reuse: Reuse,
    /// How much the classes are used.
    heat: Heat,
    /// For each class the worth of its least items, as bits.
    margins: Box<[AtomicU32]>,
    /// How often each class has asked for a page in vain since it got one.
    asked: Box<[AtomicU32]>,
    /// Pages that the sweep has begun.
    swept: Padded<AtomicU64>,
    /// The sweep skips no page before it has begun this many.
    sweep_forced: AtomicU64,
    /// The delayed flush for which the sweep has been told.
    flush_noted_s: AtomicU64,
    /// How much of the region may be used now.
    limit: Limit,
    /// Keys that are evicted last; empty when none are.
    protection: OnceLock<Protection>,
    /// Counts at the last reset of statistics.
    baseline: Box<[AtomicU64]>,
}

impl Store {
    /// A store of this configuration in anonymous memory.
    ///
    /// # Errors
    /// When a limit is out of range or the memory cannot be mapped.
    pub fn create(config: &StoreConfig) -> Result<Arc<Self>, StoreError> {
        Self::check(config)?;
        let page_len = Layout::page_len_for(config.memory_limit);
        let classes = Classes::new(page_len, config.growth_factor, config.chunk_min)?;
        let layout = Layout::new(config.memory_limit, classes.count())?;
        let (len, room) = (layout.region_len(), layout.room_len());
        let region = if config.growing { Region::map_in(room, len) } else { Region::map(len) };
        let region = region.map_err(|source| StoreError::Map { len, source })?;
        let secret = config.hash_seed.map_or_else(HashSecret::random, HashSecret::of_seed);
        let store = Self::assemble(config, region, layout, classes, secret)?;
        store.format();
        Ok(Arc::new(store))
    }

    fn check(config: &StoreConfig) -> Result<(), StoreError> {
        if !(1..=WORKERS_MAX).contains(&config.workers) {
            return Err(StoreError::Workers { workers: config.workers, most: WORKERS_MAX });
        }
        let most = (config.memory_limit / 2).min(ITEM_SIZE_MAX_MOST);
        if !(ITEM_SIZE_MAX_LEAST..=most).contains(&config.item_size_max) {
            let (limit, least) = (config.item_size_max, ITEM_SIZE_MAX_LEAST);
            return Err(StoreError::ItemSizeMax { limit, least, most });
        }
        Ok(())
    }

    /// What stands beside a region, before anything is known of what the region holds.
    fn assemble(
        config: &StoreConfig,
        region: Region,
        layout: Layout,
        classes: Classes,
        secret: HashSecret,
    ) -> Result<Self, StoreError> {
        let workers = (0..config.workers).map(|_| WorkerShared {
            taken: AtomicBool::new(false),
            stamp: Padded::default(),
            magazines: Magazines::new(classes.count()),
            counters: Counters::new(classes.count()),
            tally: Tally::new(),
        });
        let len = ghosts_len(config.memory_limit);
        let ghosts = Ghosts::new(len).map_err(|source| StoreError::Map { len, source })?;
        let count = classes.count();
        let heat = Heat::new(count);
        let margins = (0..classes.count()).map(|_| AtomicU32::new(0)).collect();
        let asked = (0..classes.count()).map(|_| AtomicU32::new(0)).collect();
        Ok(Self {
            workers: workers.collect(),
            epochs: Epochs::new(config.workers),
            pins: Pins::default(),
            limit: Limit::new(config.memory_limit, layout.pages),
            protection: OnceLock::new(),
            region,
            memory: None,
            start: None,
            incarnation: 1,
            check: None,
            pages: AtomicU32::new(layout.pages),
            layout,
            classes,
            config: *config,
            secret,
            keys: Padded::default(),
            lists: PageLists::new(&layout, count),
            ghosts,
            reuse: Reuse::new(),
            heat,
            margins,
            asked,
            swept: Padded::default(),
            sweep_forced: AtomicU64::new(0),
            flush_noted_s: AtomicU64::new(0),
            baseline: baseline(count),
        })
    }

    /// Writes the fixed parts of a region of zeros, and the first page of buckets.
    fn format(&self) {
        // Relaxed throughout: no other thread has the store yet.
        let relaxed = Ordering::Relaxed;
        let superblock = self.superblock();
        superblock.layout_version.store(LAYOUT_VERSION, relaxed);
        superblock.page_shift.store(self.layout.page_shift, relaxed);
        superblock.memory_limit.store(self.config.memory_limit as u64, relaxed);
        superblock.item_size_max.store(self.config.item_size_max as u64, relaxed);
        superblock.pages.store(self.layout.pages, relaxed);
        superblock.pages_max.store(u64::from(self.layout.pages_max), relaxed);
        superblock.incarnation.store(self.incarnation.into(), relaxed);
        superblock.classes.store(self.classes.count(), relaxed);
        superblock.pool.format(0, 0);
        for (word, secret) in superblock.secret.iter().zip(self.secret.words()) {
            word.store(*secret, relaxed);
        }
        for class in 0..self.classes.count() {
            self.class_meta(class).chunk_len.store(self.classes.size(class) as u32, relaxed);
        }
        self.format_classes();
        let first = self.pool_take().expect("a layout has pages");
        self.prepare_index_page(first);
        self.index_format(&[first.page], 1);
        superblock.checksum.store(checksum(&self.region), relaxed);
        // Release: a start that sees it finds all of the above, whatever ended this process.
        superblock.magic.store(MAGIC, Ordering::Release);
    }

    /// Makes all classes ones without pages. Their sizes are not touched: they must be right at
    /// any moment.
    fn format_classes(&self) {
        let halves = (size_of::<ClassMeta>() / 4) as u64;
        for class in 0..self.classes.count() {
            for half in (0..halves).filter(|half| *half != CHUNK_LEN_HALF) {
                let word = self.region.half(self.layout.class_meta(class) + half * 4);
                // Relaxed: no other thread has the store.
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Makes a page from the pool a page of empty buckets that nobody knows yet.
    fn prepare_index_page(&self, taken: TakenPage) {
        if !taken.fresh {
            // SAFETY: the page comes from the pool: no turn is left that knows it as anything.
            unsafe { self.region.clear(self.layout.page(taken.page), self.layout.page_len()) };
        }
        failpoint::step("index: page cleared");
        self.set_page_kind(taken.page, Kind::Index);
    }

    /// The configuration the store was made from.
    #[must_use]
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// Whether an item of these lengths is within `item_size_max`, counted as memcached does.
    #[must_use]
    pub fn fits(&self, key_len: usize, flags: ClientFlags, value_len: usize) -> bool {
        let flags_len = if flags.0 == 0 { 0 } else { FLAGS_OVERHEAD };
        let len = value_len.saturating_add(ITEM_OVERHEAD + key_len + flags_len);
        len <= self.config.item_size_max
    }

    /// Pages of the region, whether they are in use or not.
    fn page_count(&self) -> u32 {
        // Acquire: their memory was opened and their entries cleared before; pairs with the
        // Release in `grow_region`.
        self.pages.load(Ordering::Acquire)
    }

    /// The page that the sweep looks at next.
    fn next_swept_page(&self) -> u32 {
        // Relaxed: a cursor; two workers on one page do no harm.
        let swept = self.swept.0.fetch_add(1, Ordering::Relaxed);
        (swept % u64::from(self.page_count())) as u32
    }

    /// Whether the sweep must look at its next page although nothing expires there.
    #[must_use]
    pub fn sweep_is_forced(&self) -> bool {
        // Relaxed: a hint, as the cursor.
        self.swept.0.load(Ordering::Relaxed) < self.sweep_forced.load(Ordering::Relaxed)
    }

    /// Makes the sweep look at every page once.
    fn force_sweep(&self) {
        let all = self.swept.0.load(Ordering::Relaxed) + u64::from(self.page_count());
        self.sweep_forced.fetch_max(all, Ordering::Relaxed);
    }

    /// Notes what time it is for a later start, and forces a sweep when a delayed flush has come.
    fn note_time(&self, now: Now) {
        // Relaxed: a start compares it with the file's time, nothing else does.
        self.superblock().alive_ns.store(now.realtime_ns, Ordering::Relaxed);
        let seen = &self.superblock().seen_s;
        // Relaxed: a start compares it with the clock, nothing else does.
        if seen.load(Ordering::Relaxed) < u64::from(second(now)) {
            seen.store(u64::from(second(now)), Ordering::Relaxed);
            self.note_counts();
        }
        let at = self.superblock().flush_at_s.load(Ordering::Acquire);
        if at != 0
            && u64::from(second(now)) >= at
            && self.flush_noted_s.swap(at, Ordering::Relaxed) != at
        {
            self.force_sweep();
        }
    }
}
