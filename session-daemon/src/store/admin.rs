//! What an administrator may do to a store: take pages from classes, change its limit, have it
//! swept, be told of evictions. It owns none of the mechanisms.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::classes::ITEM_CLASS_FIRST;
use crate::store::counters::Count;
use crate::store::item::{State, Times};
use crate::store::layout::Layout;
use crate::store::reader::second;
use crate::store::reuse::Worth;
use crate::store::stats::Evicted;
use crate::store::sync::{AtomicU32, AtomicUsize, Ordering, TryMutex};
use crate::store::types::{ClientFlags, LimitError, Reassigned};
use crate::store::{HEADER_LEN, Store, Worker};
use std::io;

/// Evictions of one turn that are told; further ones are left out.
const EVICTED_MAX: usize = 256;

/// How much of the region may be used (`cache_memlimit`).
#[derive(Debug)]
pub(super) struct Limit {
    bytes: AtomicUsize,
    pages: AtomicU32,
    changing: TryMutex<()>,
}

impl Limit {
    pub(super) fn new(bytes: usize, pages: u32) -> Self {
        let (bytes, pages) = (AtomicUsize::new(bytes), AtomicU32::new(pages));
        Self { bytes, pages, changing: TryMutex::new(()) }
    }

    /// Pages that the pool may hand out.
    pub(super) fn pages(&self) -> u32 {
        // Relaxed: a limit that changes at some moment.
        self.pages.load(Ordering::Relaxed)
    }
}

/// Fewest pages that a limit leaves.
const LIMIT_PAGES_MIN: u32 = 24;

impl Store {
    /// `-m` in bytes, as it was changed last.
    #[must_use]
    pub fn memory_limit(&self) -> usize {
        self.limit.bytes.load(Ordering::Relaxed)
    }

