//! Replies to bytes, appended to a buffer that the caller owns. It owns every word that a client
//! is sent; it never decides which.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::parse::LineError;
use super::{CRLF, admin};
use crate::command::admin::AdminOutcome;
use crate::command::request::Outcome;

/// The version that clients are told: that of the memcached whose behaviour is followed, because
/// clients choose what to send by it. `sessiond` has its own in `-V` and `stats settings`.
pub const VERSION: &str = "1.6.45";

/// Ends the values of a fetch, and a list of statistics.
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"END\r\n");
}

/// `VALUE <key> <flags> <bytes> [<cas unique>]`, up to where the value begins.
pub fn value_header(out: &mut Vec<u8>, key: &[u8], flags: u32, value_len: usize, cas: Option<u64>) {
    out.extend_from_slice(b"VALUE ");
    out.extend_from_slice(key);
    match (value_len, cas) {
        (0..=9999, None) => short_numbers(out, flags, value_len as u16),
        _ => numbers(out, flags, value_len, cas),
    }
}

/// A whole value with its line. `ends`: it is the last of its list.
pub fn value(
    out: &mut Vec<u8>,
    key: &[u8],
    flags: u32,
    value: &[u8],
    cas: Option<u64>,
    ends: bool,
) {
    value_header(out, key, flags, value.len(), cas);
    out.extend_from_slice(value);
    if ends {
        out.extend_from_slice(VALUE_AND_LIST_END);
    } else {
        out.extend_from_slice(CRLF);
    }
}

/// Behind the last value of a list.
pub const VALUE_AND_LIST_END: &[u8; 7] = b"\r\nEND\r\n";

fn numbers(out: &mut Vec<u8>, flags: u32, value_len: usize, cas: Option<u64>) {
    out.push(b' ');
    number(out, u64::from(flags));
    out.push(b' ');
    number(out, value_len as u64);
    if let Some(cas) = cas {
        out.push(b' ');
        number(out, cas);
    }
    out.extend_from_slice(CRLF);
}

/// [`numbers`] of which the last has at most four digits, as nearly all have: without a loop, and in
/// pieces whose lengths the compiler knows.
fn short_numbers(out: &mut Vec<u8>, flags: u32, value_len: u16) {
    if flags <= 9 {
        out.extend_from_slice(&[b' ', b'0' | flags as u8, b' ']);
    } else {
        out.push(b' ');
        number(out, u64::from(flags));
        out.push(b' ');
    }
    let [a, b] = two_digits(value_len / 100);
    let [c, d] = two_digits(value_len % 100);
    let skipped: u32 = match value_len {
        0..=9 => 3,
        10..=99 => 2,
        100..=999 => 1,
        _ => 0,
    };
    let word = u64::from_le_bytes([a, b, c, d, b'\r', b'\n', 0, 0]);
    let word = word.wrapping_shr(skipped.wrapping_mul(8));
    out.extend_from_slice(&word.to_le_bytes());
    out.truncate(out.len().saturating_sub(2).saturating_sub(skipped as usize));
}

fn two_digits(number: u16) -> [u8; 2] {
    [b'0' | (number / 10) as u8, b'0' | (number % 10) as u8]
}

/// A reply of one line.
pub fn outcome(out: &mut Vec<u8>, outcome: Outcome) {
    let words: &[u8] = match outcome {
        Outcome::Stored => b"STORED\r\n",
        Outcome::NotStored => b"NOT_STORED\r\n",
        Outcome::Exists => b"EXISTS\r\n",
        Outcome::NotFound => b"NOT_FOUND\r\n",
        Outcome::Deleted => b"DELETED\r\n",
        Outcome::Touched => b"TOUCHED\r\n",
        Outcome::Ok => b"OK\r\n",
        Outcome::Reset => b"RESET\r\n",
        Outcome::TooLarge => b"SERVER_ERROR object too large for cache\r\n",
        Outcome::NoMemory => b"SERVER_ERROR out of memory storing object\r\n",
        Outcome::OutOfMemory => b"SERVER_ERROR out of memory\r\n",
        Outcome::NonNumeric => b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
        Outcome::FlushNotAllowed => b"CLIENT_ERROR flush_all not allowed\r\n",
        Outcome::BadShutdownMode => b"CLIENT_ERROR invalid shutdown mode\r\n",
        Outcome::ShutdownNotEnabled => b"SERVER_ERROR: shutdown not enabled\r\n",
        Outcome::Confined => admin::words(AdminOutcome::Confined),
        Outcome::Number(value) => {
            number(out, value);
            CRLF
        }
        Outcome::Version => {
            out.extend_from_slice(b"VERSION ");
            out.extend_from_slice(VERSION.as_bytes());
            CRLF
        }
    };
    out.extend_from_slice(words);
}

/// The answer to a line that asks nothing that can be done.
pub fn error(out: &mut Vec<u8>, error: LineError) {
    let words: &[u8] = match error {
        LineError::Unknown => b"ERROR\r\n",
        LineError::BadFormat => b"CLIENT_ERROR bad command line format\r\n",
        LineError::BadDelta => b"CLIENT_ERROR invalid numeric delta argument\r\n",
        LineError::BadExptime => b"CLIENT_ERROR invalid exptime argument\r\n",
        LineError::DeleteUsage => {
            b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
        }
        LineError::BadData => b"CLIENT_ERROR bad data chunk\r\n",
        LineError::BadLine => b"CLIENT_ERROR bad command line\r\n",
        LineError::DetailUsage => b"CLIENT_ERROR usage: stats detail on|off|dump\r\n",
        LineError::IllegalClass => b"CLIENT_ERROR Illegal slab id\r\n",
        LineError::BadClass => b"BADCLASS invalid class id\r\n",
    };
    out.extend_from_slice(words);
}

/// What a connection over the limit is told before it is closed.
pub const TOO_MANY_CONNECTIONS: &[u8] = b"ERROR Too many open connections\r\n";

/// What a client is told before it is closed, when its half of a request cannot be kept.
pub const NO_MEMORY_FOR_REQUEST: &[u8] = b"SERVER_ERROR out of memory reading request\r\n";

/// `STAT <name> <value>`. Rare, so its value may come as text.
pub fn stat(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(b"STAT ");
    out.extend_from_slice(name.as_bytes());
    out.push(b' ');
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(CRLF);
}

fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::{numbers, value_header};

    #[test]
    fn short_numbers_are_spelled_as_all_are() {
        for flags in [0, 1, 9, 10, u32::MAX] {
            for value_len in (0..=10_001).chain([65_536, 1 << 20]) {
                let (mut out, mut spelled) = (b"before ".to_vec(), b"before VALUE k".to_vec());
                value_header(&mut out, b"k", flags, value_len, None);
                numbers(&mut spelled, flags, value_len, None);
                assert_eq!(out, spelled);
                assert_eq!(out, format!("before VALUE k {flags} {value_len}\r\n").into_bytes());
            }
        }
    }
}
