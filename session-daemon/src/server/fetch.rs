//! Key lists: the keys of all pipelined fetches that stand in the input are looked up together
//! and answered in order. It owns where a list stands; it never reads or writes a socket.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::execute::{count_fetches, fetch};
use crate::command::observe::{Event, Seen};
use crate::command::request::{Exptime, Fetch};
use crate::protocol::text::keys::{NextKey, lone_get, next_key};
use crate::protocol::text::parse::{KeyList, LineError, key_list};
use crate::protocol::text::{CRLF, KEY_LIST_LEN_MAX, LINE_LEN_MAX, encode};
use crate::server::buffers::{DIRECT_LEN_MIN_LAST, Output, Pool, Wire, wire_for};
use crate::server::connection::Turn;
use crate::store::Item;
use crate::store::types::Key;
use memchr::memchr;

/// Keys that are looked up together. A list counts as one request and every full batch as one
/// more, so that a long list gives way to other connections too.
pub const BATCH_KEYS_MAX: usize = 64;

/// Keys of a batch in a short input, where clearing places for more would cost more than the keys.
const SHORT_BATCH_KEYS_MAX: usize = 8;

/// Bytes of an input that is short.
const SHORT_INPUT_LEN: usize = 300;

/// A key list that has begun.
#[derive(Clone, Copy, Debug)]
pub struct List {
    fetch: Fetch,
    /// The answer that replaces all values, once the end of the line is found.
    error: Option<LineError>,
    /// Whether there was a key.
    any: bool,
    /// Bytes of the line that have been consumed.
    line_len: usize,
    /// Where in the output its first value stands, while none of them is sent.
    mark: Option<usize>,
}

impl List {
    /// Values of the list have been sent: an error can no longer replace them.
    pub fn values_sent(&mut self) {
        self.mark = None;
    }
}

/// What [`run`] did.
#[derive(Debug)]
pub enum Progress {
    /// So many bytes of the input are done, and this list is open behind them.
    Next(usize, Option<List>),
    /// No key list stands in the input.
    Other,
    /// The rest of the line has not come yet.
    Wait,
    /// The line has no end: close.
    Endless,
}

/// Answers the key lists at the start of `input`, a batch of keys at most. `open` is the list
/// in whose middle the input starts.
pub fn run(input: &[u8], open: Option<List>, output: &mut Output, turn: &mut Turn<'_>) -> Progress {
    if let Some((list, error)) = open.and_then(|list| Some((list, list.error?))) {
        return skip(input, list, error, output, turn);
    }
    if open.is_none() {
        if let Some((key, [])) = lone_get(input) {
            one(key, output, turn);
            return Progress::Next(input.len(), None);
        }
        if key_list(input) == KeyList::No {
            return Progress::Other;
        }
    }
    if input.len() <= SHORT_INPUT_LEN {
        run_in::<SHORT_BATCH_KEYS_MAX>(input, open, output, turn)
    } else {
        run_in::<BATCH_KEYS_MAX>(input, open, output, turn)
    }
}

/// [`run`] with a batch of at most so many keys.
// Not inlined: its places make a frame that is not cheap to enter for what is no key list.
#[inline(never)]
fn run_in<const KEYS: usize>(
    input: &[u8],
    open: Option<List>,
    output: &mut Output,
    turn: &mut Turn<'_>,
) -> Progress {
    let mut batch = Batch::<KEYS>::new(open);
    let stop = batch.gather(input, open, turn.requests_left);
    turn.requests_left = turn.requests_left.saturating_sub(batch.cost());
    if let Some((done, list)) = batch.answer(output, turn, &mut |_| {}) {
        return Progress::Next(done, list);
    }
    match stop {
        Stop::Wait(0) => Progress::Wait,
        Stop::Other(0) => Progress::Other,
        Stop::Wait(done) | Stop::Other(done) | Stop::Here(done) => Progress::Next(done, None),
        Stop::Within(_, list) if list.line_len > KEY_LIST_LEN_MAX => Progress::Endless,
        Stop::Within(0, _) if batch.len == 0 => Progress::Wait,
        Stop::Within(done, mut list) => {
            list.mark = batch.mark.filter(|_| list.any);
            Progress::Next(done, Some(list))
        }
        Stop::Failed(done, list) => {
            if let Some(mark) = list.mark {
                output.truncate(mark);
            }
            Progress::Next(done, Some(list))
        }
        Stop::End(done, list) => {
            let out = output.tail(turn.pool);
            if list.any {
                encode::end(out)
            } else {
                encode::error(out, LineError::BadFormat)
            }
            Progress::Next(done, None)
        }
    }
}

