//! The flags of a meta command: one letter each, some with a token. It owns which there are and
//! what is wrong with them; what a command makes of them is `parse`'s.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::OPAQUE_LEN_MAX;
use crate::command::request::Exptime;
use crate::protocol::text::number::{signed, unsigned, unsigned_32};
use crate::protocol::text::words::Words;

/// Whose fault a rejected command is, in the words of `encode::error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaError {
    /// The words do not make the command.
    BadFormat,
    /// More than [`WORDS_MAX`](super::WORDS_MAX) words.
    TooManyFlags,
    /// A flag stands there twice.
    DuplicateFlag,
    /// No such flag.
    InvalidFlag,
    /// `ma`: a flag that memcached has one answer to, whatever is wrong with it.
    InvalidOrDuplicateFlag,
    /// A token is no number, or out of bounds.
    BadToken,
    /// `J`: the token is no number.
    BadInitial,
    /// `D`: the token is no number.
    BadDelta,
    /// The key is no base64.
    BadKey,
    /// The opaque token is longer than [`OPAQUE_LEN_MAX`].
    OpaqueTooLong,
    /// `ms`: no such mode.
    BadSetMode,
    /// `ma`: no such mode.
    BadArithmeticMode,
}

/// The flags of a command. Each command takes all of them, and heeds those that it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    seen: u64,
    /// `T`: a new expiry time.
    pub exptime: Option<Exptime>,
    /// `N`: the expiry time of what is made.
    pub vivify: Option<Exptime>,
    /// `R`: win below so much time left.
    pub recache: Option<Exptime>,
    /// `C`: the version asked for.
    pub compare: Option<u64>,
    /// `E`: the version to be.
    pub version: Option<u64>,
    /// `F`: the client's own bits.
    pub client_flags: u32,
    /// `J`: the number that is made.
    pub initial: u64,
    /// `D`: by how much.
    pub delta: Option<u64>,
    /// `M`: the letter of the mode.
    pub mode: Option<u8>,
    /// `T` stands before `R`.
    pub touch_first: bool,
    /// `T` stands behind `N`.
    pub touch_last: bool,
}

/// The letters that flags may have: of these a set fits 64 bits.
const LETTER_FIRST: u8 = b'A';
const LETTER_LAST: u8 = b'z';

/// Letters that are flags of some command; `P` and `L` are for proxies and mean nothing here.
const KNOWN: &[u8] = b"bcfhklqstuvxCDEFIJLMNOPRT";

fn bit(letter: u8) -> u64 {
    1u64.unbounded_shl(u32::from(letter.wrapping_sub(LETTER_FIRST)))
}

impl Flags {
    /// `v` alone, the commonest.
    pub const VALUE: Self = Self {
        seen: 1 << (b'v' - LETTER_FIRST),
        exptime: None,
        vivify: None,
        recache: None,
        compare: None,
        version: None,
        client_flags: 0,
        initial: 0,
        delta: None,
        mode: None,
        touch_first: false,
        touch_last: false,
    };

    /// Reads the flags of a command, whose letters fit. As in memcached a flag that is twice there
    /// or unknown ends the reading; of other errors the last is told.
    ///
    /// # Errors
    /// What is wrong.
    pub fn read(words: Words<'_>) -> Result<Self, MetaError> {
        let (mut flags, mut error) = (Self::default(), None);
        for word in words {
            let Some((letter, token)) = word.split_first() else { continue };
            if flags.has(*letter) {
                return Err(MetaError::DuplicateFlag);
            }
            if !KNOWN.contains(letter) {
                return Err(MetaError::InvalidFlag);
            }
            flags.seen |= bit(*letter);
            error = flags.take(*letter, token).err().or(error);
        }
        error.map_or(Ok(flags), Err)
    }

    /// Whether a flag is there.
    #[must_use]
    pub fn has(&self, letter: u8) -> bool {
        self.seen & bit(letter) != 0
    }

    fn take(&mut self, letter: u8, token: &[u8]) -> Result<(), MetaError> {
        let number = || unsigned(token).ok_or(MetaError::BadToken);
        let exptime = || signed(token).map(Exptime::of_line).ok_or(MetaError::BadToken);
        match letter {
            b'T' => {
                self.exptime = Some(exptime()?);
                self.touch_first = !self.has(b'R');
                self.touch_last = self.has(b'N');
            }
            b'N' => self.vivify = Some(exptime()?),
            b'R' => self.recache = Some(exptime()?),
            b'C' => self.compare = Some(number()?),
            b'E' => self.version = Some(number()?),
            b'F' => self.client_flags = unsigned_32(token).ok_or(MetaError::BadFormat)?,
            b'J' => self.initial = unsigned(token).ok_or(MetaError::BadInitial)?,
            b'D' => self.delta = Some(unsigned(token).ok_or(MetaError::BadDelta)?),
            b'M' => self.mode = Some(token.first().copied().unwrap_or(b' ')),
            // Told last of all, as memcached does: see `opaque_fits`.
            _ => {}
        }
        Ok(())
    }
}

/// Whether every flag begins with something like a letter. memcached asks that before all else.
#[must_use]
pub fn letters_fit(mut words: Words<'_>) -> bool {
    words.all(|word| matches!(word.first(), Some(LETTER_FIRST..=LETTER_LAST)))
}

/// Whether no opaque token is too long.
#[must_use]
pub fn opaque_fits(mut words: Words<'_>) -> bool {
    words.all(|word| word.first() != Some(&b'O') || word.len() <= OPAQUE_LEN_MAX)
}
