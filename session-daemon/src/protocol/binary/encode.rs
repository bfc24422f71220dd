//! Replies to bytes, appended to a buffer that the caller owns. It owns the layout of every reply
//! and what the quiet forms leave out; it never decides what became of a request.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::REPLY_MAGIC;
use super::status::{self, Status};
use crate::command::request::Outcome;
use crate::protocol::text::encode::VERSION;

/// What a reply repeats of its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// The request's opcode, quiet or not.
    pub opcode: u8,
    /// The client's own four bytes.
    pub opaque: [u8; 4],
    /// Success is not answered; for a fetch, a miss is not.
    pub quiet: bool,
}

/// Longest reply to a fetch without its value: header, flags and key.
pub const FOUND_LEN_MAX: usize = 24 + 4 + 250;

/// A reply that is its status, in words unless it is success. `cas` is the version that a
/// storage command left behind, else 0.
pub fn outcome(out: &mut Vec<u8>, tag: Tag, outcome: Outcome, cas: u64) {
    match (status::of(outcome, tag.opcode), outcome) {
        (Some(status), _) => error(out, tag, status),
        (None, _) if tag.quiet => {}
        (None, Outcome::Number(value)) => {
            header(out, tag, Reply { cas, body_len: 8, ..Reply::SUCCESS });
            out.extend_from_slice(&value.to_be_bytes());
        }
        (None, Outcome::Version) => {
            let body_len = len(VERSION.len());
            header(out, tag, Reply { body_len, ..Reply::SUCCESS });
            out.extend_from_slice(VERSION.as_bytes());
        }
        (None, _) => header(out, tag, Reply { cas, ..Reply::SUCCESS }),
    }
}

/// Success, and words with it.
pub fn said(out: &mut Vec<u8>, tag: Tag, words: &[u8]) {
    header(out, tag, Reply { body_len: len(words.len()), ..Reply::SUCCESS });
    out.extend_from_slice(words);
}

/// A refusal. The quiet forms hear of it too.
pub fn error(out: &mut Vec<u8>, tag: Tag, status: Status) {
    let words = status.words();
    let (status, body_len) = (status as u16, len(words.len()));
    header(out, tag, Reply { status, body_len, ..Reply::SUCCESS });
    out.extend_from_slice(words);
}

/// An item that was found, up to where its value begins; `value_len` is 0 for `touch`.
pub fn found(
    out: &mut Vec<u8>,
    tag: Tag,
    key: Option<&[u8]>,
    flags: u32,
    value_len: usize,
    cas: u64,
) {
    let key = key.unwrap_or_default();
    let extras = flags.to_be_bytes();
    let body_len = len(extras.len().saturating_add(key.len()).saturating_add(value_len));
    let (extras_len, key_len) = (4, short_len(key.len()));
    header(out, tag, Reply { extras_len, key_len, body_len, cas, ..Reply::SUCCESS });
    out.extend_from_slice(&extras);
    out.extend_from_slice(key);
}

/// An item that was not found: nothing for the quiet forms, and the key instead of words for
/// those that ask for it.
pub fn missed(out: &mut Vec<u8>, tag: Tag, key: Option<&[u8]>) {
    match key {
        _ if tag.quiet => {}
        None => error(out, tag, Status::NotFound),
        Some(key) => {
            let status = Status::NotFound as u16;
            let (key_len, body_len) = (short_len(key.len()), len(key.len()));
            header(out, tag, Reply { status, key_len, body_len, ..Reply::SUCCESS });
            out.extend_from_slice(key);
        }
    }
}

/// One statistic. An empty success ends the list.
pub fn stat(out: &mut Vec<u8>, tag: Tag, name: &str, value: &[u8]) {
    let body_len = len(name.len().saturating_add(value.len()));
    let key_len = short_len(name.len());
    header(out, tag, Reply { key_len, body_len, ..Reply::SUCCESS });
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(value);
}

/// The fields of a reply's header that differ from one reply to the next.
#[derive(Clone, Copy)]
struct Reply {
    status: u16,
    key_len: u16,
    extras_len: u8,
    body_len: u32,
    cas: u64,
}

impl Reply {
    const SUCCESS: Self = Self { status: 0, key_len: 0, extras_len: 0, body_len: 0, cas: 0 };
}

fn header(out: &mut Vec<u8>, tag: Tag, reply: Reply) {
    let [k0, k1] = reply.key_len.to_be_bytes();
    let [s0, s1] = reply.status.to_be_bytes();
    let [b0, b1, b2, b3] = reply.body_len.to_be_bytes();
    let [o0, o1, o2, o3] = tag.opaque;
    let [c0, c1, c2, c3, c4, c5, c6, c7] = reply.cas.to_be_bytes();
    let (magic, opcode, extras) = (REPLY_MAGIC, tag.opcode, reply.extras_len);
    out.extend_from_slice(&[
        magic, opcode, k0, k1, extras, 0, s0, s1, b0, b1, b2, b3, o0, o1, o2, o3, c0, c1, c2, c3,
        c4, c5, c6, c7,
    ]);
}

/// Keys, names and items are far below the bounds of their fields (250 bytes and 1 GiB).
fn len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn short_len(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}
