//! Workers' magazines: free chunks that one worker took ahead, within reach of all others.
//! Each place is emptied by a swap, and filled by the owner alone; so nobody waits, and no chunk is
//! taken twice.
#![forbid(unsafe_code)]

use crate::store::sync::{AtomicU64, Ordering};

/// Most chunks in a worker's magazine of one class.
pub(super) const MAGAZINE_CHUNKS_MAX: usize = 16;

/// The magazines of one worker, one for each class: offsets of chunks, 0 where there is none.
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

    /// Fills an empty place. Only the owner may.
    pub(super) fn put(&self, class: u32, place: usize, chunk: u64) {
        // Release: whoever takes it finds it as it was given; pairs with the Acquire swaps.
        self.of(class)[place].store(chunk, Ordering::Release);
    }

    /// Empties a place; what was there, if anything was left.
    pub(super) fn take(&self, class: u32, place: usize) -> Option<u64> {
        take(&self.of(class)[place], |_| true)
    }

    /// Takes out the chunks that `wanted` names, and gives them to `give`.
    pub(super) fn raid(&self, class: u32, wanted: impl Fn(u64) -> bool, mut give: impl FnMut(u64)) {
        for place in self.of(class) {
            take(place, &wanted).into_iter().for_each(&mut give);
        }
    }
}

fn take(place: &AtomicU64, wanted: impl Fn(u64) -> bool) -> Option<u64> {
    // Relaxed: the swap decides.
    let chunk = place.load(Ordering::Relaxed);
    // Acquire: pairs with the Release in `put`.
    let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
    let taken =
        chunk != 0 && wanted(chunk) && place.compare_exchange(chunk, 0, success, failure).is_ok();
    taken.then_some(chunk)
}
