//! A frame to what it asks. It owns which lengths each opcode may have, and answers a header that
//! lies as soon as the header is there; it never waits for a value, stores or answers.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::encode::Tag;
use super::header::Header;
use super::opcode::{Command, decode};
use super::status::Status;
use super::{BODY_LEN_MAX, DO_NOT_CREATE, HEADER_LEN, REQUEST_MAGIC};
use crate::command::request::{
    Counting, Direction, Exptime, KEY_LEN_MAX, Key, StatsTopic, Store, StoreMode, StoreTerms,
};

/// What stands at the start of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A request. Its head, `head_len` bytes, is all there; `value_len` bytes follow for
    /// [`Ask::Store`] and none for the others.
    Request {
        /// What its reply repeats.
        tag: Tag,
        /// What is asked.
        ask: Ask<'a>,
        /// Bytes of header, extras and key.
        head_len: usize,
    },
    /// Nothing that can be done.
    Rejected {
        /// What the reply repeats.
        tag: Tag,
        /// The reply.
        status: Status,
        /// What has to happen to the bytes behind the header.
        after: After,
    },
    /// The head is not all there.
    Partial,
    /// No request: the connection has to end without an answer.
    Foreign,
}

/// What has to happen to the bytes behind the header of a rejected frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// They are a body of this many bytes, none of which may be read as a frame.
    Swallow(u32),
    /// It cannot be told what they are: the connection has to end.
    Close,
}

/// What a frame asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask<'a> {
    /// An item, by [`Fetch`]'s terms.
    Fetch(Fetch<'a>),
    /// A storage command; its value follows.
    Store {
        /// All but the value.
        store: Store<'a>,
        /// Bytes of the value, at most [`BODY_LEN_MAX`].
        value_len: u32,
    },
    /// Removes an item.
    Delete {
        /// Which.
        key: Key<'a>,
        /// The version that it must have.
        cas: Option<u64>,
    },
    /// Adds to or takes from a number.
    Count(Counting<'a>),
    /// Ends every item that is older than the given time.
    Flush {
        /// When; `Exptime(0)` is now.
        at: Exptime,
    },
    /// Asks for an answer.
    Noop,
    /// Asks for the version.
    Version,
    /// Asks for counters.
    Stats(StatsTopic),
    /// Zeroes the counters.
    StatsReset,
    /// Switches the counting by prefix.
    Detail(bool),
    /// Asks what was counted by prefix.
    Prefixes,
    /// The client takes its leave.
    Quit,
}

/// The terms of `get`, `gat`, `touch` and their kin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch<'a> {
    /// Which item.
    pub key: Key<'a>,
    /// The reply carries the key.
    pub with_key: bool,
    /// The reply carries the value.
    pub with_value: bool,
    /// A new expiry time.
    pub touch: Option<Exptime>,
}

/// Looks at the frame at the start of `input`. More input never changes what is returned, unless
/// it is [`Frame::Partial`].
#[must_use]
pub fn frame(input: &[u8]) -> Frame<'_> {
    match input.first() {
        None => return Frame::Partial,
        Some(&REQUEST_MAGIC) => {}
        Some(_) => return Frame::Foreign,
    }
    let Some(header) = Header::read(input) else { return Frame::Partial };
    let (command, quiet) = decode(header.opcode);
    let tag = Tag { opcode: header.opcode, opaque: header.opaque, quiet };
    match rejection(&header, command) {
        None => {}
        Some((status, after)) => return Frame::Rejected { tag, status, after },
    }
    let Some(head) = Head::read(input, &header) else { return Frame::Partial };
    match ask(command, &header, head) {
        Some(ask) => Frame::Request { tag, ask, head_len: head.len },
        None => {
            // What `rejection` let pass differs from a request in the topic of `stat` alone.
            let (status, after) = (Status::NotFound, After::Swallow(header.body_len));
            Frame::Rejected { tag, status, after }
        }
    }
}

/// What is wrong with a header, if anything is; the order of the questions is memcached's.
fn rejection(header: &Header, command: Command) -> Option<(Status, After)> {
    let Some(value_len) = header.value_len() else {
        return Some((Status::UnknownCommand, After::Close));
    };
    if usize::from(header.key_len) > KEY_LEN_MAX || header.body_len > BODY_LEN_MAX {
        return Some((Status::InvalidArguments, After::Close));
    }
    let (key, value, extras_len) = (header.key_len > 0, value_len > 0, header.extras_len);
    let fits = match command {
        Command::Fetch { .. } | Command::Delete => key && !value && extras_len == 0,
        Command::Touch { .. } => key && !value && extras_len == 4,
        Command::Set | Command::Add | Command::Replace => key && extras_len == 8,
        Command::Append | Command::Prepend => key && extras_len == 0,
        Command::Increment | Command::Decrement => key && !value && extras_len == 20,
        Command::Flush => !key && !value && (extras_len == 0 || extras_len == 4),
        Command::Noop | Command::Version | Command::Quit | Command::SaslListMechs => {
            header.body_len == 0
        }
        Command::Stat => !value && extras_len == 0,
        Command::Sasl => key && extras_len == 0,
        Command::Unknown => true,
    };
    match command {
        _ if !fits => Some((Status::InvalidArguments, After::Close)),
        Command::SaslListMechs | Command::Sasl | Command::Unknown => {
            Some((Status::UnknownCommand, After::Swallow(header.body_len)))
        }
        _ => None,
    }
}

