//! A line to what it asks. It owns the grammar of every verb and decides how a rejected storage
//! line's value is kept from being read as commands; it never waits, stores or answers.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::number::{signed, unsigned, unsigned_32};
use super::words::Words;
use super::{SWALLOW_LEN_MAX, admin};
use crate::command::admin::{Admin, DumpKind};
use crate::command::request::{
    Direction, Exptime, Fetch, Key, Request, Shutdown, StatsTopic, Store, StoreMode, StoreTerms,
};
use crate::protocol::meta::parse::Verb;

/// Whose fault a rejected line is, in the words of `encode::error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineError {
    /// No such command.
    Unknown,
    /// The words do not make the command.
    BadFormat,
    /// `incr` and `decr`: the delta is no number.
    BadDelta,
    /// `touch`, `gat`, `gats`, `flush_all`: the time is no number.
    BadExptime,
    /// `delete`: words after the key that are neither 0 nor noreply.
    DeleteUsage,
    /// The value did not end where its line said.
    BadData,
    /// `stats cachedump`: words are missing.
    BadLine,
    /// `stats detail`: neither on, off nor dump.
    DetailUsage,
    /// `stats cachedump`: no such class.
    IllegalClass,
    /// `lru_crawler`: no such class.
    BadClass,
}

/// What has to happen to the bytes that follow a rejected line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// They are the next line.
    NextLine,
    /// They are a value of this many bytes and its CRLF, none of which may be read as commands.
    Swallow(u64),
    /// They may be a value of a length that cannot be told: the connection has to end.
    Close,
}

/// What a line asks. A list of keys is read by [`key_list`] instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A storage command; `value_len` bytes and CRLF follow.
    Store {
        /// All but the value.
        store: Store<'a>,
        /// Bytes of the value, at most [`SWALLOW_LEN_MAX`].
        value_len: u64,
        /// No answer is wanted.
        noreply: bool,
    },
    /// Any other command.
    Request {
        /// What is asked.
        request: Request<'a>,
        /// No answer is wanted.
        noreply: bool,
    },
    /// A command that steers the server.
    Admin {
        /// What is asked.
        admin: Admin<'a>,
        /// No answer is wanted.
        noreply: bool,
    },
    /// A list that is sent piece by piece.
    Dump(DumpKind),
    /// From here on the connection gets events of these kinds.
    Watch(u32),
    /// Nothing that can be done.
    Rejected {
        /// Why.
        error: LineError,
        /// What follows.
        after: After,
        /// No answer is wanted, and the line was clear enough to tell.
        noreply: bool,
    },
    /// A command of the meta protocol: its verb, and the words behind it.
    Meta(Verb, Words<'a>),
    /// The client takes its leave.
    Quit,
    /// A web browser: hung up on without an answer.
    HangUp,
}

/// What stands at the start of the input, seen as a command with a list of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyList {
    /// Another command.
    No,
    /// Too short to tell.
    Partial,
    /// The keys begin `consumed_len` bytes on.
    Start {
        /// What is asked of each key.
        fetch: Fetch,
        /// The answer that the line gets instead, once its end is found.
        error: Option<LineError>,
        /// Bytes of the verb and, for `gat` and `gats`, of the expiry time.
        consumed_len: usize,
    },
}

/// Recognises `get`, `gets`, `gat` and `gats` without waiting for the end of their line.
#[must_use]
pub fn key_list(input: &[u8]) -> KeyList {
    // The commonest verb first, and without the general path.
    if input.starts_with(b"get ") {
        return KeyList::Start { fetch: GET, error: None, consumed_len: 4 };
    }
    // Every verb that follows is told by its first byte.
    if input.first().is_some_and(|byte| !b"g ".contains(byte)) {
        return KeyList::No;
    }
    let blank_len = input.iter().take_while(|byte| **byte == b' ').count();
    let from_verb = input.get(blank_len..).unwrap_or_default();
    let Some(verb_len) = from_verb.iter().position(|byte| is_end(*byte)) else {
        return if from_verb.len() <= VERB_LEN_MAX { KeyList::Partial } else { KeyList::No };
    };
    let verb_end = blank_len.saturating_add(verb_len);
    let (fetch, timed) = match from_verb.get(..verb_len).map(without_return) {
        Some(b"get") => (GET, false),
        Some(b"gets") => (Fetch { with_cas: true, ..GET }, false),
        Some(b"gat") => (GET, true),
        Some(b"gats") => (Fetch { with_cas: true, ..GET }, true),
        _ => return KeyList::No,
    };
    // A verb that the line's end follows keeps its carriage return for the end of the list.
    let verb_end = match from_verb.get(verb_len) {
        Some(b'\n') if from_verb.get(verb_len.wrapping_sub(1)) == Some(&b'\r') => {
            verb_end.saturating_sub(1)
        }
        _ => verb_end,
    };
    if timed {
        return timed_key_list(input, fetch, verb_end);
    }
    KeyList::Start { fetch, error: None, consumed_len: verb_end }
}

