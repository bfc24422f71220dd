//! One client's conversation in the binary protocol. It owns where in a frame the input stands,
//! and looks the keys of pipelined fetches up together; it never reads or writes a socket.
//!
//! ```text
//!            a frame                   its value is not all here
//!   Frame -----------> answer, Frame ----------------------------> Value --> answer, Frame
//!    |  a rejected frame with a body
//!    +-----------------------------> Swallow --> Frame
//!    |  sizes of items are asked for
//!    +-----------------------------> Sizes --> answer, Frame
//! ```
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

#[cfg(test)]
mod tests;

use crate::command::admin::{Admin, AdminOutcome, DumpKind};
use crate::command::execute::{Answer, count_fetch, count_fetches, count_touch, fetch};
use crate::command::observe::{Event, Observer, Seen};
use crate::command::request::{self, Outcome, Request, StatsTopic, Store, Versioned};
use crate::protocol::binary::HEADER_LEN;
use crate::protocol::binary::encode::{self, Tag};
use crate::protocol::binary::parse::{After, Ask, Fetch, Frame, frame};
use crate::server::buffers::{Input, Output, Pool, Wire, wire_for};
use crate::server::connection::Turn;
use crate::server::dump::Dump;
use crate::server::fetch::BATCH_KEYS_MAX;
use crate::server::incoming::Incoming;
use crate::server::values::VALUE_WAIT_LEN_MAX;
use crate::store::Item;
use crate::store::types::{ClientFlags, Key};

/// Where in a frame the input stands.
#[derive(Debug, Default)]
pub enum Conversation {
    /// Between two frames.
    #[default]
    Frame,
    /// Within a value that goes to the store in pieces.
    Value(Tag, Box<Incoming>),
    /// Within a body of which so many bytes are passed over.
    Swallow(usize),
    /// Items are counted by size, piece by piece; the request stands in the input until then.
    Sizes(Tag, Box<Dump>),
}

/// What one look at the input led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be more to do.
    More,
    /// What is there is too short to go on.
    Wait,
    /// The client takes its leave.
    Leave,
    /// The connection has to end, after its answers are sent.
    Close,
}

