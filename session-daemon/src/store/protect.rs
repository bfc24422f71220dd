//! Protected keys: which they are, how much of the store they hold, and whether a page that holds
//! some of them can be given up. It removes nothing; evict.rs and rebalance.rs ask it.
//!
//! What is protected follows from the key alone, so an item carries no mark, and another start
//! may protect other keys of the same memory file.
#![forbid(unsafe_code)]

use crate::store::classes::LINE_CLASS;
use crate::store::counters::Count;
use crate::store::item::{Piece, State};
use crate::store::layout::PageState;
use crate::store::recover::threads;
use crate::store::sync::{AtomicBool, AtomicU32, Ordering};
use crate::store::{Store, Worker};
use std::thread;

/// Most prefixes: each is compared with the key of every item that is stored.
pub const PROTECTED_PREFIXES_MAX: usize = 16;
/// A page's chunk of an item in pieces, which cannot move. Chunks of other items count 1.
const FIXED: u32 = 1 << 16;
/// A class with so small a part of ordinary items takes pages of others before it looks for them.
const ORDINARY_SHARE: u64 = 8;
/// Pages that a thread counts in one go.
const PAGES_PER_CLAIM: u32 = 16;

/// What is protected, and where it stands.
#[derive(Debug)]
pub(super) struct Protection {
    prefixes: Box<[Box<[u8]>]>,
    percent: u8,
    /// For each page the chunks that protected items have there.
    pages: Box<[AtomicU32]>,
}

impl Protection {
    fn covers(&self, key: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| key.starts_with(prefix))
    }
}

/// What protected items are and hold now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protected {
    /// Items.
    pub items: u64,
    /// Bytes of memory that they take.
    pub bytes: u64,
    /// Bytes up to which they are protected.
    pub bytes_max: u64,
    /// Items that were evicted although they had not ended.
    pub lost: u64,
}

impl Store {
    /// Evicts items whose keys begin with one of these prefixes only after all others, as long as
    /// they take no more than `percent` of the memory limit. Counts those that are there, or has
    /// the check count them that goes on behind the start. To be called once, before the first
    /// worker is made.
    ///
    /// # Panics
    /// When there is a worker, or something is protected already.
    pub fn protect(&self, prefixes: &[Box<[u8]>], percent: u8) {
        // Relaxed: by the promise of the caller there is nobody else.
        let taken = |taken: &AtomicBool| taken.load(Ordering::Relaxed);
        assert!(!self.workers.iter().any(|worker| taken(&worker.taken)), "no worker exists");
        // Zeros from the allocator cost no memory before they are counted on.
        let pages = vec![0; self.layout.pages_max as usize];
        let pages = pages.into_iter().map(AtomicU32::new).collect();
        let protection = Protection { prefixes: prefixes.into(), percent, pages };
        assert!(self.protection.set(protection).is_ok(), "protected once");
        if !self.is_checking() {
            self.count_what_is_there();
        }
    }

    /// Counts the protected items of a store that nobody uses yet. Each thread has the counters of
    /// a worker that does not exist yet.
    fn count_what_is_there(&self) {
        let next = AtomicU32::new(0);
        let next = &next;
        thread::scope(|scope| {
            for worker in 0..threads().min(self.workers.len()) {
                scope.spawn(move || self.count_pages(worker, next));
            }
        });
    }

    fn count_pages(&self, worker: usize, next: &AtomicU32) {
        loop {
            // Relaxed: the threads meet nowhere else, and their end is waited for.
            let first = next.fetch_add(PAGES_PER_CLAIM, Ordering::Relaxed);
            if first >= self.layout.pages {
                return;
            }
            for page in first..self.layout.pages.min(first + PAGES_PER_CLAIM) {
                self.each_item(page, |item, state| {
                    if self.is_protected(item) {
                        self.note_head(worker, item, state, true);
                        self.pieces_of(item, state).for_each(|piece| self.note_piece(piece, true));
                    }
                });
            }
        }
    }

