//! Pages and chunks: the pool of free pages, the pages of each class, the workers' magazines.
//! It owns who may write to which chunk; it never knows what is in one.
//!
//! A lock of a class or of the pool is held for a few dozen instructions and never while another
//! lock is taken. Lookups take none.
#![forbid(unsafe_code)]

use crate::store::Store;
use crate::store::classes::LINE_CLASS;
use crate::store::failpoint::step;
use crate::store::layout::{ClassMeta, NO_PAGE, PageMeta, PageState, Superblock};
use crate::store::sync::{AtomicU32, AtomicU64, Ordering, WordGuard, lock_word};

/// Most chunks in a worker's magazine of one class.
pub(super) const MAGAZINE_CHUNKS_MAX: usize = 16;
/// Most bytes of chunks in a worker's magazine of one class.
const MAGAZINE_LEN_MAX: usize = 4096;
/// Share of the limit that all magazines together may hold.
const MAGAZINES_SHARE: usize = 16;

/// An empty page stays with its class unless the class has this many free chunks beside it.
const SURPLUS_CHUNKS_MAX: u32 = 64;

/// A page from the pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct TakenPage {
    pub(super) page: u32,
    /// Untouched since the region was mapped: all zeros.
    pub(super) fresh: bool,
}

/// Free chunks that one worker took ahead. Others may take them away: each place is emptied by a
/// swap, and filled by the owner alone.
#[derive(Debug)]
pub(super) struct Magazines {
    places: Box<[AtomicU64]>,
}