impl Conversation {
    /// Whether a request is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !matches!(self, Self::Frame)
    }

    /// Answers one frame, a batch of fetches, or what has come of a value.
    pub fn step(
        &mut self,
        input: &mut Input,
        output: &mut Output,
        turn: &mut Turn<'_>,
    ) -> Progress {
        match self {
            Self::Frame => self.frame(input, output, turn),
            Self::Value(..) => self.value(input, output, turn),
            Self::Swallow(left) => {
                let passed = input.waiting().len().min(*left);
                input.consume(passed);
                *left = left.saturating_sub(passed);
                if *left > 0 {
                    return Progress::Wait;
                }
                *self = Self::Frame;
                Progress::More
            }
            Self::Sizes(tag, dump) => {
                // The others have their turn between two pieces.
                turn.requests_left = 0;
                if !count_sizes(*tag, dump, output, turn) {
                    *self = Self::Frame;
                    // Its length is in its header, which has been read.
                    if let Frame::Request { head_len, .. } = frame(input.waiting()) {
                        input.consume(head_len);
                    }
                }
                Progress::More
            }
        }
    }

    fn frame(&mut self, input: &mut Input, output: &mut Output, turn: &mut Turn<'_>) -> Progress {
        match frame(input.waiting()) {
            Frame::Partial => Progress::Wait,
            Frame::Foreign => Progress::Close,
            Frame::Rejected { tag, status, after } => {
                count_request(turn);
                encode::error(output.tail(turn.pool), tag, status);
                match after {
                    After::Swallow(body_len) => {
                        input.consume(HEADER_LEN);
                        self.pass_over(usize::try_from(body_len).unwrap_or(usize::MAX))
                    }
                    After::Close => Progress::Close,
                }
            }
            Frame::Request { tag, ask: Ask::Store { store, value_len }, head_len } => {
                let value_len = usize::try_from(value_len).unwrap_or(usize::MAX);
                let put = Put { store, value_len };
                let value = input.waiting().get(head_len..).unwrap_or_default();
                let begun = put.begin(value, turn);
                self.begun(tag, begun, head_len, input, output, turn)
            }
            Frame::Request { ask: Ask::Fetch(Fetch { touch: None, .. }), head_len, .. }
                if input.waiting().len() > head_len =>
            {
                let done = Batch::gather(input.waiting(), turn.requests_left).answer(output, turn);
                input.consume(done);
                Progress::More
            }
            Frame::Request { tag, ask, head_len } => {
                count_request(turn);
                // Matched, not compared: a comparison of requests looks at more than their kind.
                if let Ask::Stats(StatsTopic::Sizes) = ask
                    && let Ok(dump) = turn.services.begin_dump(DumpKind::Sizes, &mut Vec::new())
                {
                    *self = Self::Sizes(tag, Box::new(dump));
                    return Progress::More;
                }
                let alone = input.waiting().len() == head_len;
                let last = matches!(ask, Ask::Quit);
                answer(tag, ask, alone, output, turn);
                input.consume(head_len);
                if last { Progress::Leave } else { Progress::More }
            }
        }
    }

    fn begun(
        &mut self,
        tag: Tag,
        begun: Begun,
        head_len: usize,
        input: &mut Input,
        output: &mut Output,
        turn: &mut Turn<'_>,
    ) -> Progress {
        match begun {
            Begun::Wait => Progress::Wait,
            Begun::Here { versioned, value_len } => {
                reply(tag, versioned, output, turn);
                input.consume(head_len.saturating_add(value_len));
                Progress::More
            }
            Begun::Pieces(incoming) => {
                input.consume(head_len);
                *self = Self::Value(tag, incoming);
                self.value(input, output, turn)
            }
            Begun::Refused { outcome, value_len } => {
                reply(tag, outcome.into(), output, turn);
                input.consume(head_len);
                self.pass_over(value_len)
            }
        }
    }

    /// Within a value that goes to the store in pieces.
    fn value(&mut self, input: &mut Input, output: &mut Output, turn: &mut Turn<'_>) -> Progress {
        let Self::Value(tag, incoming) = self else { return Progress::More };
        let (tag, left_len, waiting) = (*tag, incoming.missing(), input.waiting());
        let taken_len = waiting.len().min(left_len);
        let piece = waiting.get(..taken_len).unwrap_or_default();
        if let Err(outcome) = incoming.write(piece, &mut turn.executor) {
            reply(tag, outcome.into(), output, turn);
            return self.pass_over(left_len);
        }
        input.consume(taken_len);
        if incoming.missing() > 0 {
            return Progress::Wait;
        }
        if let Self::Value(tag, incoming) = std::mem::take(self) {
            let versioned = incoming.finish(&mut turn.executor);
            reply(tag, versioned, output, turn);
        }
        Progress::More
    }

    fn pass_over(&mut self, body_len: usize) -> Progress {
        *self = if body_len > 0 { Self::Swallow(body_len) } else { Self::Frame };
        Progress::More
    }
}

fn count_request(turn: &mut Turn<'_>) {
    turn.requests_left = turn.requests_left.saturating_sub(1);
}

fn reply(tag: Tag, versioned: Versioned, output: &mut Output, turn: &mut Turn<'_>) {
    count_request(turn);
    encode::outcome(output.tail(turn.pool), tag, versioned.outcome, versioned.cas);
}

/// A storage command that has begun to come.
struct Put<'a> {
    store: Store<'a>,
    value_len: usize,
}

/// How a storage command goes on behind its head.
enum Begun {
    /// The value is here, and this became of it.
    Here { versioned: Versioned, value_len: usize },
    /// The value will be here soon.
    Wait,
    /// The value goes to the store as it comes.
    Pieces(Box<Incoming>),
    /// The store will not take it.
    Refused { outcome: Outcome, value_len: usize },
}

impl Put<'_> {
    /// `behind` is what has come of the input behind the head.
    fn begin(&self, behind: &[u8], turn: &mut Turn<'_>) -> Begun {
        let Self { store, value_len } = *self;
        let executor = &mut turn.executor;
        let value = behind.get(..value_len);
        let (key_len, flags) = (store.key.bytes().len(), ClientFlags(store.terms.flags));
        let fits = executor.store.store().fits(key_len, flags, value_len);
        if let Some(value) = value.filter(|_| fits) {
            let versioned = executor.store(&store, value);
            return Begun::Here { versioned, value_len };
        }
        if value.is_none() && fits && value_len <= VALUE_WAIT_LEN_MAX {
            return Begun::Wait;
        }
        match Incoming::begin(&store, value_len, executor) {
            Ok(incoming) => Begun::Pieces(Box::new(incoming)),
            Err(outcome) => Begun::Refused { outcome, value_len },
        }
    }
}

