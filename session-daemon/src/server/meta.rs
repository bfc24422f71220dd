//! Meta commands: the keys of pipelined `mg` are brought near together, each command is done and
//! answered in order. It owns how a command becomes its reply; it never waits for a value.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::counters::Counter;
use crate::command::execute::Executor;
use crate::command::expiry;
use crate::command::number::Number;
use crate::command::request::Exptime;
use crate::protocol::meta::base64::{Buffer, DECODED_LEN_MAX};
use crate::protocol::meta::encode::{self, Count, Echo, Hit, Told, Ttl};
use crate::protocol::meta::flags::MetaError;
use crate::protocol::meta::parse::{self, Asked, Verb};
use crate::protocol::text::words::Words;
use crate::protocol::text::{CRLF, LINE_LEN_MAX};
use crate::server::buffers::{Output, wire_for};
use crate::server::connection::Turn;
use crate::store::Leased;
use crate::store::types::{Key, Lifetime};
use memchr::memchr;

/// Lookups whose keys are brought near together.
const BATCH_LINES_MAX: usize = 16;

/// Room for a key that comes in base64.
pub const KEY_BUFFER: Buffer = [0; DECODED_LEN_MAX];

/// Answers the `mg` lines that stand whole at the start of `input`; how many bytes of it are done.
pub fn lookups(input: &[u8], output: &mut Output, turn: &mut Turn<'_>) -> usize {
    let batch = Batch::gather(input, turn.requests_left);
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
    lines: usize,
}

const NO_KEY: Key<'static> = match Key::new(b"-") {
    Some(key) => key,
    None => unreachable!(),
};

impl<'a> Batch<'a> {
    /// A key that is spelled in base64 is brought near by its spelling, which does no harm.
    fn gather(input: &'a [u8], requests_max: u32) -> Self {
        let mut batch = Self { keys: [NO_KEY; BATCH_LINES_MAX], keys_len: 0, lines: 0 };
        let lines_max = usize::try_from(requests_max).unwrap_or(usize::MAX).min(BATCH_LINES_MAX);
        let mut rest = input;
        while batch.lines < lines_max {
            let Some((mut words, line_len)) = lookup_line(rest) else { break };
            if let Some(key) = words.next().and_then(Key::new)
                && let Some(place) = batch.keys.get_mut(batch.keys_len)
            {
                *place = key;
                batch.keys_len = batch.keys_len.saturating_add(1);
            }
            batch.lines = batch.lines.saturating_add(1);
            rest = rest.get(line_len..).unwrap_or_default();
        }
        // One lookup waits for its memory all the same.
        if batch.lines <= 1 {
            batch.keys_len = 0;
        }
        batch
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
    let now_s = second(executor);
    let left = |exptime: Exptime| left_s(expiry::lifetime(exptime, executor.now), now_s);
    let (touched, vivified) = (lease.touch.map(left), lease.vivify.map(left));
    let echo = Echo::of(asked);
    let Some(Leased { item, created, won }) = executor.lease(asked.key, &lease) else {
        encode::miss(output.tail(turn.pool), &echo);
        return Ok(());
    };
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
        ttl_vivified: vivified.filter(|_| created),
        ttl_touched: touched,
        won,
        stale: item.is_stale(),
        sent: item.is_won() && !created,
        key_is_binary: item.key_is_binary(),
    };
    let wire = wire_for(wire, value_len, last);
    let out = output.tail(turn.pool);
    let copied_len = if with_value && wire.is_none() { value_len } else { 0 };
    out.reserve(copied_len.saturating_add(REPLY_LEN_MAX));
    encode::hit(out, &echo, &hit);
    if with_value {
        output.append_value(&item, CRLF, wire, turn.pool);
    }
    Ok(())
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
    let now_s = second(executor);
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
    let now_s = second(executor);
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
fn second(executor: &Executor<'_>) -> u32 {
    u32::try_from(executor.now.boottime_ns / NS).unwrap_or(u32::MAX)
}

const NS: u64 = 1_000_000_000;

fn left_s(lifetime: Lifetime, now_s: u32) -> Ttl {
    match lifetime {
        Lifetime::Never => None,
        Lifetime::Past => Some(0),
        Lifetime::Until(second) => Some(second.saturating_sub(now_s)),
    }
}
