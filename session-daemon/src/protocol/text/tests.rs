//! The grammar, row by row, and its properties.
use super::encode;
use super::parse::{After, KeyList, Line, LineError, key_list, line};
use crate::command::request::{
    Direction, Exptime, Fetch, Key, Request, Shutdown, StatsTopic, Store, StoreMode, StoreTerms,
};
use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};

fn key(bytes: &[u8]) -> Key<'_> {
    Key::new(bytes).expect("test keys are short")
}

fn rejected(error: LineError, after: After) -> Line<'static> {
    Line::Rejected { error, after, noreply: false }
}

#[test]
fn storage_lines() {
    let terms = StoreTerms::new(7, Exptime(-1), StoreMode::Cas(9));
    let store = Store { key: key(b"k"), terms };
    let parsed = Line::Store { store, value_len: 3, noreply: true };
    assert_eq!(line(b"cas k 7 -1 3 9 noreply\r"), parsed);
    assert_eq!(line(b" cas  k 7 -1 3 9 x noreply"), parsed);
    let swallowed = rejected(LineError::BadFormat, After::Swallow(3));
    for bad in [
        &b"set k -1 0 3"[..],
        b"set k 4294967296 0 3",
        b"set k +1 0 3",
        b"set k 0 abc 3",
        b"set k 0 +1 3",
        b"cas k 0 0 3",
        b"cas k 0 0 3 x",
        b"cas k 0 0 3 -1",
    ] {
        assert_eq!(line(bad), swallowed, "{}", bad.escape_ascii());
    }
    let long = format!("set {} 0 0 3", "k".repeat(251));
    assert_eq!(line(long.as_bytes()), swallowed);
}

#[test]
fn unreadable_value_lengths_close() {
    let closed = rejected(LineError::BadFormat, After::Close);
    for bad in [
        &b"set"[..],
        b"set k",
        b"set k 0 0",
        b"set k 0 0 -1",
        b"set k 0 0 +3",
        b"set k 0 0 3x",
        b"set k 0 0 2147483646",
        b"set k 0 0 4294967299",
        b"set k 0 0 18446744073709551619",
        b"set k 0 0 3\rget",
    ] {
        assert_eq!(line(bad), closed, "{}", bad.escape_ascii());
    }
}

#[test]
fn delete_lines() {
    let delete = |noreply| Line::Request { request: Request::Delete { key: key(b"k") }, noreply };
    assert_eq!(line(b"delete k"), delete(false));
    assert_eq!(line(b"delete k 0"), delete(false));
    assert_eq!(line(b"delete k noreply"), delete(true));
    assert_eq!(line(b"delete k 0 noreply"), delete(true));
    for bad in [
        &b"delete k 1"[..],
        b"delete k 00",
        b"delete k 0 0",
        b"delete k noreply 0",
        b"delete a b c d",
    ] {
        assert_eq!(line(bad), rejected(LineError::DeleteUsage, After::NextLine));
    }
    assert_eq!(line(b"delete"), rejected(LineError::BadFormat, After::NextLine));
    let named = Request::Delete { key: key(b"noreply") };
    assert_eq!(line(b"delete noreply"), Line::Request { request: named, noreply: false });
}

#[test]
fn number_lines() {
    let request = Request::Arithmetic { key: key(b"k"), direction: Direction::Increment, delta: 5 };
    assert_eq!(line(b"incr k 5 noreply"), Line::Request { request, noreply: true });
    for bad in [&b"decr k -1"[..], b"incr k 1x", b"incr k 18446744073709551616"] {
        assert_eq!(line(bad), rejected(LineError::BadDelta, After::NextLine));
    }
    assert_eq!(line(b"incr k"), rejected(LineError::BadFormat, After::NextLine));
    let request = Request::Touch { key: key(b"k"), exptime: Exptime(-2) };
    assert_eq!(line(b"touch k -2"), Line::Request { request, noreply: false });
    assert_eq!(line(b"touch k x"), rejected(LineError::BadExptime, After::NextLine));
}

#[test]
fn administration_lines() {
    let flush =
        |at, noreply| Line::Request { request: Request::FlushAll { at: Exptime(at) }, noreply };
    assert_eq!(line(b"flush_all"), flush(0, false));
    assert_eq!(line(b"flush_all noreply"), flush(0, true));
    assert_eq!(line(b"flush_all 5 noreply"), flush(5, true));
    assert_eq!(line(b"flush_all -1"), flush(-1, false));
    assert_eq!(line(b"flush_all x"), rejected(LineError::BadExptime, After::NextLine));
    let stats = |topic| Line::Request { request: Request::Stats(topic), noreply: false };
    assert_eq!(line(b"stats "), stats(StatsTopic::General));
    assert_eq!(line(b"stats s"), stats(StatsTopic::Settings));
    assert_eq!(line(b"stats slabs"), stats(StatsTopic::Slabs));
    assert_eq!(line(b"stats sl"), rejected(LineError::Unknown, After::NextLine));
    assert_eq!(line(b"stats resett"), rejected(LineError::Unknown, After::NextLine));
    let shutdown = Request::Shutdown(Some(Shutdown::Graceful));
    assert_eq!(line(b"shutdown graceful"), Line::Request { request: shutdown, noreply: false });
    let shutdown = |mode| Line::Request { request: Request::Shutdown(mode), noreply: false };
    assert_eq!(line(b"shutdown x"), shutdown(None));
    assert_eq!(line(b"shutdown graceful"), shutdown(Some(Shutdown::Graceful)));
    assert_eq!(line(b"GET / HTTP/1.0"), Line::HangUp);
    assert_eq!(line(b"HTTP/1.0"), rejected(LineError::Unknown, After::NextLine));
    assert_eq!(line(b"  "), rejected(LineError::BadFormat, After::NextLine));
}