/// Answers a request that carries no value. `alone`: nothing else stands in the input.
fn answer(tag: Tag, ask: Ask<'_>, alone: bool, output: &mut Output, turn: &mut Turn<'_>) {
    let versioned = match ask {
        Ask::Fetch(terms) => return fetch_one(tag, terms, alone, output, turn),
        Ask::Delete { key, cas } => turn.executor.delete(key, cas).into(),
        Ask::Count(counting) => turn.executor.count(&counting).versioned(),
        Ask::Flush { .. } | Ask::StatsReset if turn.services.is_confined() => {
            Outcome::Confined.into()
        }
        Ask::Flush { at } => match turn.executor.execute(Request::FlushAll { at }) {
            Answer::Line(outcome) => outcome.into(),
            _ => Outcome::Ok.into(),
        },
        Ask::Version => Outcome::Version.into(),
        Ask::StatsReset => {
            turn.services.stats_reset();
            Outcome::Reset.into()
        }
        Ask::Stats(topic) => {
            let out = output.tail(turn.pool);
            let take =
                &mut |name: &str, value: &str| encode::stat(out, tag, name, value.as_bytes());
            turn.services.stats(topic, take);
            Outcome::Ok.into()
        }
        Ask::Detail(_) if turn.services.is_confined() => Outcome::Confined.into(),
        Ask::Detail(on) => {
            let (executor, admin) = (&mut turn.executor, Admin::Detail(on));
            match turn.services.administer(admin, executor.store, executor.now) {
                AdminOutcome::Ok => Outcome::Ok.into(),
                _ => Outcome::Confined.into(),
            }
        }
        Ask::Prefixes => prefixes(tag, output, turn).into(),
        Ask::Noop | Ask::Quit | Ask::Store { .. } => Outcome::Ok.into(),
    };
    encode::outcome(output.tail(turn.pool), tag, versioned.outcome, versioned.cas);
}

/// Longest list of prefixes that one frame may hold.
const PREFIXES_LEN_MAX: usize = 1 << 20;

/// All that was counted by prefix, in one frame.
fn prefixes(tag: Tag, output: &mut Output, turn: &mut Turn<'_>) -> Outcome {
    let mut text = Vec::new();
    let Ok(mut dump) = turn.services.begin_dump(DumpKind::Prefixes, &mut text) else {
        return Outcome::Confined;
    };
    let (store, now) = (&*turn.executor.store, turn.executor.now);
    while turn.services.dump(&mut dump, store, now, &mut text) {
        if text.len() > PREFIXES_LEN_MAX {
            return Outcome::TooLarge;
        }
    }
    encode::stat(output.tail(turn.pool), tag, "detailed", &text);
    Outcome::Ok
}

/// Counts on, and answers when all is counted, which is false.
fn count_sizes(tag: Tag, dump: &mut Dump, output: &mut Output, turn: &mut Turn<'_>) -> bool {
    let (store, now) = (&*turn.executor.store, turn.executor.now);
    // The frames are made of the numbers, not of the lines that the text protocol has.
    if turn.services.dump(dump, store, now, &mut Vec::new()) {
        return true;
    }
    let out = output.tail(turn.pool);
    for (size, count) in dump.sizes() {
        encode::stat(out, tag, &size.to_string(), count.to_string().as_bytes());
    }
    encode::outcome(out, tag, Outcome::Ok, 0);
    false
}

/// memcached counts `gat`, `touch` and their kin as touches alone.
fn fetch_one(tag: Tag, terms: Fetch<'_>, alone: bool, output: &mut Output, turn: &mut Turn<'_>) {
    let Some(key) = Key::new(terms.key.bytes()) else { return };
    let asked = request::Fetch { with_cas: true, touch: terms.touch };
    let mut items = [None];
    fetch(turn.executor.store, asked, &[key], turn.executor.now, &mut items);
    let [item] = items;
    match terms.touch {
        None => count_fetch(turn.executor.counters, asked, item.is_some()),
        Some(_) => count_touch(turn.executor.counters, item.is_some()),
    }
    note(turn.executor.observer, terms.key.bytes(), item.as_ref());
    let wire = turn.wire.map(|wire| (wire, alone));
    append(output, tag, terms, item.as_ref(), wire, turn.pool);
}

fn note(observer: Option<&dyn Observer>, key: &[u8], item: Option<&Item<'_>>) {
    if let Some(observer) = observer {
        observer.note(&Event::Fetched { key, found: item.map(Seen::of) });
    }
}