const GET: Fetch = Fetch { with_cas: false, touch: None };

/// Longest verb with a carriage return behind it: shorter input may still become a key list.
const VERB_LEN_MAX: usize = 5;

/// Longest expiry time worth waiting for: 64 bits with sign, and then some leading zeros.
const EXPTIME_LEN_MAX: usize = 64;

fn timed_key_list(input: &[u8], fetch: Fetch, verb_end: usize) -> KeyList {
    let rest = input.get(verb_end..).unwrap_or_default();
    let blank_len = rest.iter().take_while(|byte| **byte == b' ').count();
    let time_on = rest.get(blank_len..).unwrap_or_default();
    let Some(time_len) = time_on.iter().position(|byte| is_end(*byte)) else {
        if time_on.len() <= EXPTIME_LEN_MAX {
            return KeyList::Partial;
        }
        let error = Some(LineError::BadExptime);
        return KeyList::Start { fetch, error, consumed_len: verb_end };
    };
    let time = time_on.get(..time_len).unwrap_or_default();
    let time = if time_on.get(time_len) == Some(&b'\n') { without_return(time) } else { time };
    let consumed_len = verb_end.saturating_add(blank_len).saturating_add(time.len());
    match signed(time) {
        Some(seconds) => {
            let fetch = Fetch { touch: Some(Exptime::of_line(seconds)), ..fetch };
            KeyList::Start { fetch, error: None, consumed_len }
        }
        None => KeyList::Start { fetch, error: Some(LineError::BadExptime), consumed_len },
    }
}

fn is_end(byte: u8) -> bool {
    byte == b' ' || byte == b'\n'
}

fn without_return(token: &[u8]) -> &[u8] {
    token.strip_suffix(b"\r").unwrap_or(token)
}

/// Reads a line, given without its newline, that is not a list of keys.
#[must_use]
pub fn line(line: &[u8]) -> Line<'_> {
    let mut words = Words(without_return(line));
    let Some(verb) = words.next() else { return rejected(LineError::BadFormat) };
    match verb {
        b"set" => storage(words, |_| Some(StoreMode::Set)),
        b"add" => storage(words, |_| Some(StoreMode::Add)),
        b"replace" => storage(words, |_| Some(StoreMode::Replace)),
        b"append" => storage(words, |_| Some(StoreMode::Append)),
        b"prepend" => storage(words, |_| Some(StoreMode::Prepend)),
        b"cas" => storage(words, |words| words.next().and_then(unsigned).map(StoreMode::Cas)),
        b"delete" => delete(words),
        b"incr" => arithmetic(words, Direction::Increment),
        b"decr" => arithmetic(words, Direction::Decrement),
        b"touch" => touch(words),
        b"flush_all" => flush_all(words),
        b"version" => request(Request::Version, false),
        b"verbosity" => verbosity(words),
        b"stats" => stats(words),
        b"shutdown" => shutdown(words),
        b"quit" => Line::Quit,
        verb => meta_or_administration(verb, words),
    }
}

fn meta_or_administration<'a>(verb: &[u8], words: Words<'a>) -> Line<'a> {
    match Verb::of(verb) {
        Some(verb) => Line::Meta(verb, words),
        None => admin::line(verb, words).unwrap_or_else(|| unknown(words)),
    }
}

fn rejected<'a>(error: LineError) -> Line<'a> {
    Line::Rejected { error, after: After::NextLine, noreply: false }
}

fn request(request: Request<'_>, noreply: bool) -> Line<'_> {
    Line::Request { request, noreply }
}

/// `<verb> <key> <flags> <exptime> <bytes> [<cas unique>] [noreply]`.
fn storage<'a>(
    mut words: Words<'a>,
    mode: impl FnOnce(&mut Words<'a>) -> Option<StoreMode>,
) -> Line<'a> {
    let (key, flags, exptime) = (words.next(), words.next(), words.next());
    let value_len = words.next().and_then(unsigned).filter(|len| *len <= SWALLOW_LEN_MAX);
    let Some(value_len) = value_len else {
        return Line::Rejected { error: LineError::BadFormat, after: After::Close, noreply: false };
    };
    let mode = mode(&mut words);
    let noreply = words.noreply();
    let parsed = || {
        let (flags, exptime) = (unsigned_32(flags?)?, Exptime::of_line(signed(exptime?)?));
        Some(Store { key: Key::new(key?)?, terms: StoreTerms::new(flags, exptime, mode?) })
    };
    match parsed() {
        Some(store) => Line::Store { store, value_len, noreply },
        None => Line::Rejected {
            error: LineError::BadFormat,
            after: After::Swallow(value_len),
            noreply,
        },
    }
}

