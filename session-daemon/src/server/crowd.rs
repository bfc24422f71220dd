//! Whether many connections of a worker speak at a time. It owns what many is; it never knows who
//! they are.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::cell::Cell;

/// Turns over which the mean goes.
const TURNS: u32 = 32;

/// Speakers of so many turns from which on they are many, 2.5 a turn: with fewer, io_uring costs as
/// much as it saves or more (docs/benchmarks.md).
const MANY: u32 = 80;

/// Speakers of so many turns down to which they stay many, 1.25 a turn: a change costs a little too.
const FEW: u32 = 40;

/// Who speaks.
#[derive(Debug, Default)]
pub struct Crowd {
    /// The mean, times [`TURNS`].
    sum: Cell<u32>,
    is_there: Cell<bool>,
}

impl Crowd {
    /// A turn has ended in which so many connections spoke, which are not none.
    pub fn note(&self, speakers: u32) {
        let sum = self.sum.get();
        let sum = sum.saturating_sub(sum.div_ceil(TURNS)).saturating_add(speakers);
        self.sum.set(sum);
        self.is_there.set(sum >= MANY || self.is_there.get() && sum > FEW);
    }

    /// Whether many speak.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.is_there.get()
    }
}

#[cfg(test)]
mod tests {
    use super::Crowd;

    /// Turns until that is so; none if it is not within a thousand.
    fn turns(crowd: &Crowd, speakers: u32, is_there: bool) -> Option<usize> {
        (0..1000).find(|_| {
            let reached = crowd.is_there() == is_there;
            crowd.note(speakers);
            reached
        })
    }

    #[test]
    fn few_are_no_crowd_however_long_they_speak_and_many_soon_are() {
        let crowd = Crowd::default();
        assert_eq!(turns(&crowd, 2, true), None);
        assert!(turns(&crowd, 50, true).is_some_and(|turns| turns <= 2));
        // Who is many stays many while there are two, and for a while when there is one.
        assert_eq!(turns(&crowd, 2, false), None);
        assert!(turns(&crowd, 1, false).is_some_and(|turns| turns >= 10));
        assert_eq!(turns(&crowd, 2, true), None);
    }
}
