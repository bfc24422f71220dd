//! Which items are kept readable beyond the turn that found them. It owns the table of pins: one
//! word for each pinned item, changed by compare-and-swap, so nobody waits.
//!
//! ```text
//! pin   63   62    55 54    40 39                    0
//!      | ripe | worker |  pins  | item's offset / 8     |    0: free
//! ```
//! A pin is taken within a turn that found the item. An item that is ripe while it is pinned stays,
//! and its word says in whose limbo it was; with the last pin it goes there again. Two threads that
//! pin an item at once may make two words of it: each is a pin for itself.
#![forbid(unsafe_code)]

use crate::store::sync::{AtomicU64, AtomicUsize, Ordering};

/// Words that an item may have its pin in; more of them are refused, and the value is copied.
const PLACES: usize = 8;
const BUCKETS: usize = if cfg!(session_model) { 2 } else { 256 };
const ITEM_MASK: u64 = (1 << 40) - 1;
const PIN: u64 = 1 << 40;
const PINS_MASK: u64 = 0x7fff << 40;
const WORKER_SHIFT: u32 = 55;
const RIPE: u64 = 1 << 63;

/// The pinned items of a store.
#[derive(Debug)]
pub(super) struct Pins {
    /// Words in use.
    count: AtomicUsize,
    /// Bytes of their items.
    len: AtomicUsize,
    words: Box<[AtomicU64]>,
}

impl Default for Pins {
    fn default() -> Self {
        let words = (0..BUCKETS * PLACES).map(|_| AtomicU64::new(0)).collect();
        Self { count: AtomicUsize::new(0), len: AtomicUsize::new(0), words }
    }
}

/// A place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(usize);

impl Pins {
    /// The places of an item.
    fn places(&self, item: u64) -> impl Iterator<Item = (Place, &AtomicU64)> {
        // Fibonacci hashing of the offset, which is a multiple of 8.
        let hash = (item / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = hash as usize % BUCKETS * PLACES;
        (first..first + PLACES).map(|idx| (Place(idx), &self.words[idx]))
    }

    /// Pins an item of `len` bytes. None when that would be more than `len_max` in all, or there
    /// is no place.
    pub(super) fn take(&self, item: u64, len: usize, len_max: usize) -> Option<Place> {
        self.join(item).or_else(|| {
            let more = |sum: usize| sum.checked_add(len).filter(|sum| *sum <= len_max);
            // Relaxed: a limit that needs no order with anything else.
            self.len.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
            let place = self.claim(item);
            if place.is_none() {
                self.len.fetch_sub(len, Ordering::Relaxed);
            }
            place
        })
    }

    /// Another pin of an item that is pinned.
    fn join(&self, item: u64) -> Option<Place> {
        for (place, word) in self.places(item) {
            // Relaxed throughout: as in `claim`.
            let more = |seen: u64| {
                let is_of_item = seen & ITEM_MASK == item / 8 && seen & PINS_MASK != PINS_MASK;
                is_of_item.then_some(seen + PIN)
            };
            if word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
                return Some(place);
            }
        }
        None
    }

    fn claim(&self, item: u64) -> Option<Place> {
        // Relaxed throughout: the turn in which the pin is taken ends after this, and an item that
        // it found is ripe only after that. So the epochs order this before `keep`.
        self.count.fetch_add(1, Ordering::Relaxed);
        for (place, word) in self.places(item) {
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            if word.compare_exchange(0, PIN | (item / 8), success, failure).is_ok() {
                return Some(place);
            }
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Takes a pin of an item of `len` bytes off; the worker into whose limbo the item goes, if it
    /// was the last one there and the item is ripe.
    pub(super) fn give(&self, place: Place, len: usize) -> Option<usize> {
        let less = |seen: u64| {
            let is_last = seen & PINS_MASK == PIN;
            Some(if is_last { 0 } else { seen - PIN })
        };
        // AcqRel: what was read under the pin was read before; pairs with the next of these, and
        // with `keep`. What is retired by the last one comes after all of that.
        let given = self.words[place.0].fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
        let seen = given.expect("a pin can always be taken off");
        if seen & PINS_MASK != PIN {
            return None;
        }
        self.len.fetch_sub(len, Ordering::Relaxed);
        // Release: the reads under the pin; pairs with the Acquire in `keep`.
        self.count.fetch_sub(1, Ordering::Release);
        (seen & RIPE != 0).then_some((seen >> WORKER_SHIFT & 0xff) as usize)
    }

    /// Keeps an item that is ripe if it is pinned; false when it may be released.
    pub(super) fn keep(&self, item: u64, worker: usize) -> bool {
        // Acquire: pairs with the Release in `give`. An item that is ripe gets no pin any more.
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let ripe = RIPE | (worker as u64) << WORKER_SHIFT;
        self.places(item).any(|(_, word)| {
            let keep = |seen: u64| (seen & ITEM_MASK == item / 8).then_some(seen | ripe);
            // AcqRel: pairs with `give`.
            word.fetch_update(Ordering::AcqRel, Ordering::Acquire, keep).is_ok()
        })
    }

    /// Calls `visit` for every item that is ripe and kept.
    pub(super) fn for_each_kept(&self, visit: impl FnMut(u64)) {
        // Acquire: as in `keep`.
        let words = self.words.iter().map(|word| word.load(Ordering::Acquire));
        words.filter(|word| word & RIPE != 0).map(|word| (word & ITEM_MASK) * 8).for_each(visit);
    }
}

#[cfg(all(test, not(session_model)))]
mod tests {
    use super::Pins;

    #[test]
    fn the_last_pin_gives_a_ripe_item_back() {
        let pins = Pins::default();
        assert!(!pins.keep(64, 0));
        let [one, two] = [0; 2].map(|_| pins.take(64, 10, 15).unwrap());
        assert!(pins.take(128, 10, 15).is_none(), "more than may be pinned");
        assert_eq!(pins.give(one, 10), None);
        assert!(pins.keep(64, 3) && !pins.keep(128, 3));
        let mut kept = Vec::new();
        pins.for_each_kept(|item| kept.push(item));
        assert_eq!(kept, [64]);
        assert_eq!(pins.give(two, 10), Some(3));
        let other = pins.take(128, 10, 15).unwrap();
        assert!(!pins.keep(64, 0));
        assert_eq!(pins.give(other, 10), None);
    }

    #[test]
    fn more_pins_than_there_are_places_are_refused() {
        let pins = Pins::default();
        let places: Vec<_> =
            (1..100_000).filter_map(|item| pins.take(item * 8, 1, usize::MAX)).collect();
        assert_eq!(places.len(), pins.words.len());
        places.into_iter().for_each(|place| assert_eq!(pins.give(place, 1), None));
        assert!(pins.take(8, 1, 1).is_some());
    }
}
