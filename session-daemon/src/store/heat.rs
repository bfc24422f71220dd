//! Whether a class is used as much as it should be: the hits that it has had lately, beside those
//! that its items had promised. It owns this measure; it never moves a page.
//!
//! What an item is worth follows from accesses of all classes over some turnovers of the store.
//! When the application changes the sizes of its values, the items of the old size are still worth
//! what such items used to be, and nobody asks for them any more. Their class notices at once.
#![forbid(unsafe_code)]

use crate::store::sync::{AtomicU32, Ordering, TryMutex};

/// Hits that are taken for granted, both had and promised: fewer prove nothing.
const PRIOR_HITS: f64 = 64.0;
/// Part of what was counted that is kept at each look.
const KEEP: f64 = 0.75;
/// A class that has this part of the hits that its items promised is as it should be: promises are
/// the best rates, and differ from class to class by that much.
const USUAL: f64 = 0.5;
/// Weight of the newest sample in what the items of a class promise.
const SAMPLE_SHARE: f32 = 0.05;

/// What was counted of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// The counter of hits when it was last looked at.
    seen: u64,
    had: f64,
    promised: f64,
}

#[derive(Debug)]
struct Looked {
    classes: Box<[Counted]>,
    at_ns: u64,
}

/// The heat of all classes.
#[derive(Debug)]
pub(super) struct Heat {
    /// Hits a tick that a byte of the class promises, as bits; 0 before the first sample.
    promises: Box<[AtomicU32]>,
    /// The part of the usual hits that was had, as bits.
    heat: Box<[AtomicU32]>,
    looked: TryMutex<Looked>,
}

impl Heat {
    pub(super) fn new(classes: u32) -> Self {
        let cells = |value: f32| (0..classes).map(|_| AtomicU32::new(value.to_bits())).collect();
        let looked =
            Looked { classes: vec![Counted::default(); classes as usize].into(), at_ns: 0 };
        Self { promises: cells(0.0), heat: cells(1.0), looked: TryMutex::new(looked) }
    }

    /// Takes in what the bytes of a page promise, in hits a tick and byte.
    pub(super) fn note_promise(&self, class: u32, sampled: f32) {
        let promise = &self.promises[class as usize];
        // Relaxed: an estimate; a lost update does not matter.
        let old = f32::from_bits(promise.load(Ordering::Relaxed));
        let new = if old == 0.0 { sampled } else { old + (sampled - old) * SAMPLE_SHARE };
        promise.store(new.to_bits(), Ordering::Relaxed);
    }

    /// The part of its usual hits that a class has had lately: 1 unless it is used much less.
    pub(super) fn of(&self, class: u32) -> f32 {
        // Relaxed: an estimate.
        f32::from_bits(self.heat[class as usize].load(Ordering::Relaxed))
    }

    /// Looks at the hits since the last look. `classes` yields for each class its hits so far and
    /// the bytes of its pages.
    pub(super) fn look(
        &self,
        now_ns: u64,
        tick_ns: u64,
        classes: impl Iterator<Item = (u64, u64)>,
    ) {
        // Another worker that looks now has seen the same.
        let Some(mut looked) = self.looked.try_lock() else { return };
        let ticks = now_ns.saturating_sub(looked.at_ns) as f64 / tick_ns as f64;
        let is_first = looked.at_ns == 0;
        looked.at_ns = now_ns;
        for ((counted, (hits, bytes)), (promise, heat)) in
            looked.classes.iter_mut().zip(classes).zip(self.promises.iter().zip(&self.heat))
        {
            let had = hits.wrapping_sub(counted.seen);
            counted.seen = hits;
            if is_first {
                continue;
            }
            let promise = f32::from_bits(promise.load(Ordering::Relaxed));
            counted.had = counted.had * KEEP + had as f64;
            counted.promised = counted.promised * KEEP + f64::from(promise) * bytes as f64 * ticks;
            let ratio = (counted.had + PRIOR_HITS) / (counted.promised + PRIOR_HITS);
            let part = (ratio / USUAL).min(1.0);
            // Relaxed: as in `of`.
            heat.store((part as f32).to_bits(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_cools_when_promised_hits_do_not_come() {
        let heat = Heat::new(2);
        for _ in 0..200 {
            heat.note_promise(0, 0.001);
            heat.note_promise(1, 0.001);
        }
        // Ten ticks a look; both classes promise 1000 hits in them.
        let look = |number: u64, hits: [u64; 2]| {
            heat.look(1 + number * 10, 1, hits.into_iter().map(|hits| (hits, 100_000)));
        };
        for number in 0..10 {
            look(number, [number * 800, number * 800]);
        }
        assert_eq!((heat.of(0), heat.of(1)), (1.0, 1.0));
        for number in 10..18 {
            look(number, [7_200, number * 800]);
        }
        assert!(heat.of(0) < 0.3, "{}", heat.of(0));
        assert_eq!(heat.of(1), 1.0);
        for number in 18..30 {
            look(number, [7_200 + (number - 17) * 1_000, number * 800]);
        }
        assert_eq!(heat.of(0), 1.0);
    }

    #[test]
    fn few_hits_prove_nothing() {
        let heat = Heat::new(1);
        heat.note_promise(0, 0.001);
        for number in 0..3 {
            heat.look(1 + number, 1, std::iter::once((0, 10_000)));
        }
        assert_eq!(heat.of(0), 1.0);
    }
}
