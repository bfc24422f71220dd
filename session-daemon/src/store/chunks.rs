//! A page's word: what the page is used for, and which of its chunks are free.
//! It owns the bits and every change of them: each is one compare-and-swap, so nobody waits for a
//! thread that has stopped. It asks a closure for the links of free chunks and knows no memory, so
//! that the model checker runs this code.
//!
//! ```text
//!  63        39 38  36 35   24 23    12 11     0
//! |  version   | kind |  out  | carved |  head  |
//! ```
//! carved: chunks below this have been handed out at least once; the others are as they came.
//! out: of those, how many are handed out now. head: the first of the free ones, its number and
//! one, 0 for none; the second word of a free chunk names the next in the same way. Every change
//! makes a new version: a list that came to the same head again is not taken for what was seen.
#![forbid(unsafe_code)]

use crate::store::sync::{AtomicU64, Ordering};

const CHUNK_BITS: u32 = 12;
const CHUNK_MASK: u64 = (1 << CHUNK_BITS) - 1;
const CARVED_SHIFT: u32 = CHUNK_BITS;
const OUT_SHIFT: u32 = 2 * CHUNK_BITS;
const KIND_SHIFT: u32 = 3 * CHUNK_BITS;
const KIND_MASK: u64 = 7;
const VERSION_SHIFT: u32 = KIND_SHIFT + 3;
/// Most chunks that a page can have.
pub(super) const CHUNKS_MAX: usize = CHUNK_MASK as usize;

/// What a page is used for, without the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Kind {
    Free,
    Index,
    Slab,
    Draining,
    Extent,
    Retired,
}

/// What a page's word said at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct View(u64);

impl View {
    pub(super) fn kind(self) -> Kind {
        match self.0 >> KIND_SHIFT & KIND_MASK {
            0 => Kind::Free,
            1 => Kind::Index,
            2 => Kind::Slab,
            3 => Kind::Draining,
            4 => Kind::Extent,
            _ => Kind::Retired,
        }
    }

    /// First free chunk, its number and one; 0 for none.
    pub(super) fn head(self) -> u32 {
        (self.0 & CHUNK_MASK) as u32
    }

    /// Chunks that have been handed out at least once.
    pub(super) fn carved(self) -> u32 {
        (self.0 >> CARVED_SHIFT & CHUNK_MASK) as u32
    }

    /// Chunks that are handed out.
    pub(super) fn out(self) -> u32 {
        (self.0 >> OUT_SHIFT & CHUNK_MASK) as u32
    }

    /// Chunks of `per_page` that could be handed out.
    pub(super) fn room(self, per_page: u32) -> u32 {
        per_page.saturating_sub(self.out())
    }

    /// The next version, with other contents.
    fn next(self, kind: Kind, out: u32, carved: u32, head: u32) -> u64 {
        let version = (self.0 >> VERSION_SHIFT).wrapping_add(1) << VERSION_SHIFT;
        version
            | (kind as u64) << KIND_SHIFT
            | u64::from(out) << OUT_SHIFT
            | u64::from(carved) << CARVED_SHIFT
            | u64::from(head)
    }
}

/// A page's word.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(super) struct PageWord(AtomicU64);

impl PageWord {
    pub(super) fn view(&self) -> View {
        // Acquire: what the page is used for was written before; pairs with the Release of every
        // change.
        View(self.0.load(Ordering::Acquire))
    }

    /// Makes a page one without chunks, or a page of a class none of whose chunks was handed out.
    /// The page is the caller's alone.
    pub(super) fn set(&self, kind: Kind) {
        self.become_one(kind, 0, 0, 0);
    }

    /// Makes it a page of a class of whose chunks it is not known yet which are free: none.
    /// The page is the caller's alone.
    pub(super) fn set_unlisted(&self) {
        let carved = self.view().carved();
        self.become_one(Kind::Slab, carved, carved, 0);
    }

    /// Says which chunks of a page are free: `free` of them, listed from `head` on. The page is of
    /// a class, and nobody takes or gives a chunk of it meanwhile.
    pub(super) fn list(&self, head: u32, free: u32) {
        let carved = self.view().carved();
        self.become_one(Kind::Slab, carved - free, carved, head);
    }

    /// Makes a page that drained one of its class again. Nobody else has the page.
    pub(super) fn reopen(&self) {
        let view = self.view();
        self.become_one(Kind::Slab, view.out(), view.carved(), view.head());
    }

    fn become_one(&self, kind: Kind, out: u32, carved: u32, head: u32) {
        // Release: whoever sees the page's new use sees what was made of it; pairs with `view`.
        self.0.store(self.view().next(kind, out, carved, head), Ordering::Release);
    }

    fn swap(&self, seen: View, new: u64) -> Result<View, View> {
        // AcqRel: chunks that are given are as their giver left them, for whoever takes them; a
        // chain of such swaps carries that on. Acquire: as in `view`.
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.0.compare_exchange(seen.0, new, success, failure).map(|_| View(new)).map_err(View)
    }

