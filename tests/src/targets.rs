//! What the fuzzers call with bytes of their choice, and the ordinary tests with the bytes of
//! fuzz/corpus. Each target checks what came out beside that nothing panics.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a target that fails has found something")]

use session_daemon::command::request::{KEY_LEN_MAX, Key};
use session_daemon::protocol::binary::parse::{Ask, Frame, frame};
use session_daemon::protocol::binary::sasl;
use session_daemon::protocol::meta::base64;
use session_daemon::protocol::meta::parse as meta;
use session_daemon::protocol::text::keys::{NextKey, next_key};
use session_daemon::protocol::text::login as token;
use session_daemon::protocol::text::number::{signed, unsigned, unsigned_32};
use session_daemon::protocol::text::parse::{KeyList, Line, key_list, line};
use session_daemon::protocol::text::words::Words;
use session_daemon::protocol::text::{LINE_LEN_MAX, SWALLOW_LEN_MAX};
use session_daemon::protocol::udp;
use session_daemon::protocol::udp::scope::{self, Scope};
use session_daemon::server::login::Credentials;

use crate::conversation::Conversation;

/// A target by its name, which is that of its directory in fuzz/corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 7] = [
    ("text", text),
    ("meta", meta),
    ("binary", binary),
    ("numbers", numbers),
    ("udp", udp),
    ("connection", connection),
    ("auth", auth),
];

fn assert_key(key: Key<'_>, text: bool) {
    assert!((1..=KEY_LEN_MAX).contains(&key.bytes().len()));
    assert!(!text || !key.bytes().contains(&b' '));
}

/// Lines of the classic protocol, and key lists of any length.
pub fn text(bytes: &[u8]) {
    for one in bytes.split(|byte| *byte == b'\n') {
        if let Line::Store { store, value_len, .. } = line(one) {
            assert_key(store.key, true);
            assert!(value_len <= SWALLOW_LEN_MAX);
        }
    }
    let KeyList::Start { consumed_len, .. } = key_list(bytes) else { return };
    let mut rest = &bytes[consumed_len..];
    loop {
        match next_key(rest) {
            NextKey::Key { key, blank_len, end_len } => {
                assert_key(Key::new(key).unwrap(), true);
                if let Some(end_len) = end_len {
                    assert_eq!(rest.get(end_len - 1), Some(&b'\n'));
                    assert!(rest[blank_len + key.len()..end_len - 1].trim_ascii().is_empty());
                    return;
                }
                rest = &rest[blank_len + key.len()..];
            }
            NextKey::End { consumed_len } => {
                assert_eq!(rest.get(consumed_len - 1), Some(&b'\n'));
                return;
            }
            NextKey::TooLong | NextKey::Partial { .. } => return,
        }
    }
}

/// Meta commands, each by every verb, and keys in base64.
pub fn meta(bytes: &[u8]) {
    let mut buffer = [0; base64::DECODED_LEN_MAX];
    for one in bytes.split(|byte| *byte == b'\n') {
        let words = Words(one);
        if let Ok((asked, store, value_len)) = meta::set(words, &mut buffer) {
            assert_eq!(asked.key, store.key);
            assert_key(store.key, false);
            assert!(value_len <= SWALLOW_LEN_MAX);
        }
        if let Ok(asked) = meta::asked(words, &mut buffer) {
            assert_key(asked.key, false);
            let _ = (meta::lease(&asked), meta::removal(&asked), meta::counting(&asked));
        }
        if let Ok(key) = meta::told(words, &mut buffer) {
            assert_key(key, false);
        }
        // The bits behind a key do not count, so what is spelled again may be another text.
        if let Some(key) = base64::decode(one, &mut buffer).map(<[u8]>::to_vec) {
            let mut spelled = Vec::new();
            base64::encode(&mut spelled, &key);
            assert_eq!(base64::decode(&spelled, &mut buffer), Some(key.as_slice()));
        }
    }
}

/// Frames, one behind the other. What is said of one does not change when more bytes come.
pub fn binary(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let whole = frame(rest);
        let half = &rest[..rest.len() / 2];
        if frame(half) != Frame::Partial {
            assert_eq!(format!("{whole:?}"), format!("{:?}", frame(half)));
        }
        let Frame::Request { ask, head_len, .. } = whole else { return };
        let value_len = match ask {
            Ask::Store { store, value_len } => {
                assert_key(store.key, false);
                value_len as usize
            }
            _ => 0,
        };
        let Some(behind) = rest.get(head_len.saturating_add(value_len)..) else { return };
        rest = behind;
    }
}

