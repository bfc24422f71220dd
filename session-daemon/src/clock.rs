//! One sample of the clocks for a whole turn of a worker's loop.
//! It owns the reading of clocks; nothing below `server` calls it.
#![forbid(unsafe_code)]

use std::fs;
use std::sync::OnceLock;

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

/// By how much this process's `CLOCK_BOOTTIME` is ahead of the kernel's own, by which programs in
/// the kernel judge deadlines: 0 but in a time namespace. The first call reads `/proc`.
#[must_use]
pub fn ahead_ns() -> i64 {
    static AHEAD_NS: OnceLock<i64> = OnceLock::new();
    *AHEAD_NS.get_or_init(|| {
        // Without the file there are no time namespaces.
        let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        boottime_offset_ns(&offsets).unwrap_or(0)
    })
}

/// The offset of `boottime` in the words of time_namespaces(7): seconds and nanoseconds.
fn boottime_offset_ns(offsets: &str) -> Option<i64> {
    let mut words =
        offsets.lines().find_map(|line| line.strip_prefix("boottime"))?.split_whitespace();
    let (seconds, nanoseconds): (i64, i64) =
        (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("every kernel that runs this has both clocks");
    // Both clocks are after their zero on every host that runs; a clock set before 1970 reads 0.
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::boottime_offset_ns;

    #[test]
    fn the_boot_clocks_offset_is_read_in_either_direction() {
        let offsets =
            |boottime: &str| format!("monotonic           5         0\nboottime {boottime}\n");
        assert_eq!(boottime_offset_ns(&offsets("           0         0")), Some(0));
        assert_eq!(boottime_offset_ns(&offsets("  86400 500000000")), Some(86_400_500_000_000));
        assert_eq!(boottime_offset_ns(&offsets("-3 0")), Some(-3_000_000_000));
        for none in ["", "monotonic 1 0", "boottime", "boottime x 0"] {
            assert_eq!(boottime_offset_ns(none), None, "{none}");
        }
    }
}
