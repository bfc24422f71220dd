//! Replies to meta commands, appended to a buffer that the caller owns. It owns every word that a
//! client is sent and the order of the flags, which is the request's; it never decides which.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::base64;
use super::flags::MetaError;
use super::parse::Asked;
use crate::command::request::{Key, Outcome};
use crate::protocol::text;
use crate::protocol::text::CRLF;
use crate::protocol::text::words::Words;

/// What every reply may repeat of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// The key.
    pub key: Key<'a>,
    /// The key is spelled in base64.
    pub key_is_binary: bool,
    /// The commonest answer is not wanted.
    pub quiet: bool,
    /// The flags of the request.
    pub words: Words<'a>,
}

impl<'a> Echo<'a> {
    /// What the replies to a command repeat.
    #[must_use]
    pub fn of(asked: &Asked<'a>) -> Self {
        let (key_is_binary, quiet) = (asked.flags.has(b'b'), asked.flags.has(b'q'));
        Self { key: asked.key, key_is_binary, quiet, words: asked.words }
    }
}

/// Time left, seconds; none for what never ends.
pub type Ttl = Option<u32>;

/// An item that `mg` found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Its value follows.
    pub with_value: bool,
    /// Bytes of the value.
    pub value_len: usize,
    /// The client's own bits.
    pub flags: u32,
    /// The version.
    pub cas: u64,
    /// It was fetched before.
    pub fetched: bool,
    /// Seconds since it was accessed last.
    pub idle_s: u32,
    /// Time left before this request.
    pub ttl: Ttl,
    /// Time left by `N`, for an item that was made.
    pub ttl_vivified: Option<Ttl>,
    /// Time left by `T`.
    pub ttl_touched: Option<Ttl>,
    /// The caller has to renew the item.
    pub won: bool,
    /// The item is stale.
    pub stale: bool,
    /// Somebody else has to renew it.
    pub sent: bool,
    /// Clients spell the key in base64.
    pub key_is_binary: bool,
}

/// `HD` or `VA` up to where the value begins. `t` shows what stands before it in the line.
pub fn hit(out: &mut Vec<u8>, echo: &Echo<'_>, hit: &Hit) {
    if hit.with_value {
        out.extend_from_slice(b"VA ");
        number(out, hit.value_len as u64);
    } else {
        out.extend_from_slice(b"HD");
    }
    let mut left = hit.ttl;
    let binary = hit.key_is_binary || (echo.key_is_binary && !is_printable(echo.key.bytes()));
    let echo = Echo { key_is_binary: binary, ..*echo };
    let mut told = |out: &mut Vec<u8>, letter| match letter {
        b'T' => left = hit.ttl_touched.unwrap_or(left),
        b'N' => left = hit.ttl_vivified.unwrap_or(left),
        b's' => flag(out, letter, hit.value_len as u64),
        b't' => ttl(out, left),
        b'c' => flag(out, letter, hit.cas),
        b'f' => flag(out, letter, hit.flags.into()),
        b'l' => flag(out, letter, hit.idle_s.into()),
        b'h' => flag(out, letter, hit.fetched.into()),
        _ => {}
    };
    // The commonest flags show nothing.
    if echo.words.0 != b" v" {
        echoed(out, &echo, &mut told);
    }
    for (is_set, word) in [(hit.sent, b" Z"), (hit.stale, b" X"), (hit.won, b" W")] {
        if is_set {
            out.extend_from_slice(word);
        }
    }
    out.extend_from_slice(CRLF);
}

/// `EN`, which quiet requests do without.
pub fn miss(out: &mut Vec<u8>, echo: &Echo<'_>) {
    if !echo.quiet {
        status(out, b"EN", echo);
    }
}

/// The reply to `ms`. `cas` and `value_len` are those of what was stored, or else 0 and of what was
/// sent.
pub fn stored(out: &mut Vec<u8>, echo: &Echo<'_>, outcome: Outcome, cas: u64, value_len: usize) {
    let Some(words) = words_of(outcome) else { return text::encode::outcome(out, outcome) };
    if echo.quiet && outcome == Outcome::Stored {
        return;
    }
    out.extend_from_slice(words);
    echoed(out, echo, |out, letter| match letter {
        b'c' => flag(out, letter, cas),
        b's' => flag(out, letter, value_len as u64),
        _ => {}
    });
    out.extend_from_slice(CRLF);
}

/// The reply to `md`, and to `ma` that did not count.
pub fn outcome(out: &mut Vec<u8>, echo: &Echo<'_>, outcome: Outcome) {
    match words_of(outcome) {
        None => text::encode::outcome(out, outcome),
        Some(_) if echo.quiet && outcome == Outcome::Deleted => {}
        Some(words) => status(out, words, echo),
    }
}

/// A number that `ma` counted or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The number.
    pub value: u64,
    /// The number is wanted.
    pub with_value: bool,
    /// The version.
    pub cas: u64,
    /// Time left before this request.
    pub ttl: Ttl,
    /// The number was made: said to quiet clients too.
    pub made: bool,
    /// Time left by `N`, for a number that was made.
    pub ttl_vivified: Option<Ttl>,
    /// Time left by `T`.
    pub ttl_touched: Option<Ttl>,
}

