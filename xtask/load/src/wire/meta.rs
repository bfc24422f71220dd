//! The meta commands (memcached's protocol.txt): mg with value and flags, ms.
#![forbid(unsafe_code)]

use super::{Exchange, Expect, Step, What, line_of, push_number};
use crate::items::Items;

pub(super) fn get(items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
    out.bytes.extend_from_slice(b"mg ");
    items.push_key(idx, out.bytes);
    out.bytes.extend_from_slice(b" k v f\r\n");
    out.expects.push_back(Expect { what: What::Value, idx, start_ns, last: true });
}

pub(super) fn set(items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
    out.bytes.extend_from_slice(b"ms ");
    items.push_key(idx, out.bytes);
    out.bytes.push(b' ');
    push_number(items.value_len(idx) as u64, out.bytes);
    out.bytes.extend_from_slice(b" F");
    push_number(u64::from(items.flags(idx)), out.bytes);
    out.bytes.extend_from_slice(b"\r\n");
    items.push_value(idx, out.bytes);
    out.bytes.extend_from_slice(b"\r\n");
    out.expects.push_back(Expect { what: What::Stored, idx, start_ns, last: true });
}

pub(super) fn step(items: &Items, expect: &Expect, bytes: &[u8], line: &mut Vec<u8>) -> Step {
    let got = match line_of(bytes) {
        Ok(Some(got)) => got,
        Ok(None) => return Step::More,
        Err(()) => return Step::Wrong,
    };
    match expect.what {
        What::Value => {
            line.clear();
            line.extend_from_slice(b"VA ");
            push_number(items.value_len(expect.idx) as u64, line);
            line.extend_from_slice(b" k");
            items.push_key(expect.idx, line);
            line.extend_from_slice(b" f");
            push_number(u64::from(items.flags(expect.idx)), line);
            line.extend_from_slice(b"\r\n");
            match got {
                _ if got == line => Step::Header(got.len()),
                // A miss names the key that was asked for, if at all.
                b"EN\r\n" => Step::Miss(got.len()),
                _ if got.strip_prefix(b"EN ").is_some_and(|rest| is_key_of(line, rest)) => {
                    Step::Miss(got.len())
                }
                _ => Step::Wrong,
            }
        }
        What::Stored if got == b"HD\r\n" => Step::Done(got.len()),
        _ => Step::Wrong,
    }
}

/// Whether the rest of a miss is the key flag of the expected header.
fn is_key_of(expected: &[u8], rest: &[u8]) -> bool {
    let key = expected.split(|&byte| byte == b' ').nth(2).unwrap_or_default();
    rest.strip_suffix(b"\r\n") == Some(key)
}
