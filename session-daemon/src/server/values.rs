//! Storage commands behind their lines: stored at once, waited for, or taken piece by piece. It owns
//! which of these a value's length asks for; it never consumes the input.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::request::{Store, Versioned};
use crate::protocol::meta::encode::{self as meta_encode, Echo};
use crate::protocol::meta::parse as meta_parse;
use crate::protocol::text::parse::After;
use crate::protocol::text::words::Words;
use crate::server::buffers::Output;
use crate::server::connection::Turn;
use crate::server::incoming::Incoming;
use crate::server::meta;
use crate::server::reply::{KeptReply, Reply};
use crate::store::types::ClientFlags;

/// Values up to this length are waited for in the input; larger ones go to the store piece by
/// piece as they come.
pub const VALUE_WAIT_LEN_MAX: usize = 4 << 10;

/// How a storage command goes on behind its line; it is answered unless its value has yet to come.
pub(super) enum Begun {
    /// The value is here, and was stored.
    Here { value_len: usize },
    /// The value will be here soon.
    Wait,
    /// The value goes to the store as it comes.
    Pieces(KeptReply, Box<Incoming>),
    /// The store will not take it.
    Refused { value_len: u64 },
    /// The value is here and does not end where it should.
    BadEnd,
}

/// A storage command whose line has been read, `behind` being what stands behind it.
pub(super) fn begin_value(
    store: &Store<'_>,
    value_len: u64,
    reply: Reply<'_>,
    behind: &[u8],
    output: &mut Output,
    turn: &mut Turn<'_>,
) -> Begun {
    let executor = &mut turn.executor;
    let whole_len = usize::try_from(value_len).unwrap_or(usize::MAX);
    // Asked first, as memcached does: the answer must not depend on how much has come.
    let (key_len, flags) = (store.key.bytes().len(), ClientFlags(store.terms.flags));
    let fits = executor.store.store().fits(key_len, flags, whole_len);
    if let Some((value, end)) = behind.split_at_checked(whole_len).filter(|_| fits) {
        match end {
            [b'\r', b'\n', ..] => {
                let versioned = executor.store(store, value);
                write(reply, versioned, output, turn);
                return Begun::Here { value_len: whole_len };
            }
            [] | [b'\r'] => {}
            _ => return Begun::BadEnd,
        }
    }
    if fits && whole_len <= VALUE_WAIT_LEN_MAX {
        return Begun::Wait;
    }
    match Incoming::begin(store, whole_len, executor) {
        Ok(incoming) => Begun::Pieces(reply.kept(), Box::new(incoming)),
        Err(outcome) => {
            write(reply, outcome.into(), output, turn);
            Begun::Refused { value_len }
        }
    }
}

/// `ms`, whose words follow the verb. What becomes of the value when it is refused.
pub(super) fn begin_meta_value(
    words: Words<'_>,
    behind: &[u8],
    output: &mut Output,
    turn: &mut Turn<'_>,
) -> Result<Begun, After> {
    let mut buffer = meta::KEY_BUFFER;
    let read = meta_parse::set(words, &mut buffer);
    let stored = read.map(|(asked, store, value_len)| {
        let whole_len = usize::try_from(value_len).unwrap_or(usize::MAX);
        let reply = Reply::Meta { echo: Echo::of(&asked), value_len: whole_len };
        begin_value(&store, value_len, reply, behind, output, turn)
    });
    stored.map_err(|rejected| {
        count_request(turn);
        meta_encode::error(output.tail(turn.pool), rejected.error);
        rejected.after
    })
}

fn write(reply: Reply<'_>, versioned: Versioned, output: &mut Output, turn: &mut Turn<'_>) {
    count_request(turn);
    reply.write(output.tail(turn.pool), versioned);
}

/// Counts a request that was done in this turn.
pub(super) fn count_request(turn: &mut Turn<'_>) {
    turn.requests_left = turn.requests_left.saturating_sub(1);
}
