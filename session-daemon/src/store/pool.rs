//! The pool of free pages: a stack of those that were used before, and behind it those that never
//! were. It owns its words; it never knows what a page was used for.
//!
//! A page is taken in two steps. One is counted, if the limit allows it; then there is one for who
//! has counted it, in the stack or behind it, because pages are put into the stack before they are
//! taken off the count. So nobody waits, and the limit is exact.
#![forbid(unsafe_code)]

use crate::store::sync::{AtomicU32, AtomicU64, Ordering};

/// Number of no page.
pub(super) const NO_PAGE: u32 = u32::MAX;

/// A page from the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TakenPage {
    pub(super) page: u32,
    /// Untouched since the region was mapped: all zeros.
    pub(super) fresh: bool,
}

/// The pool's words.
///
/// ```text
/// head   63      32 31    0
///       | version  | page  |    first page of the stack, or NO_PAGE
/// ```
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Pool {
    head: AtomicU64,
    /// Pages that are handed out, or are just about to be.
    used: AtomicU32,
    /// Pages from this one on were never handed out.
    fresh: AtomicU32,
}

fn head_of(before: u64, page: u32) -> u64 {
    (before >> 32).wrapping_add(1) << 32 | u64::from(page)
}

impl Pool {
    /// Makes it one with an empty stack, `used` pages handed out, and those from `fresh` on never.
    /// Nobody else has it.
    pub(super) fn format(&self, used: u32, fresh: u32) {
        // Relaxed throughout: nobody else has it.
        self.head.store(u64::from(NO_PAGE), Ordering::Relaxed);
        self.used.store(used, Ordering::Relaxed);
        self.fresh.store(fresh, Ordering::Relaxed);
    }

    /// Pages that are handed out.
    pub(super) fn used(&self) -> u32 {
        // Relaxed: a count that changes at any time.
        self.used.load(Ordering::Relaxed)
    }

    /// Pages from this one on were never handed out.
    pub(super) fn fresh(&self) -> u32 {
        // Relaxed: as in `used`.
        self.fresh.load(Ordering::Relaxed)
    }

    /// The first page of the stack, or [`NO_PAGE`].
    pub(super) fn head(&self) -> u32 {
        // Acquire: its link was written before; pairs with `give`.
        self.head.load(Ordering::Acquire) as u32
    }

    /// Takes a page, if fewer than `limit` of the `pages` that there are have been taken; there
    /// may become more. `next` is the word that links a page of the stack to the next.
    pub(super) fn take<'a>(
        &self,
        limit: u32,
        pages: impl Fn() -> u32,
        next: impl Fn(u32) -> &'a AtomicU32,
    ) -> Option<TakenPage> {
        let more = |used: u32| (used < limit.min(pages())).then_some(used + 1);
        // Acquire: who gave the page for which this counts had put it into the stack; pairs with
        // the Release in `give`.
        self.used.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        loop {
            if let Some(page) = self.pop(&next) {
                return Some(TakenPage { page, fresh: false });
            }
            let more = |fresh: u32| (fresh < pages()).then_some(fresh + 1);
            // Relaxed: nothing was ever written to a page that is fresh.
            let fresh = self.fresh.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            if let Ok(page) = fresh {
                return Some(TakenPage { page, fresh: true });
            }
            // Another thread has taken the last fresh one, and what it was counted for is in the
            // stack by now.
        }
    }

    fn pop<'a>(&self, next: impl Fn(u32) -> &'a AtomicU32) -> Option<u32> {
        // Acquire: the link of the page was written before; pairs with `give`.
        let mut seen = self.head.load(Ordering::Acquire);
        loop {
            let page = seen as u32;
            if page == NO_PAGE {
                return None;
            }
            // Relaxed: if the page was taken meanwhile this may be anything, and the swap fails.
            let behind = next(page).load(Ordering::Relaxed);
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            match self.head.compare_exchange(seen, head_of(seen, behind), success, failure) {
                Ok(_) => return Some(page),
                Err(other) => seen = other,
            }
        }
    }

    /// Gives a page back. `next` is its link.
    pub(super) fn give(&self, page: u32, next: &AtomicU32) {
        self.push(page, next);
        // Release: pairs with the Acquire in `take`.
        self.used.fetch_sub(1, Ordering::Release);
    }

    /// Puts a page into the stack that is not counted as handed out.
    pub(super) fn push(&self, page: u32, next: &AtomicU32) {
        // Relaxed: the swap decides.
        let mut seen = self.head.load(Ordering::Relaxed);
        loop {
            // Relaxed: published by the swap.
            next.store(seen as u32, Ordering::Relaxed);
            // AcqRel: pairs with the loads of the head; carries on what came before.
            let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
            match self.head.compare_exchange(seen, head_of(seen, page), success, failure) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }
}

#[cfg(all(test, not(session_model)))]
mod tests {
    use super::{AtomicU32, NO_PAGE, Pool, TakenPage};

    #[test]
    fn the_limit_is_exact_and_pages_come_again() {
        let pool = Pool::default();
        pool.format(0, 0);
        let links: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
        let take = |limit| pool.take(limit, || 4, |page| &links[page as usize]);
        let fresh = |page| Some(TakenPage { page, fresh: true });
        assert_eq!([take(3), take(3), take(3), take(3)], [fresh(0), fresh(1), fresh(2), None]);
        pool.give(1, &links[1]);
        pool.give(0, &links[0]);
        assert_eq!(take(3), Some(TakenPage { page: 0, fresh: false }));
        assert_eq!(take(3), Some(TakenPage { page: 1, fresh: false }));
        assert_eq!((take(3), take(9), take(9)), (None, fresh(3), None));
        assert_eq!((pool.used(), pool.fresh(), pool.head()), (4, 4, NO_PAGE));
    }
}
