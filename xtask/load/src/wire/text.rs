//! The classic text commands (memcached's protocol.txt), and the page of a PHP session on them.
#![forbid(unsafe_code)]

use super::{Exchange, Expect, Step, What, line_of, push_number};
use crate::items::Items;

/// Flags with which PECL memcache stores its lock: the integer type.
const LOCK_FLAGS: &[u8] = b"768";
/// Seconds after which the lock ends by itself: `memcache.lock_timeout`.
const LOCK_SECONDS: &[u8] = b"15";

/// Appends one get of all the items.
pub(crate) fn get(items: &Items, idxs: &[u32], start_ns: u64, out: &mut Exchange<'_>) {
    out.bytes.extend_from_slice(b"get");
    for &idx in idxs {
        out.bytes.push(b' ');
        items.push_key(idx, out.bytes);
        out.expects.push_back(Expect { what: What::Value, idx, start_ns, last: false });
    }
    out.bytes.extend_from_slice(b"\r\n");
    out.expects.push_back(Expect { what: What::End, idx: 0, start_ns, last: true });
}

/// Appends a set.
pub(crate) fn set(items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
    push_set(items, idx, out.bytes);
    out.expects.push_back(Expect { what: What::Stored, idx, start_ns, last: true });
}

fn push_set(items: &Items, idx: u32, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(b"set ");
    items.push_key(idx, bytes);
    bytes.push(b' ');
    push_number(u64::from(items.flags(idx)), bytes);
    bytes.extend_from_slice(b" 0 ");
    push_number(items.value_len(idx) as u64, bytes);
    bytes.extend_from_slice(b"\r\n");
    items.push_value(idx, bytes);
    bytes.extend_from_slice(b"\r\n");
}

/// What PECL memcache's session handler writes when a page opens its session: the lock, twice
/// over, and the session itself, before any reply is read.
pub(crate) fn open_page(items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
    let mut expect = |what| out.expects.push_back(Expect { what, idx, start_ns, last: false });
    out.bytes.extend_from_slice(b"incr ");
    push_lock_key(items, idx, out.bytes);
    out.bytes.extend_from_slice(b" 1\r\n");
    expect(What::Number);
    push_lock(b"add ", b"1", items, idx, out.bytes);
    expect(What::Added);
    get(items, &[idx], start_ns, out);
    // A page is answered with its last command, not with this one.
    if let Some(end) = out.expects.back_mut() {
        end.last = false;
    }
}

/// What it writes when the page ends: the session.
pub(crate) fn save_page(items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
    push_set(items, idx, out.bytes);
    out.expects.push_back(Expect { what: What::Stored, idx, start_ns, last: false });
}

/// And the unlocking, a set of the lock to 0. Then it closes the connection.
pub(crate) fn unlock_page(items: &Items, idx: u32, start_ns: u64, out: &mut Exchange<'_>) {
    push_lock(b"set ", b"0", items, idx, out.bytes);
    out.expects.push_back(Expect { what: What::Stored, idx, start_ns, last: true });
}

fn push_lock(command: &[u8], value: &[u8; 1], items: &Items, idx: u32, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(command);
    push_lock_key(items, idx, bytes);
    for part in [b" ", LOCK_FLAGS, b" ", LOCK_SECONDS, b" 1\r\n", value, b"\r\n"] {
        bytes.extend_from_slice(part);
    }
}

fn push_lock_key(items: &Items, idx: u32, bytes: &mut Vec<u8>) {
    items.push_key(idx, bytes);
    bytes.extend_from_slice(b".lock");
}

pub(super) fn step(items: &Items, expect: &Expect, bytes: &[u8], line: &mut Vec<u8>) -> Step {
    match expect.what {
        What::Value => value(items, expect.idx, bytes, line),
        What::End => words(bytes, &[b"END\r\n"]),
        What::Stored => words(bytes, &[b"STORED\r\n"]),
        What::Added => words(bytes, &[b"STORED\r\n", b"NOT_STORED\r\n"]),
        What::Number => match line_of(bytes) {
            Ok(None) => Step::More,
            Ok(Some(line)) if line == b"NOT_FOUND\r\n" || is_number(line) => Step::Done(line.len()),
            Ok(Some(_)) | Err(()) => Step::Wrong,
        },
    }
}

fn is_number(line: &[u8]) -> bool {
    // incr pads a number that became shorter with spaces, decr's case; this one never shrinks.
    line.strip_suffix(b"\r\n")
        .is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// One of the words, which must all be there before it is compared.
fn words(bytes: &[u8], words: &[&[u8]]) -> Step {
    for word in words {
        if bytes.starts_with(word) {
            return Step::Done(word.len());
        }
    }
    let may_come = words.iter().any(|word| word.starts_with(bytes));
    if may_come { Step::More } else { Step::Wrong }
}

/// The header of the item's value, or the header of another one or the end, which tell a miss.
fn value(items: &Items, idx: u32, bytes: &[u8], line: &mut Vec<u8>) -> Step {
    line.clear();
    line.extend_from_slice(b"VALUE ");
    items.push_key(idx, line);
    line.push(b' ');
    push_number(u64::from(items.flags(idx)), line);
    line.push(b' ');
    push_number(items.value_len(idx) as u64, line);
    line.extend_from_slice(b"\r\n");
    if bytes.starts_with(line) {
        return Step::Header(line.len());
    }
    match line_of(bytes) {
        Ok(None) => Step::More,
        // The end, or another item's value: this one is not there. If it is no item asked for,
        // the expected end does not match it.
        Ok(Some(b"END\r\n")) => Step::Miss(0),
        Ok(Some(got)) if got.starts_with(b"VALUE ") && !same_key(got, line) => Step::Miss(0),
        Ok(Some(_)) | Err(()) => Step::Wrong,
    }
}

fn same_key(got: &[u8], expected: &[u8]) -> bool {
    let key = |line: &[u8]| line.split(|&byte| byte == b' ').nth(1).map(<[u8]>::to_vec);
    key(got) == key(expected)
}
