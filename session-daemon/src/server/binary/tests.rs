//! Whole conversations in binary without a socket: what is answered, in which order, and that the
//! way the bytes are cut does not matter.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about a length fails"
)]
use crate::server::binding::Binding;
use crate::server::tests::converse_as;
use proptest::prelude::{any, prop, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};

/// A request frame with an opaque of its own.
fn request(opcode: u8, opaque: u32, cas: u64, extras: &[u8], key: &[u8], value: &[u8]) -> Vec<u8> {
    let body_len = (extras.len() + key.len() + value.len()) as u32;
    let mut bytes = vec![0x80, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0, 0, 0]);
    bytes.extend(body_len.to_be_bytes());
    bytes.extend(opaque.to_be_bytes());
    bytes.extend(cas.to_be_bytes());
    [&bytes, extras, key, value].concat()
}

fn plain(opcode: u8, key: &str) -> Vec<u8> {
    request(opcode, 0, 0, b"", key.as_bytes(), b"")
}

fn store(opcode: u8, key: &str, value: &[u8]) -> Vec<u8> {
    request(opcode, 0, 0, &[0, 0, 0, 7, 0, 0, 0, 0], key.as_bytes(), value)
}

fn count(opcode: u8, key: &str, delta: u64, initial: u64, exptime: u32) -> Vec<u8> {
    let numbers = [delta.to_be_bytes(), initial.to_be_bytes()].concat();
    request(opcode, 0, 0, &[&numbers[..], &exptime.to_be_bytes()].concat(), key.as_bytes(), b"")
}

/// Replies as `opcode status extras key value`, and what else came.
fn read(mut bytes: &[u8]) -> Vec<String> {
    let mut replies = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(24).filter(|(h, _)| h[0] == 0x81) {
        let word = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let body_len = u32::from_be_bytes(header[8..12].try_into().expect("four")) as usize;
        let (body, rest) = rest.split_at(body_len);
        let (extras, body) = body.split_at(header[4].into());
        let (key, value) = body.split_at(word(2));
        let value = if value.len() > 60 { format!("{} bytes", value.len()) } else { escape(value) };
        let parts = [escape(extras), escape(key), value];
        let parts: Vec<_> = parts.iter().filter(|part| !part.is_empty()).collect();
        let head = format!("{:02x} {:02x}", header[1], word(6));
        replies.push(parts.iter().fold(head, |all, part| format!("{all} {part}")));
        bytes = rest;
    }
    if !bytes.is_empty() {
        replies.push(escape(bytes));
    }
    replies
}

fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn replies(frames: &[Vec<u8>]) -> Vec<String> {
    read(&converse_as(Binding::Auto, &[&frames.concat()], 20))
}

/// The version that the reply at `idx` carries.
fn version_of(frames: &[Vec<u8>], idx: usize) -> u64 {
    let bytes = converse_as(Binding::Auto, &[&frames.concat()], 20);
    let mut at = 0;
    for _ in 0..idx {
        at += 24 + u32::from_be_bytes(bytes[at + 8..at + 12].try_into().expect("four")) as usize;
    }
    u64::from_be_bytes(bytes[at + 16..at + 24].try_into().expect("eight"))
}

#[test]
fn quiet_forms_say_only_what_matters() {
    let frames = [
        store(0x11, "q", b"5"),
        store(0x12, "q2", b"1"),
        store(0x13, "q", b"6"),
        request(0x19, 0, 0, b"", b"q", b"2"),
        request(0x1a, 0, 0, b"", b"q", b"3"),
        count(0x15, "q", 1, 0, 0),
        count(0x16, "q", 1, 0, 0),
        plain(0x14, "q2"),
        plain(0x09, "q"),
        plain(0x0d, "q"),
        plain(0x09, "no"),
        plain(0x0d, "no"),
        store(0x12, "q", b"1"),
        store(0x13, "no", b"1"),
        request(0x19, 0, 0, b"", b"no", b"2"),
        plain(0x14, "no"),
        count(0x15, "no", 1, 0, u32::MAX),
        plain(0x18, ""),
        plain(0x0c, "q"),
        plain(0x0a, ""),
        plain(0x17, ""),
        plain(0x0a, ""),
    ];
    assert_eq!(
        replies(&frames),
        [
            "09 00 \\x00\\x00\\x00\\x07 362",
            "0d 00 \\x00\\x00\\x00\\x07 q 362",
            "12 02 Data exists for key.",
            "13 01 Not found",
            "19 05 Not stored.",
            "14 01 Not found",
            "15 01 Not found",
            "0c 01 q",
            "0a 00",
            "<closed>",
        ]
    );
}

