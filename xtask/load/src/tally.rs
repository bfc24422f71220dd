//! What a worker counts between the beginning and the end of the measurement.
#![forbid(unsafe_code)]

use hdrhistogram::Histogram;

/// Latencies outside are counted at the nearest end, in nanoseconds.
const LATENCY_NS: (u64, u64) = (1_000, 60_000_000_000);
/// Two digits: a bucket is at most 1 % wide, and the histogram stays in the processor's cache.
const DIGITS: u8 = 2;

/// Counts and latencies.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    /// Requests by datagram to which no reply came.
    pub(crate) lost: u64,
    pub(crate) latency_ns: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latency_ns = Histogram::new_with_bounds(LATENCY_NS.0, LATENCY_NS.1, DIGITS)
            .expect("the bounds and digits are within the crate's limits");
        Self { requests: 0, hits: 0, misses: 0, lost: 0, latency_ns }
    }

    pub(crate) fn reset(&mut self) {
        self.requests = 0;
        self.hits = 0;
        self.misses = 0;
        self.lost = 0;
        self.latency_ns.reset();
    }

    pub(crate) fn answered(&mut self, start_ns: u64, now_ns: u64) {
        self.requests += 1;
        self.latency_ns.saturating_record(now_ns.saturating_sub(start_ns));
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.hits += other.hits;
        self.misses += other.misses;
        self.lost += other.lost;
        self.latency_ns.add(&other.latency_ns).expect("both histograms have the same bounds");
    }
}