/// The reply to `ma`, number and all.
pub fn count(out: &mut Vec<u8>, echo: &Echo<'_>, count: &Count) {
    if echo.quiet && !count.made {
        return;
    }
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(count.value).as_bytes();
    if count.with_value {
        out.extend_from_slice(b"VA ");
        number(out, digits.len() as u64);
    } else {
        out.extend_from_slice(b"HD");
    }
    let mut left = count.ttl;
    echoed(out, echo, |out, letter| match letter {
        b'T' => left = count.ttl_touched.unwrap_or(left),
        b'N' => left = count.ttl_vivified.unwrap_or(left),
        b't' => ttl(out, left),
        b'c' => flag(out, letter, count.cas),
        _ => {}
    });
    out.extend_from_slice(CRLF);
    if count.with_value {
        out.extend_from_slice(digits);
        out.extend_from_slice(CRLF);
    }
}

/// An item as `me` tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Time left.
    pub ttl: Ttl,
    /// Seconds since it was accessed last.
    pub idle_s: u32,
    /// The version.
    pub cas: u64,
    /// It was fetched before.
    pub fetched: bool,
    /// Its slab class.
    pub class: u32,
    /// Bytes that it takes in its chunks, roundings aside.
    pub item_len: usize,
    /// Clients spell the key in base64.
    pub key_is_binary: bool,
}

/// The reply to `me`.
pub fn told(out: &mut Vec<u8>, key: Key<'_>, told: &Told) {
    out.extend_from_slice(b"ME ");
    if told.key_is_binary || !is_printable(key.bytes()) {
        base64::encode(out, key.bytes());
    } else {
        out.extend_from_slice(key.bytes());
    }
    out.extend_from_slice(b" exp=");
    match told.ttl {
        None => out.extend_from_slice(b"-1"),
        Some(left_s) => number(out, left_s.into()),
    }
    out.extend_from_slice(b" la=");
    number(out, told.idle_s.into());
    out.extend_from_slice(b" cas=");
    number(out, told.cas);
    out.extend_from_slice(if told.fetched { b" fetch=yes cls=" } else { b" fetch=no cls=" });
    number(out, told.class.into());
    out.extend_from_slice(b" size=");
    number(out, told.item_len as u64);
    out.extend_from_slice(CRLF);
}

/// The reply to `me` for what is not there.
pub const UNTOLD: &[u8] = b"EN\r\n";

/// The reply to `mn`.
pub const NOOP: &[u8] = b"MN\r\n";

/// The answer to a command that cannot be done. Quiet or not, it is sent.
pub fn error(out: &mut Vec<u8>, error: MetaError) {
    let words: &[u8] = match error {
        MetaError::BadFormat => b"CLIENT_ERROR bad command line format\r\n",
        MetaError::TooManyFlags => b"CLIENT_ERROR options flags are too long\r\n",
        MetaError::DuplicateFlag => b"CLIENT_ERROR duplicate flag\r\n",
        MetaError::InvalidFlag => b"CLIENT_ERROR invalid flag\r\n",
        MetaError::InvalidOrDuplicateFlag => b"CLIENT_ERROR invalid or duplicate flag\r\n",
        MetaError::BadToken => b"CLIENT_ERROR bad token in command line format\r\n",
        MetaError::BadInitial => b"CLIENT_ERROR invalid numeric initial value\r\n",
        MetaError::BadDelta => b"CLIENT_ERROR invalid numeric delta value\r\n",
        MetaError::BadKey => b"CLIENT_ERROR error decoding key\r\n",
        MetaError::OpaqueTooLong => b"CLIENT_ERROR opaque token too long\r\n",
        MetaError::BadSetMode => b"CLIENT_ERROR invalid mode for ms M token\r\n",
        MetaError::BadArithmeticMode => b"CLIENT_ERROR invalid mode for ma M token\r\n",
    };
    out.extend_from_slice(words);
}

/// The return code of an outcome that has one.
fn words_of(outcome: Outcome) -> Option<&'static [u8]> {
    Some(match outcome {
        Outcome::Stored | Outcome::Deleted => b"HD",
        Outcome::NotStored => b"NS",
        Outcome::Exists => b"EX",
        Outcome::NotFound => b"NF",
        _ => return None,
    })
}

fn status(out: &mut Vec<u8>, words: &[u8], echo: &Echo<'_>) {
    out.extend_from_slice(words);
    echoed(out, echo, |_, _| {});
    out.extend_from_slice(CRLF);
}

/// Writes opaque and key where the request has them, and hands over all other letters.
fn echoed(out: &mut Vec<u8>, echo: &Echo<'_>, mut other: impl FnMut(&mut Vec<u8>, u8)) {
    for word in echo.words {
        match word.first() {
            Some(b'O') => {
                out.push(b' ');
                out.extend_from_slice(word);
            }
            Some(b'k') => {
                out.extend_from_slice(b" k");
                if echo.key_is_binary {
                    base64::encode(out, echo.key.bytes());
                    out.extend_from_slice(b" b");
                } else {
                    out.extend_from_slice(echo.key.bytes());
                }
            }
            Some(letter) => other(out, *letter),
            None => {}
        }
    }
}

/// Whether a key can stand in a line as it is.
fn is_printable(key: &[u8]) -> bool {
    key.iter().all(|byte| *byte > b' ' && *byte != 0x7f)
}

fn flag(out: &mut Vec<u8>, letter: u8, value: u64) {
    out.extend_from_slice(&[b' ', letter]);
    number(out, value);
}

fn ttl(out: &mut Vec<u8>, left: Ttl) {
    match left {
        None => out.extend_from_slice(b" t-1"),
        Some(left_s) => flag(out, b't', left_s.into()),
    }
}

fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}
