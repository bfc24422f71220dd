//! The settings of memcached's own mechanisms: what was given at start or by an administration
//! command, told back by `stats settings`. It owns their defaults and bounds. Those that steer
//! nothing here are listed in docs/protocol.md.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use serde::{Deserialize, Serialize};

/// A number with two places behind the point, as memcached prints ratios and factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hundredths(pub u64);

impl Hundredths {
    /// A finite number from 0, rounded; none for anything else.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let number: f64 = text.parse().ok()?;
        let bounded = number.is_finite() && (0.0..1e15).contains(&number);
        // Truncation is not lossy: the bound above is far below 2^53.
        bounded.then_some(Self((number * 100.0).round() as u64))
    }
}

impl std::fmt::Display for Hundredths {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// Most that hot and warm items may take together, per cent.
pub const LRU_PCT_MAX: u32 = 80;
/// Longest pause of the crawler, microseconds.
pub const CRAWLER_SLEEP_MAX_US: u32 = 1_000_000;
/// Bounds of `slab_automove_window`.
pub const AUTOMOVE_WINDOW: std::ops::RangeInclusive<u32> = 3..=1800;

/// What the administration commands and `-o` set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// `-o hashpower`, 0 unless given.
    pub hashpower_init: u32,
    /// Whether `slabs reassign` moves pages.
    pub slab_reassign: bool,
    /// `-o slab_automove`, `slabs automove`.
    pub slab_automove: u32,
    /// `slabs automove ratio`.
    pub slab_automove_ratio: Hundredths,
    /// `slabs automove window`.
    pub slab_automove_window: u32,
    /// Whether `lru_crawler` commands are taken.
    pub lru_crawler: bool,
    /// `lru_crawler sleep`, microseconds.
    pub lru_crawler_sleep_us: u32,
    /// `lru_crawler tocrawl`, items.
    pub lru_crawler_tocrawl: u32,
    /// `-o tail_repair_time`, seconds.
    pub tail_repair_time_s: u32,
    /// Whether `lru mode` and `lru temp_ttl` are taken.
    pub lru_maintainer: bool,
    /// `lru mode segmented`.
    pub lru_segmented: bool,
    /// `lru tune`, per cent.
    pub hot_lru_pct: u32,
    /// `lru tune`, per cent.
    pub warm_lru_pct: u32,
    /// `lru tune`.
    pub hot_max_factor: Hundredths,
    /// `lru tune`.
    pub warm_max_factor: Hundredths,
    /// `lru temp_ttl`; none for no list of temporary items.
    pub temporary_ttl_s: Option<u32>,
    /// `-o watcher_logbuf_size`, bytes: what a watcher may be behind.
    pub watcher_logbuf_len: usize,
    /// `-o worker_logbuf_size`, bytes.
    pub worker_logbuf_len: usize,
    /// `-o read_buf_mem_limit`, bytes.
    pub read_buf_mem_limit: u64,
    /// `stats sizes` counts.
    pub track_sizes: bool,
    /// `stats detail` counts.
    pub detail: bool,
    /// `-D`: ends the prefix of a key.
    pub prefix_delimiter: u8,
    /// `-N`.
    pub napi_ids: u32,
    /// `-o drop_privileges`: the serving process has a filter of system calls.
    pub drop_privileges: bool,
}

impl Default for Tuning {
    /// memcached's defaults.
    fn default() -> Self {
        Self {
            hashpower_init: 0,
            slab_reassign: true,
            slab_automove: 1,
            slab_automove_ratio: Hundredths(80),
            slab_automove_window: 10,
            lru_crawler: true,
            lru_crawler_sleep_us: 100,
            lru_crawler_tocrawl: 0,
            tail_repair_time_s: 0,
            lru_maintainer: true,
            lru_segmented: true,
            hot_lru_pct: 20,
            warm_lru_pct: 40,
            hot_max_factor: Hundredths(20),
            warm_max_factor: Hundredths(200),
            temporary_ttl_s: None,
            watcher_logbuf_len: 256 << 10,
            worker_logbuf_len: 64 << 10,
            read_buf_mem_limit: 0,
            track_sizes: false,
            detail: false,
            prefix_delimiter: b':',
            napi_ids: 0,
            drop_privileges: false,
        }
    }
}

/// memcached's `temporary_ttl` while there is no list of temporary items.
pub const TEMPORARY_TTL_S: u32 = 61;

#[cfg(test)]
mod tests {
    use super::Hundredths;

    #[test]
    fn ratios_print_as_memcached_prints_them() {
        for (text, shown) in [("0.8", "0.80"), ("2", "2.00"), ("0.005", "0.01"), ("0.1", "0.10")] {
            assert_eq!(Hundredths::read(text).map(|read| read.to_string()).as_deref(), Some(shown));
        }
        for bad in ["", "x", "-1", "nan", "inf", "1e300"] {
            assert_eq!(Hundredths::read(bad), None, "{bad}");
        }
    }
}
