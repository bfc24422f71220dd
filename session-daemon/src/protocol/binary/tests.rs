//! The frames, opcode by opcode, the lies that a header can tell, and their properties.
use super::encode::{self, Tag};
use super::header::Header;
use super::parse::{After, Ask, Fetch, Frame, frame};
use super::status::{self, Status};
use super::{HEADER_LEN, REPLY_MAGIC, REQUEST_MAGIC};
use crate::command::request::{
    Counting, Direction, Exptime, Key, Outcome, StatsTopic, Store, StoreMode, StoreTerms,
};
use crate::protocol::text::encode::VERSION;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const OPAQUE: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];

struct Bytes {
    magic: u8,
    opcode: u8,
    key_len: u16,
    extras_len: u8,
    body_len: u32,
    cas: u64,
    body: Vec<u8>,
}

impl Bytes {
    fn new(opcode: u8, extras: &[u8], key: &[u8], value: &[u8]) -> Self {
        let body = [extras, key, value].concat();
        Self {
            magic: REQUEST_MAGIC,
            opcode,
            key_len: key.len() as u16,
            extras_len: extras.len() as u8,
            body_len: body.len() as u32,
            cas: 0,
            body,
        }
    }

    fn cas(self, cas: u64) -> Self {
        Self { cas, ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.magic, self.opcode];
        bytes.extend(self.key_len.to_be_bytes());
        bytes.extend([self.extras_len, 0, 0, 0]);
        bytes.extend(self.body_len.to_be_bytes());
        bytes.extend(OPAQUE);
        bytes.extend(self.cas.to_be_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

fn key(bytes: &[u8]) -> Key<'_> {
    Key::new(bytes).expect("test keys are short")
}

fn tag(opcode: u8, quiet: bool) -> Tag {
    Tag { opcode, opaque: OPAQUE, quiet }
}

fn asked(opcode: u8, quiet: bool, ask: Ask<'_>, head_len: usize) -> Frame<'_> {
    Frame::Request { tag: tag(opcode, quiet), ask, head_len }
}

#[test]
fn fetches() {
    for (opcode, with_key, quiet) in
        [(0x00, false, false), (0x09, false, true), (0x0c, true, false), (0x0d, true, true)]
    {
        let bytes = Bytes::new(opcode, b"", b"key", b"").bytes();
        let fetch = Fetch { key: key(b"key"), with_key, with_value: true, touch: None };
        assert_eq!(frame(&bytes), asked(opcode, quiet, Ask::Fetch(fetch), 27));
    }
    for (opcode, with_key, with_value, quiet) in [
        (0x1c, false, false, false),
        (0x1d, false, true, false),
        (0x1e, false, true, true),
        (0x23, true, true, false),
        (0x24, true, true, true),
    ] {
        let bytes = Bytes::new(opcode, &[0, 0, 1, 0], b"key", b"").bytes();
        let fetch = Fetch { key: key(b"key"), with_key, with_value, touch: Some(Exptime(256)) };
        assert_eq!(frame(&bytes), asked(opcode, quiet, Ask::Fetch(fetch), 31));
    }
}

#[test]
fn storage() {
    let extras = [0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff];
    for (opcode, mode, quiet) in [
        (0x01, StoreMode::Set, false),
        (0x02, StoreMode::Add, false),
        (0x03, StoreMode::Replace, false),
        (0x11, StoreMode::Set, true),
        (0x12, StoreMode::Add, true),
        (0x13, StoreMode::Replace, true),
    ] {
        let head = |mode| Ask::Store {
            store: Store {
                key: key(b"k"),
                terms: StoreTerms::new(7, Exptime(u32::MAX.into()), mode),
            },
            value_len: 5,
        };
        let bytes = Bytes::new(opcode, &extras, b"k", b"value").bytes();
        assert_eq!(frame(&bytes), asked(opcode, quiet, head(mode), 33));
        // The value need not have come.
        assert_eq!(frame(&bytes[..33]), asked(opcode, quiet, head(mode), 33));
        assert_eq!(frame(&bytes[..32]), Frame::Partial);
        let bytes = Bytes::new(opcode, &extras, b"k", b"value").cas(9).bytes();
        assert_eq!(frame(&bytes), asked(opcode, quiet, head(StoreMode::Cas(9)), 33));
    }
    for (opcode, mode, quiet) in [
        (0x0e, StoreMode::Append, false),
        (0x0f, StoreMode::Prepend, false),
        (0x19, StoreMode::Append, true),
        (0x1a, StoreMode::Prepend, true),
    ] {
        for (cas, joined_to) in [(0, None), (9, Some(9))] {
            let bytes = Bytes::new(opcode, b"", b"k", b"v").cas(cas).bytes();
            let terms = StoreTerms { joined_to, ..StoreTerms::new(0, Exptime(0), mode) };
            let ask = Ask::Store { store: Store { key: key(b"k"), terms }, value_len: 1 };
            assert_eq!(frame(&bytes), asked(opcode, quiet, ask, 25));
        }
    }
}

#[test]
fn numbers() {
    let mut extras = [0; 20];
    extras[7] = 5;
    extras[15] = 10;
    extras[19] = 60;
    let counting = Counting {
        create: Some((10, Exptime(60))),
        ..Counting::new(key(b"n"), Direction::Increment, 5)
    };
    for (opcode, direction, quiet) in [
        (0x05, Direction::Increment, false),
        (0x06, Direction::Decrement, false),
        (0x15, Direction::Increment, true),
        (0x16, Direction::Decrement, true),
    ] {
        let bytes = Bytes::new(opcode, &extras, b"n", b"").bytes();
        let ask = Ask::Count(Counting { direction, ..counting });
        assert_eq!(frame(&bytes), asked(opcode, quiet, ask, 45));
    }
    extras[16..].fill(0xff);
    let bytes = Bytes::new(0x05, &extras, b"n", b"").cas(3).bytes();
    let ask = Ask::Count(Counting { cas: Some(3), create: None, ..counting });
    assert_eq!(frame(&bytes), asked(0x05, false, ask, 45));
}

#[test]
fn the_rest() {
    let bytes = Bytes::new(0x04, b"", b"k", b"").cas(8).bytes();
    let ask = Ask::Delete { key: key(b"k"), cas: Some(8) };
    assert_eq!(frame(&bytes), asked(0x04, false, ask, 25));
    let bytes = Bytes::new(0x14, b"", b"k", b"").bytes();
    let ask = Ask::Delete { key: key(b"k"), cas: None };
    assert_eq!(frame(&bytes), asked(0x14, true, ask, 25));
    for (opcode, quiet, ask) in [
        (0x07, false, Ask::Quit),
        (0x17, true, Ask::Quit),
        (0x08, false, Ask::Flush { at: Exptime(0) }),
        (0x18, true, Ask::Flush { at: Exptime(0) }),
        (0x0a, false, Ask::Noop),
        (0x0b, false, Ask::Version),
    ] {
        let bytes = Bytes::new(opcode, b"", b"", b"").bytes();
        assert_eq!(frame(&bytes), asked(opcode, quiet, ask, 24));
    }
    let bytes = Bytes::new(0x08, &[0, 0, 0, 9], b"", b"").bytes();
    assert_eq!(frame(&bytes), asked(0x08, false, Ask::Flush { at: Exptime(9) }, 28));
    for (topic, ask) in [
        (&b""[..], Ask::Stats(StatsTopic::General)),
        (b"reset", Ask::StatsReset),
        (b"settings", Ask::Stats(StatsTopic::Settings)),
        (b"items", Ask::Stats(StatsTopic::Items)),
        (b"slabs", Ask::Stats(StatsTopic::Slabs)),
        (b"sizes", Ask::Stats(StatsTopic::Sizes)),
        (b"detail on", Ask::Detail(true)),
        (b"detail off", Ask::Detail(false)),
        (b"detail dump", Ask::Prefixes),
    ] {
        let bytes = Bytes::new(0x10, b"", topic, b"").bytes();
        assert_eq!(frame(&bytes), asked(0x10, false, ask, 24 + topic.len()));
    }
    for topic in [&b"conns"[..], b"res", b"items x", b"detail", b"detail x", b"cachedump 1 1"] {
        let bytes = Bytes::new(0x10, b"", topic, b"").bytes();
        let after = After::Swallow(topic.len() as u32);
        let rejected = Frame::Rejected { tag: tag(0x10, false), status: Status::NotFound, after };
        assert_eq!(frame(&bytes), rejected, "{}", topic.escape_ascii());
    }
}

#[test]
fn unknown_opcodes_are_passed_over() {
    for opcode in [0x1b, 0x1f, 0x25, 0x30, 0x3c, 0x89, 0xff] {
        let bytes = Bytes::new(opcode, b"ex", b"key", b"value").bytes();
        let rejected = Frame::Rejected {
            tag: tag(opcode, false),
            status: Status::UnknownCommand,
            after: After::Swallow(10),
        };
        assert_eq!(frame(&bytes[..HEADER_LEN]), rejected);
    }
    for (opcode, key, value) in [(0x20, "", ""), (0x21, "PLAIN", "\0u\0p"), (0x22, "PLAIN", "")] {
        let bytes = Bytes::new(opcode, b"", key.as_bytes(), value.as_bytes()).bytes();
        let after = After::Swallow((key.len() + value.len()) as u32);
        let status = Status::UnknownCommand;
        assert_eq!(frame(&bytes), Frame::Rejected { tag: tag(opcode, false), status, after });
    }
}

/// Every opcode that exists.
const OPCODES: [u8; 35] = [
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1c, 0x1d, 0x1e, 0x20, 0x21,
    0x22, 0x23, 0x24,
];

fn closed(bytes: &Bytes, status: Status) {
    let sent = bytes.bytes();
    // A header is answered when it is there, whatever it promises to send.
    let header = &sent[..HEADER_LEN];
    let Frame::Rejected { tag, status: given, after } = frame(header) else {
        panic!("{:02x}: {:?}", bytes.opcode, frame(header));
    };
    assert_eq!((given, after, tag.opaque), (status, After::Close, OPAQUE), "{:02x}", bytes.opcode);
    assert_eq!(frame(&sent), frame(header));
}

#[test]
fn headers_that_lie() {
    let unknown = Status::UnknownCommand;
    for opcode in OPCODES {
        // Key or extras or both longer than the body, up to the underflow of their difference.
        let honest = || Bytes::new(opcode, b"", b"", b"");
        closed(&Bytes { key_len: 1, ..honest() }, unknown);
        closed(&Bytes { key_len: u16::MAX, body_len: 5, ..honest() }, unknown);
        closed(&Bytes { extras_len: 1, ..honest() }, unknown);
        closed(&Bytes { extras_len: 255, body_len: 254, ..honest() }, unknown);
        closed(&Bytes { key_len: 3, extras_len: 8, body_len: 10, ..honest() }, unknown);
        let bad = Status::InvalidArguments;
        closed(&Bytes { key_len: 251, body_len: 1000, ..honest() }, bad);
        closed(&Bytes { key_len: u16::MAX, body_len: 1 << 20, ..honest() }, bad);
        for body_len in [1 << 31, u32::MAX] {
            closed(&Bytes { key_len: 1, body_len, ..honest() }, bad);
        }
        for extras_len in 0..=255 {
            let exact = match opcode {
                0x01..=0x03 | 0x11..=0x13 => extras_len == 8,
                0x05 | 0x06 | 0x15 | 0x16 => extras_len == 20,
                0x08 | 0x18 => true,
                0x1c..=0x1e | 0x23 | 0x24 => extras_len == 4,
                _ => extras_len == 0,
            };
            if !exact {
                let extras = vec![0; extras_len];
                closed(&Bytes::new(opcode, &extras, b"key", b""), bad);
                closed(&Bytes::new(opcode, &extras, b"key", b"value"), bad);
            }
        }
    }
}

#[test]
fn bodies_where_none_belongs() {
    let bad = Status::InvalidArguments;
    for opcode in [0x00, 0x09, 0x0c, 0x0d, 0x04, 0x14, 0x10] {
        closed(&Bytes::new(opcode, b"", b"key", b"v"), bad);
    }
    for opcode in [0x07, 0x17, 0x0a, 0x0b, 0x20] {
        closed(&Bytes::new(opcode, b"", b"key", b""), bad);
        closed(&Bytes::new(opcode, b"", b"", b"v"), bad);
    }
    for opcode in [0x08, 0x18] {
        for extras_len in [1, 2, 3, 5, 8, 255] {
            closed(&Bytes::new(opcode, &vec![0; extras_len], b"", b""), bad);
        }
        closed(&Bytes::new(opcode, &[0; 4], b"key", b""), bad);
        closed(&Bytes::new(opcode, &[0; 4], b"", b"v"), bad);
    }
    for opcode in [0x05, 0x06, 0x15, 0x16] {
        closed(&Bytes::new(opcode, &[0; 20], b"key", b"v"), bad);
    }
    for opcode in [0x1c, 0x1d, 0x1e, 0x23, 0x24] {
        closed(&Bytes::new(opcode, &[0; 4], b"key", b"v"), bad);
    }
}

#[test]
fn keys_that_are_missing() {
    for (opcode, extras_len) in [
        (0x00, 0),
        (0x09, 0),
        (0x0c, 0),
        (0x0d, 0),
        (0x01, 8),
        (0x02, 8),
        (0x03, 8),
        (0x04, 0),
        (0x05, 20),
        (0x06, 20),
        (0x0e, 0),
        (0x0f, 0),
        (0x1c, 4),
        (0x1d, 4),
        (0x21, 0),
        (0x22, 0),
    ] {
        closed(&Bytes::new(opcode, &vec![0; extras_len], b"", b""), Status::InvalidArguments);
    }
}

#[test]
fn other_first_bytes_are_no_requests() {
    for magic in (0..=255).filter(|magic| *magic != REQUEST_MAGIC) {
        assert_eq!(frame(&[magic]), Frame::Foreign);
        let bytes = Bytes { magic, ..Bytes::new(0x0a, b"", b"", b"") }.bytes();
        assert_eq!(frame(&bytes), Frame::Foreign);
    }
}

#[test]
fn longest_keys() {
    for len in [1, 250] {
        let long = vec![b'k'; len];
        let bytes = Bytes::new(0x0c, b"", &long, b"").bytes();
        let fetch = Fetch { key: key(&long), with_key: true, with_value: true, touch: None };
        assert_eq!(frame(&bytes), asked(0x0c, false, Ask::Fetch(fetch), 24 + len));
        assert_eq!(frame(&bytes[..23 + len]), Frame::Partial);
    }
}

/// A reply taken apart by the layout of protocol_binary.h.
#[derive(Debug, PartialEq)]
struct Reply {
    opcode: u8,
    status: u16,
    cas: u64,
    extras: Vec<u8>,
    key: Vec<u8>,
    value: Vec<u8>,
}

fn reply(bytes: &[u8]) -> Reply {
    assert_eq!((bytes[0], bytes[5]), (REPLY_MAGIC, 0));
    assert_eq!(bytes[12..16], OPAQUE);
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let body_len = u32::from_be_bytes(bytes[8..12].try_into().expect("four")) as usize;
    assert_eq!(bytes.len(), HEADER_LEN + body_len);
    let (extras, rest) = bytes[HEADER_LEN..].split_at(bytes[4].into());
    let (key, value) = rest.split_at(word(2).into());
    Reply {
        opcode: bytes[1],
        status: word(6),
        cas: u64::from_be_bytes(bytes[16..24].try_into().expect("eight")),
        extras: extras.into(),
        key: key.into(),
        value: value.into(),
    }
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

#[test]
fn outcomes() {
    let words = |opcode, outcome| {
        let bytes = written(|out| encode::outcome(out, tag(opcode, true), outcome, 0));
        let Reply { status, extras, key, value, cas, .. } = reply(&bytes);
        assert_eq!((extras.len(), key.len(), cas), (0, 0, 0));
        (status, String::from_utf8(value).expect("words"))
    };
    for (opcode, outcome, status, text) in [
        (0x02, Outcome::NotStored, 0x02, "Data exists for key."),
        (0x12, Outcome::NotStored, 0x02, "Data exists for key."),
        (0x03, Outcome::NotStored, 0x01, "Not found"),
        (0x13, Outcome::NotStored, 0x01, "Not found"),
        (0x0e, Outcome::NotStored, 0x05, "Not stored."),
        (0x1a, Outcome::NotStored, 0x05, "Not stored."),
        (0x15, Outcome::NotStored, 0x05, "Not stored."),
        (0x01, Outcome::Exists, 0x02, "Data exists for key."),
        (0x01, Outcome::NotFound, 0x01, "Not found"),
        (0x11, Outcome::TooLarge, 0x03, "Too large."),
        (0x11, Outcome::NoMemory, 0x82, "Out of memory"),
        (0x05, Outcome::OutOfMemory, 0x82, "Out of memory"),
        (0x05, Outcome::NonNumeric, 0x06, "Non-numeric server-side value for incr or decr"),
        (0x08, Outcome::FlushNotAllowed, 0x20, "Auth failure."),
    ] {
        assert_eq!(words(opcode, outcome), (status, text.to_owned()), "{outcome:?}");
    }
    for outcome in [Outcome::Stored, Outcome::Deleted, Outcome::Ok, Outcome::Number(5)] {
        assert_eq!(status::of(outcome, 0x01), None);
        assert!(written(|out| encode::outcome(out, tag(0x11, true), outcome, 9)).is_empty());
    }
    let bytes = written(|out| encode::outcome(out, tag(0x01, false), Outcome::Stored, 9));
    assert_eq!(bytes, b"\x81\x01\0\0\0\0\0\0\0\0\0\0\xde\xad\xbe\xef\0\0\0\0\0\0\0\x09",);
    let number = written(|out| encode::outcome(out, tag(0x05, false), Outcome::Number(258), 9));
    let number = reply(&number);
    assert_eq!((number.cas, &number.value[..]), (9, &[0, 0, 0, 0, 0, 0, 1, 2][..]));
    let version = written(|out| encode::outcome(out, tag(0x0b, false), Outcome::Version, 0));
    assert_eq!(reply(&version).value, VERSION.as_bytes());
}

#[test]
fn refusals_have_memcacheds_words() {
    for (status, number, words) in [
        (Status::InvalidArguments, 0x04, "Invalid arguments"),
        (Status::UnknownCommand, 0x81, "Unknown command"),
        (Status::AuthFailure, 0x20, "Auth failure."),
    ] {
        let bytes = written(|out| encode::error(out, tag(0xff, true), status));
        let given = reply(&bytes);
        assert_eq!((given.opcode, given.status), (0xff, number));
        assert_eq!(given.value, words.as_bytes());
    }
}

#[test]
fn found_and_missed() {
    let bytes = written(|out| {
        encode::found(out, tag(0x0d, true), Some(b"key"), 7, 2, 9);
        out.extend_from_slice(b"vv");
    });
    let found = Reply {
        opcode: 0x0d,
        status: 0,
        cas: 9,
        extras: vec![0, 0, 0, 7],
        key: b"key".into(),
        value: b"vv".into(),
    };
    assert_eq!(reply(&bytes), found);
    let bytes = written(|out| encode::missed(out, tag(0x0c, false), Some(b"key")));
    let missed = Reply { opcode: 0x0c, status: 1, cas: 0, extras: vec![], value: vec![], ..found };
    assert_eq!(reply(&bytes), missed);
    let bytes = written(|out| encode::missed(out, tag(0x00, false), None));
    assert_eq!(reply(&bytes).value, b"Not found");
    assert!(written(|out| encode::missed(out, tag(0x0d, true), Some(b"key"))).is_empty());
    assert!(written(|out| encode::missed(out, tag(0x09, true), None)).is_empty());
}

#[test]
fn statistics() {
    let bytes = written(|out| encode::stat(out, tag(0x10, false), "pid", b"42"));
    let Reply { status, key, value, .. } = reply(&bytes);
    assert_eq!((status, &key[..], &value[..]), (0, &b"pid"[..], &b"42"[..]));
}

/// Bytes that are likely to be nearly right.
fn plausible() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::strategy::Strategy;
    let lens = (0u16..=300, 0u8..=24, proptest::option::of(any::<u32>()));
    let body = proptest::collection::vec(any::<u8>(), 0..600);
    (0u8..=0x26, lens, any::<u64>(), body).prop_map(
        |(opcode, (key_len, extras_len, body_len), cas, body)| {
            let honest = u32::from(key_len) + u32::from(extras_len) + (body.len() as u32 & 7);
            let body_len = body_len.unwrap_or(honest);
            let magic = REQUEST_MAGIC;
            Bytes { magic, opcode, key_len, extras_len, body_len, cas, body }.bytes()
        },
    )
}

fn check(bytes: &[u8]) -> Result<(), proptest::test_runner::TestCaseError> {
    let whole = frame(bytes);
    // Nothing changes once it has been said, and nothing is said too early.
    for len in 0..bytes.len() {
        let part = frame(&bytes[..len]);
        prop_assert!(part == Frame::Partial || part == whole, "{part:?} then {whole:?}");
    }
    match whole {
        Frame::Request { ask, head_len, tag } => {
            let header = Header::read(bytes).expect("a request has one");
            prop_assert!(head_len <= bytes.len());
            let value_len = if let Ask::Store { value_len, .. } = ask { value_len } else { 0 };
            // The frame ends where its header says, so the next one begins where the client
            // put it and no byte of a value is run as a command.
            prop_assert_eq!(head_len + value_len as usize, HEADER_LEN + header.body_len as usize);
            prop_assert_eq!(Some(tag.opaque), bytes[12..].first_chunk().copied());
        }
        Frame::Rejected { after: After::Swallow(len), .. } => {
            prop_assert_eq!(Some(len), Header::read(bytes).map(|header| header.body_len));
        }
        Frame::Rejected { after: After::Close, .. } => prop_assert!(bytes.len() >= HEADER_LEN),
        Frame::Partial => prop_assert!(bytes.len() < HEADER_LEN + 255 + 250),
        Frame::Foreign => prop_assert!(bytes[0] != REQUEST_MAGIC),
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes)?;
    }

    #[test]
    fn no_headers_panic(bytes in plausible()) {
        check(&bytes)?;
    }
}
