//! The frame header and the judgement of every kind of request.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::scope::{Refusal, Scope, Speech, is_binary, judge, refuse, speech, too_large};
use super::{FRAME_LEN, REPLY_PART_LEN_MAX, RequestId, reply, reply_len, request};
use proptest::prelude::{any, prop, prop_assert, proptest};

fn len(payload: &[u8], scope: Scope) -> (usize, Option<Refusal>) {
    let judged = judge(payload, is_binary(payload), scope);
    (judged.len, judged.rest)
}

fn frame(opcode: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, opcode, 0, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&[1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(body);
    frame
}

#[test]
fn only_a_whole_request_is_one() {
    assert_eq!(
        request(b"\x12\x34\0\0\0\x01\0\0get a\r\n"),
        Some((RequestId(0x1234), &b"get a\r\n"[..]))
    );
    // memcached ignores the reserved field.
    assert!(request(b"\0\0\0\0\0\x01\xff\xffx").is_some());
    for bad in [
        &b""[..],
        b"\0\0\0\0\0\x01\0",
        b"\0\0\0\0\0\x01\0\0",
        b"\0\0\0\0\0\0\0\0x",
        b"\0\0\0\0\0\x02\0\0x",
        b"\0\0\0\x05\0\x01\0\0x",
        b"\0\0\x01\0\0\x01\0\0x",
        b"\0\0\0\0\x01\0\0\0x",
    ] {
        assert_eq!(request(bad), None, "{}", bad.escape_ascii());
    }
}

#[test]
fn a_reply_is_cut_and_numbered() {
    let payload: Vec<u8> = (0..=255).cycle().take(REPLY_PART_LEN_MAX * 2 + 1).collect();
    let parts: Vec<_> = reply(RequestId(0xabcd), &payload).collect();
    let lens: Vec<_> = parts.iter().map(|(_, part)| part.len()).collect();
    assert_eq!(lens, [1392, 1392, 1]);
    for (idx, (header, _)) in parts.iter().enumerate() {
        assert_eq!(*header, [0xab, 0xcd, 0, u8::try_from(idx).unwrap(), 0, 3, 0, 0]);
    }
    let together: Vec<u8> = parts.iter().flat_map(|(_, part)| part.iter().copied()).collect();
    assert_eq!(together, payload);
    assert_eq!(reply_len(payload.len()), payload.len() + 3 * FRAME_LEN);
    assert_eq!(reply(RequestId(0), &payload[..1392]).count(), 1);
    assert_eq!((reply(RequestId(0), b"").count(), reply_len(0)), (0, 0));
}

#[test]
fn reads_are_done_in_either_scope() {
    for text in [
        "get a\r\n",
        "get a\n",
        " gets a b\r\n",
        "mg a v t f s c k O1 q\r\n",
        "me a\r\nmn\r\n",
        "version\r\nget a\r\n",
        "stats\r\nstats settings\r\nquit\r\n",
        "\r\n",
    ] {
        for scope in [Scope::Reads, Scope::Writes] {
            assert_eq!(len(text.as_bytes(), scope), (text.len(), None), "{text:?}");
        }
    }
    for opcode in [0x00, 0x07, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x10, 0x17] {
        let two = [frame(opcode, b"key"), frame(opcode, b"")].concat();
        assert_eq!(len(&two, Scope::Reads), (two.len(), None), "{opcode:x}");
    }
}

#[test]
fn writes_are_done_where_they_are_served() {
    for text in [
        "set a 0 0 3\r\nabc\r\n",
        "ms a 3 T0\r\nabc\r\n",
        "cas a 0 0 3 7 noreply\r\nabc\r\n",
        "delete a\r\n",
        "incr a 1\r\n",
        "touch a 1\r\n",
        "gat 1 a\r\n",
        "gats 1 a\r\n",
        "md a\r\n",
        "ma a\r\n",
        "mg a v N30\r\n",
        "mg a R30 v\r\n",
        "mg a T0\r\n",
    ] {
        let both = format!("get b\r\n{text}");
        let refused = Some(Refusal::Write(Speech::Text));
        assert_eq!(len(both.as_bytes(), Scope::Reads), (7, refused), "{text:?}");
        assert_eq!(len(both.as_bytes(), Scope::Writes), (both.len(), None), "{text:?}");
    }
    for opcode in (0x01..=0x06).chain(0x0e..=0x0f).chain(0x11..=0x16).chain([0x1c, 0x1d, 0x24]) {
        let frame = frame(opcode, b"body");
        assert!(matches!(len(&frame, Scope::Reads), (0, Some(Refusal::Write(_)))), "{opcode:x}");
        assert_eq!(len(&frame, Scope::Writes), (frame.len(), None), "{opcode:x}");
    }
}

#[test]
fn administration_and_what_is_not_known_are_never_done() {
    for text in [
        "flush_all\r\n",
        "shutdown\r\n",
        "verbosity 1\r\n",
        "watch\r\n",
        "lru_crawler metadump all\r\n",
        "cache_memlimit 8\r\n",
        "stats reset\r\n",
        "stats r\r\n",
        "stats detail on\r\n",
        "GET a\r\n",
        "ERROR\r\n",
    ] {
        for scope in [Scope::Reads, Scope::Writes] {
            let refused = Some(Refusal::Unknown(Speech::Text));
            assert_eq!(len(text.as_bytes(), scope), (0, refused), "{text:?}");
        }
    }
    for opcode in [0x08, 0x18, 0x1b, 0x20, 0x21, 0x22, 0x30, 0xff] {
        let frame = frame(opcode, b"");
        assert!(matches!(len(&frame, Scope::Writes), (0, Some(Refusal::Unknown(_)))), "{opcode:x}");
    }
    assert!(matches!(len(&frame(0x10, b"reset"), Scope::Writes), (0, Some(Refusal::Unknown(_)))));
}

#[test]
fn values_are_no_requests() {
    let smuggled = b"set a 0 0 9\r\nflush_all\r\nget a\r\n";
    assert_eq!(len(smuggled, Scope::Writes), (smuggled.len(), None));
    // A value that does not end in the datagram, and one whose length cannot be read.
    assert_eq!(len(b"set a 0 0 90\r\nget b\r\n", Scope::Writes), (0, Some(Refusal::Incomplete)));
    let unclear = b"set a 0 0 x\r\nflush_all\r\n";
    assert_eq!(len(unclear, Scope::Writes), (0, Some(Refusal::Unclear)));
    assert_eq!(len(b"get a", Scope::Reads), (0, Some(Refusal::Incomplete)));
    assert_eq!(len(&frame(0, b"key")[..26], Scope::Reads), (0, Some(Refusal::Incomplete)));
    let after = [frame(0, b"key"), b"get a\r\n".to_vec()].concat();
    assert_eq!(len(&after, Scope::Reads), (27, Some(Refusal::Incomplete)));
}

#[test]
fn refusals_are_in_the_clients_own_format() {
    let mut out = Vec::new();
    refuse(&mut out, Refusal::Write(Speech::Text));
    refuse(&mut out, Refusal::Unknown(Speech::Text));
    refuse(&mut out, Refusal::Incomplete);
    too_large(&mut out, speech(b"get a\r\n", false));
    assert_eq!(
        out,
        b"CLIENT_ERROR udp writes not allowed\r\nERROR\r\n\
          SERVER_ERROR response too large for udp\r\n"
    );
    out.clear();
    too_large(&mut out, speech(&frame(0x0c, b"key"), true));
    assert_eq!((out[0], out[1], out[7], &out[12..16]), (0x81, 0x0c, 0x03, &[1, 2, 3, 4][..]));
}

proptest! {
    #[test]
    fn whatever_comes_is_judged_in_bounds(
        payload in prop::collection::vec(any::<u8>(), 0..200), binary: bool, writes: bool,
    ) {
        let scope = if writes { Scope::Writes } else { Scope::Reads };
        let judged = judge(&payload, binary, scope);
        prop_assert!(judged.len <= payload.len());
        prop_assert!(judged.rest.is_some() || judged.len == payload.len());
    }
}