#[test]
fn versions_are_told_and_asked_for() {
    let set = store(0x01, "k", b"v");
    let cas = version_of(std::slice::from_ref(&set), 0);
    assert_eq!(version_of(&[set.clone(), plain(0x00, "k")], 1), cas);
    let with =
        |opcode, cas, extras: &[u8], value: &[u8]| request(opcode, 0, cas, extras, b"k", value);
    let extras = [0; 8];
    let frames = [
        set,
        with(0x01, cas + 100, &extras, b"w"),
        with(0x02, cas + 100, &extras, b"w"),
        with(0x0e, cas + 100, b"", b"w"),
        with(0x0f, cas + 100, b"", b"w"),
        with(0x04, cas + 100, b"", b""),
        with(0x05, cas + 100, &[0; 20], b""),
        with(0x0e, cas, b"", b""),
        plain(0x00, "k"),
    ];
    let exists = |opcode| format!("{opcode:02x} 02 Data exists for key.");
    let mut expected = vec!["01 00".to_owned()];
    expected.extend([0x01, 0x02, 0x0e, 0x0f, 0x04, 0x05].map(exists));
    expected.extend(["0e 00".to_owned(), "00 00 \\x00\\x00\\x00\\x07 v".to_owned()]);
    assert_eq!(replies(&frames), expected);
    // Each change brings a new version, and the reply tells it.
    let appended = version_of(&frames, 7);
    assert!(appended > cas);
    assert_eq!(version_of(&frames, 8), appended);
    let missing = [with(0x01, 5, &extras, b"w"), with(0x0e, 5, b"", b"w"), with(0x04, 5, b"", b"")];
    assert_eq!(replies(&missing), ["01 01 Not found", "0e 05 Not stored.", "04 01 Not found"]);
}

#[test]
fn numbers_and_touches() {
    let touch = |opcode, key: &str| request(opcode, 0, 0, &[0, 0, 1, 0], key.as_bytes(), b"");
    let frames = [
        count(0x05, "n", 1, 10, 0),
        count(0x05, "n", 5, 10, 0),
        count(0x06, "n", 100, 10, 0),
        plain(0x00, "n"),
        store(0x01, "t", b"text"),
        count(0x05, "t", 1, 1, 0),
        touch(0x1c, "t"),
        touch(0x1d, "t"),
        touch(0x1e, "t"),
        touch(0x23, "t"),
        touch(0x24, "t"),
        touch(0x1c, "no"),
        touch(0x1d, "no"),
        touch(0x1e, "no"),
        touch(0x23, "no"),
        touch(0x24, "no"),
    ];
    let flags = "\\x00\\x00\\x00\\x07";
    assert_eq!(
        replies(&frames),
        [
            "05 00 \\x00\\x00\\x00\\x00\\x00\\x00\\x00\\n",
            "05 00 \\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x0f",
            "06 00 \\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00",
            "00 00 \\x00\\x00\\x00\\x00 0 ",
            "01 00",
            "05 06 Non-numeric server-side value for incr or decr",
            &format!("1c 00 {flags}"),
            &format!("1d 00 {flags} text"),
            &format!("1e 00 {flags} text"),
            &format!("23 00 {flags} t text"),
            &format!("24 00 {flags} t text"),
            "1c 01 Not found",
            "1d 01 Not found",
            "23 01 no",
        ]
    );
}

#[test]
fn large_values_are_taken_in_pieces_or_passed_over() {
    let value = vec![b'v'; 9000];
    let frames = [
        store(0x01, "big", &value),
        request(0x0e, 0, 0, b"", b"big", b"end"),
        plain(0x00, "big"),
        // Twice the value is beyond the 16 KiB of this store's largest item.
        request(0x0e, 0, 0, b"", b"big", &value),
        store(0x11, "big", &vec![0x80; 2_000_000]),
        plain(0x00, "big"),
        request(0x0e, 0, 0, b"", b"big", &vec![0x80; 20_000]),
        plain(0x0a, ""),
    ];
    let expected = [
        "01 00",
        "0e 00",
        "00 00 \\x00\\x00\\x00\\x07 9003 bytes",
        "0e 05 Not stored.",
        "11 03 Too large.",
        "00 01 Not found",
        "0e 03 Too large.",
        "0a 00",
    ];
    let all = frames.concat();
    for size in [1000, 4099, 65_536, all.len()] {
        let pieces: Vec<&[u8]> = all.chunks(size).collect();
        assert_eq!(read(&converse_as(Binding::Auto, &pieces, 1)), expected, "pieces of {size}");
    }
}