impl Magazines {
    pub(super) fn new(classes: u32) -> Self {
        let places = classes as usize * MAGAZINE_CHUNKS_MAX;
        Self { places: (0..places).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn of(&self, class: u32) -> &[AtomicU64] {
        let start = class as usize * MAGAZINE_CHUNKS_MAX;
        &self.places[start..start + MAGAZINE_CHUNKS_MAX]
    }
}

/// Plain reads and writes of fields that a lock guards.
trait Guarded {
    fn get(&self) -> u32;
    fn put(&self, value: u32);
}

impl Guarded for AtomicU32 {
    fn get(&self) -> u32 {
        // Relaxed: ordered by the lock that guards the field.
        self.load(Ordering::Relaxed)
    }

    fn put(&self, value: u32) {
        // Relaxed: as in `get`.
        self.store(value, Ordering::Relaxed);
    }
}

impl Store {
    pub(super) fn superblock(&self) -> &Superblock {
        self.region.shared(0)
    }

    pub(super) fn page_meta(&self, page: u32) -> &PageMeta {
        self.region.shared(self.layout.page_meta(page))
    }

    pub(super) fn class_meta(&self, class: u32) -> &ClassMeta {
        self.region.shared(self.layout.class_meta(class))
    }

    pub(super) fn page_state(&self, page: u32) -> PageState {
        // Acquire: what the page is used for was written before; pairs with the Release stores of
        // states below.
        PageState::from_word(self.page_meta(page).state.load(Ordering::Acquire))
    }

    pub(super) fn set_page_state(&self, page: u32, state: PageState) {
        // Release: pairs with the Acquire in `page_state`.
        self.page_meta(page).state.store(state.to_word(), Ordering::Release);
    }

    /// Chunks in a page of `class`.
    pub(super) fn chunks_per_page(&self, class: u32) -> u32 {
        (self.layout.page_len() / self.classes.size(class)) as u32
    }

    /// Offset of a chunk.
    pub(super) fn chunk(&self, page: u32, class: u32, idx: u32) -> u64 {
        self.layout.page(page) + u64::from(idx) * self.classes.size(class) as u64
    }

    /// How many chunks of `class` a magazine holds.
    pub(super) fn magazine_capacity(&self, class: u32) -> usize {
        let magazines = self.epochs.workers() * self.classes.count() as usize;
        let fair = self.config.memory_limit / MAGAZINES_SHARE / magazines;
        (fair.min(MAGAZINE_LEN_MAX) / self.classes.size(class)).min(MAGAZINE_CHUNKS_MAX)
    }

    /// Takes a page from the pool.
    pub(super) fn pool_take(&self) -> Option<TakenPage> {
        let pool = self.superblock();
        let _guard = lock_word(&pool.pool_lock);
        if self.pool_used() >= self.limit.pages() {
            return None;
        }
        let head = pool.pool_head.get();
        if head != NO_PAGE {
            pool.pool_head.put(self.page_meta(head).next.get());
            pool.pool_len.put(pool.pool_len.get() - 1);
            step("page: taken");
            return Some(TakenPage { page: head, fresh: false });
        }
        let page = pool.pool_fresh.get();
        if page == self.page_count() {
            return None;
        }
        pool.pool_fresh.put(page + 1);
        Some(TakenPage { page, fresh: true })
    }

    /// Gives a page to the pool. No turn may still know it as anything else.
    pub(super) fn pool_give(&self, page: u32) {
        self.set_page_state(page, PageState::Free);
        let pool = self.superblock();
        let _guard = lock_word(&pool.pool_lock);
        self.page_meta(page).next.put(pool.pool_head.get());
        pool.pool_head.put(page);
        pool.pool_len.put(pool.pool_len.get() + 1);
    }

    /// Gives a page that has drained to the class for which it was taken, or else to the pool. No
    /// turn may still know it as anything else.
    fn pass_on(&self, page: u32) {
        match self.asked_for.take(page) {
            Some(class) => self.class_add_page(class, page),
            None => self.pool_give(page),
        }
    }

    /// Pages that the pool could give now.
    pub(super) fn pool_len(&self) -> u32 {
        let pool = self.superblock();
        let _guard = lock_word(&pool.pool_lock);
        self.limit.pages().saturating_sub(self.pool_used())
    }

    /// Pages that the pool has handed out. Exact under its lock.
    pub(super) fn pool_used(&self) -> u32 {
        let pool = self.superblock();
        pool.pool_fresh.get().saturating_sub(pool.pool_len.get())
    }

    /// Makes a page from the pool a page of `class`.
    pub(super) fn class_add_page(&self, class: u32, page: u32) {
        let meta = self.page_meta(page);
        let chunks = self.chunks_per_page(class);
        let of = self.class_meta(class);
        let _guard = lock_word(&of.lock);
        meta.free_head.put(0);
        meta.free.put(0);
        meta.carved.put(0);
        meta.drain_ripe.put(0);
        meta.sweepers.put(0);
        meta.unchecked.put(0);
        meta.deadline_s.put(u32::MAX);
        self.set_page_state(page, PageState::Slab(class));
        step("page: of a class");
        self.ring_insert(of, page);
        self.partial_insert(of, page);
        of.pages.put(of.pages.get() + 1);
        of.free.put(of.free.get() + chunks);
    }

    /// Puts a page of `class` whose chunks are listed into the lists of its class.
    pub(super) fn class_adopt_page(&self, class: u32, page: u32) {
        let meta = self.page_meta(page);
        let of = self.class_meta(class);
        let _guard = lock_word(&of.lock);
        let free = meta.free.get() + self.chunks_per_page(class) - meta.carved.get();
        self.ring_insert(of, page);
        if free > 0 {
            self.partial_insert(of, page);
        }
        of.pages.put(of.pages.get() + 1);
        of.free.put(of.free.get() + free);
    }

    /// Puts a page of `class` of which it is not known which chunks are free into the lists of its
    /// class. Nobody else has the store.
    pub(super) fn class_adopt_unchecked(&self, class: u32, page: u32) {
        let meta = self.page_meta(page);
        for field in [&meta.free_head, &meta.free, &meta.drain_ripe, &meta.sweepers] {
            field.put(0);
        }
        meta.unchecked.put(1);
        // The sweep looks for itself: the word may have been between two values.
        meta.deadline_s.put(0);
        self.set_page_state(page, PageState::Slab(class));
        let of = self.class_meta(class);
        self.ring_insert(of, page);
        if class != LINE_CLASS {
            self.partial_insert(of, page);
        }
        of.pages.put(of.pages.get() + 1);
    }

    /// Gives a page that was not checked its list of free chunks. Needs the class lock.
    pub(super) fn class_list_page(&self, class: u32, page: u32, head: u32, free: u32) {
        let meta = self.page_meta(page);
        let of = self.class_meta(class);
        meta.free_head.put(head);
        meta.free.put(free);
        let free = free + self.chunks_per_page(class) - meta.carved.get();
        of.free.put(of.free.get() + free);
        match class {
            LINE_CLASS if free > 0 => self.partial_insert(of, page),
            LINE_CLASS => {}
            _ if free == 0 => self.partial_remove(of, page),
            _ => {}
        }
    }

    /// The page of `class` that has to be checked before chunks are taken of it.
    pub(super) fn class_unchecked(&self, class: u32) -> Option<u32> {
        if !self.is_checking() {
            return None;
        }
        let _guard = self.class_lock(class);
        let page = self.class_meta(class).partial.get();
        (page != NO_PAGE && self.page_meta(page).unchecked.get() == 1).then_some(page)
    }

    /// Takes the lock of a class.
    pub(super) fn class_lock(&self, class: u32) -> WordGuard<'_> {
        lock_word(&self.class_meta(class).lock)
    }

    /// Makes a chunk the head of a page's list of free chunks, before `head` (number and one).
    pub(super) fn list_chunk(&self, chunk: u64, head: u32) {
        // Relaxed: read by others under the class lock, or by a scan for which 0 is no item.
        self.region.word(chunk).store(0, Ordering::Relaxed);
        self.region.word(chunk + 8).store(u64::from(head), Ordering::Relaxed);
    }

    /// Takes an overflow line, by the pages that are there or from the pool.
    pub(super) fn take_line(&self) -> Option<u64> {
        let mut line = [0];
        while self.class_take(LINE_CLASS, &mut line) == 0 {
            self.class_add_page(LINE_CLASS, self.pool_take()?.page);
        }
        Some(line[0])
    }

    /// Takes up to `chunks.len()` free chunks of `class`; returns how many.
    pub(super) fn class_take(&self, class: u32, chunks: &mut [u64]) -> usize {
        let of = self.class_meta(class);
        let per_page = self.chunks_per_page(class);
        let _guard = lock_word(&of.lock);
        let mut taken = 0;
        while taken < chunks.len() {
            let page = of.partial.get();
            // Behind one that was not checked none is looked for: it is checked next.
            if page == NO_PAGE || self.page_meta(page).unchecked.get() != 0 {
                break;
            }
            let meta = self.page_meta(page);
            chunks[taken] = self.page_take(page, class);
            taken += 1;
            if meta.free_head.get() == 0 && meta.carved.get() == per_page {
                self.partial_remove(of, page);
            }
        }
        of.free.put(of.free.get() - taken as u32);
        taken
    }

    /// Takes a chunk of a page that has one.
    fn page_take(&self, page: u32, class: u32) -> u64 {
        let meta = self.page_meta(page);
        let head = meta.free_head.get();
        if head == 0 {
            let idx = meta.carved.get();
            let chunk = self.chunk(page, class, idx);
            // Relaxed: the scan of a page reads this only after it has read `carved` under the
            // class lock, which orders the two. The page may hold a former use's bytes.
            self.region.word(chunk).store(0, Ordering::Relaxed);
            step("chunk: carved");
            // Release: whatever ends the process, no chunk below `carved` shows a former use.
            meta.carved.store(idx + 1, Ordering::Release);
            return chunk;
        }
        let chunk = self.chunk(page, class, head - 1);
        // Relaxed: written under the same class lock by `class_give`.
        let next = self.region.word(chunk + 8).load(Ordering::Relaxed);
        meta.free_head.put(next as u32);
        meta.free.put(meta.free.get() - 1);
        chunk
    }

    /// Gives a chunk that nobody can know any more back to its page. Returns the page and its
    /// class if that left it empty and the class has room enough without it.
    pub(super) fn class_give(&self, chunk: u64) -> Option<(u32, u32)> {
        let page = self.layout.page_of(chunk);
        let (PageState::Slab(class) | PageState::Draining(class)) = self.page_state(page) else {
            unreachable!("a chunk lies in a page of a class")
        };
        let idx = (chunk - self.layout.page(page)) / self.classes.size(class) as u64;
        let of = self.class_meta(class);
        let per_page = self.chunks_per_page(class);
        let guard = lock_word(&of.lock);
        let meta = self.page_meta(page);
        self.list_chunk(chunk, meta.free_head.get());
        if meta.free_head.get() == 0
            && meta.carved.get() == per_page
            && self.page_state(page) == PageState::Slab(class)
        {
            self.partial_insert(of, page);
        }
        meta.free_head.put(idx as u32 + 1);
        meta.free.put(meta.free.get() + 1);
        if self.page_state(page) == PageState::Slab(class) {
            of.free.put(of.free.get() + 1);
            let surplus = meta.free.get() == meta.carved.get()
                && of.free.get() >= per_page + per_page.min(SURPLUS_CHUNKS_MAX);
            return surplus.then_some((page, class));
        }
        let drained = self.is_drained(page);
        drop(guard);
        if drained {
            self.pass_on(page);
        }
        None
    }

    /// Whether a draining page is empty and unknown to all turns. Needs the class lock, under
    /// which such a page ceases to drain. So true only once: the caller gives it to the pool.
    fn is_drained(&self, page: u32) -> bool {
        let meta = self.page_meta(page);
        let drained = meta.drain_ripe.get() == 1
            && meta.sweepers.get() == 0
            && meta.free.get() == meta.carved.get();
        if drained {
            self.set_page_state(page, PageState::Retired);
            step("drain: drained");
        }
        drained
    }

    /// Stops allocation from a page of `class`; false when it is not such a page any more. The
    /// caller retires the [`Retired::DrainMark`](crate::store::epoch::Retired::DrainMark).
    pub(super) fn class_mark_draining(&self, class: u32, page: u32) -> bool {
        self.class_mark_draining_if(class, page, |_| true)
    }

    /// [`Store::class_mark_draining`] for a page that holds nothing at the moment of the mark, so
    /// that draining it removes nothing.
    pub(super) fn class_mark_empty_draining(&self, class: u32, page: u32) -> bool {
        self.class_mark_draining_if(class, page, |meta| meta.free.get() == meta.carved.get())
    }

    fn class_mark_draining_if(
        &self,
        class: u32,
        page: u32,
        may: impl FnOnce(&PageMeta) -> bool,
    ) -> bool {
        let of = self.class_meta(class);
        let _guard = lock_word(&of.lock);
        let meta = self.page_meta(page);
        let is_checked = meta.unchecked.get() == 0;
        if self.page_state(page) != PageState::Slab(class) || !is_checked || !may(meta) {
            return false;
        }
        let per_page = self.chunks_per_page(class);
        if meta.free_head.get() != 0 || meta.carved.get() < per_page {
            self.partial_remove(of, page);
        }
        self.ring_remove(of, page);
        of.pages.put(of.pages.get() - 1);
        of.free.put(of.free.get() - (meta.free.get() + per_page - meta.carved.get()));
        self.set_page_state(page, PageState::Draining(class));
        step("drain: marked");
        true
    }

    /// The turns from before the mark have ended.
    pub(super) fn drain_mark_ripe(&self, page: u32) {
        let PageState::Draining(class) = self.page_state(page) else {
            unreachable!("a marked page drains until it is given to the pool")
        };
        let meta = self.page_meta(page);
        let guard = lock_word(&self.class_meta(class).lock);
        meta.drain_ripe.put(1);
        let drained = self.is_drained(page);
        drop(guard);
        if drained {
            self.pass_on(page);
        }
    }

    /// Keeps a draining page from the pool while the caller walks it. Returns how many of its
    /// chunks have ever been handed out; `None` when it does not drain any more.
    pub(super) fn drain_walk_begin(&self, class: u32, page: u32) -> Option<u32> {
        let _guard = lock_word(&self.class_meta(class).lock);
        let meta = self.page_meta(page);
        // Exact: a page begins and ceases to drain under this lock only.
        (self.page_state(page) == PageState::Draining(class)).then(|| {
            meta.sweepers.put(meta.sweepers.get() + 1);
            meta.carved.get()
        })
    }

    /// Ends what [`Store::drain_walk_begin`] began.
    pub(super) fn drain_walk_end(&self, class: u32, page: u32) {
        let guard = lock_word(&self.class_meta(class).lock);
        let meta = self.page_meta(page);
        meta.sweepers.put(meta.sweepers.get() - 1);
        let drained = self.is_drained(page);
        drop(guard);
        if drained {
            self.pass_on(page);
        }
    }

    /// Chunks of a page of `class` that have been handed out at least once.
    pub(super) fn page_carved(&self, class: u32, page: u32) -> u32 {
        let _guard = lock_word(&self.class_meta(class).lock);
        self.page_meta(page).carved.get()
    }

    /// The chunks that the clock's hand of `class` passes next: page, first chunk, number.
    pub(super) fn class_claim(&self, class: u32, most: u32) -> Option<(u32, u32, u32)> {
        let of = self.class_meta(class);
        let _guard = lock_word(&of.lock);
        let mut page = of.hand_page.get();
        if page == NO_PAGE {
            page = of.ring.get();
            if page == NO_PAGE {
                return None;
            }
            of.hand_chunk.put(0);
        }
        let first = of.hand_chunk.get();
        let carved = self.page_meta(page).carved.get();
        let count = most.min(carved.saturating_sub(first));
        if first + count >= carved {
            of.hand_page.put(self.page_meta(page).next.get());
            of.hand_chunk.put(0);
        } else {
            of.hand_page.put(page);
            of.hand_chunk.put(first + count);
        }
        Some((page, first, count))
    }

    fn ring_insert(&self, of: &ClassMeta, page: u32) {
        let meta = self.page_meta(page);
        let head = of.ring.get();
        if head == NO_PAGE {
            meta.next.put(page);
            meta.prev.put(page);
            of.ring.put(page);
            return;
        }
        // Behind the hand, so that new pages are swept last.
        let next = if of.hand_page.get() == NO_PAGE { head } else { of.hand_page.get() };
        let prev = self.page_meta(next).prev.get();
        meta.next.put(next);
        meta.prev.put(prev);
        self.page_meta(prev).next.put(page);
        self.page_meta(next).prev.put(page);
    }

    fn ring_remove(&self, of: &ClassMeta, page: u32) {
        let meta = self.page_meta(page);
        let (next, prev) = (meta.next.get(), meta.prev.get());
        if next == page {
            of.ring.put(NO_PAGE);
            of.hand_page.put(NO_PAGE);
            return;
        }
        self.page_meta(prev).next.put(next);
        self.page_meta(next).prev.put(prev);
        if of.ring.get() == page {
            of.ring.put(next);
        }
        if of.hand_page.get() == page {
            of.hand_page.put(next);
            of.hand_chunk.put(0);
        }
    }

    fn partial_insert(&self, of: &ClassMeta, page: u32) {
        let meta = self.page_meta(page);
        let head = of.partial.get();
        meta.partial_next.put(head);
        meta.partial_prev.put(NO_PAGE);
        if head != NO_PAGE {
            self.page_meta(head).partial_prev.put(page);
        }
        of.partial.put(page);
    }

    fn partial_remove(&self, of: &ClassMeta, page: u32) {
        let meta = self.page_meta(page);
        let (next, prev) = (meta.partial_next.get(), meta.partial_prev.get());
        if prev == NO_PAGE {
            of.partial.put(next);
        } else {
            self.page_meta(prev).partial_next.put(next);
        }
        if next != NO_PAGE {
            self.page_meta(next).partial_prev.put(prev);
        }
    }
}
