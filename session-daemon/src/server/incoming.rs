//! A value on its way in that is not all at hand: to the store piece by piece, or passed over.
//! It owns what has to be remembered meanwhile; it never answers.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::execute::Executor;
use crate::command::request::{Exptime, Key, Outcome, Store, StoreMode, Versioned};
use crate::protocol::text::CRLF;
use crate::store::Upload;

/// A storage command whose value comes in pieces.
#[derive(Debug)]
pub struct Incoming {
    key: Box<[u8]>,
    flags: u32,
    exptime: Exptime,
    mode: StoreMode,
    noreply: bool,
    upload: Upload,
    /// The version that an append or a prepend was begun under.
    joined_cas: Option<u64>,
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
        noreply: bool,
        executor: &mut Executor<'_>,
    ) -> Result<Self, Outcome> {
        let upload = executor.begin_upload(store, value_len)?;
        Ok(Self::new(store, None, value_len, noreply, upload))
    }

    /// Begins to take a value that is appended or prepended to the one of version `cas`.
    ///
    /// # Errors
    /// The reply, when the item has another version or such a value cannot be taken.
    pub fn begin_joined(
        store: &Store<'_>,
        cas: u64,
        value_len: usize,
        noreply: bool,
        executor: &mut Executor<'_>,
    ) -> Result<Self, Outcome> {
        let upload = executor.begin_joined(store, cas, value_len)?;
        Ok(Self::new(store, Some(cas), value_len, noreply, upload))
    }

    fn new(
        store: &Store<'_>,
        joined_cas: Option<u64>,
        value_left: usize,
        noreply: bool,
        upload: Upload,
    ) -> Self {
        let Store { key, flags, exptime, mode } = *store;
        let key = key.bytes().into();
        Self { key, flags, exptime, mode, noreply, upload, joined_cas, value_left }
    }

    /// Bytes of the value that have not come.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.value_left
    }

    /// No answer is wanted.
    #[must_use]
    pub fn noreply(&self) -> bool {
        self.noreply
    }

    /// Takes the next bytes, at most [`Incoming::missing`].
    ///
    /// # Errors
    /// The reply, when there is no room for them; nothing of the piece was taken.
    pub fn write(&mut self, piece: &[u8], executor: &mut Executor<'_>) -> Result<(), Outcome> {
        let store = command(&self.key, self.flags, self.exptime, self.mode);
        executor.upload(&store, &mut self.upload, piece)?;
        self.value_left = self.value_left.saturating_sub(piece.len());
        Ok(())
    }

    /// Stores the value, all of which has come.
    pub fn finish(self, executor: &mut Executor<'_>) -> Versioned {
        let store = command(&self.key, self.flags, self.exptime, self.mode);
        match self.joined_cas {
            Some(cas) => executor.finish_joined(&store, cas, self.upload),
            None => executor.store_upload(&store, self.upload),
        }
    }
}

fn command(key: &[u8], flags: u32, exptime: Exptime, mode: StoreMode) -> Store<'_> {
    let key = Key::new(key).expect("its length was checked when the line was read");
    Store { key, flags, exptime, mode }
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
