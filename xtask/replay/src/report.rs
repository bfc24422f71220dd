//! What a replay found.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Windows of equal numbers of requests in which hits are counted.
pub const WINDOWS: usize = 300;

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Requests of each window.
    pub requests: Vec<u64>,
    /// Hits of each window.
    pub hits: Vec<u64>,
    /// Values that could not be stored.
    pub refused: u64,
    /// Values that were not what had been stored.
    pub wrong: u64,
    /// Live items evicted.
    pub evicted: u64,
    /// Of them, those never read.
    pub evicted_unfetched: u64,
    /// Pages moved between classes.
    pub pages_moved: u64,
    /// Items that moved with their pages instead of being evicted; none is known of a server.
    pub items_moved: u64,
    /// Items held at the end.
    pub items: u64,
    /// Bytes that were taken for items: of a server, by its own account.
    pub memory_bytes: u64,
}

impl Report {
    /// Counts one of `all` requests.
    pub fn count(&mut self, idx: usize, all: usize, hit: bool) {
        self.requests.resize(WINDOWS, 0);
        self.hits.resize(WINDOWS, 0);
        let window = idx * WINDOWS / all;
        self.requests[window] += 1;
        self.hits[window] += u64::from(hit);
    }

    /// Share of hits after the first `warm_up` of all windows.
    #[must_use]
    pub fn hit_ratio(&self, warm_up: f64) -> f64 {
        let skip = (self.requests.len() as f64 * warm_up).round() as usize;
        let sum = |counts: &[u64]| counts.iter().skip(skip).sum::<u64>() as f64;
        sum(&self.hits) / sum(&self.requests)
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn the_warm_up_does_not_count() {
        let mut report = Report::default();
        for idx in 0..6_000 {
            report.count(idx, 6_000, idx >= 3_000 && idx % 2 == 0);
        }
        assert_eq!(report.requests, vec![20; 300]);
        assert!((report.hit_ratio(0.0) - 0.25).abs() < 1e-9);
        assert!((report.hit_ratio(0.5) - 0.5).abs() < 1e-9);
    }
}