/// Answers the only key that is asked for, by a `get`.
fn one(key: &[u8], output: &mut Output, turn: &mut Turn<'_>) {
    turn.requests_left = turn.requests_left.saturating_sub(1);
    let Some(key) = Key::new(key) else { return };
    let item = turn.executor.store.get(key, turn.executor.now);
    let terms = Fetch { with_cas: false, touch: None };
    count_fetches(turn.executor.counters, terms, 1, u64::from(item.is_some()));
    note(turn, key, item.as_ref());
    match item {
        Some(item) => {
            let wire = wire_for(turn.wire, item.value_len(), true);
            append(output, key.bytes(), &item, LONE, wire, turn.pool);
        }
        None => encode::end(output.tail(turn.pool)),
    }
}

fn note(turn: &Turn<'_>, key: Key<'_>, item: Option<&Item<'_>>) {
    if let Some(observer) = turn.executor.observer {
        observer.note(&Event::Fetched { key: key.bytes(), found: item.map(Seen::of) });
    }
}

/// Answers keys each of which was asked for alone, as `get`: [`BATCH_KEYS_MAX`] at most, and no more
/// than fill the output. `each` is told the length of the output behind each that is answered.
pub fn lone<'k>(
    keys: impl Iterator<Item = &'k [u8]>,
    output: &mut Output,
    turn: &mut Turn<'_>,
    each: &mut impl FnMut(usize),
) {
    let mut batch = Batch::<BATCH_KEYS_MAX>::new(None);
    for key in keys.take(BATCH_KEYS_MAX) {
        batch.push(key, LONE);
    }
    batch.answer(output, turn, each);
}

/// Passes over the rest of a list whose answer is an error.
fn skip(
    input: &[u8],
    mut list: List,
    error: LineError,
    output: &mut Output,
    turn: &mut Turn<'_>,
) -> Progress {
    let end = memchr(b'\n', input);
    let part = end.and_then(|end| input.get(..end)).unwrap_or(input);
    list.any |= part.iter().any(|byte| !b" \r".contains(byte));
    let Some(end) = end else {
        list.line_len = list.line_len.saturating_add(input.len());
        return match input.len() {
            _ if list.line_len > KEY_LIST_LEN_MAX => Progress::Endless,
            0 => Progress::Wait,
            all => Progress::Next(all, Some(list)),
        };
    };
    let error = if list.any { error } else { LineError::BadFormat };
    encode::error(output.tail(turn.pool), error);
    Progress::Next(end.saturating_add(1), None)
}

/// Where gathering stopped; the number is the bytes of the input that are behind it.
enum Stop {
    /// Between two lines, because the batch is full or the turn is over.
    Here(usize),
    /// In the middle of a list.
    Within(usize, List),
    /// At a key that cannot be: the list is answered by an error.
    Failed(usize, List),
    /// Behind a line none of whose keys is in the batch.
    End(usize, List),
    /// Before something that is no key list.
    Other(usize),
    /// Before a line that has not come whole and is short enough to wait for.
    Wait(usize),
}

/// What is known of a key in the batch beside its bytes.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// The input behind this key, or behind its line.
    resume: usize,
    /// The input where its line began, or 0 for the list that was open.
    from: usize,
    with_cas: bool,
    /// The first key of its line.
    first: bool,
    /// Its line ends behind it.
    ends: bool,
}

/// The only key of its line, wherever that stands.
const LONE: Entry = Entry { resume: 0, from: 0, with_cas: false, first: true, ends: true };

struct Batch<'a, const KEYS: usize> {
    keys: [Key<'a>; KEYS],
    entries: [Entry; KEYS],
    len: usize,
    lists: u32,
    /// The expiry time that all lists of the batch give.
    touch: Option<Exptime>,
    /// Bytes of the open list's line before this input.
    open_len: usize,
    /// Bytes of the input.
    input_len: usize,
    /// Where in the output the values of the latest list begin.
    mark: Option<usize>,
}

const NO_KEY: Key<'static> = match Key::new(b"-") {
    Some(key) => key,
    None => unreachable!(),
};

impl<'a, const KEYS: usize> Batch<'a, KEYS> {
    fn new(open: Option<List>) -> Self {
        Self {
            keys: [NO_KEY; KEYS],
            entries: [Entry::default(); KEYS],
            len: 0,
            lists: 0,
            touch: open.and_then(|list| list.fetch.touch),
            open_len: open.map_or(0, |list| list.line_len),
            input_len: 0,
            mark: open.and_then(|list| list.mark),
        }
    }