/// Appends an answer. Beside the wire: whether nothing else stands in the input.
fn append(
    output: &mut Output,
    tag: Tag,
    terms: Fetch<'_>,
    item: Option<&Item<'_>>,
    wire: Option<(&dyn Wire, bool)>,
    pool: &mut Pool,
) {
    let key = terms.with_key.then_some(terms.key.bytes());
    let out = output.tail(pool);
    let Some(item) = item else { return encode::missed(out, tag, key) };
    let value_len = if terms.with_value { item.value_len() } else { 0 };
    let wire = wire.and_then(|(wire, last)| wire_for(Some(wire), value_len, last));
    let copied_len = if wire.is_some() { 0 } else { value_len };
    out.reserve(copied_len.saturating_add(encode::FOUND_LEN_MAX));
    encode::found(out, tag, key, item.flags().0, value_len, item.cas().0);
    if terms.with_value {
        output.append_value(item, &[], wire, pool);
    }
}

/// Pipelined `get`, `getq`, `getk` and `getkq`.
struct Batch<'a> {
    keys: [Key<'a>; BATCH_KEYS_MAX],
    entries: [Option<Entry<'a>>; BATCH_KEYS_MAX],
    len: usize,
    /// Fetches that are answered whether they hit or not.
    loud: u32,
    /// Bytes of the input.
    input_len: usize,
}

/// What is known of a key in the batch beside its bytes.
#[derive(Clone, Copy)]
struct Entry<'a> {
    tag: Tag,
    terms: Fetch<'a>,
    /// The input behind its frame.
    end: usize,
}

const NO_KEY: Key<'static> = match Key::new(b"-") {
    Some(key) => key,
    None => unreachable!(),
};

impl<'a> Batch<'a> {
    /// Collects fetches up to the first other frame, and answers none. Quiet ones are to this
    /// protocol what the keys of a list are to the text protocol, and count as little.
    fn gather(input: &'a [u8], requests_max: u32) -> Self {
        let (keys, entries) = ([NO_KEY; BATCH_KEYS_MAX], [None; BATCH_KEYS_MAX]);
        let mut batch = Self { keys, entries, len: 0, loud: 0, input_len: input.len() };
        let mut at = 0;
        let places = batch.keys.iter_mut().zip(&mut batch.entries);
        for (key_place, entry_place) in places {
            let next = frame(input.get(at..).unwrap_or_default());
            let Frame::Request { tag, ask: Ask::Fetch(terms), head_len } = next else { break };
            let Some(key) = Key::new(terms.key.bytes()) else { break };
            if terms.touch.is_some() || batch.loud >= requests_max {
                break;
            }
            at = at.saturating_add(head_len);
            *key_place = key;
            *entry_place = Some(Entry { tag, terms, end: at });
            batch.len = batch.len.saturating_add(1);
            batch.loud = batch.loud.saturating_add(u32::from(!tag.quiet));
        }
        batch
    }

    /// Looks all keys up, then encodes them in order. How many bytes of the input are answered,
    /// which is not all of the batch when the output is full before.
    fn answer(&self, output: &mut Output, turn: &mut Turn<'_>) -> usize {
        turn.requests_left = turn.requests_left.saturating_sub(self.loud.max(1));
        // Clearing places for items costs as much as a lookup: few keys take few places.
        let done = if self.len <= 2 {
            self.answer_in::<2>(output, turn)
        } else {
            self.answer_in::<BATCH_KEYS_MAX>(output, turn)
        };
        done.unwrap_or_default()
    }

    fn answer_in<const PLACES: usize>(
        &self,
        output: &mut Output,
        turn: &mut Turn<'_>,
    ) -> Option<usize> {
        let mut items: [Option<Item<'_>>; PLACES] = [const { None }; PLACES];
        let keys = self.keys.get(..self.len)?;
        let items = items.get_mut(..self.len)?;
        let plain = request::Fetch { with_cas: true, touch: None };
        fetch(turn.executor.store, plain, keys, turn.executor.now, items);
        let mut done = None;
        let (mut asked, mut found) = (0_u64, 0_u64);
        for (entry, item) in self.entries.iter().flatten().zip(items.iter()) {
            if done.is_some() && output.is_full() {
                break;
            }
            asked = asked.saturating_add(1);
            found = found.saturating_add(u64::from(item.is_some()));
            note(turn.executor.observer, entry.terms.key.bytes(), item.as_ref());
            let wire = turn.wire.map(|wire| (wire, entry.end == self.input_len));
            append(output, entry.tag, entry.terms, item.as_ref(), wire, turn.pool);
            done = Some(entry.end);
        }
        count_fetches(turn.executor.counters, plain, asked, found);
        done
    }
}
