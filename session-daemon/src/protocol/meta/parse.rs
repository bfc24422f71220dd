//! A meta command to what it asks. It owns which flags each command heeds; it never waits, stores
//! or answers.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::flags::{Flags, MetaError, letters_fit, opaque_fits};
use super::{WORDS_MAX, base64};
use crate::command::request::{
    Counting, Direction, Exptime, KEY_LEN_MAX, Key, Lease, Removal, Store, StoreMode, StoreTerms,
};
use crate::protocol::text::SWALLOW_LEN_MAX;
use crate::protocol::text::number::unsigned;
use crate::protocol::text::parse::After;
use crate::protocol::text::words::Words;

/// The first word of a meta command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `mg`.
    Get,
    /// `ms`.
    Set,
    /// `md`.
    Delete,
    /// `ma`.
    Arithmetic,
    /// `me`.
    Debug,
    /// `mn`.
    Noop,
}

impl Verb {
    /// The verb that a word is.
    #[must_use]
    pub fn of(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"mg" => Self::Get,
            b"ms" => Self::Set,
            b"md" => Self::Delete,
            b"ma" => Self::Arithmetic,
            b"me" => Self::Debug,
            b"mn" => Self::Noop,
            _ => return None,
        })
    }
}

/// A command without what its verb makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// Which item.
    pub key: Key<'a>,
    /// The flags.
    pub flags: Flags,
    /// The flags as they stand in the line, in whose order the reply has them.
    pub words: Words<'a>,
}

/// A command that cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Why.
    pub error: MetaError,
    /// What follows.
    pub after: After,
}

/// Reads key and flags, for every verb but `ms`.
///
/// # Errors
/// What is wrong with them.
pub fn asked<'a>(
    mut words: Words<'a>,
    buffer: &'a mut base64::Buffer,
) -> Result<Asked<'a>, MetaError> {
    let key = words.next().ok_or(MetaError::BadFormat)?;
    read(key, words, 2, buffer)
}

/// Reads key and flags of an `mg` that asks for the item as it is: none of its flags changes or makes
/// an item, or says how the key is spelled. None for any other, whatever is wrong with it.
#[must_use]
pub fn plain(mut words: Words<'_>) -> Option<Asked<'_>> {
    let key = words.next().and_then(Key::new)?;
    if words.0 == b" v" {
        return Some(Asked { key, flags: Flags::VALUE, words });
    }
    if !is_plain(words) || words.count() > WORDS_MAX.saturating_sub(2) {
        return None;
    }
    let flags = Flags::read(words).ok().filter(|_| opaque_fits(words))?;
    Some(Asked { key, flags, words })
}

fn is_plain(mut words: Words<'_>) -> bool {
    words.all(|word| word.first().is_some_and(|letter| b"cfhklOqstv".contains(letter)))
}

/// `<key> [b]`: the key that `me` asks about.
///
/// # Errors
/// What is wrong with it.
pub fn told<'a>(
    mut words: Words<'a>,
    buffer: &'a mut base64::Buffer,
) -> Result<Key<'a>, MetaError> {
    let key = words.next().ok_or(MetaError::BadFormat)?;
    match (words.next(), words.next()) {
        (None, _) => Key::new(key).ok_or(MetaError::BadFormat),
        (Some(b"b"), None) if key.len() <= KEY_LEN_MAX => {
            base64::decode(key, buffer).and_then(Key::new).ok_or(MetaError::BadKey)
        }
        _ => Err(MetaError::BadFormat),
    }
}

/// `<key> <datalen> <flags>*`: the command, and the bytes of the value that follows.
///
/// # Errors
/// What is wrong with it, and what has to happen to the value.
pub fn set<'a>(
    mut words: Words<'a>,
    buffer: &'a mut base64::Buffer,
) -> Result<(Asked<'a>, Store<'a>, u64), Rejected> {
    let key = words.next();
    let value_len = words.next().and_then(unsigned).filter(|len| *len <= SWALLOW_LEN_MAX);
    let (Some(key), Some(value_len)) = (key, value_len) else {
        return Err(Rejected { error: MetaError::BadFormat, after: After::Close });
    };
    read(key, words, 3, buffer)
        .and_then(|asked| Ok((asked, store(&asked)?, value_len)))
        .map_err(|error| Rejected { error, after: After::Swallow(value_len) })
}

