//! One sample of the clocks for a whole turn of a worker's loop.
//! It owns the reading of clocks; nothing below `server` calls it.
#![forbid(unsafe_code)]

// libc's, not the kernel's page of code past it: an operator can then try a wrong clock with
// libfaketime.
use nix::time::{ClockId, clock_gettime};

/// A sample of both clocks, taken once per turn and passed down as an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_REALTIME`, nanoseconds since 1970. Only compared with absolute expiry times.
    pub realtime_ns: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds. Monotonic, counts suspend; every deadline is on it.
    pub boottime_ns: u64,
}

impl Now {
    /// Reads both clocks.
    #[must_use]
    pub fn sample() -> Self {
        Self {
            realtime_ns: nanoseconds(ClockId::CLOCK_REALTIME),
            boottime_ns: nanoseconds(ClockId::CLOCK_BOOTTIME),
        }
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("every kernel that runs this has both clocks");
    // Both clocks are after their zero on every host that runs; a clock set before 1970 reads 0.
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
}
