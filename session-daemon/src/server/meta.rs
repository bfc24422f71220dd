//! Meta commands: the keys of pipelined `mg` are brought near together, each command is done and
//! answered in order. It owns how a command becomes its reply; it never waits for a value.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::clock::Now;
use crate::command::counters::Counter;
use crate::command::execute::{Executor, count_fetches};
use crate::command::expiry;
use crate::command::number::Number;
use crate::command::observe::{Event, Seen};
use crate::command::request::{Exptime, Fetch};
use crate::protocol::meta::base64::{Buffer, DECODED_LEN_MAX};
use crate::protocol::meta::encode::{self, Count, Echo, Hit, Told, Ttl};
use crate::protocol::meta::flags::MetaError;
use crate::protocol::meta::parse::{self, Asked, Verb};
use crate::protocol::text::words::Words;
use crate::protocol::text::{CRLF, LINE_LEN_MAX};
use crate::server::buffers::{Output, Pool, Wire, wire_for};
use crate::server::connection::Turn;
use crate::store::types::{Key, Lifetime};
use crate::store::{Item, Leased};
use memchr::memchr;

/// Lookups whose keys are brought near together.
const BATCH_LINES_MAX: usize = 16;

/// Room for a key that comes in base64.
pub const KEY_BUFFER: Buffer = [0; DECODED_LEN_MAX];

/// Answers the `mg` lines that stand whole at the start of `input`; how many bytes of it are done.
pub fn lookups(input: &[u8], output: &mut Output, turn: &mut Turn<'_>) -> usize {
    let Some((words, line_len)) = lookup_line(input) else { return 0 };
    // One lookup waits for its memory all the same.
    if line_len == input.len() {
        turn.requests_left = turn.requests_left.saturating_sub(1);
        look_up(words, true, output, turn);
        return line_len;
    }
    let batch = Batch::gather(input, turn.requests_left);
    if batch.plain_len > 1 && !turn.executor.reads_only {
        let done = batch.answer_plain(output, turn);
        if done > 0 {
            return done;
        }
    }
    turn.executor.store.prefetch(batch.keys.get(..batch.keys_len).unwrap_or_default());
    let mut done: usize = 0;
    for _ in 0..batch.lines {
        if done > 0 && output.is_full() {
            break;
        }
        let Some((words, line_len)) = lookup_line(input.get(done..).unwrap_or_default()) else {
            break;
        };
        turn.requests_left = turn.requests_left.saturating_sub(1);
        done = done.saturating_add(line_len);
        look_up(words, done == input.len(), output, turn);
    }
    done
}

/// What stands behind `mg` in a line that is all there, and the line's length.
fn lookup_line(input: &[u8]) -> Option<(Words<'_>, usize)> {
    let window = input.get(..LINE_LEN_MAX).unwrap_or(input).strip_prefix(b"mg ")?;
    let end = memchr(b'\n', window)?;
    let line = window.get(..end)?;
    let words = Words(line.strip_suffix(b"\r").unwrap_or(line));
    Some((words, end.saturating_add(b"mg \n".len())))
}

