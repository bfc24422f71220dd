//! A value on its way in that is not all at hand: to the store piece by piece, or passed over.
//! It owns what has to be remembered meanwhile; it never answers.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::execute::Executor;
use crate::command::request::{Key, Outcome, Store, StoreTerms, Versioned};
use crate::protocol::text::CRLF;
use crate::store::Upload;

/// A storage command whose value comes in pieces.
#[derive(Debug)]
pub struct Incoming {
    key: Box<[u8]>,
    terms: StoreTerms,
    upload: Upload,
    value_left: usize,
}

impl Incoming {
    /// Begins to take a value of `value_len` bytes.
    ///
    /// # Errors
    /// The reply, when such a value cannot be taken.
    pub fn begin(
        store: &Store<'_>,
        value_len: usize,
        executor: &mut Executor<'_>,
    ) -> Result<Self, Outcome> {
        let upload = executor.begin_upload(store, value_len)?;
        let key = store.key.bytes().into();
        Ok(Self { key, terms: store.terms, upload, value_left: value_len })
    }

    /// Bytes of the value that have not come.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.value_left
    }

    /// Takes the next bytes, at most [`Incoming::missing`].
    ///
    /// # Errors
    /// The reply, when there is no room for them; nothing of the piece was taken.
    pub fn write(&mut self, piece: &[u8], executor: &mut Executor<'_>) -> Result<(), Outcome> {
        let store = command(&self.key, self.terms);
        executor.upload(&store, &mut self.upload, piece)?;
        self.value_left = self.value_left.saturating_sub(piece.len());
        Ok(())
    }

    /// Stores the value, all of which has come.
    pub fn finish(self, executor: &mut Executor<'_>) -> Versioned {
        executor.store_upload(&command(&self.key, self.terms), self.upload)
    }
}

fn command(key: &[u8], terms: StoreTerms) -> Store<'_> {
    let key = Key::new(key).expect("its length was checked when the line was read");
    Store { key, terms }
}

/// A value that nobody wants: it is counted off, and its end is checked.
#[derive(Debug)]
pub struct Swallow {
    value_left: u64,
    end: &'static [u8],
    bad: bool,
}

impl Swallow {
    /// Passes over `value_len` bytes and the line end behind them.
    #[must_use]
    pub fn new(value_len: u64) -> Self {
        Self { value_left: value_len, end: CRLF, bad: false }
    }

    /// Counts off what belongs to the value; how many bytes do.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let value_len = usize::try_from(self.value_left).unwrap_or(usize::MAX).min(bytes.len());
        self.value_left = self.value_left.saturating_sub(value_len as u64);
        let mut taken = value_len;
        if self.value_left > 0 {
            return taken;
        }
        for byte in bytes.get(value_len..).unwrap_or_default() {
            let Some((expected, rest)) = self.end.split_first() else { break };
            self.bad |= byte != expected;
            self.end = rest;
            taken = taken.saturating_add(1);
        }
        taken
    }

    /// Whether the value and its end have passed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.value_left == 0 && self.end.is_empty()
    }

    /// Whether something else stood where the value should have ended.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.bad
    }
}