#[test]
fn large_values_are_joined_in_pieces() {
    let value = vec![b'v'; 5000];
    let set = store(0x01, "big", &value);
    let cas = version_of(std::slice::from_ref(&set), 0);
    for opcode in [0x0e, 0x0f, 0x19, 0x1a] {
        let frames =
            [set.clone(), request(opcode, 0, cas, b"", b"big", &vec![b'j'; 6000]), plain(0, "big")];
        let whole = converse_as(Binding::Auto, &[&frames.concat()], 20);
        let (present, joined) = (vec![b'v'; 5000], vec![b'j'; 6000]);
        let behind = matches!(opcode, 0x0e | 0x19);
        let expected = if behind { [present, joined] } else { [joined, present] }.concat();
        assert!(whole.ends_with(&expected), "{opcode:02x}");
        let all = frames.concat();
        let pieces: Vec<&[u8]> = all.chunks(777).collect();
        assert!(converse_as(Binding::Auto, &pieces, 20) == whole, "{opcode:02x}");
    }
}

#[test]
fn statistics_end_with_an_empty_reply() {
    let stat = |topic: &str| plain(0x10, topic);
    assert_eq!(replies(&[stat(""), stat("items")]), ["10 00 a b", "10 00", "10 00 a b", "10 00"]);
    assert_eq!(replies(&[stat("reset"), plain(0x0a, "")]), ["10 00", "0a 00"]);
    assert_eq!(replies(&[stat("bogus"), plain(0x0a, "")]), ["10 01 Not found", "0a 00"]);
}

#[test]
fn unknown_commands_are_passed_over_whole() {
    let hidden = plain(0x08, "");
    let frames = [
        store(0x01, "k", b"v"),
        request(0x55, 0, 0, b"ex", b"key", &hidden),
        request(0x21, 0, 0, b"", b"PLAIN", b"\0user\0password"),
        plain(0x20, ""),
        plain(0x0b, ""),
        plain(0x00, "k"),
    ];
    let unknown = |opcode| format!("{opcode:02x} 81 Unknown command");
    assert_eq!(
        replies(&frames),
        [
            "01 00",
            &unknown(0x55),
            &unknown(0x21),
            &unknown(0x20),
            "0b 00 1.6.45",
            "00 00 \\x00\\x00\\x00\\x07 v",
        ]
    );
}

#[test]
fn headers_that_lie_end_the_connection() {
    let lies: [(&str, u32, &str); 7] = [
        ("key longer than body", 0x0002_0000, "81 Unknown command"),
        ("extras longer than body", 0x0000_0500, "81 Unknown command"),
        ("no key", 0x0000_0000, "04 Invalid arguments"),
        ("extras for a get", 0x0000_0400, "81 Unknown command"),
        ("key of 251", 0x00fb_0000, "04 Invalid arguments"),
        ("body of 2 GiB", 0x0001_0000, "04 Invalid arguments"),
        ("value for a get", 0x0001_0000, "04 Invalid arguments"),
    ];
    for (what, lens, reply) in lies {
        let body_len: u32 = match what {
            "body of 2 GiB" => 1 << 31,
            "key of 251" => 251,
            "value for a get" => 2,
            "extras longer than body" => 4,
            "key longer than body" => 1,
            "extras for a get" => 3,
            _ => 0,
        };
        let mut frame = plain(0x0a, "");
        frame.extend([0x80, 0x00]);
        frame.extend([(lens >> 24) as u8, (lens >> 16) as u8, (lens >> 8) as u8, 0, 0, 0]);
        frame.extend(body_len.to_be_bytes());
        frame.extend([0; 12]);
        // The body that was announced is full of requests; none of them may run.
        frame.extend(plain(0x0a, "").repeat(20));
        let expected = ["0a 00".to_owned(), format!("00 {reply}"), "<closed>".to_owned()];
        assert_eq!(read(&converse_as(Binding::Auto, &[&frame], 20)), expected, "{what}");
        // All of it comes as soon as the header has.
        assert_eq!(read(&converse_as(Binding::Auto, &[&frame[..48]], 20)), expected, "{what}");
    }
    let mut reply = plain(0x0a, "");
    reply[0] = 0x81;
    assert_eq!(replies(&[plain(0x0a, ""), reply]), ["0a 00", "<closed>"]);
}

#[test]
fn the_first_byte_decides() {
    let converse = |binding, bytes: &[u8]| read(&converse_as(binding, &[bytes], 20));
    let version = plain(0x0b, "");
    let answered = "0b 00 1.6.45";
    assert_eq!(converse(Binding::Auto, &version), [answered]);
    assert_eq!(converse(Binding::Binary, &version), [answered]);
    assert_eq!(converse(Binding::Auto, b"version\r\n"), ["VERSION 1.6.45\\r\\n"]);
    assert_eq!(converse(Binding::Ascii, b"version\r\n"), ["VERSION 1.6.45\\r\\n"]);
    assert_eq!(converse(Binding::Binary, b"version\r\n"), ["<closed>"]);
    // What is binary is a line without an end to a server of text alone.
    assert_eq!(converse(Binding::Ascii, &version), [""; 0]);
    assert_eq!(converse(Binding::Ascii, &[&version[..], b"\r\n"].concat()), ["ERROR\\r\\n"]);
    // And so it stays.
    let mixed = [&version[..], b"version\r\n"].concat();
    assert_eq!(converse(Binding::Auto, &mixed), [answered, "<closed>"]);
    let mixed = [b"version\r\n", &version[..], b"\r\n"].concat();
    assert_eq!(converse(Binding::Auto, &mixed), ["VERSION 1.6.45\\r\\nERROR\\r\\n"]);
}