    /// The items of a page of a store in which nothing moves.
    fn each_item(&self, page: u32, mut take: impl FnMut(u64, State)) {
        let (PageState::Slab(class) | PageState::Draining(class)) = self.page_state(page) else {
            return;
        };
        if class == LINE_CLASS {
            return;
        }
        for idx in 0..self.page_carved(page) {
            let chunk = self.chunk(page, class, idx);
            let state = self.item_state(chunk);
            if state.is_linked() && self.item_times(chunk).successor().is_none() {
                take(chunk, state);
            }
        }
    }

    /// Whether an item that the caller's turn protects from reuse has a protected key.
    pub(super) fn is_protected(&self, item: u64) -> bool {
        self.protection.get().is_some_and(|protection| protection.covers(self.item_key(item)))
    }

    /// What protected items hold; none when nothing is protected.
    #[must_use]
    pub fn protected(&self) -> Option<Protected> {
        self.protection.get()?;
        let lost = self.sum_of(Count::ProtectedLost);
        let items = (0..self.classes.count()).map(|class| self.protected_of(class));
        Some(Protected {
            items: items.sum(),
            bytes: self.protected_bytes(),
            bytes_max: self.protected_bytes_max(),
            lost,
        })
    }

    fn protected_bytes_max(&self) -> u64 {
        let percent = self.protection.get().map_or(0, |protection| protection.percent);
        self.memory_limit() as u64 / 100 * u64::from(percent)
    }

    /// Bytes of protected items, as far as the workers have written them down.
    fn protected_bytes(&self) -> u64 {
        self.gauge(LINE_CLASS, Count::ProtectedBytes)
    }

    /// Protected items whose heads are in a class.
    fn protected_of(&self, class: u32) -> u64 {
        self.gauge(class, Count::ProtectedItems)
    }

    /// Sum of a gauge that went up and down in different workers.
    fn gauge(&self, class: u32, count: Count) -> u64 {
        // Below 0 while one worker's part of a replacement is seen and another's is not.
        let sum = self.class_sum(class, count);
        if sum > u64::MAX / 2 { 0 } else { sum }
    }

    /// Notes an item of which the check behind a start has found that it was there at the start;
    /// perhaps it has ended since. The counters are the calling worker's.
    pub(super) fn protected_found(&self, worker: usize, item: u64, state: State) {
        if self.is_protected(item) {
            self.note_head(worker, item, state, true);
        }
    }

    /// Notes that an item with a protected key was linked, or is not any more; its pieces are noted
    /// by themselves, when they become the item's and when they cease to be. The counters are the
    /// calling worker's.
    fn note_head(&self, worker: usize, item: u64, state: State, linked: bool) {
        let counters = &self.workers[worker].counters;
        let sign = if linked { 1 } else { u64::MAX };
        let len =
            if state.is_extent() { state.item_len() } else { self.classes.size(state.class()) };
        counters.add(state.class(), Count::ProtectedItems, sign);
        counters.add(LINE_CLASS, Count::ProtectedBytes, (len as u64).wrapping_mul(sign));
        self.note_chunk(item, if state.is_extent() { FIXED } else { 1 }, linked);
    }

    /// Notes that a piece became one of a protected item, or is none any more.
    pub(super) fn note_piece(&self, piece: u64, owned: bool) {
        self.note_chunk(piece, FIXED, owned);
    }

    fn note_chunk(&self, chunk: u64, by: u32, more: bool) {
        let Some(protection) = self.protection.get() else { return };
        let page = &protection.pages[self.layout.page_of(chunk) as usize];
        // Relaxed: a count that decides whether a page is looked at, not what is removed.
        page.fetch_add(if more { by } else { by.wrapping_neg() }, Ordering::Relaxed);
    }

    /// The pieces of an item in which nothing moves.
    fn pieces_of(&self, item: u64, state: State) -> impl Iterator<Item = u64> {
        let mut next = if state.is_extent() { self.item_link(item).first() } else { 0 };
        std::iter::from_fn(move || {
            let piece = (next != 0).then_some(next)?;
            // Relaxed: the chain was published with the item.
            next = Piece(self.region.word(piece).load(Ordering::Relaxed)).next();
            Some(piece)
        })
    }

    /// The protected chunks of a page: those that can move, and those that cannot.
    fn protected_in(&self, page: u32) -> (u32, u32) {
        let pages = self.protection.get().map(|protection| &protection.pages);
        // Relaxed: as in `note_chunk`.
        let count = pages.map_or(0, |pages| pages[page as usize].load(Ordering::Relaxed));
        (count % FIXED, count / FIXED)
    }