    /// Requests that the batch counts as.
    fn cost(&self) -> u32 {
        self.lists.saturating_add(u32::from(self.len == BATCH_KEYS_MAX))
    }

    /// Collects keys, list after list, without answering any.
    fn gather(&mut self, input: &'a [u8], open: Option<List>, lists_max: u32) -> Stop {
        let mut at = 0;
        self.input_len = input.len();
        if let Some(list) = open
            && let Some(stop) = self.gather_list(input, 0, &mut at, list, false)
        {
            return stop;
        }
        loop {
            if self.len == KEYS || self.lists >= lists_max {
                return Stop::Here(at);
            }
            let mut rest = input.get(at..).unwrap_or_default();
            while self.len < KEYS
                && self.lists < lists_max
                && self.takes(None)
                && let Some((key, behind)) = lone_get(rest)
            {
                let from = input.len().saturating_sub(rest.len());
                let resume = input.len().saturating_sub(behind.len());
                self.push(key, Entry { resume, from, ..LONE });
                (self.touch, rest) = (None, behind);
                self.lists = self.lists.saturating_add(1);
            }
            let from = input.len().saturating_sub(rest.len());
            if at < from {
                at = from;
                continue;
            }
            let (fetch, error, head_len) = match key_list(rest) {
                KeyList::Start { fetch, error, consumed_len } => (fetch, error, consumed_len),
                KeyList::No => return Stop::Other(at),
                KeyList::Partial => return Stop::Wait(at),
            };
            let list = List { fetch, error, any: false, line_len: 0, mark: None };
            if !self.takes(fetch.touch) {
                return Stop::Here(at);
            }
            self.touch = fetch.touch;
            self.lists = self.lists.saturating_add(1);
            at = at.saturating_add(head_len);
            if error.is_some() {
                return Stop::Failed(at, list);
            }
            if let Some(stop) = self.gather_list(input, from, &mut at, list, true) {
                return stop;
            }
        }
    }

    /// Whether a list that gives this expiry time may be in the batch.
    fn takes(&self, touch: Option<Exptime>) -> bool {
        self.len == 0 || self.touch == touch
    }

    /// Collects the keys of one list; none when its line ended and its end is in the batch.
    fn gather_list(
        &mut self,
        input: &'a [u8],
        from: usize,
        at: &mut usize,
        mut list: List,
        fresh: bool,
    ) -> Option<Stop> {
        let len_before = self.len;
        let here = input.get(from..).unwrap_or_default();
        // A short line is waited for, so that its answer does not depend on how it was cut.
        let worth_waiting =
            |cut| fresh && here.len() < LINE_LEN_MAX && (cut || memchr(b'\n', here).is_none());
        loop {
            let next = next_key(input.get(*at..).unwrap_or_default());
            let (key, blank_len, end_len) = match next {
                NextKey::Key { key, blank_len, end_len } => (key, blank_len, end_len),
                NextKey::End { consumed_len } => {
                    *at = at.saturating_add(consumed_len);
                    if self.len == len_before {
                        return Some(Stop::End(*at, list));
                    }
                    self.last_ends(*at);
                    return None;
                }
                NextKey::TooLong => {
                    self.len = len_before;
                    list.error = Some(LineError::BadFormat);
                    return Some(Stop::Failed(*at, list));
                }
                NextKey::Partial { .. } if worth_waiting(true) => {
                    self.len = len_before;
                    return Some(Stop::Wait(from));
                }
                NextKey::Partial { blank_len } => {
                    *at = at.saturating_add(blank_len);
                    list.line_len = list.line_len.saturating_add(at.saturating_sub(from));
                    return Some(Stop::Within(*at, list));
                }
            };
            if self.len == KEYS {
                if worth_waiting(false) {
                    self.len = len_before;
                    return Some(Stop::Wait(from));
                }
                list.line_len = list.line_len.saturating_add(at.saturating_sub(from));
                return Some(Stop::Within(*at, list));
            }
            *at = at.saturating_add(end_len.unwrap_or(blank_len.saturating_add(key.len())));
            let first = !list.any;
            list.any = true;
            let with_cas = list.fetch.with_cas;
            let ends = end_len.is_some();
            self.push(key, Entry { resume: *at, from, with_cas, first, ends });
            if ends {
                return None;
            }
        }
    }

