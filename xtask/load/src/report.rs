//! What a load came to.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

/// The result of one load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Seconds that were measured.
    pub seconds: f64,
    /// Requests (or pages) answered in that time.
    pub requests: u64,
    /// Values that were there, each compared byte for byte.
    pub hits: u64,
    /// Values that were not.
    pub misses: u64,
    /// Requests by datagram to which no reply came in time.
    #[serde(default)]
    pub lost: u64,
    /// The server refused the first such request with these words; nothing was measured.
    pub not_served: Option<String>,
    /// A reply that was not what it must be, or a connection that ended.
    pub fault: Option<String>,
    /// Nanoseconds from when a request was due, or in a closed loop written, to its whole reply.
    pub latency_ns: Latency,
    /// Processor time of the server over the measured seconds.
    pub server: Processor,
    /// Processor time of the load generator itself.
    pub load: Processor,
    /// Share of the machine's processor time that its hypervisor gave to others, 0 to 1.
    pub stolen: f64,
}

/// Latencies at some ranks, within 1 %.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the ranks")]
pub struct Latency {
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// Processor time by the scheduler's account, over all threads of a process.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Processor {
    /// Nanoseconds on a processor.
    pub run_ns: u64,
    /// Nanoseconds ready to run while something else had the processor.
    pub wait_ns: u64,
}

impl Report {
    /// Requests answered a second.
    #[must_use]
    pub fn requests_per_s(&self) -> f64 {
        self.requests as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Nanoseconds of the server's processor time a request; none without requests or account.
    #[must_use]
    pub fn server_ns(&self) -> Option<f64> {
        (self.requests > 0 && self.server.run_ns > 0)
            .then(|| self.server.run_ns as f64 / self.requests as f64)
    }

    /// Processors that the server used, on average.
    #[must_use]
    pub fn server_use(&self) -> f64 {
        self.server.run_ns as f64 / 1e9 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Whether every reply was what it had to be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.fault.is_none()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(words) = &self.not_served {
            return writeln!(f, "not served: {words}");
        }
        if let Some(fault) = &self.fault {
            return writeln!(f, "fault: {fault}");
        }
        let us = |ns: u64| ns as f64 / 1e3;
        writeln!(f, "{:>12.0} requests/s over {:.2} s", self.requests_per_s(), self.seconds)?;
        writeln!(f, "{:>12} hits, {} misses, {} lost", self.hits, self.misses, self.lost)?;
        let Latency { mean, p50, p90, p99, p999, max } = self.latency_ns;
        writeln!(f, "{:>12.1} us mean latency", mean / 1e3)?;
        for (name, value) in
            [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("max", max)]
        {
            writeln!(f, "{:>12.1} us {name}", us(value))?;
        }
        if let Some(ns) = self.server_ns() {
            writeln!(f, "{ns:>12.0} ns of the server's processor time a request")?;
            writeln!(f, "{:>12.2} processors used by the server", self.server_use())?;
        }
        let own = self.load.run_ns as f64 / self.requests.max(1) as f64;
        writeln!(f, "{own:>12.0} ns of the generator's processor time a request")
    }
}