#[test]
fn long_runs_of_quiet_gets_are_answered_in_order() {
    let mut frames = vec![store(0x01, "here", b"x")];
    for idx in 0..5000 {
        let key = if idx % 7 == 0 { "here".to_owned() } else { format!("missing{idx}") };
        frames.push(request(0x0d, idx, 0, b"", key.as_bytes(), b""));
    }
    frames.push(request(0x0a, 7, 0, b"", b"", b""));
    let all = frames.concat();
    let whole = converse_as(Binding::Auto, &[&all], 20);
    let opaques: Vec<u32> = {
        let mut rest = whole.as_slice();
        let mut opaques = Vec::new();
        while let Some((header, behind)) = rest.split_at_checked(24) {
            opaques.push(u32::from_be_bytes(header[12..16].try_into().expect("four")));
            let body_len = u32::from_be_bytes(header[8..12].try_into().expect("four")) as usize;
            rest = &behind[body_len..];
        }
        opaques
    };
    let expected: Vec<u32> = [0].into_iter().chain((0..5000).step_by(7)).chain([7]).collect();
    assert_eq!(opaques, expected);
    for size in [23, 1000, 65_536] {
        let pieces: Vec<&[u8]> = all.chunks(size).collect();
        assert!(converse_as(Binding::Auto, &pieces, 3) == whole, "pieces of {size}");
    }
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let key = || "[a-d]{1,2}";
    let value = || prop::collection::vec(any::<u8>(), 0..40);
    let storing = prop::sample::select(vec![0x01, 0x02, 0x03, 0x11, 0x12, 0x13]);
    let joining = prop::sample::select(vec![0x0e, 0x0f, 0x19, 0x1a]);
    let fetching = prop::sample::select(vec![0x00, 0x09, 0x0c, 0x0d, 0x04, 0x14]);
    let touching = prop::sample::select(vec![0x1c, 0x1d, 0x1e, 0x23, 0x24]);
    let counting = prop::sample::select(vec![0x05, 0x06, 0x15, 0x16]);
    prop_oneof![
        4 => (storing, key(), value(), 0u64..9, any::<u32>()).prop_map(|(opcode, key, value, cas, opaque)| {
            let cas = cas.saturating_sub(5);
            request(opcode, opaque, cas, &[0, 0, 0, 1, 0, 0, 0, 9], key.as_bytes(), &value)
        }),
        2 => (joining, key(), value(), 0u64..9).prop_map(|(opcode, key, value, cas)| {
            request(opcode, 1, cas.saturating_sub(5), b"", key.as_bytes(), &value)
        }),
        8 => (fetching, key(), any::<u32>())
            .prop_map(|(opcode, key, opaque)| request(opcode, opaque, 0, b"", key.as_bytes(), b"")),
        2 => (touching, key(), any::<[u8; 4]>())
            .prop_map(|(opcode, key, extras)| request(opcode, 2, 0, &extras, key.as_bytes(), b"")),
        2 => (counting, key(), any::<u64>(), any::<u32>())
            .prop_map(|(opcode, key, delta, exptime)| count(opcode, &key, delta, 1, exptime)),
        1 => Just(plain(0x0a, "")),
        1 => Just(plain(0x18, "")),
        1 => Just(plain(0x10, "")),
        1 => (any::<u8>(), 0u8..9, value()).prop_map(|(opcode, extras_len, body)| {
            let extras = vec![0; extras_len.into()];
            request(opcode, 3, 0, &extras, b"k", &body)
        }),
        1 => prop::collection::vec(any::<u8>(), 0..30),
        1 => Just(store(0x01, "a", &[b'v'; 5000])),
        1 => Just(store(0x11, "a", &[b'v'; 20_000])),
    ]
}

proptest! {
    #[test]
    fn any_cut_of_anything_gives_the_same_replies(
        requests in prop::collection::vec(any_request(), 1..30),
        cuts in prop::collection::vec(1usize..200, 1..60),
        requests_per_turn in 1u32..30,
    ) {
        let all = [&plain(0x0a, "")[..], &requests.concat()].concat();
        let mut rest = all.as_slice();
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle() {
            let Some((piece, after)) = rest.split_at_checked(*cut) else { break };
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        let whole = read(&converse_as(Binding::Auto, &[&all], 20));
        prop_assert_eq!(read(&converse_as(Binding::Auto, &pieces, requests_per_turn)), whole);
    }
}