    /// What is wrong with the counts of a store in which nothing moves.
    pub(super) fn protected_miscounted(&self) -> Option<String> {
        let protection = self.protection.get()?;
        let (mut items, mut bytes) = (0, 0);
        let mut pages = vec![0_u32; protection.pages.len()];
        for page in 0..self.page_count() {
            self.each_item(page, |item, state| {
                if self.is_protected(item) {
                    items += 1;
                    let size = self.classes.size(state.class());
                    bytes += if state.is_extent() { state.item_len() } else { size } as u64;
                    pages[page as usize] += if state.is_extent() { FIXED } else { 1 };
                    for piece in self.pieces_of(item, state) {
                        pages[self.layout.page_of(piece) as usize] += FIXED;
                    }
                }
            });
        }
        let noted = self.protected()?;
        if (noted.items, noted.bytes) != (items, bytes) {
            return Some(format!("{items} protected items of {bytes} bytes, noted {noted:?}"));
        }
        let noted = protection.pages.iter().map(|page| page.load(Ordering::Relaxed));
        let wrong = noted.zip(pages).position(|(noted, found)| noted != found)?;
        Some(format!("page {wrong} does not hold as much of protected items as was noted"))
    }
}

impl Worker {
    /// Notes that an item was linked, if its key is protected.
    pub(super) fn protected_linked(&self, item: u64, state: State) {
        if self.protects && self.shared().is_protected(item) {
            self.shared().note_head(self.id, item, state, true);
        }
    }

    /// Notes that an item was taken out of the index, if its key is protected.
    pub(super) fn protected_unlinked(&self, item: u64, state: State) {
        if self.protects && self.shared().is_protected(item) {
            self.shared().note_head(self.id, item, state, false);
        }
    }

    /// Decides whether protected items are spared from now on: while they are within their share,
    /// and something else is there to go.
    pub(super) fn look_at_share(&self) {
        if self.protects {
            let store = self.shared();
            let within = store.protected_bytes() <= store.protected_bytes_max();
            self.sparing.set(within && !self.desperate.get());
        }
    }

    /// Does what needs room without regard to protection: nothing else is left.
    pub(super) fn unprotected<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.desperate.set(true);
        let done = work(self);
        self.desperate.set(false);
        done
    }

    /// Whether an item that the caller's turn protects from reuse must not go.
    pub(super) fn spares(&self, item: u64) -> bool {
        self.sparing.get() && self.shared().is_protected(item)
    }

    /// Whether hardly any item of a class may go.
    pub(super) fn spares_most_of(&self, class: u32) -> bool {
        if !self.sparing.get() {
            return false;
        }
        let store = self.shared();
        let items = store.class_sum(class, Count::Linked) - store.class_sum(class, Count::Unlinked);
        let ordinary = items.saturating_sub(store.protected_of(class));
        ordinary < items / ORDINARY_SHARE
    }

    /// Whether a page can be given up, and whether items have to move for that: protected ones,
    /// for which the class must have room elsewhere. A use that can wait asks for free chunks,
    /// any other for items that may go.
    pub(super) fn may_give_up(&self, page: u32, class: u32, can_wait: bool) -> Option<bool> {
        if !self.sparing.get() {
            return Some(false);
        }
        let store = self.shared();
        let (movable, fixed) = store.protected_in(page);
        if fixed > 0 {
            return None;
        }
        if movable == 0 {
            return Some(false);
        }
        let (meta, per_page) = (store.class_meta(class), store.chunks_per_page(class));
        // Relaxed: estimates; what finds no room stays where it is.
        let room = if can_wait {
            u64::from(meta.free.load(Ordering::Relaxed).saturating_sub(per_page - movable))
        } else {
            let pages = meta.pages.load(Ordering::Relaxed).saturating_sub(1);
            let elsewhere = store.protected_of(class).saturating_sub(movable.into());
            u64::from(pages * per_page).saturating_sub(elsewhere)
        };
        (room >= 2 * u64::from(movable)).then_some(true)
    }
}