/// Lookups that stand in the input.
struct Batch<'a> {
    keys: [Key<'a>; BATCH_LINES_MAX],
    keys_len: usize,
    /// The first lines, as far as they ask for items as they are, and where each ends.
    plain: [Option<(Asked<'a>, usize)>; BATCH_LINES_MAX],
    plain_len: usize,
    lines: usize,
    input_len: usize,
}

const NO_KEY: Key<'static> = match Key::new(b"-") {
    Some(key) => key,
    None => unreachable!(),
};

impl<'a> Batch<'a> {
    /// A key that is spelled in base64 is brought near by its spelling, which does no harm.
    fn gather(input: &'a [u8], requests_max: u32) -> Self {
        let (keys, plain) = ([NO_KEY; BATCH_LINES_MAX], [const { None }; BATCH_LINES_MAX]);
        let (keys_len, plain_len, lines, input_len) = (0, 0, 0, input.len());
        let mut batch = Self { keys, keys_len, plain, plain_len, lines, input_len };
        let lines_max = usize::try_from(requests_max).unwrap_or(usize::MAX).min(BATCH_LINES_MAX);
        let mut end: usize = 0;
        while batch.lines < lines_max {
            let rest = input.get(end..).unwrap_or_default();
            let Some((words, line_len)) = lookup_line(rest) else { break };
            end = end.saturating_add(line_len);
            batch.take(words, end);
            batch.lines = batch.lines.saturating_add(1);
        }
        batch
    }

    fn take(&mut self, mut words: Words<'a>, end: usize) {
        let asked = parse::plain(words).filter(|_| self.plain_len == self.lines);
        if let Some(asked) = asked
            && let Some(place) = self.plain.get_mut(self.plain_len)
        {
            *place = Some((asked, end));
            self.plain_len = self.plain_len.saturating_add(1);
        }
        if let Some(key) = words.next().and_then(Key::new)
            && let Some(place) = self.keys.get_mut(self.keys_len)
        {
            *place = key;
            self.keys_len = self.keys_len.saturating_add(1);
        }
    }

    /// Looks the keys of the first lines up together and answers these in order; how many bytes of
    /// the input are done. It stops at an item that somebody has to renew: the next who asks for it.
    fn answer_plain(&self, output: &mut Output, turn: &mut Turn<'_>) -> usize {
        let mut items = [const { None }; BATCH_LINES_MAX];
        let keys = self.keys.get(..self.plain_len).unwrap_or_default();
        let places = items.get_mut(..keys.len()).unwrap_or_default();
        let looked_up = turn.executor.store.get_fresh_batch(keys, turn.executor.now, places);
        let (mut done, mut asked_count, mut found) = (0, 0_u64, 0_u64);
        for (item, (asked, end)) in items.iter().zip(self.plain.iter().flatten()).take(looked_up) {
            if done > 0 && output.is_full() {
                break;
            }
            if let Some(observer) = turn.executor.observer {
                let found = item.as_ref().map(Seen::of);
                observer.note(&Event::Fetched { key: asked.key.bytes(), found });
            }
            if let Some(item) = item {
                let shown = Shown::of(item, second(turn.executor.now));
                show(output, asked, shown, *end == self.input_len, turn.wire, turn.pool);
            } else {
                encode::miss(output.tail(turn.pool), &Echo::of(asked));
            }
            (done, asked_count) = (*end, asked_count.saturating_add(1));
            found = found.saturating_add(u64::from(item.is_some()));
        }
        let terms = Fetch { with_cas: false, touch: None };
        count_fetches(turn.executor.counters, terms, asked_count, found);
        turn.requests_left = turn.requests_left.saturating_sub(asked_count as u32);
        done
    }
}

/// Does a command that carries no value, and answers it.
pub fn answer(verb: Verb, words: Words<'_>, output: &mut Output, turn: &mut Turn<'_>) {
    if verb == Verb::Get {
        return look_up(words, false, output, turn);
    }
    let mut buffer = KEY_BUFFER;
    let out = output.tail(turn.pool);
    let executor = &mut turn.executor;
    let answered = match verb {
        Verb::Delete => {
            parse::asked(words, &mut buffer).and_then(|asked| delete(out, &asked, executor))
        }
        Verb::Arithmetic => parse::asked(words, &mut buffer)
            .and_then(|asked| count(out, &asked, executor))
            .map_err(parse::arithmetic_error),
        Verb::Debug => tell(out, words, executor),
        Verb::Noop => {
            out.extend_from_slice(encode::NOOP);
            Ok(())
        }
        // A get is answered above; the value of a set is not at hand here.
        Verb::Get | Verb::Set => Err(MetaError::BadFormat),
    };
    if let Err(error) = answered {
        encode::error(out, error);
    }
}

/// `mg`. `last`: nothing else stands in the input.
fn look_up(words: Words<'_>, last: bool, output: &mut Output, turn: &mut Turn<'_>) {
    let mut buffer = KEY_BUFFER;
    let got = parse::asked(words, &mut buffer).and_then(|asked| get(output, &asked, last, turn));
    if let Err(error) = got {
        encode::error(output.tail(turn.pool), error);
    }
}

fn get(
    output: &mut Output,
    asked: &Asked<'_>,
    last: bool,
    turn: &mut Turn<'_>,
) -> Result<(), MetaError> {
    let lease = parse::lease(asked)?;
    let (wire, executor) = (turn.wire, &mut turn.executor);
    let now_s = second(executor.now);
    let left = |exptime: Exptime| left_s(expiry::lifetime(exptime, executor.now), now_s);
    let (touched, vivified) = (lease.touch.map(left), lease.vivify.map(left));
    let Some(Leased { item, created, won }) = executor.lease(asked.key, &lease) else {
        encode::miss(output.tail(turn.pool), &Echo::of(asked));
        return Ok(());
    };
    let vivified = vivified.filter(|_| created);
    let shown = Shown { created, won, touched, vivified, ..Shown::of(&item, now_s) };
    show(output, asked, shown, last, wire, turn.pool);
    Ok(())
}

/// An item as an answer shows it.
#[derive(Clone, Copy)]
struct Shown<'i, 'w> {
    item: &'i Item<'w>,
    now_s: u32,
    created: bool,
    won: bool,
    touched: Option<Ttl>,
    vivified: Option<Ttl>,
}

impl<'i, 'w> Shown<'i, 'w> {
    /// An item that was found, and left as it was.
    fn of(item: &'i Item<'w>, now_s: u32) -> Self {
        Self { item, now_s, created: false, won: false, touched: None, vivified: None }
    }
}

fn show(
    output: &mut Output,
    asked: &Asked<'_>,
    shown: Shown<'_, '_>,
    last: bool,
    wire: Option<&dyn Wire>,
    pool: &mut Pool,
) {
    let Shown { item, now_s, created, won, touched, vivified } = shown;
    let (value_len, cas) = (item.value_len(), item.cas().0);
    let with_value = asked.flags.has(b'v') && asked.flags.compare != Some(cas);
    let hit = Hit {
        with_value,
        value_len,
        flags: item.flags().0,
        cas,
        fetched: item.fetched(),
        idle_s: now_s.saturating_sub(item.last_access_s()),
        ttl: if created { None } else { left_s(item.lifetime(), now_s) },
        ttl_vivified: vivified,
        ttl_touched: touched,
        won,
        stale: item.is_stale(),
        sent: item.is_won() && !created,
        key_is_binary: item.key_is_binary(),
    };
    let wire = wire_for(wire, value_len, last);
    let out = output.tail(pool);
    let copied_len = if with_value && wire.is_none() { value_len } else { 0 };
    out.reserve(copied_len.saturating_add(REPLY_LEN_MAX));
    encode::hit(out, &Echo::of(asked), &hit);
    if with_value {
        output.append_value(item, CRLF, wire, pool);
    }
}

/// A line of all flags with the longest key, opaque token and numbers, and two line ends.
const REPLY_LEN_MAX: usize = 512;

fn delete(
    out: &mut Vec<u8>,
    asked: &Asked<'_>,
    executor: &mut Executor<'_>,
) -> Result<(), MetaError> {
    let outcome = executor.remove(&parse::removal(asked)?);
    encode::outcome(out, &Echo::of(asked), outcome);
    Ok(())
}

fn count(
    out: &mut Vec<u8>,
    asked: &Asked<'_>,
    executor: &mut Executor<'_>,
) -> Result<(), MetaError> {
    let counting = parse::counting(asked)?;
    let number = executor.count(&counting);
    let now_s = second(executor.now);
    let left = |exptime: Exptime| left_s(expiry::lifetime(exptime, executor.now), now_s);
    let (value, cas, ttl, created) = match number {
        Number::Refused(outcome) => {
            encode::outcome(out, &Echo::of(asked), outcome);
            return Ok(());
        }
        Number::Counted { value, cas, lifetime } => (value, cas, left_s(lifetime, now_s), false),
        Number::Made { value, cas } => (value, cas, None, true),
    };
    let count = Count {
        value,
        with_value: asked.flags.has(b'v'),
        cas,
        ttl,
        made: created,
        ttl_vivified: asked.flags.vivify.filter(|_| created).map(left),
        ttl_touched: asked.flags.exptime.map(left),
    };
    encode::count(out, &Echo::of(asked), &count);
    Ok(())
}

/// memcached counts `me` alone among its meta commands.
fn tell(out: &mut Vec<u8>, words: Words<'_>, executor: &Executor<'_>) -> Result<(), MetaError> {
    let mut buffer = KEY_BUFFER;
    let key = parse::told(words, &mut buffer)?;
    executor.counters.add_one(Counter::CmdMeta);
    let now_s = second(executor.now);
    let Some(item) = executor.peek(key) else {
        out.extend_from_slice(encode::UNTOLD);
        return Ok(());
    };
    let told = Told {
        ttl: left_s(item.lifetime(), now_s),
        idle_s: now_s.saturating_sub(item.last_access_s()),
        cas: item.cas().0,
        fetched: item.fetched(),
        class: item.class(),
        item_len: item.item_len(),
        key_is_binary: item.key_is_binary(),
    };
    encode::told(out, key, &told);
    Ok(())
}

/// Boot-time seconds of the turn, by which lifetimes end.
fn second(now: Now) -> u32 {
    u32::try_from(now.boottime_ns / NS).unwrap_or(u32::MAX)
}

const NS: u64 = 1_000_000_000;

fn left_s(lifetime: Lifetime, now_s: u32) -> Ttl {
    match lifetime {
        Lifetime::Never => None,
        Lifetime::Past => Some(0),
        Lifetime::Until(second) => Some(second.saturating_sub(now_s)),
    }
}