/// `delete <key> [0] [noreply]`.
fn delete(mut words: Words<'_>) -> Line<'_> {
    let Some(word) = words.next() else { return rejected(LineError::BadFormat) };
    let (noreply, mut rest) = (words.noreply(), words);
    let is_usual = matches!(
        (rest.next(), rest.next(), rest.next()),
        (None | Some(b"0" | b"noreply"), None, _) | (Some(b"0"), Some(b"noreply"), None)
    );
    match Key::new(word) {
        Some(key) if is_usual => request(Request::Delete { key }, noreply),
        key => {
            let wrong = if key.is_some() { LineError::DeleteUsage } else { LineError::BadFormat };
            Line::Rejected { error: wrong, after: After::NextLine, noreply }
        }
    }
}

/// `incr <key> <delta> [noreply]`. A `noreply` in the delta's place is wrong, and silently so, as
/// in memcached.
fn arithmetic(mut words: Words<'_>, direction: Direction) -> Line<'_> {
    let (key, noreply) = (words.next(), words.noreply());
    let (Some(key), Some(delta)) = (key, words.next()) else {
        return rejected(LineError::BadFormat);
    };
    let after = After::NextLine;
    let Some(key) = Key::new(key) else {
        return Line::Rejected { error: LineError::BadFormat, after, noreply };
    };
    let Some(delta) = unsigned(delta) else {
        return Line::Rejected { error: LineError::BadDelta, after, noreply };
    };
    request(Request::Arithmetic { key, direction, delta }, noreply)
}

/// `touch <key> <exptime> [noreply]`.
fn touch(mut words: Words<'_>) -> Line<'_> {
    let (key, noreply) = (words.next(), words.noreply());
    let (Some(key), Some(exptime)) = (key, words.next()) else {
        return rejected(LineError::BadFormat);
    };
    let after = After::NextLine;
    let Some(key) = Key::new(key) else {
        return Line::Rejected { error: LineError::BadFormat, after, noreply };
    };
    let Some(exptime) = signed(exptime) else {
        return Line::Rejected { error: LineError::BadExptime, after, noreply };
    };
    request(Request::Touch { key, exptime: Exptime::of_line(exptime) }, noreply)
}

/// `flush_all [exptime] [noreply]`.
fn flush_all(words: Words<'_>) -> Line<'_> {
    let noreply = words.noreply();
    let mut rest = words;
    let at = match rest.next() {
        None => Some(0),
        Some(b"noreply") if rest.next().is_none() => Some(0),
        Some(word) => signed(word),
    };
    match at {
        Some(at) => request(Request::FlushAll { at: Exptime(at) }, noreply),
        None => Line::Rejected { error: LineError::BadExptime, after: After::NextLine, noreply },
    }
}

/// `verbosity <level> [noreply]`. `verbosity noreply` is wrong, and silently so: libmemcached's
/// tests ask for that.
fn verbosity(mut words: Words<'_>) -> Line<'_> {
    let noreply = words.noreply();
    match words.next().and_then(unsigned_32) {
        Some(level) => request(Request::Verbosity { level }, noreply),
        None => Line::Rejected { error: LineError::BadFormat, after: After::NextLine, noreply },
    }
}

/// `stats [topic]`. memcached compares some topics by as many letters as the client sent.
fn stats(mut words: Words<'_>) -> Line<'_> {
    let Some(topic) = words.next() else {
        return request(Request::Stats(StatsTopic::General), false);
    };
    if let Some(line) = admin::stats(topic, words) {
        return line;
    }
    let topic = match topic {
        topic if b"reset".starts_with(topic) => return request(Request::StatsReset, false),
        topic if b"settings".starts_with(topic) => StatsTopic::Settings,
        topic if b"conns".starts_with(topic) => StatsTopic::Conns,
        b"items" => StatsTopic::Items,
        b"slabs" => StatsTopic::Slabs,
        b"guard" => StatsTopic::Guard,
        b"store" => StatsTopic::Store,
        _ => return rejected(LineError::Unknown),
    };
    request(Request::Stats(topic), false)
}

/// `shutdown [graceful]`.
fn shutdown(mut words: Words<'_>) -> Line<'_> {
    let mode = match (words.next(), words.next()) {
        (None, _) => Some(Shutdown::Now),
        (Some(b"graceful"), None) => Some(Shutdown::Graceful),
        _ => None,
    };
    request(Request::Shutdown(mode), false)
}

fn unknown(words: Words<'_>) -> Line<'_> {
    match words.last() {
        Some(last) if last.starts_with(b"HTTP/") => Line::HangUp,
        _ => rejected(LineError::Unknown),
    }
}
