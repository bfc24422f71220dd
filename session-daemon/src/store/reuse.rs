//! What an item is worth: the hits that it promises for the time that it takes a chunk.
//! It owns the times between accesses as they were measured, and the worth that follows from
//! them; it never looks at an item.
//!
//! Accesses are told apart by how often the item had been used before (0 to 3 times) and by its age,
//! the time since its last access. An evicted item counts as lost until its ghost is met again;
//! then it counts as an access at its true age. So what is measured does not depend on what was
//! evicted. The worth of an item is the best rate that waiting for it can have: over all
//! moments until which it could be kept, the largest ratio of expected hits to expected time.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::item::FREQ_MAX;
use crate::store::sync::{AtomicU32, AtomicU64, Ordering, TryMutex};

/// Counts of accesses that are told apart.
const FREQS: usize = FREQ_MAX as usize + 1;
/// Ages that are told apart: single ticks below 4, then four to each doubling.
const BINS: usize = 124;
/// Numbers kept for each count of accesses: accesses by age, items forgotten by age, ghosts.
const ROW: usize = 2 * BINS + 1;
const GHOSTS: usize = 2 * BINS;
/// Accesses that are taken for granted, for each count, before anything was measured.
const PRIOR_EVENTS: f64 = 16.0;
/// Share of them that comes, by count, and the ages over which they are spread evenly.
const PRIOR_HITS: [f64; FREQS] = [0.25, 0.5, 0.65, 0.8];
const PRIOR_BINS: usize = 80;
/// What items that were not used yet count for: by keeping others the store loses less when what
/// it has measured is about to change.
const NEW_SHARE: f64 = 0.5;
/// Least events that are remembered, however small the store.
const MEMORY_MIN: f64 = 16_384.0;
/// Events that are remembered for each item held.
const MEMORY_PER_ITEM: f64 = 4.0;

/// Ticks in a second: the resolution of ages. 32 bits of them last 8 years of uptime.
pub(super) const TICKS_PER_S: u32 = 16;

/// The tick of a turn.
pub(super) fn tick(now: Now) -> u32 {
    (now.boottime_ns / (1_000_000_000 / u64::from(TICKS_PER_S))) as u32
}

/// What an item is worth: hits a tick, as the bits of a positive `f32`, which sort as it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Worth(u32);

impl Worth {
    /// Less than any item's.
    pub(super) const NONE: Self = Self(0);

    pub(super) fn new(rate: f32) -> Self {
        Self(rate.max(0.0).to_bits())
    }

    pub(super) fn bits(self) -> u32 {
        self.0
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(super) fn rate(self) -> f32 {
        f32::from_bits(self.0)
    }
}

/// What one worker has measured. Only that worker writes it.
#[derive(Debug)]
pub(super) struct Tally {
    cells: Box<[AtomicU64]>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { cells: (0..FREQS * ROW).map(|_| AtomicU64::new(0)).collect() }
    }

    fn add(&self, freq: u64, column: usize, by: u64) {
        let cell = &self.cells[freq as usize * ROW + column];
        // Relaxed load and store: one writer; the sums need no order.
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    /// An access to an item that had been used `freq` times, `age` ticks after the last.
    pub(super) fn hit(&self, freq: u64, age: u32) {
        self.add(freq, bin(age), 1);
    }

    /// An item that was evicted: now it is a ghost.
    pub(super) fn evicted(&self, freq: u64) {
        self.add(freq, GHOSTS, 1);
    }

    /// A ghost that was stored again.
    pub(super) fn returned(&self, freq: u64, age: u32) {
        self.add(freq, GHOSTS, 1_u64.wrapping_neg());
        self.hit(freq, age);
    }

    /// A ghost that had to make room: what became of it after this age is not known.
    pub(super) fn forgotten(&self, freq: u64, age: u32) {
        self.add(freq, GHOSTS, 1_u64.wrapping_neg());
        self.add(freq, BINS + bin(age), 1);
    }
}

/// What all workers have measured lately.
#[derive(Debug)]
struct Learned {
    /// Sums of all tallies when they were last looked at.
    seen: Vec<u64>,
    /// The same, older events weighing less.
    weights: Vec<f64>,
}

/// The worth of items by count of accesses and age.
#[derive(Debug)]
pub(super) struct Reuse {
    worth: Box<[AtomicU32]>,
    learned: TryMutex<Learned>,
}

impl Reuse {
    pub(super) fn new() -> Self {
        let cells = FREQS * ROW;
        let learned = Learned { seen: vec![0; cells], weights: vec![0.0; cells] };
        let worth = (0..FREQS * BINS).map(|_| AtomicU32::new(0)).collect();
        let reuse = Self { worth, learned: TryMutex::new(learned) };
        reuse.learn(&[], 0);
        reuse
    }

