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
