//! Sets of pages that many threads change and search: a bit a page, and a bit for each word that
//! has any. It owns the bits; what a page in a set is, its user asks the page itself.
//!
//! A search may miss a page that is being inserted, or whose word another thread is just taking
//! for empty. [`PageSet::find`] looks at every bit before it says that there is none.
#![forbid(unsafe_code)]

use crate::store::sync::{AtomicU64, AtomicUsize, Ordering, zeroed_words};

const BITS: u32 = 64;

/// A set of pages.
#[derive(Debug)]
pub(super) struct PageSet {
    words: Box<[AtomicU64]>,
    /// Words that are not 0.
    used: Box<[AtomicU64]>,
    /// Pages in the set, but for what comes and goes.
    len: AtomicUsize,
}

/// The lowest bit of a word that is not below `from`.
fn first_bit(word: u64, from: u32) -> Option<u32> {
    let rest = word & (u64::MAX << from);
    (rest != 0).then(|| rest.trailing_zeros())
}

impl PageSet {
    pub(super) fn new(pages: u32) -> Self {
        let words = |bits: u32| zeroed_words(bits.div_ceil(BITS) as usize);
        let used = words(pages.div_ceil(BITS));
        Self { words: words(pages), used, len: AtomicUsize::new(0) }
    }

    pub(super) fn insert(&self, page: u32) {
        let word = page / BITS;
        // AcqRel: who sees the page in the set sees why; a chain of such changes carries it on.
        let bit = 1 << (page % BITS);
        let before = self.words[word as usize].fetch_or(bit, Ordering::AcqRel);
        if before & bit == 0 {
            self.len.fetch_add(1, Ordering::AcqRel);
        }
        self.used[(word / BITS) as usize].fetch_or(1 << (word % BITS), Ordering::AcqRel);
    }

    /// Takes a page out; true if it was in the set.
    pub(super) fn remove(&self, page: u32) -> bool {
        let (word, bit) = (page / BITS, 1 << (page % BITS));
        // AcqRel: as in `insert`.
        let before = self.words[word as usize].fetch_and(!bit, Ordering::AcqRel);
        if before == bit {
            let (used, bit) = (&self.used[(word / BITS) as usize], 1 << (word % BITS));
            used.fetch_and(!bit, Ordering::AcqRel);
            // Acquire: who has inserted a page meanwhile has set the bit before it was cleared.
            if self.words[word as usize].load(Ordering::Acquire) != 0 {
                used.fetch_or(bit, Ordering::AcqRel);
            }
        }
        let was_there = before & bit != 0;
        if was_there {
            self.len.fetch_sub(1, Ordering::AcqRel);
        }
        was_there
    }

    /// Takes a page out that does not belong into the set, unless by now it does. Whoever makes it
    /// belong there does so before he puts it in.
    pub(super) fn leave(&self, page: u32, belongs: impl Fn() -> bool) {
        if self.remove(page) && belongs() {
            self.insert(page);
        }
    }

    pub(super) fn contains(&self, page: u32) -> bool {
        // Acquire: as in `insert`.
        self.words[(page / BITS) as usize].load(Ordering::Acquire) >> (page % BITS) & 1 == 1
    }

    /// A page of the set that is not below `from`; the lowest one, but for what comes and goes.
    pub(super) fn next_from(&self, from: u32) -> Option<u32> {
        // Acquire: as in `insert`.
        if self.len.load(Ordering::Acquire) == 0 {
            return None;
        }
        let first = from / BITS;
        let page = |word: u32, from: u32| {
            // Acquire: as in `insert`.
            let bits = self.words.get(word as usize)?.load(Ordering::Acquire);
            first_bit(bits, from).map(|bit| word * BITS + bit)
        };
        if let Some(found) = page(first, from % BITS) {
            return Some(found);
        }
        let (mut group, mut at) = ((first + 1) / BITS, (first + 1) % BITS);
        while let Some(used) = self.used.get(group as usize) {
            // Acquire: as in `insert`.
            let used = used.load(Ordering::Acquire);
            while let Some(bit) = (at < BITS).then(|| first_bit(used, at)).flatten() {
                if let Some(found) = page(group * BITS + bit, 0) {
                    return Some(found);
                }
                at = bit + 1;
            }
            (group, at) = (group + 1, 0);
        }
        None
    }

    /// The same, and from the beginning behind the end.
    pub(super) fn next_around(&self, from: u32) -> Option<u32> {
        self.next_from(from).or_else(|| self.next_from(0))
    }

    /// The same, with a look at every bit if that finds none.
    pub(super) fn find(&self, from: u32) -> Option<u32> {
        self.next_around(from).or_else(|| {
            (0..).zip(&self.words).find_map(|(word, bits)| {
                // Acquire: as in `insert`.
                let bit = first_bit(bits.load(Ordering::Acquire), 0)?;
                Some(word * BITS + bit)
            })
        })
    }

    /// The pages of the set.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let page = self.next_from(from)?;
            from = page + 1;
            Some(page)
        })
    }
}

#[cfg(all(test, not(session_model)))]
mod tests {
    use super::PageSet;

    #[test]
    fn pages_are_found_in_order() {
        let set = PageSet::new(20_000);
        let pages = [0, 1, 63, 64, 4_095, 4_096, 8_191, 19_999];
        pages.iter().for_each(|page| set.insert(*page));
        assert_eq!(set.iter().collect::<Vec<_>>(), pages);
        let mut from = 0;
        for page in pages {
            assert_eq!(set.next_from(from), Some(page));
            from = page + 1;
        }
        assert_eq!((set.next_from(from), set.next_around(from)), (None, Some(0)));
        assert_eq!(set.next_from(4_097), Some(8_191));
        assert!(set.remove(8_191) && !set.remove(8_191) && !set.contains(8_191));
        assert_eq!(set.next_from(4_097), Some(19_999));
        set.insert(8_190);
        assert_eq!(set.next_from(4_097), Some(8_190));
        pages.iter().for_each(|page| _ = set.remove(*page));
        assert_eq!(set.iter().collect::<Vec<_>>(), [8_190]);
        assert_eq!((set.find(9_000), PageSet::new(100).find(0)), (Some(8_190), None));
    }
}
