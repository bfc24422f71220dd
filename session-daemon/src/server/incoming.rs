//! A value on its way in that is not all at hand: to the store piece by piece, or passed over.
//! It owns what has to be remembered meanwhile; it never answers.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::execute::Executor;
use crate::command::request::{Exptime, Key, Outcome, Store, StoreMode};
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
        let Store { key, flags, exptime, mode } = *store;
        Ok(Self { key: key.bytes().into(), flags, exptime, mode, noreply, upload })
    }

    /// Bytes of the value that have not come.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.upload.missing()
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
        executor.upload(&store, &mut self.upload, piece)
    }

    /// Stores the value, all of which has come.
    pub fn finish(self, executor: &mut Executor<'_>) -> Outcome {
        let store = command(&self.key, self.flags, self.exptime, self.mode);
        executor.store_upload(&store, self.upload).outcome
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