    fn push(&mut self, key: &'a [u8], entry: Entry) {
        if let Some(key) = Key::new(key)
            && let Some(key_place) = self.keys.get_mut(self.len)
            && let Some(entry_place) = self.entries.get_mut(self.len)
        {
            *key_place = key;
            *entry_place = entry;
            self.len = self.len.saturating_add(1);
        }
    }

    fn last_ends(&mut self, resume: usize) {
        if let Some(last) = self.entries.get_mut(self.len.saturating_sub(1)) {
            last.ends = true;
            last.resume = resume;
        }
    }

    /// Looks all keys up, then encodes them in order. When the output is full before the last,
    /// it says where to go on; what was looked up beyond is looked up again then. `each` is told the
    /// length of the output behind each key.
    fn answer(
        &mut self,
        output: &mut Output,
        turn: &mut Turn<'_>,
        each: &mut impl FnMut(usize),
    ) -> Paused {
        // Clearing places for items costs as much as a lookup: few keys take few places.
        if self.len <= 2 {
            self.answer_in::<2>(output, turn, each)
        } else {
            self.answer_in::<KEYS>(output, turn, each)
        }
    }

    fn answer_in<const PLACES: usize>(
        &mut self,
        output: &mut Output,
        turn: &mut Turn<'_>,
        each: &mut impl FnMut(usize),
    ) -> Paused {
        let mut items: [Option<Item<'_>>; PLACES] = [const { None }; PLACES];
        let keys = self.keys.get(..self.len)?;
        let items = items.get_mut(..self.len)?;
        let terms = Fetch { with_cas: false, touch: self.touch };
        fetch(turn.executor.store, terms, keys, turn.executor.now, items);
        let entries = self.entries.get(..self.len)?;
        // The line of the last entry that ends, and every line before it, cannot fail any more.
        let known = entries.iter().rposition(|entry| entry.ends);
        let (mut found, mut answered, mut mark) = (0_u64, 0_usize, self.mark);
        for (idx, ((key, item), entry)) in keys.iter().zip(items.iter()).zip(entries).enumerate() {
            if idx > 0 && output.is_full() {
                break;
            }
            if entry.first {
                mark = Some(output.len());
            }
            note(turn, *key, item.as_ref());
            if let Some(item) = item {
                found = found.saturating_add(1);
                let mut wire = None;
                if item.value_len() >= DIRECT_LEN_MIN_LAST && known >= Some(idx) {
                    let last = entry.ends && entry.resume == self.input_len;
                    wire = wire_for(turn.wire, item.value_len(), last);
                }
                append(output, key.bytes(), item, *entry, wire, turn.pool);
            } else if entry.ends {
                encode::end(output.tail(turn.pool));
            }
            each(output.len());
            answered = idx.saturating_add(1);
        }
        count_fetches(turn.executor.counters, terms, answered as u64, found);
        self.mark = mark;
        if answered == self.len {
            return None;
        }
        let last = self.entries.get(answered.checked_sub(1)?)?;
        Some((last.resume, (!last.ends).then(|| self.list_after(*last))))
    }

    /// The list of a key that was answered, as it stands behind that key.
    fn list_after(&self, entry: Entry) -> List {
        let before = if entry.from == 0 { self.open_len } else { 0 };
        List {
            fetch: Fetch { with_cas: entry.with_cas, touch: self.touch },
            error: None,
            any: true,
            line_len: entry.resume.saturating_sub(entry.from).saturating_add(before),
            mark: self.mark,
        }
    }
}

/// Where to go on when the output was full before the last key of a batch.
type Paused = Option<(usize, Option<List>)>;

fn append(
    output: &mut Output,
    key: &[u8],
    item: &Item<'_>,
    entry: Entry,
    wire: Option<&dyn Wire>,
    pool: &mut Pool,
) {
    let cas = entry.with_cas.then(|| item.cas().0);
    let (value_len, flags) = (item.value_len(), item.flags().0);
    let out = output.tail(pool);
    let copied_len = if wire.is_some() { 0 } else { value_len };
    out.reserve(copied_len.saturating_add(VALUE_HEADER_LEN_MAX));
    if let Some(value) = item.value_in_one().filter(|_| wire.is_none()) {
        return encode::value(out, key, flags, value, cas, entry.ends);
    }
    encode::value_header(out, key, flags, value_len, cas);
    let end: &'static [u8] = if entry.ends { encode::VALUE_AND_LIST_END } else { CRLF };
    output.append_value(item, end, wire, pool);
}

/// `VALUE`, a key, three numbers, blanks and two line ends.
const VALUE_HEADER_LEN_MAX: usize = 330;
