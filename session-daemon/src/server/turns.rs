//! How long a worker's turns take: a histogram of one turn in some, from which it is estimated
//! what clients wait for. It owns the buckets; a turn that is not looked at costs one addition.
//!
//! A turn begins when the worker wakes and ends when all that was ready then is answered and the
//! answers are given to the kernel. Who asks in the middle of one waits for the rest of it and for
//! the next: at most for two.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

/// One turn in so many is looked at: a look at the clock costs more than some turns.
pub const LOOKED_AT_EVERY: u32 = 64;

/// Powers of two, in microseconds, that bound the buckets but the last: up to half a second.
const BOUNDS: usize = 20;

/// Turns of one worker by their length.
#[derive(Debug, Default)]
pub struct Turns {
    /// The first has turns below a microsecond, the last those that no bound is above.
    buckets: [AtomicU64; BOUNDS + 1],
    sum_us: AtomicU64,
}

impl Turns {
    /// Notes a turn of so many nanoseconds. To be called by the worker alone.
    pub fn note(&self, turn_ns: u64) {
        let turn_us = turn_ns / 1000;
        let bits = u64::BITS.saturating_sub(turn_us.leading_zeros()) as usize;
        if let Some(bucket) = self.buckets.get(bits.min(BOUNDS)) {
            // Relaxed: statistics.
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(turn_us, Ordering::Relaxed);
    }
}

/// Tells the turns of all workers together: `turns_below_us:BOUND` for each bound, and for those
/// that are longer `turns_longer`; `turns_sum_us` of all that were looked at.
pub fn each<'t>(
    all: impl Iterator<Item = &'t Turns> + Clone,
    sink: &mut dyn FnMut(&str, &dyn Display),
) {
    // Relaxed throughout: statistics.
    let relaxed = Ordering::Relaxed;
    let count = |bucket: usize| -> u64 {
        all.clone().filter_map(|turns| turns.buckets.get(bucket)).map(|one| one.load(relaxed)).sum()
    };
    for bits in 0..BOUNDS {
        sink(&format!("turns_below_us:{}", 1_u64 << bits), &count(bits));
    }
    sink("turns_longer", &count(BOUNDS));
    sink("turns_sum_us", &all.map(|turns| turns.sum_us.load(relaxed)).sum::<u64>());
}

#[cfg(test)]
mod tests {
    use super::{Turns, each};

    #[test]
    fn turns_are_counted_by_the_power_of_two_above_them() {
        let (one, other) = (Turns::default(), Turns::default());
        for ns in [0, 999, 1_000, 1_999, 2_000, 70_000] {
            one.note(ns);
        }
        other.note(u64::MAX);
        let mut told = Vec::new();
        each([&one, &other].into_iter(), &mut |name, value| {
            let value = value.to_string();
            if value != "0" && name != "turns_sum_us" {
                told.push(format!("{name} {value}"));
            }
        });
        let expected = [
            "turns_below_us:1 2",
            "turns_below_us:2 2",
            "turns_below_us:4 1",
            "turns_below_us:128 1",
            "turns_longer 1",
        ];
        assert_eq!(told, expected);
    }
}