#[test]
fn key_lists() {
    let start = |with_cas, touch, error, consumed_len| {
        let fetch = Fetch { with_cas, touch };
        KeyList::Start { fetch, error, consumed_len }
    };
    assert_eq!(key_list(b"get a"), start(false, None, None, 4));
    assert_eq!(key_list(b"  gets a"), start(true, None, None, 6));
    assert_eq!(key_list(b"get\r\n"), start(false, None, None, 3));
    assert_eq!(key_list(b"gets\n"), start(true, None, None, 4));
    assert_eq!(key_list(b"gat -5 a"), start(false, Some(Exptime(-5)), None, 6));
    assert_eq!(key_list(b"gats 5\r\n"), start(true, Some(Exptime(5)), None, 6));
    let bad = Some(LineError::BadExptime);
    assert_eq!(key_list(b"gat x a"), start(false, None, bad, 5));
    for partial in [&b""[..], b"g", b"gats", b"gats\r", b"gat 1", b"gat "] {
        assert_eq!(key_list(partial), KeyList::Partial, "{}", partial.escape_ascii());
    }
    for other in [&b"getx a"[..], b"set", b"set a", b"flush_all", b"\r\n", b"GET a"] {
        assert_eq!(key_list(other), KeyList::No, "{}", other.escape_ascii());
    }
}

fn mode() -> impl Strategy<Value = StoreMode> {
    prop_oneof![
        Just(StoreMode::Set),
        Just(StoreMode::Add),
        Just(StoreMode::Replace),
        Just(StoreMode::Append),
        Just(StoreMode::Prepend),
        any::<u64>().prop_map(StoreMode::Cas),
    ]
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = key_list(&bytes);
        let parsed = line(&bytes);
        // What follows a storage verb is never taken for the next line.
        let mut words = bytes.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        if matches!(words.next(), Some(b"set" | b"add" | b"cas" | b"replace" | b"append" | b"prepend")) {
            let run_as_command = matches!(parsed, Line::Rejected { after: After::NextLine, .. });
            prop_assert!(!run_as_command);
        }
    }

    #[test]
    fn storage_lines_come_back(
        bytes in proptest::collection::vec(any::<u8>().prop_filter("token", |b| !b" \r\n".contains(b)), 1..=250),
        flags: u32, exptime: i64, value_len in 0u64..=super::SWALLOW_LEN_MAX, noreply: bool, mode in mode(),
    ) {
        let (verb, cas) = match mode {
            StoreMode::Set => ("set", String::new()),
            StoreMode::Add => ("add", String::new()),
            StoreMode::Replace => ("replace", String::new()),
            StoreMode::Append => ("append", String::new()),
            StoreMode::Prepend => ("prepend", String::new()),
            StoreMode::Cas(cas) => ("cas", format!(" {cas}")),
        };
        let mut sent = format!("{verb} ").into_bytes();
        sent.extend_from_slice(&bytes);
        let tail = if noreply { " noreply" } else { "" };
        sent.extend_from_slice(format!(" {flags} {exptime} {value_len}{cas}{tail}\r").as_bytes());
        let terms = StoreTerms::new(flags, Exptime(exptime), mode);
        let store = Store { key: key(&bytes), terms };
        prop_assert_eq!(line(&sent), Line::Store { store, value_len, noreply });
    }

    #[test]
    fn value_headers_can_be_read_back(
        bytes in proptest::collection::vec(any::<u8>().prop_filter("token", |b| !b" \r\n".contains(b)), 1..=250),
        flags: u32, value_len: u32, cas in proptest::option::of(any::<u64>()),
    ) {
        let mut out = Vec::new();
        encode::value_header(&mut out, &bytes, flags, value_len as usize, cas);
        let words: Vec<&[u8]> = out.strip_suffix(b"\r\n").expect("a line").split(|b| *b == b' ').collect();
        prop_assert_eq!(words[0], b"VALUE");
        prop_assert_eq!(words[1], bytes.as_slice());
        prop_assert_eq!(super::number::unsigned_32(words[2]), Some(flags));
        prop_assert_eq!(super::number::unsigned_32(words[3]), Some(value_len));
        prop_assert_eq!(words.get(4).copied().and_then(super::number::unsigned), cas);
    }
}
