//! A client's expiry time to the store's lifetime. It owns the rule of thirty days; a date is
//! turned into a span here, once, so that no later clock step moves it.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::clock::Now;
use crate::command::request::Exptime;
use crate::store::types::{Flush, Lifetime};

/// Longest expiry time that is a span, seconds; beyond it is a date (protocol.txt, "Expiration
/// times").
pub const RELATIVE_MAX_S: i64 = 60 * 60 * 24 * 30;

const NS: u64 = 1_000_000_000;

/// What an expiry time means to an item that is stored or touched now.
#[must_use]
pub fn lifetime(exptime: Exptime, now: Now) -> Lifetime {
    match remaining_s(exptime, now) {
        None => Lifetime::Never,
        Some(0) => Lifetime::Past,
        Some(remaining_s) => Lifetime::Until(deadline_s(remaining_s, now)),
    }
}

/// What the argument of `flush_all` means; 0 and what has passed are now.
#[must_use]
pub fn flush(at: Exptime, now: Now) -> Flush {
    match remaining_s(at, now) {
        None | Some(0) => Flush::Now,
        Some(remaining_s) => Flush::At(deadline_s(remaining_s, now)),
    }
}

/// Seconds left, 0 for the past; none for never.
fn remaining_s(exptime: Exptime, now: Now) -> Option<u64> {
    let Ok(seconds) = u64::try_from(exptime.0) else { return Some(0) };
    match exptime.0 {
        0 => None,
        1..=RELATIVE_MAX_S => Some(seconds),
        _ => Some(seconds.saturating_sub(now.realtime_ns / NS)),
    }
}

/// Saturates after 136 years of boot time, far beyond any host's.
fn deadline_s(remaining_s: u64, now: Now) -> u32 {
    u32::try_from((now.boottime_ns / NS).saturating_add(remaining_s)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{RELATIVE_MAX_S, flush, lifetime};
    use crate::clock::Now;
    use crate::command::request::Exptime;
    use crate::store::types::{Flush, Lifetime};

    const NOW: Now = Now { realtime_ns: 1_700_000_000_999_999_999, boottime_ns: 100_500_000_000 };

    #[test]
    fn spans_and_dates() {
        assert_eq!(lifetime(Exptime(0), NOW), Lifetime::Never);
        // -1 and -5 as libmemcached writes them, and the last date that is one.
        for (written, meant) in [(4_294_967_295, -1), (4_294_967_291, -5), (1 << 32, 1 << 32)] {
            assert_eq!(Exptime::of_line(written), Exptime(meant));
        }
        let last = (1 << 32) - RELATIVE_MAX_S - 1;
        assert_eq!(Exptime::of_line(last), Exptime(last));
        assert_eq!(lifetime(Exptime(1), NOW), Lifetime::Until(101));
        assert_eq!(lifetime(Exptime(-1), NOW), Lifetime::Past);
        assert_eq!(lifetime(Exptime(i64::MIN), NOW), Lifetime::Past);
        assert_eq!(lifetime(Exptime(RELATIVE_MAX_S), NOW), Lifetime::Until(2_592_100));
        assert_eq!(lifetime(Exptime(RELATIVE_MAX_S + 1), NOW), Lifetime::Past);
        assert_eq!(lifetime(Exptime(1_700_000_060), NOW), Lifetime::Until(160));
        assert_eq!(lifetime(Exptime(1_700_000_000), NOW), Lifetime::Past);
        assert_eq!(lifetime(Exptime(i64::MAX), NOW), Lifetime::Until(u32::MAX));
    }

    #[test]
    fn flush_times() {
        assert_eq!(flush(Exptime(0), NOW), Flush::Now);
        assert_eq!(flush(Exptime(-5), NOW), Flush::Now);
        assert_eq!(flush(Exptime(2), NOW), Flush::At(102));
        assert_eq!(flush(Exptime(1_699_999_999), NOW), Flush::Now);
    }
}
