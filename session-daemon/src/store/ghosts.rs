//! Ghosts: what is remembered of evicted items. It owns a table of fingerprints of fixed size,
//! which counts as part of `-m`; it stands outside the region, because nothing needs it after a
//! restart.
//!
//! ```text
//! ghost   31        20 19  18 17              0
//!        | fingerprint| freq | last access, s |      0: none
//! ```
//! Sixteen ghosts share a cache line. A new one takes the place of the oldest of its line.

use crate::store::region::{Region, Shared};
use crate::store::sync::{AtomicU32, Ordering};
use std::io;

/// Ghosts that share a line.
const WAYS: usize = 16;
/// The part of `-m` that ghosts take, as a divisor.
const LIMIT_SHARE: usize = 128;
const FREQ_SHIFT: u32 = 18;
const TIME_MASK: u32 = (1 << FREQ_SHIFT) - 1;
const FINGERPRINT_SHIFT: u32 = 20;

/// Bytes of all ghosts of a store with this `-m`.
pub(super) fn ghosts_len(memory_limit: usize) -> usize {
    memory_limit / LIMIT_SHARE / 64 * 64
}

/// An evicted item, as far as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ghost {
    /// How often it had been used.
    pub(super) freq: u64,
    /// Seconds since its last access.
    pub(super) age_s: u32,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Line([AtomicU32; WAYS]);

// SAFETY: `repr(C)`, atomics only, 64-byte aligned.
unsafe impl Shared for Line {}

/// The ghosts of a store. Two threads that change one line at a time may lose one of the ghosts.
#[derive(Debug)]
pub(super) struct Ghosts {
    /// Backed as it is touched: a start does not wait for the kernel to fill it with zeros.
    lines: Region,
}

impl Ghosts {
    /// A table of so many bytes: [`ghosts_len`].
    pub(super) fn new(len: usize) -> io::Result<Self> {
        Ok(Self { lines: Region::map(len)? })
    }

    fn count(&self) -> u64 {
        self.lines.len() / size_of::<Line>() as u64
    }

    fn line(&self, hash: u64) -> &[AtomicU32; WAYS] {
        let idx = ((hash >> 8 & 0xffff_ffff) * self.count()) >> 32;
        &self.lines.shared::<Line>(idx * size_of::<Line>() as u64).0
    }

    /// Remembers an item that is evicted now. Returns what is forgotten for it.
    pub(super) fn insert(
        &self,
        hash: u64,
        freq: u64,
        last_access_s: u32,
        now_s: u32,
    ) -> Option<Ghost> {
        let line = self.line(hash);
        let mut oldest = (0, 0);
        for (idx, place) in line.iter().enumerate() {
            // Relaxed throughout: each ghost is one word, and is worth what it says.
            let word = place.load(Ordering::Relaxed);
            if word == 0 || word >> FINGERPRINT_SHIFT == fingerprint(hash) {
                oldest = (u32::MAX, idx);
                break;
            }
            oldest = oldest.max((age_s(word, now_s), idx));
        }
        let word = fingerprint(hash) << FINGERPRINT_SHIFT
            | (freq as u32) << FREQ_SHIFT
            | last_access_s & TIME_MASK;
        let forgotten = line[oldest.1].swap(word, Ordering::Relaxed);
        (forgotten != 0).then(|| ghost(forgotten, now_s))
    }

    /// Forgets an item that is stored again, and says what was remembered of it.
    pub(super) fn take(&self, hash: u64, now_s: u32) -> Option<Ghost> {
        self.line(hash).iter().find_map(|place| {
            let word = place.load(Ordering::Relaxed);
            if word == 0 || word >> FINGERPRINT_SHIFT != fingerprint(hash) {
                return None;
            }
            // Of two threads that meet a ghost one has it, or the count of ghosts would drift.
            let relaxed = Ordering::Relaxed;
            place.compare_exchange(word, 0, relaxed, relaxed).ok().map(|word| ghost(word, now_s))
        })
    }
}

/// 12 bits that are not 0, of those that do not choose the line.
fn fingerprint(hash: u64) -> u32 {
    ((hash >> 40) as u32 & 0xfff).max(1)
}

fn ghost(word: u32, now_s: u32) -> Ghost {
    Ghost { freq: u64::from(word >> FREQ_SHIFT & 3), age_s: age_s(word, now_s) }
}

fn age_s(word: u32, now_s: u32) -> u32 {
    now_s.wrapping_sub(word) & TIME_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any 64 bits that differ in all places.
    fn hash(number: u64) -> u64 {
        (number + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(17)
            .wrapping_mul(0xff51_afd7_ed55_8ccd)
    }

    #[test]
    fn a_ghost_is_met_once() {
        let ghosts = Ghosts::new(ghosts_len(1 << 20)).unwrap();
        assert_eq!(ghosts.insert(hash(1), 2, 90, 100), None);
        let forgotten = ghosts.insert(hash(1), 2, 100, 130);
        assert_eq!(forgotten, Some(Ghost { freq: 2, age_s: 40 }));
        assert_eq!(ghosts.take(hash(1), 150), Some(Ghost { freq: 2, age_s: 50 }));
        assert_eq!(ghosts.take(hash(1), 150), None);
    }

    #[test]
    fn the_newest_are_kept_and_few_are_mistaken() {
        let ghosts = Ghosts::new(ghosts_len(1 << 20)).unwrap();
        let places = ghosts.count() * WAYS as u64;
        for number in 0..places * 4 {
            ghosts.insert(hash(number), 0, number as u32, number as u32);
        }
        let now_s = places as u32 * 4;
        let strange = (places * 8..places * 9).filter(|n| ghosts.take(hash(*n), now_s).is_some());
        assert!(strange.count() as u64 <= places / 64);
        let kept = (places * 3..places * 4).filter(|n| ghosts.take(hash(*n), now_s).is_some());
        assert!(kept.count() as u64 > places * 3 / 4);
    }

    #[test]
    fn ghosts_are_a_small_part_of_the_limit() {
        assert_eq!(ghosts_len(64 << 20), 512 << 10);
        assert!(size_of::<Line>() == 64);
    }
}
