//! Medians, spreads, and the rules by which a result counts.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Rounds below which nothing is concluded.
pub(super) const ROUNDS_MIN: usize = 3;
/// Widest middle half of the rounds' ratios, as a share of their median, for processor time and
/// throughput.
pub(super) const SPREAD_MAX: f64 = 0.10;
/// The same for latencies, which the hypervisor's scheduling reaches first.
pub(super) const LATENCY_SPREAD_MAX: f64 = 0.25;
/// Largest share of the time in which the server or the generator was ready and did not run, for
/// throughput and latency to count.
pub(super) const WAIT_MAX: f64 = 0.05;
/// Largest share of the time that the hypervisor gave to others.
pub(super) const STOLEN_MAX: f64 = 0.02;

/// Some numbers by their order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    pub(super) min: f64,
    pub(super) lower: f64,
    pub(super) median: f64,
    pub(super) upper: f64,
    pub(super) max: f64,
}

impl Spread {
    /// None without numbers. Quartiles lie between neighbours in proportion.
    pub(super) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> =
            numbers.into_iter().filter(|number| number.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let at = |share: f64| {
            let position = share * last as f64;
            let (below, above) =
                (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
            below + (above - below) * position.fract()
        };
        Some(Self { min: at(0.0), lower: at(0.25), median: at(0.5), upper: at(0.75), max: at(1.0) })
    }

    /// Width of the middle half as a share of the median.
    pub(super) fn width(&self) -> f64 {
        (self.upper - self.lower) / self.median
    }
}

/// The median; not a number where there are none.
pub(crate) fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(numbers).map_or(f64::NAN, |spread| spread.median)
}

/// What is concluded from the rounds' ratios of the other server to ours, more being better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// The middle half of the rounds is above 1.
    Better,
    /// The middle half of the rounds is below 1.
    Worse,
    /// The middle half of the rounds holds 1.
    Level,
    /// The rounds differ too much, or are too few.
    Noisy,
}

impl Verdict {
    /// The verdict on the ratios of `rounds` rounds.
    pub(super) fn of(ratio: &Spread, rounds: usize, spread_max: f64, disturbed: bool) -> Self {
        if disturbed || rounds < ROUNDS_MIN || ratio.width() > spread_max {
            Self::Noisy
        } else if ratio.lower > 1.0 {
            Self::Better
        } else if ratio.upper < 1.0 {
            Self::Worse
        } else {
            Self::Level
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SPREAD_MAX, Spread, Verdict};

    fn verdict(ratios: &[f64], disturbed: bool) -> Verdict {
        let spread = Spread::of(ratios.iter().copied()).unwrap();
        Verdict::of(&spread, ratios.len(), SPREAD_MAX, disturbed)
    }

    #[test]
    fn quartiles_of_five_are_the_second_and_the_fourth() {
        let spread = Spread::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        let parts = [spread.min, spread.lower, spread.median, spread.upper, spread.max];
        assert_eq!(parts, [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(Spread::of([]).is_none());
    }

    #[test]
    fn nothing_is_concluded_from_noise() {
        assert_eq!(verdict(&[1.2, 1.21, 1.22, 1.2, 1.25], false), Verdict::Better);
        assert_eq!(verdict(&[0.8, 0.81, 0.82, 0.8, 0.85], false), Verdict::Worse);
        assert_eq!(verdict(&[0.98, 1.0, 1.01, 1.02, 0.99], false), Verdict::Level);
        assert_eq!(verdict(&[1.2, 1.6, 1.4, 1.1, 1.9], false), Verdict::Noisy);
        assert_eq!(verdict(&[1.2, 1.2], false), Verdict::Noisy);
        assert_eq!(verdict(&[1.2, 1.21, 1.22, 1.2, 1.25], true), Verdict::Noisy);
    }
}