/// What stands between a header and its value.
#[derive(Clone, Copy)]
struct Head<'a> {
    extras: &'a [u8],
    key: &'a [u8],
    /// Bytes of header, extras and key.
    len: usize,
}

impl<'a> Head<'a> {
    fn read(input: &'a [u8], header: &Header) -> Option<Self> {
        let behind = input.get(HEADER_LEN..)?;
        let (extras, behind) = behind.split_at_checked(usize::from(header.extras_len))?;
        let key = behind.get(..usize::from(header.key_len))?;
        let len = HEADER_LEN.saturating_add(extras.len()).saturating_add(key.len());
        Some(Self { extras, key, len })
    }
}

/// What a head that passed [`rejection`] asks.
fn ask<'a>(command: Command, header: &Header, head: Head<'a>) -> Option<Ask<'a>> {
    let cas = Some(header.cas).filter(|cas| *cas != 0);
    Some(match command {
        Command::Fetch { with_key } => {
            let key = Key::new(head.key)?;
            Ask::Fetch(Fetch { key, with_key, with_value: true, touch: None })
        }
        Command::Touch { with_key, with_value } => {
            let touch = Some(exptime(head.extras)?);
            Ask::Fetch(Fetch { key: Key::new(head.key)?, with_key, with_value, touch })
        }
        Command::Set => store(StoreMode::Set, cas, header, head)?,
        Command::Add => store(StoreMode::Add, cas, header, head)?,
        Command::Replace => store(StoreMode::Replace, cas, header, head)?,
        Command::Append => store(StoreMode::Append, cas, header, head)?,
        Command::Prepend => store(StoreMode::Prepend, cas, header, head)?,
        Command::Delete => Ask::Delete { key: Key::new(head.key)?, cas },
        Command::Increment => count(Direction::Increment, cas, head)?,
        Command::Decrement => count(Direction::Decrement, cas, head)?,
        Command::Flush => Ask::Flush { at: exptime(head.extras).unwrap_or(Exptime(0)) },
        Command::Noop => Ask::Noop,
        Command::Version => Ask::Version,
        Command::Quit => Ask::Quit,
        Command::Stat => stat(head.key)?,
        Command::SaslListMechs | Command::Sasl | Command::Unknown => return None,
    })
}

/// Any version makes of `set`, `add` and `replace` what the text protocol calls `cas`.
fn store<'a>(
    mode: StoreMode,
    cas: Option<u64>,
    header: &Header,
    head: Head<'a>,
) -> Option<Ask<'a>> {
    let joins = matches!(mode, StoreMode::Append | StoreMode::Prepend);
    let (flags, exptime) = match head.extras {
        [] => (0, Exptime(0)),
        extras => {
            let (flags, rest) = extras.split_first_chunk()?;
            (u32::from_be_bytes(*flags), exptime(rest)?)
        }
    };
    let mode = cas.filter(|_| !joins).map_or(mode, StoreMode::Cas);
    let joined_to = cas.filter(|_| joins);
    let terms = StoreTerms { joined_to, ..StoreTerms::new(flags, exptime, mode) };
    let store = Store { key: Key::new(head.key)?, terms };
    Some(Ask::Store { store, value_len: header.value_len()? })
}

fn count<'a>(direction: Direction, cas: Option<u64>, head: Head<'a>) -> Option<Ask<'a>> {
    let (delta, rest) = head.extras.split_first_chunk()?;
    let (initial, rest) = rest.split_first_chunk()?;
    let expiry = exptime(rest)?;
    let create =
        (expiry.0 != i64::from(DO_NOT_CREATE)).then_some((u64::from_be_bytes(*initial), expiry));
    let (key, delta) = (Key::new(head.key)?, u64::from_be_bytes(*delta));
    Some(Ask::Count(Counting { cas, create, ..Counting::new(key, direction, delta) }))
}

/// memcached compares the first two by their own length, the others by the key's.
fn stat(topic: &[u8]) -> Option<Ask<'_>> {
    Some(match topic {
        b"" => Ask::Stats(StatsTopic::General),
        topic if topic.starts_with(b"reset") => Ask::StatsReset,
        topic if topic.starts_with(b"settings") => Ask::Stats(StatsTopic::Settings),
        topic if topic.starts_with(b"detail on") => Ask::Detail(true),
        topic if topic.starts_with(b"detail off") => Ask::Detail(false),
        topic if topic.starts_with(b"detail dump") => Ask::Prefixes,
        b"items" => Ask::Stats(StatsTopic::Items),
        b"slabs" => Ask::Stats(StatsTopic::Slabs),
        b"sizes" => Ask::Stats(StatsTopic::Sizes),
        b"guard" => Ask::Stats(StatsTopic::Guard),
        b"store" => Ask::Stats(StatsTopic::Store),
        _ => return None,
    })
}

/// Unsigned on this wire: 0xffffffff is a date in 2106, not the past.
fn exptime(extras: &[u8]) -> Option<Exptime> {
    let bytes: [u8; 4] = extras.try_into().ok()?;
    Some(Exptime(i64::from(u32::from_be_bytes(bytes))))
}
