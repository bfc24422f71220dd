//! `append` and `prepend` on condition of a version: the joined value is made here and stored by
//! cas, so that it replaces the very value it was made from. It owns the order of the pieces.
#![forbid(unsafe_code)]

use super::execute::{Executor, store_key};
use super::request::{Outcome, Store, StoreMode, Versioned};
use crate::store::types::{CasUnique, ClientFlags, Lifetime, Mode, Stored};
use crate::store::{Item, Upload};

/// What has to be known of the item that is there.
struct Present {
    value: Vec<u8>,
    flags: ClientFlags,
    lifetime: Lifetime,
}

impl Executor<'_> {
    /// Begins to take a value of `value_len` bytes that goes before or behind the one of version
    /// `cas`; `store` is an append or a prepend.
    ///
    /// # Errors
    /// The reply, when the condition does not hold or such a value cannot be taken.
    pub fn begin_joined(
        &mut self,
        store: &Store<'_>,
        cas: u64,
        value_len: usize,
    ) -> Result<Upload, Outcome> {
        let key_len = store.key.bytes().len();
        if !self.store.store().fits(key_len, ClientFlags(0), value_len) {
            return Err(Outcome::TooLarge);
        }
        let present = self.present(store, cas)?;
        let joined_len = present.value.len().saturating_add(value_len);
        let mut upload = self
            .store
            .begin_upload(store_key(store.key), present.flags, joined_len)
            .map_err(|_| Outcome::NotStored)?;
        if store.mode == StoreMode::Append {
            self.upload(store, &mut upload, &present.value)?;
        }
        Ok(upload)
    }

    /// Stores a value that was begun by [`Executor::begin_joined`] and has come whole.
    pub fn finish_joined(&mut self, store: &Store<'_>, cas: u64, mut upload: Upload) -> Versioned {
        let present = match self.present(store, cas) {
            Ok(present) => present,
            Err(outcome) => return outcome.into(),
        };
        if store.mode == StoreMode::Prepend
            && self.upload(store, &mut upload, &present.value).is_err()
        {
            return Outcome::NotStored.into();
        }
        self.count_set();
        // A touch in between, which leaves the version, would lose its lifetime to the present
        // one: they meet only when two clients write the same item at the same moment.
        let (key, Present { flags, lifetime, .. }) = (store_key(store.key), present);
        let mode = Mode::Cas(CasUnique(cas));
        match self.store.store_upload(key, upload, flags, lifetime, mode, self.now) {
            Stored::Stored(cas) => Versioned { outcome: Outcome::Stored, cas: cas.0 },
            Stored::Exists => Outcome::Exists.into(),
            Stored::NotStored | Stored::NotFound => Outcome::NotStored.into(),
            Stored::TooLarge | Stored::NoMemory => Outcome::NotStored.into(),
        }
    }

    /// The item, if it is there and of this version.
    fn present(&self, store: &Store<'_>, cas: u64) -> Result<Present, Outcome> {
        let item = self.store.get(store_key(store.key), self.now).ok_or(Outcome::NotStored)?;
        if item.cas().0 != cas {
            return Err(Outcome::Exists);
        }
        let (flags, lifetime) = (item.flags(), item.lifetime());
        Ok(Present { value: value_of(&item), flags, lifetime })
    }
}

fn value_of(item: &Item<'_>) -> Vec<u8> {
    let mut value = Vec::with_capacity(item.value_len());
    item.value().for_each(|slice| value.extend_from_slice(slice));
    value
}
