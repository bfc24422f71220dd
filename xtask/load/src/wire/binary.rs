//! The binary protocol (memcached's protocol-binary.txt): GET and SET.
#![forbid(unsafe_code)]

use super::{Exchange, Expect, Step, What};
use crate::items::Items;

const HEADER_LEN: usize = 24;
const REQUEST: u8 = 0x80;
const RESPONSE: u8 = 0x81;
const GET: u8 = 0x00;
const SET: u8 = 0x01;
/// Status "key not found".
const NOT_FOUND: u16 = 0x0001;
/// Flags in front of a value that is got.
const GET_EXTRAS_LEN: usize = 4;
/// Flags and expiry in front of a key that is set.
const SET_EXTRAS_LEN: usize = 8;

pub(super) fn get(items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
    let at = push_header(GET, 0, idx, out.bytes);
    items.push_key(idx, out.bytes);
    finish(at, 0, 0, out.bytes);
    out.expects.push_back(Expect { what: What::Value, idx, start_ns, last: true });
}

pub(super) fn set(items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
    let at = push_header(SET, SET_EXTRAS_LEN as u8, idx, out.bytes);
    out.bytes.extend_from_slice(&items.flags(idx).to_be_bytes());
    out.bytes.extend_from_slice(&0_u32.to_be_bytes());
    items.push_key(idx, out.bytes);
    finish(at, SET_EXTRAS_LEN, items.value_len(idx), out.bytes);
    items.push_value(idx, out.bytes);
    out.expects.push_back(Expect { what: What::Stored, idx, start_ns, last: true });
}

/// Appends a header whose lengths are not known yet, with the item's number as the opaque; returns
/// where it begins.
fn push_header(opcode: u8, extras_len: u8, idx: u32, bytes: &mut Vec<u8>) -> usize {
    let at = bytes.len();
    let mut header = [0; HEADER_LEN];
    header[0] = REQUEST;
    header[1] = opcode;
    header[4] = extras_len;
    header[12..16].copy_from_slice(&idx.to_be_bytes());
    bytes.extend_from_slice(&header);
    at
}

/// Writes the lengths, once the key is the last that was appended.
fn finish(at: usize, extras_len: usize, value_len: usize, bytes: &mut [u8]) {
    let key_len = bytes.len() - at - HEADER_LEN - extras_len;
    let body_len = extras_len + key_len + value_len;
    bytes[at + 2..at + 4].copy_from_slice(&(key_len as u16).to_be_bytes());
    bytes[at + 8..at + 12].copy_from_slice(&(body_len as u32).to_be_bytes());
}

pub(super) fn step(items: &Items, expect: &Expect, bytes: &[u8]) -> Step {
    if bytes.len() < HEADER_LEN {
        return Step::More;
    }
    let idx = expect.idx;
    let opcode = if expect.what == What::Value { GET } else { SET };
    let opaque = u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    if bytes[0] != RESPONSE || bytes[1] != opcode || opaque != idx {
        return Step::Wrong;
    }
    let status = u16::from_be_bytes([bytes[6], bytes[7]]);
    let body_len = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
    match (expect.what, status) {
        (What::Stored, 0) if body_len == 0 => Step::Done(HEADER_LEN),
        (What::Value, NOT_FOUND) if bytes.len() < HEADER_LEN + body_len => Step::More,
        (What::Value, NOT_FOUND) => Step::Miss(HEADER_LEN + body_len),
        (What::Value, 0) if body_len == GET_EXTRAS_LEN + items.value_len(idx) => {
            let Some(flags) = bytes.get(HEADER_LEN..HEADER_LEN + GET_EXTRAS_LEN) else {
                return Step::More;
            };
            let right = bytes[4] == GET_EXTRAS_LEN as u8 && flags == items.flags(idx).to_be_bytes();
            if right { Step::Header(HEADER_LEN + GET_EXTRAS_LEN) } else { Step::Wrong }
        }
        _ => Step::Wrong,
    }
}