/// `words_before` are the words of the line before its flags.
fn read<'a>(
    key: &'a [u8],
    words: Words<'a>,
    words_before: usize,
    buffer: &'a mut base64::Buffer,
) -> Result<Asked<'a>, MetaError> {
    let plain = Key::new(key).ok_or(MetaError::BadFormat)?;
    // The commonest flags, without the general path.
    if words.0 == b" v" {
        return Ok(Asked { key: plain, flags: Flags::VALUE, words });
    }
    if !letters_fit(words) {
        return Err(MetaError::BadFormat);
    }
    if words.count().saturating_add(words_before) > WORDS_MAX {
        return Err(MetaError::TooManyFlags);
    }
    let flags = Flags::read(words)?;
    let key = match flags.has(b'b') {
        true => base64::decode(key, buffer).and_then(Key::new).ok_or(MetaError::BadKey)?,
        false => plain,
    };
    Ok(Asked { key, flags, words })
}

/// What `mg` asks beside the item.
///
/// # Errors
/// When the opaque token is too long.
pub fn lease(asked: &Asked<'_>) -> Result<Lease, MetaError> {
    opaque_checked(asked)?;
    let flags = &asked.flags;
    Ok(Lease {
        touch: flags.exptime,
        vivify: flags.vivify,
        recache: flags.recache,
        touch_first: flags.touch_first,
        version: flags.version,
        key_is_binary: flags.has(b'b'),
        unmarked: flags.has(b'u'),
    })
}

/// What `ms` asks beside the value. A version makes `set` and `replace` what the classic protocol
/// calls `cas`; append and prepend ask for it too, unless it is 0, and add does not.
fn store<'a>(asked: &Asked<'a>) -> Result<Store<'a>, MetaError> {
    let flags = &asked.flags;
    let mode = match flags.mode {
        None | Some(b'S') => StoreMode::Set,
        Some(b'E') => StoreMode::Add,
        Some(b'A') => StoreMode::Append,
        Some(b'P') => StoreMode::Prepend,
        Some(b'R') => StoreMode::Replace,
        Some(_) => return Err(MetaError::BadSetMode),
    };
    opaque_checked(asked)?;
    let joins = matches!(mode, StoreMode::Append | StoreMode::Prepend);
    let compares = matches!(mode, StoreMode::Set | StoreMode::Replace);
    let mode = flags.compare.filter(|_| compares).map_or(mode, StoreMode::Cas);
    let exptime = flags.exptime.unwrap_or(Exptime(0));
    let terms = StoreTerms {
        joined_to: flags.compare.filter(|cas| joins && *cas != 0),
        vivify: flags.vivify.filter(|_| joins),
        older_is_stale: flags.has(b'I'),
        version: flags.version,
        key_is_binary: flags.has(b'b'),
        ..StoreTerms::new(flags.client_flags, exptime, mode)
    };
    Ok(Store { key: asked.key, terms })
}

/// What `md` asks. An expiry time counts only for an item that stays.
///
/// # Errors
/// When the opaque token is too long.
pub fn removal<'a>(asked: &Asked<'a>) -> Result<Removal<'a>, MetaError> {
    opaque_checked(asked)?;
    let flags = &asked.flags;
    Ok(Removal {
        key: asked.key,
        cas: flags.compare,
        stale: flags.has(b'I'),
        emptied: flags.has(b'x').then_some(flags.client_flags),
        exptime: flags.exptime,
        version: flags.version,
    })
}

/// What `ma` asks. Of `N` and `T` the one that stands last counts for a number that is made.
///
/// # Errors
/// When there is no such mode, or the opaque token is too long.
pub fn counting<'a>(asked: &Asked<'a>) -> Result<Counting<'a>, MetaError> {
    let flags = &asked.flags;
    let direction = match flags.mode {
        None | Some(b'I' | b'+') => Direction::Increment,
        Some(b'D' | b'-') => Direction::Decrement,
        Some(_) => return Err(MetaError::BadArithmeticMode),
    };
    opaque_checked(asked)?;
    let made_until = |exptime| flags.exptime.filter(|_| flags.touch_last).unwrap_or(exptime);
    Ok(Counting {
        cas: flags.compare.filter(|cas| *cas != 0),
        create: flags.vivify.map(|exptime| (flags.initial, made_until(exptime))),
        touch: flags.exptime,
        version: flags.version,
        key_is_binary: flags.has(b'b'),
        ..Counting::new(asked.key, direction, flags.delta.unwrap_or(1))
    })
}

fn opaque_checked(asked: &Asked<'_>) -> Result<(), MetaError> {
    if opaque_fits(asked.words) { Ok(()) } else { Err(MetaError::OpaqueTooLong) }
}

/// What `ma` says of a flag that is wrong, in memcached's one text for all.
#[must_use]
pub fn arithmetic_error(error: MetaError) -> MetaError {
    match error {
        MetaError::DuplicateFlag
        | MetaError::InvalidFlag
        | MetaError::BadToken
        | MetaError::BadInitial
        | MetaError::BadDelta
        | MetaError::BadKey => MetaError::InvalidOrDuplicateFlag,
        other => other,
    }
}