    /// What an item is worth that was used `freq` times, the last time `age` ticks ago.
    pub(super) fn worth(&self, freq: u64, age: u32) -> Worth {
        // Relaxed: any recent value will do.
        Worth(self.worth[freq as usize * BINS + bin(age)].load(Ordering::Relaxed))
    }

    /// Takes in what the workers have measured, unless another worker does so now. `items` are
    /// held now.
    pub(super) fn learn(&self, tallies: &[&Tally], items: u64) {
        let Some(mut learned) = self.learned.try_lock() else { return };
        let Learned { seen, weights } = &mut *learned;
        let mut news = vec![0.0; seen.len()];
        for (idx, (news, seen)) in news.iter_mut().zip(seen.iter_mut()).enumerate() {
            let sum = tallies.iter().fold(0_u64, |sum, tally| {
                // Relaxed: as in `Tally::add`.
                sum.wrapping_add(tally.cells[idx].load(Ordering::Relaxed))
            });
            *news = sum.wrapping_sub(*seen).cast_signed() as f64;
            *seen = sum;
        }
        let memory = (items as f64 * MEMORY_PER_ITEM).max(MEMORY_MIN);
        let events: f64 = news.iter().filter(|news| **news > 0.0).sum();
        let keep = (1.0 - events / memory).max(0.5);
        for (weight, news) in weights.iter_mut().zip(&news) {
            *weight = (*weight * keep + news).max(0.0);
        }
        for (freq, row) in weights.chunks(ROW).enumerate() {
            let ghosts = seen[freq * ROW + GHOSTS].cast_signed().max(0) as f64;
            for (age, rate) in best_rates(row, ghosts, PRIOR_HITS[freq]).into_iter().enumerate() {
                let cell = &self.worth[freq * BINS + age];
                let rate = if freq == 0 { rate * NEW_SHARE } else { rate };
                // Relaxed: as in `worth`.
                cell.store(Worth::new(rate as f32).0, Ordering::Relaxed);
            }
        }
    }
}

/// For each age the best rate of hits that waiting can have: the steepest line from the point
/// (time spent, hits had) of that age to a later one. Found on the upper hull of the points.
///
/// What was forgotten counts until then, as in Kaplan and Meier's estimate. Ghosts count for ever
/// while few were forgotten, because nothing else tells then that items do not return.
fn best_rates(row: &[f64], ghosts: f64, prior_hits: f64) -> Vec<f64> {
    let points = points(row, ghosts, prior_hits);
    let slope = |from: usize, to: usize| {
        let (a, b): ((f64, f64), (f64, f64)) = (points[from], points[to]);
        (b.1 - a.1) / (b.0 - a.0).max(f64::MIN_POSITIVE)
    };
    let mut rates = vec![0.0; BINS];
    let mut hull = vec![BINS];
    for bin in (0..BINS).rev() {
        while let [.., next, top] = hull[..]
            && slope(bin, top) <= slope(bin, next)
        {
            hull.pop();
        }
        rates[bin] = slope(bin, hull[hull.len() - 1]);
        hull.push(bin);
    }
    rates
}

/// For each age the time that an item is expected to have spent by then, and its expected hits.
fn points(row: &[f64], ghosts: f64, prior_hits: f64) -> Vec<(f64, f64)> {
    let (hits, forgotten) = (&row[..BINS], &row[BINS..GHOSTS]);
    let prior = |bin: usize| {
        if bin < PRIOR_BINS { PRIOR_EVENTS * prior_hits / PRIOR_BINS as f64 } else { 0.0 }
    };
    let dropped = forgotten.iter().sum::<f64>();
    let share = ghosts / (ghosts + dropped).max(1.0);
    let lasting = PRIOR_EVENTS * (1.0 - prior_hits) + ghosts * share * share;
    let mut watched =
        lasting + hits.iter().chain(forgotten).sum::<f64>() + PRIOR_EVENTS * prior_hits;
    let mut points = vec![(0.0, 0.0)];
    let (mut time, mut had, mut alive) = (0.0, 0.0, 1.0);
    for bin in 0..BINS {
        let hits = hits[bin] + prior(bin);
        let used = alive * (hits / watched.max(f64::MIN_POSITIVE)).min(1.0);
        let width = (bin_start(bin + 1) - bin_start(bin)) as f64;
        time += (alive - used / 2.0) * width;
        had += used;
        alive -= used;
        watched -= hits + forgotten[bin];
        points.push((time, had));
    }
    points
}

fn bin(age: u32) -> usize {
    if age < 4 {
        return age as usize;
    }
    let doubling = age.ilog2() as usize;
    (doubling - 1) * 4 + (age >> (doubling - 2) & 3) as usize
}

/// The least age of a bin.
fn bin_start(bin: usize) -> u64 {
    if bin < 4 { bin as u64 } else { (4 + bin as u64 % 4) << (bin / 4 - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_cover_all_ages_in_order() {
        for index in 0..BINS {
            let start = u32::try_from(bin_start(index)).unwrap();
            assert_eq!(bin(start), index);
            assert_eq!(start.checked_sub(1).map(bin), index.checked_sub(1));
        }
        assert_eq!((bin(u32::MAX), bin_start(BINS)), (BINS - 1, 1 << 32));
    }

    #[test]
    fn best_rates_are_the_steepest_lines() {
        let mut row = vec![0.0; ROW];
        let weights = [(3, 50.0), (17, 400.0), (40, 90.0), (60, 3.0), (BINS + 30, 700.0)];
        for (index, weight) in weights {
            row[index] = weight;
        }
        let points = points(&row, 100.0, 0.25);
        for (from, rate) in best_rates(&row, 100.0, 0.25).into_iter().enumerate() {
            let (time, had) = points[from];
            let slopes = points[from + 1..].iter().map(|(t, h)| (h - had) / (t - time));
            let best = slopes.fold(0.0, f64::max);
            assert!((rate - best).abs() <= best * 1e-9, "{from}: {rate} {best}");
        }
    }

    #[test]
    fn what_is_forgotten_counts_until_then() {
        let mut row = vec![0.0; ROW];
        (row[40], row[50]) = (100.0, 100.0);
        let hits = |row: &[f64]| points(row, 0.0, 0.25)[51].1;
        let all = hits(&row);
        row[BINS + 45] = 10_000.0;
        let later_unknown = hits(&row);
        (row[BINS + 45], row[BINS + 60]) = (0.0, 10_000.0);
        let known = hits(&row);
        assert!(all > 0.9 && later_unknown > 0.8, "{all} {later_unknown}");
        assert!(known < 0.05, "{known}");
    }

    #[test]
    fn worth_follows_what_is_measured() {
        let (reuse, tally) = (Reuse::new(), Tally::new());
        assert!(reuse.worth(0, 100) > reuse.worth(0, 1_000), "younger is better at first");
        assert!(reuse.worth(3, 100) > reuse.worth(0, 100), "used is better at first");
        // Items that were never used come back after 1000 ticks; used ones never do.
        let learn = |returning: u64, leaving: u64| {
            for _ in 0..8 {
                for _ in 0..50_000 {
                    tally.hit(returning, 1_000);
                    tally.evicted(leaving);
                    tally.forgotten(leaving, 5_000);
                }
                reuse.learn(&[&tally], 1_000);
            }
        };
        learn(0, 3);
        assert!(reuse.worth(0, 900) > reuse.worth(3, 900));
        assert!(reuse.worth(0, 900) > reuse.worth(0, 10), "it is about to be used");
        assert!(reuse.worth(0, 900) > reuse.worth(0, 2_000), "its time is over");
        // The opposite is learned when the events say so.
        learn(3, 0);
        assert!(reuse.worth(3, 900) > reuse.worth(0, 900));
    }

    #[test]
    fn what_returns_was_not_lost() {
        let (reuse, tally) = (Reuse::new(), Tally::new());
        for _ in 0..10_000 {
            tally.evicted(0);
        }
        reuse.learn(&[&tally], 1_000);
        let before = reuse.worth(0, 50);
        for _ in 0..10_000 {
            tally.returned(0, 100);
        }
        reuse.learn(&[&tally], 1_000);
        assert!(reuse.worth(0, 50).rate() > 10.0 * before.rate());
    }
}