    /// Takes up to `taken.len()` chunks of a page of a class with `per_page` in a page. Returns
    /// how many, and the word after that; `None` when `may`, asked between looking and taking,
    /// says no, or the page is of no class.
    pub(super) fn take<'a>(
        &self,
        per_page: u32,
        taken: &mut [u32],
        link: impl Fn(u32) -> &'a AtomicU64,
        may: impl Fn() -> bool,
    ) -> Option<(usize, View)> {
        let mut seen = self.view();
        loop {
            if seen.kind() != Kind::Slab || !may() {
                return None;
            }
            let Some((listed, head)) = self.follow(seen, taken, &link) else {
                seen = self.view();
                continue;
            };
            let left = (taken.len() - listed) as u32;
            let fresh = left.min(per_page.saturating_sub(seen.carved()));
            for (chunk, idx) in taken[listed..].iter_mut().zip(seen.carved()..).take(fresh as usize)
            {
                *chunk = idx;
            }
            let count = listed + fresh as usize;
            if count == 0 {
                return Some((0, seen));
            }
            let (out, carved) = (seen.out() + count as u32, seen.carved() + fresh);
            match self.swap(seen, seen.next(Kind::Slab, out, carved, head)) {
                Ok(after) => return Some((count, after)),
                Err(other) => seen = other,
            }
        }
    }

    /// Follows the list of free chunks that was seen: how many were found, and the head that is
    /// left. `None` when the word has changed, so that what was read were no links.
    fn follow<'a>(
        &self,
        seen: View,
        taken: &mut [u32],
        link: impl Fn(u32) -> &'a AtomicU64,
    ) -> Option<(usize, u32)> {
        let (mut count, mut head) = (0, seen.head());
        while count < taken.len() && head != 0 {
            taken[count] = head - 1;
            // Relaxed: written before the word that was seen. If the chunk was taken meanwhile
            // this may be anything, and the swap of the word fails.
            let next = link(head - 1).load(Ordering::Relaxed);
            if next > u64::from(seen.carved()) {
                assert!(self.view() != seen, "a link of a list of chunks leads out of the page");
                return None;
            }
            head = next as u32;
            count += 1;
        }
        Some((count, head))
    }

    /// Gives back a chunk that nobody can know any more. `link` is its second word. Returns the
    /// word before and after.
    pub(super) fn give(&self, chunk: u32, link: &AtomicU64) -> (View, View) {
        let mut seen = self.view();
        loop {
            let kind = seen.kind();
            assert!(
                matches!(kind, Kind::Slab | Kind::Draining) && seen.out() > 0,
                "a chunk that was handed out lies in a page of a class"
            );
            // Relaxed: published by the swap.
            link.store(u64::from(seen.head()), Ordering::Relaxed);
            match self.swap(seen, seen.next(kind, seen.out() - 1, seen.carved(), chunk + 1)) {
                Ok(after) => return (seen, after),
                Err(other) => seen = other,
            }
        }
    }

    /// Stops allocation from a page of a class, if `may` allows it of what the page is then.
    /// Returns that.
    pub(super) fn close(&self, may: impl Fn(View) -> bool) -> Option<View> {
        let mut seen = self.view();
        while seen.kind() == Kind::Slab && may(seen) {
            let new = seen.next(Kind::Draining, seen.out(), seen.carved(), seen.head());
            match self.swap(seen, new) {
                Ok(_) => return Some(seen),
                Err(other) => seen = other,
            }
        }
        None
    }

    /// Retires a draining page whose chunks are all back: true for one of those who ask.
    pub(super) fn retire_drained(&self) -> bool {
        let mut seen = self.view();
        while seen.kind() == Kind::Draining && seen.out() == 0 {
            match self.swap(seen, seen.next(Kind::Retired, 0, 0, 0)) {
                Ok(_) => return true,
                Err(other) => seen = other,
            }
        }
        false
    }
}

#[cfg(all(test, not(session_model)))]
mod tests {
    use super::{AtomicU64, Kind, PageWord, View};

    struct Page {
        word: PageWord,
        links: Vec<AtomicU64>,
    }

    fn page(chunks: u32) -> Page {
        let word = PageWord::default();
        word.set(Kind::Slab);
        Page { word, links: (0..chunks).map(|_| AtomicU64::new(0)).collect() }
    }

    impl Page {
        fn take(&self, count: usize) -> Vec<u32> {
            let mut taken = vec![0; count];
            let link = |chunk: u32| &self.links[chunk as usize];
            let per_page = self.links.len() as u32;
            let (count, _) =
                self.word.take(per_page, &mut taken, link, || true).unwrap_or_default();
            taken.truncate(count);
            taken
        }

        fn give(&self, chunk: u32) -> View {
            self.word.give(chunk, &self.links[chunk as usize]).1
        }
    }

    #[test]
    fn chunks_go_out_once_and_come_back() {
        let page = page(5);
        assert_eq!(page.take(2), [0, 1]);
        assert_eq!(page.take(9), [2, 3, 4]);
        assert_eq!(page.take(1), [0; 0]);
        page.give(3);
        assert_eq!(page.give(1).room(5), 2);
        assert_eq!(page.take(9), [1, 3]);
        let view = page.word.view();
        assert_eq!((view.out(), view.carved(), view.head()), (5, 5, 0));
    }

    #[test]
    fn a_draining_page_gives_nothing_and_ends_once() {
        let page = page(3);
        assert_eq!(page.take(2), [0, 1]);
        page.give(0);
        assert!(page.word.close(|view| view.out() == 0).is_none());
        assert_eq!(page.word.close(|_| true).map(View::out), Some(1));
        assert!(page.take(1).is_empty() && !page.word.retire_drained());
        page.give(1);
        assert!(page.word.retire_drained() && !page.word.retire_drained());
        assert_eq!(page.word.view().kind(), Kind::Retired);
    }

    #[test]
    fn kinds_survive_the_word() {
        let word = PageWord::default();
        use Kind::{Draining, Extent, Free, Index, Retired, Slab};
        for kind in [Free, Index, Slab, Draining, Extent, Retired] {
            word.set(kind);
            assert_eq!(word.view().kind(), kind);
        }
    }
}
