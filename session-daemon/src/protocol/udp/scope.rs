//! Which requests of a datagram may be done. It owns the two lists, reads and writes; whatever is
//! on neither (administration, dumps, what is not known) is never done over UDP.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::protocol::binary::encode::Tag;
use crate::protocol::binary::header::Header;
use crate::protocol::binary::opcode::decode;
use crate::protocol::binary::status::Status;
use crate::protocol::binary::{self, HEADER_LEN, REQUEST_MAGIC};
use crate::protocol::text::CRLF;
use crate::protocol::text::encode as text;
use crate::protocol::text::number::unsigned;
use crate::protocol::text::parse::LineError;
use crate::protocol::udp::{TOO_LARGE, WRITE_REFUSED};
use memchr::memchr;

/// What may be asked by datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What changes no item.
    Reads,
    /// Items may be changed too (`--udp-writes`).
    Writes,
}

/// How much of a payload may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Bytes of the requests that may be done.
    pub len: usize,
    /// Why the rest may not, if there is any.
    pub rest: Option<Refusal>,
}

/// Why a request may not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not end in its datagram, or is none.
    Incomplete,
    /// Its line does not tell how long its value is.
    Unclear,
    /// It changes items, which is not served.
    Write(Speech),
    /// It is never done over UDP.
    Unknown(Speech),
}

/// In which format a client is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// Text.
    Text,
    /// Binary: what the reply repeats of its request.
    Binary(Tag),
}

enum Class {
    Read,
    Write,
    /// A write whose value follows its line: which word is the value's length.
    Store(usize),
    Neither,
}

/// Judges the requests of a payload. `binary` is the format that is spoken.
#[must_use]
pub fn judge(payload: &[u8], binary: bool, scope: Scope) -> Judged {
    let mut len = 0;
    loop {
        let rest = payload.get(len..).unwrap_or_default();
        if rest.is_empty() {
            return Judged { len, rest: None };
        }
        let judged = if binary { frame(rest, scope) } else { line(rest, scope) };
        match judged {
            Ok(request_len) => len = len.saturating_add(request_len),
            Err(refusal) => return Judged { len, rest: Some(refusal) },
        }
    }
}

/// The format of the first request of a payload.
#[must_use]
pub fn speech(payload: &[u8], binary: bool) -> Speech {
    match Header::read(payload) {
        Some(header) if binary => Speech::Binary(tag(&header)),
        _ => Speech::Text,
    }
}

/// Whether a payload begins a binary request.
#[must_use]
pub fn is_binary(payload: &[u8]) -> bool {
    payload.first() == Some(&REQUEST_MAGIC)
}

/// Answers what may not be done. What is incomplete is not answered.
pub fn refuse(out: &mut Vec<u8>, refusal: Refusal) {
    match refusal {
        Refusal::Incomplete => {}
        Refusal::Unclear => text::error(out, LineError::BadFormat),
        Refusal::Write(Speech::Text) => out.extend_from_slice(WRITE_REFUSED),
        Refusal::Unknown(Speech::Text) => text::error(out, LineError::Unknown),
        Refusal::Write(Speech::Binary(tag)) => binary::encode::error(out, tag, Status::AuthFailure),
        Refusal::Unknown(Speech::Binary(tag)) => {
            binary::encode::error(out, tag, Status::UnknownCommand);
        }
    }
}

/// Answers a request whose reply may not be sent.
pub fn too_large(out: &mut Vec<u8>, speech: Speech) {
    match speech {
        Speech::Text => out.extend_from_slice(TOO_LARGE),
        Speech::Binary(tag) => binary::encode::error(out, tag, Status::TooLarge),
    }
}

fn admit(class: &Class, speech: Speech, scope: Scope) -> Result<(), Refusal> {
    match class {
        Class::Read => Ok(()),
        Class::Write | Class::Store(_) if scope == Scope::Writes => Ok(()),
        Class::Write | Class::Store(_) => Err(Refusal::Write(speech)),
        Class::Neither => Err(Refusal::Unknown(speech)),
    }
}

/// The length of the line at the start of `rest`, and of its value, if it may be done.
fn line(rest: &[u8], scope: Scope) -> Result<usize, Refusal> {
    let end = memchr(b'\n', rest).ok_or(Refusal::Incomplete)?;
    let line = rest.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let line_len = end.saturating_add(1);
    // Nothing: the reply says so.
    let Some(verb) = words.next() else { return Ok(line_len) };
    let class = verb_class(verb, &mut words.clone());
    admit(&class, Speech::Text, scope)?;
    let Class::Store(length_idx) = class else { return Ok(line_len) };
    let value_len = words.nth(length_idx).and_then(unsigned).ok_or(Refusal::Unclear)?;
    let value_len = usize::try_from(value_len).unwrap_or(usize::MAX);
    let len = line_len.saturating_add(value_len).saturating_add(CRLF.len());
    if len <= rest.len() { Ok(len) } else { Err(Refusal::Incomplete) }
}

fn verb_class<'a>(verb: &[u8], words: &mut impl Iterator<Item = &'a [u8]>) -> Class {
    match verb {
        b"get" | b"gets" | b"me" | b"mn" | b"version" | b"quit" => Class::Read,
        // These flags of `mg` make or change an item.
        b"mg" if words.skip(1).all(|flag| !matches!(flag.first(), Some(b'N' | b'R' | b'T'))) => {
            Class::Read
        }
        b"stats" => match words.next() {
            // memcached takes as many letters of these as there are.
            // What changes the counters, and what walks over the items for as long as it takes.
            Some(topic)
                if [&b"reset"[..], b"detail", b"cachedump"]
                    .iter()
                    .any(|w| w.starts_with(topic))
                    || topic.starts_with(b"sizes") =>
            {
                Class::Neither
            }
            _ => Class::Read,
        },
        b"mg" | b"md" | b"ma" | b"delete" | b"incr" | b"decr" | b"touch" | b"gat" | b"gats" => {
            Class::Write
        }
        b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas" => Class::Store(3),
        b"ms" => Class::Store(1),
        _ => Class::Neither,
    }
}

/// The length of the frame at the start of `rest`, if it may be done.
fn frame(rest: &[u8], scope: Scope) -> Result<usize, Refusal> {
    if !is_binary(rest) {
        return Err(Refusal::Incomplete);
    }
    let header = Header::read(rest).ok_or(Refusal::Incomplete)?;
    let body_len = usize::try_from(header.body_len).map_err(|_| Refusal::Incomplete)?;
    let frame_len = HEADER_LEN.saturating_add(body_len);
    let body = rest.get(HEADER_LEN..frame_len).ok_or(Refusal::Incomplete)?;
    admit(&opcode_class(header.opcode, body), Speech::Binary(tag(&header)), scope)?;
    Ok(frame_len)
}

fn opcode_class(opcode: u8, body: &[u8]) -> Class {
    match opcode {
        0x10 if body.starts_with(b"reset") || body.starts_with(b"detail") => Class::Neither,
        0x00 | 0x07 | 0x09..=0x0d | 0x10 | 0x17 => Class::Read,
        0x01..=0x06 | 0x0e | 0x0f | 0x11..=0x16 | 0x19 | 0x1a => Class::Write,
        0x1c..=0x1e | 0x23 | 0x24 => Class::Write,
        _ => Class::Neither,
    }
}

fn tag(header: &Header) -> Tag {
    Tag { opcode: header.opcode, opaque: header.opaque, quiet: decode(header.opcode).1 }
}
