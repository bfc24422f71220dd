//! memcached's classic text protocol (protocol.txt). It owns the grammar, the words of every
//! reply and the limits of a line; it never reads the value that follows a storage line.
#![forbid(unsafe_code)]

pub mod admin;
pub mod encode;
pub mod keys;
pub mod login;
pub mod number;
pub mod parse;
#[cfg(test)]
mod tests;
pub mod words;

/// Longest line, terminator included, of every verb but the four that take a list of keys.
/// memcached closes at the same length when the newline has not come.
pub const LINE_LEN_MAX: usize = 2048;

/// Longest line of `get`, `gets`, `gat` and `gats`. Their keys are answered as they arrive, so
/// this bounds the time that one line takes, not memory: 130,000 keys of the longest kind.
/// Shorter in unit tests, which go past it.
pub const KEY_LIST_LEN_MAX: usize = if cfg!(test) { 2 << 20 } else { 32 << 20 };

/// Longest value that a rejected storage line may announce and still have swallowed: memcached's
/// own bound on the number, 2^31 - 3. Past it the connection is closed after the error.
pub const SWALLOW_LEN_MAX: u64 = (1 << 31) - 3;

/// What ends a value and every reply.
pub const CRLF: &[u8] = b"\r\n";
