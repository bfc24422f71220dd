//! Requests to bytes, and bytes of replies against what must come. Knows no socket.
#![forbid(unsafe_code)]

mod binary;
mod meta;
mod text;

use crate::items::Items;
use crate::options::Protocol;

/// A piece of a reply that must come next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expect {
    pub(crate) what: What,
    /// Number of the item.
    pub(crate) idx: u32,
    /// When the request was due, in the worker's nanoseconds.
    pub(crate) start_ns: u64,
    /// Whether the request is answered with this piece.
    pub(crate) last: bool,
}

/// Kinds of pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// An item's value.
    Value,
    /// The end of a text get.
    End,
    /// A set that was done.
    Stored,
    /// An add, done or refused because the key is there.
    Added,
    /// A number, or that there is none.
    Number,
}

/// What the bytes at hand say about the expected piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Not enough of them.
    More,
    /// The header of the value, so many bytes long; the value and its trailer follow.
    Header(usize),
    /// All of the piece, so many bytes long.
    Done(usize),
    /// The item is not there; so many bytes say so.
    Miss(usize),
    /// Something else.
    Wrong,
}

/// Longest line that a server answers: a key, flags, length, cas and words.
const LINE_LEN_MAX: usize = 512;

impl Protocol {
    /// Appends a get of one item and what must come back.
    pub(crate) fn get(self, items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
        match self {
            Self::Text => text::get(items, &[idx], start_ns, out),
            Self::Meta => meta::get(items, idx, start_ns, out),
            Self::Binary => binary::get(items, idx, start_ns, out),
        }
    }

    /// Appends a set of one item and what must come back.
    pub(crate) fn set(self, items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
        match self {
            Self::Text => text::set(items, idx, start_ns, out),
            Self::Meta => meta::set(items, idx, start_ns, out),
            Self::Binary => binary::set(items, idx, start_ns, out),
        }
    }

    /// Compares the bytes of a reply with the piece that must come.
    pub(crate) fn step(
        self,
        items: &Items,
        expect: &Expect,
        bytes: &[u8],
        line: &mut Vec<u8>,
    ) -> Step {
        match self {
            Self::Text => text::step(items, expect, bytes, line),
            Self::Meta => meta::step(items, expect, bytes, line),
            Self::Binary => binary::step(items, expect, bytes),
        }
    }

    /// What stands behind a value.
    pub(crate) fn trailer(self) -> &'static [u8] {
        match self {
            Self::Text | Self::Meta => b"\r\n",
            Self::Binary => b"",
        }
    }
}

pub(crate) use text::{get as text_get, open_page, save_page, unlock_page};

/// Where a request goes: its bytes, and what must come back.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    pub(crate) bytes: &'a mut Vec<u8>,
    pub(crate) expects: &'a mut std::collections::VecDeque<Expect>,
}

/// The line at the start of `bytes` with its end, if it is all there; an error if it cannot be.
fn line_of(bytes: &[u8]) -> Result<Option<&[u8]>, ()> {
    match memchr::memchr(b'\n', &bytes[..bytes.len().min(LINE_LEN_MAX)]) {
        Some(end) => Ok(Some(&bytes[..=end])),
        None if bytes.len() >= LINE_LEN_MAX => Err(()),
        None => Ok(None),
    }
}

/// Appends a decimal number.
pub(crate) fn push_number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
