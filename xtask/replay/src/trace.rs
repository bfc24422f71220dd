//! Traces: files of 24-byte records, little-endian, in the order of the accesses.
//!
//! ```text
//! 0        4            12           16       20       24
//! +--------+------------+------------+--------+--------+
//! | time,s |    key     | value_len  | ttl, s |   op   |    op 0: get, and set if it missed
//! +--------+------------+------------+--------+--------+    op 1: get, and set in any case
//! ```
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Bytes of a record.
const RECORD_LEN: usize = 24;
/// Bytes of a key: the number in decimal digits behind a prefix.
pub const KEY_LEN: usize = 24;
/// Largest value in a trace.
pub const VALUE_LEN_MAX: usize = 1 << 20;
/// Requests a second where a trace's clock stands still.
const PACE: u64 = 1000;
/// Nanoseconds between two requests of the same second.
const STEP_NS: u64 = 100_000;

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// When, in seconds of the trace's clock.
    pub time_s: u32,
    /// Which key.
    pub key: u64,
    /// Bytes of the key's value.
    pub value_len: u32,
    /// Seconds that a stored value lives; 0 for ever.
    pub ttl_s: u32,
    /// Whether the value is stored in any case, or only if the get missed.
    pub always_set: bool,
}

/// A whole trace.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Its accesses in order.
    pub accesses: Vec<Access>,
    /// Whether its clock never moves.
    is_still: bool,
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// When the file cannot be read or is not a trace.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        Self::parse(&bytes).with_context(|| path.display().to_string())
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let (records, rest) = bytes.as_chunks::<RECORD_LEN>();
        ensure!(rest.is_empty() && !records.is_empty(), "a trace is records of {RECORD_LEN} bytes");
        let accesses: Vec<Access> = records.iter().map(Access::parse).collect();
        ensure!(
            accesses.iter().all(|access| access.value_len as usize <= VALUE_LEN_MAX),
            "a value is longer than {VALUE_LEN_MAX} bytes"
        );
        ensure!(
            accesses.is_sorted_by_key(|access| access.time_s),
            "the clock of the trace goes backwards"
        );
        let is_still = accesses[0].time_s == accesses[accesses.len() - 1].time_s;
        Ok(Self { accesses, is_still })
    }

    /// Nanoseconds of the trace's clock at each access. Accesses of the same second come a little
    /// after each other, and where the clock stands still a thousand to a second.
    pub fn clock_ns(&self) -> impl Iterator<Item = u64> + '_ {
        let (mut second, mut before) = (0, 0);
        self.accesses.iter().enumerate().map(move |(idx, access)| {
            if self.is_still {
                return idx as u64 * (1_000_000_000 / PACE);
            }
            before = if second == access.time_s { before + STEP_NS } else { 0 };
            second = access.time_s;
            u64::from(second) * 1_000_000_000 + before.min(999_999_999)
        })
    }
}

impl Access {
    fn parse(record: &[u8; RECORD_LEN]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
        };
        Self {
            time_s: word(0),
            key: u64::from(word(4)) | u64::from(word(8)) << 32,
            value_len: word(12),
            ttl_s: word(16),
            always_set: word(20) == 1,
        }
    }

    /// The key as a client would send it.
    #[must_use]
    pub fn name(&self) -> [u8; KEY_LEN] {
        let mut name = *b"key:00000000000000000000";
        let mut rest = self.key;
        for digit in name[4..].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time_s: u32, key: u64, op: u32) -> Vec<u8> {
        let mut record = time_s.to_le_bytes().to_vec();
        record.extend(key.to_le_bytes());
        for word in [100, 60, op] {
            record.extend(u32::to_le_bytes(word));
        }
        record
    }

    #[test]
    fn records_are_read() {
        let bytes = [record(1, 1 << 40, 0), record(1, 7, 1), record(3, 7, 0)].concat();
        let trace = Trace::parse(&bytes).unwrap();
        let access =
            Access { time_s: 1, key: 1 << 40, value_len: 100, ttl_s: 60, always_set: false };
        assert_eq!(trace.accesses[0], access);
        assert!(trace.accesses[1].always_set);
        assert_eq!(&trace.accesses[1].name(), b"key:00000000000000000007");
        let clock: Vec<u64> = trace.clock_ns().collect();
        assert_eq!(clock, [1_000_000_000, 1_000_100_000, 3_000_000_000]);
        assert!(Trace::parse(&bytes[1..]).is_err());
        assert!(Trace::parse(&[record(2, 1, 0), record(1, 1, 0)].concat()).is_err());
    }

    #[test]
    fn a_clock_that_stands_still_is_replaced() {
        let trace = Trace::parse(&[record(5, 1, 0), record(5, 2, 0)].concat()).unwrap();
        assert_eq!(trace.clock_ns().collect::<Vec<_>>(), [0, 1_000_000]);
    }
}