/// Numbers are what the standard library reads, but for signs that it would take.
pub fn numbers(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.starts_with('+'));
    assert_eq!(unsigned(bytes), text.and_then(|text| text.parse().ok()));
    assert_eq!(unsigned_32(bytes), text.and_then(|text| text.parse().ok()));
    assert_eq!(signed(bytes), text.and_then(|text| text.parse().ok()));
}

/// Datagrams: what may be done of them is a part of them, and replies come together again.
pub fn udp(bytes: &[u8]) {
    let reply: Vec<u8> =
        udp::reply(udp::RequestId(7), bytes).flat_map(|(_, part)| part).copied().collect();
    assert_eq!(reply, bytes);
    let Some((_, payload)) = udp::request(bytes) else { return };
    for binary in [false, true] {
        let reads = scope::judge(payload, binary, Scope::Reads);
        let writes = scope::judge(payload, binary, Scope::Writes);
        assert!(reads.len <= writes.len && writes.len <= payload.len());
        assert!(reads.rest.is_some() || reads.len == payload.len());
        let mut said = Vec::new();
        if let Some(refusal) = writes.rest {
            scope::refuse(&mut said, refusal);
        }
        scope::too_large(&mut said, scope::speech(payload, binary));
    }
}

/// A whole connection. The first bytes say how what follows is cut, and how much of the replies
/// the client takes at a time; neither may show in the replies.
pub fn connection(bytes: &[u8]) {
    let [cuts, taken, sent @ ..] = bytes else { return };
    // Dates and versions are each conversation's own.
    let Ok(mut one) = Conversation::new() else { return };
    let Ok(mut other) = Conversation::new() else { return };
    let whole = one.feed(&[sent]);
    let pieces: Vec<&[u8]> = sent.chunks(usize::from(*cuts).max(1)).collect();
    let (replies, closed) = other.feed_reader(&pieces, usize::from(*taken));
    // A line that is too long is served, or closed over, at the byte that makes it so.
    if sent.split(|byte| *byte == b'\n').any(|line| line.len() >= LINE_LEN_MAX - 2) {
        return;
    }
    // A dump is refused behind other commands of one write, as in memcached.
    if sent.windows(4).any(|word| word == b"dump") {
        return;
    }
    assert_eq!(whole.1, closed, "closed");
    assert_eq!(without_versions(&whole.0), without_versions(&replies));
}

/// Replies in which every run of digits is one digit, and binary versions are left out.
fn without_versions(replies: &[u8]) -> Vec<u8> {
    if replies.first() == Some(&0x81) {
        let mut frames = Vec::new();
        let mut rest = replies;
        while let Some((header, body)) = rest.split_at_checked(24) {
            let len = u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
            let (body, behind) = body.split_at_checked(len).unwrap_or((body, &[]));
            frames.extend_from_slice(&header[..16]);
            frames.extend_from_slice(body);
            rest = behind;
        }
        return frames;
    }
    let mut kept: Vec<u8> = Vec::new();
    for byte in replies {
        match byte {
            b'0'..=b'9' if kept.last() == Some(&b'0') => {}
            b'0'..=b'9' => kept.push(b'0'),
            byte => kept.push(*byte),
        }
    }
    kept
}

/// The file of users, and what unknown clients say by both ways.
pub fn auth(bytes: &[u8]) {
    if let Ok(users) = Credentials::parse(bytes) {
        let line = bytes.split(|byte| *byte == b'\n').find(|line| !line.is_empty()).unwrap();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(colon) = line.iter().position(|byte| *byte == b':') {
            assert!(users.admit(&line[..colon], &line[colon + 1..]));
            assert!(!users.admit(&line[..colon], b""));
        }
        assert!(!users.admit(b"", b""));
    }
    match token::hear(bytes) {
        token::Heard::Token { len, .. } | token::Heard::Other(_, len) => {
            assert!(len <= bytes.len());
        }
        token::Heard::Wait | token::Heard::Endless => {}
    }
    let _ = sasl::plain(bytes);
    match sasl::hear(bytes) {
        sasl::Heard::Start { len, .. } | sasl::Heard::Step { len, .. } => {
            assert!(len <= bytes.len());
        }
        _ => {}
    }
}