    /// Changes the limit. Above the present use it holds at once; below it, items go page by page
    /// until it does. A file gets its memory first, which takes the kernel a moment.
    ///
    /// # Errors
    /// It is too small to work with, there is no room or no memory for it, or another is being set.
    pub fn set_memory_limit(&self, bytes: usize) -> Result<(), LimitError> {
        // Whoever takes memory for a file may have the lock for long.
        let _one = self.limit.changing.try_lock().ok_or(LimitError::Busy)?;
        let wanted = Layout::again(bytes, self.layout)?;
        let wanted = wanted.ok_or(LimitError::NoRoom)?;
        if wanted.region_len() as u64 > self.region.len() {
            return Err(LimitError::NoRoom);
        }
        if wanted.pages > self.page_count() {
            self.grow_region(wanted).map_err(LimitError::Memory)?;
        }
        let pages = self.layout.with_pages(self.page_count()).pages_within(bytes);
        if pages < LIMIT_PAGES_MIN {
            return Err(LimitError::TooSmall);
        }
        // Relaxed: as in `Limit::pages`.
        self.limit.bytes.store(bytes, Ordering::Relaxed);
        self.limit.pages.store(pages, Ordering::Relaxed);
        self.superblock().limit_set.store(bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the region the pages of `wanted`, which has more than there are. Nobody else does.
    fn grow_region(&self, wanted: Layout) -> io::Result<()> {
        let before = self.layout.with_pages(self.page_count());
        let part = before.region_len() as u64..wanted.region_len() as u64;
        match &self.memory {
            Some(memory) => {
                memory.extend(&before, &wanted)?;
                self.region.open_file(&memory.file, part)?;
            }
            None => self.region.open(part)?,
        }
        self.clear_tables(before.pages..wanted.pages);
        // Release: pairs with the Acquire in `page_count`; a start that sees it in the superblock
        // finds the file long enough.
        self.superblock().pages.store(wanted.pages, Ordering::Release);
        self.pages.store(wanted.pages, Ordering::Release);
        Ok(())
    }

    /// Whether more pages are in use than the limit has.
    pub(super) fn is_over_limit(&self) -> bool {
        let over = self.pool_used().saturating_sub(self.limit.pages()) as usize;
        // What drains is on its way.
        over > 0 && over > self.pages_draining() + self.pages_ripening()
    }

    /// The class of an item of these lengths.
    #[must_use]
    pub fn class_of(&self, key_len: usize, flags: ClientFlags, value_len: usize) -> u32 {
        let flags_len = if flags.0 == 0 { 0 } else { size_of::<u32>() };
        let len = (HEADER_LEN + key_len + flags_len).saturating_add(value_len);
        if len > self.classes.chunk_max() { self.classes.last() } else { self.classes.of(len) }
    }

    /// Has every page looked through for dead items soon.
    pub fn sweep_all(&self) {
        self.force_sweep();
    }

    /// The class that has most pages.
    fn largest_class(&self) -> u32 {
        let pages = |class: &u32| self.class_meta(*class).pages.load(Ordering::Relaxed);
        (ITEM_CLASS_FIRST..self.classes.count()).max_by_key(pages).unwrap_or(ITEM_CLASS_FIRST)
    }
}

impl Worker {
    /// Takes a page from class `from` (-1: from the class with most pages), for class `to` (0: for
    /// the pool). Its items go; the page is the other class's when nobody reads it any more.
    pub fn reassign(&mut self, from: i32, to: i32, now: Now) -> Reassigned {
        self.begin();
        let store = self.shared();
        let class = |id: i32| u32::try_from(id).ok().filter(|id| *id < store.classes.count());
        match (from, to) {
            _ if from == to => return Reassigned::Same,
            // The pool has nothing but free pages.
            (0, to) if class(to).is_some() => return Reassigned::NoSpare,
            _ => {}
        }
        let from = if from == -1 { Some(store.largest_class()) } else { class(from) };
        let (Some(from @ 1..), Some(to)) = (from, class(to)) else { return Reassigned::BadClass };
        if from == to {
            return Reassigned::Same;
        }
        if store.drains() {
            return Reassigned::Running;
        }
        if !self.give_page(from, to) {
            return Reassigned::NoSpare;
        }
        self.drain_some(now);
        self.quiesce();
        Reassigned::Begun { from }
    }

    /// Has a page of a class drained for another, or for the pool; false if none can be spared.
    fn give_page(&self, from: u32, to: u32) -> bool {
        let store = self.shared();
        let meta = store.class_meta(from);
        // Relaxed: a hint; marking is exact.
        if meta.pages.load(Ordering::Relaxed) < 2 {
            return false;
        }
        let Some(page) = store.page_of_class(from) else { return false };
        let drains = self.drain(page, from, Worth::NONE, Some(to));
        if drains {
            self.count(from, Count::PagesMoved, 1);
        }
        drains
    }

    /// Begins to empty a page while the store is over a limit that was lowered. True if it did.
    pub(super) fn shrink(&mut self, now: Now) -> bool {
        self.shared().is_over_limit() && self.make_room(None, now)
    }

    /// Whether evictions are to be told.
    pub fn note_evictions(&mut self, on: bool) {
        self.evicted_noted = on;
    }

    /// The evictions since this was called last, as far as they were to be told.
    pub fn take_evicted(&mut self) -> Vec<Evicted> {
        std::mem::take(self.evicted.get_mut())
    }

    /// Notes an item that goes to make room; its memory is still kept by this turn.
    pub(super) fn note_evicted(&self, item: u64, state: State, times: Times, now: Now) {
        let mut evicted = self.evicted.borrow_mut();
        if evicted.len() >= EVICTED_MAX {
            return;
        }
        let now_s = second(now);
        let exptime_s = times.exptime_s();
        evicted.push(Evicted {
            key: self.shared().item_key(item).into(),
            fetched: state.is_fetched(),
            ttl_s: (exptime_s != 0).then(|| exptime_s.saturating_sub(now_s)),
            age_s: now_s.saturating_sub(times.last_access_s()),
            class: state.class(),
            value_len: state.value_len(),
        });
    }
}
