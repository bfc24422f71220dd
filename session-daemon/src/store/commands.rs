//! The commands that change a key: set and its kin, delete, flush. It owns the order in which an
//! item is looked up, given memory, written and published.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::counters::Count;
use crate::store::draft::Draft;
use crate::store::publish::{Expect, Refused};
use crate::store::sync::Ordering;
use crate::store::types::{
    CasUnique, ClientFlags, Deleted, Flush, Key, Lifetime, Mode, Stored, UploadError,
};
use crate::store::upload::Upload;

impl Worker {
    /// Stores `value` as `mode` says.
    pub fn set(
        &mut self,
        key: Key<'_>,
        value: &[u8],
        flags: ClientFlags,
        lifetime: Lifetime,
        mode: Mode,
        now: Now,
    ) -> Stored {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        if matches!(mode, Mode::Append | Mode::Prepend) {
            let slices = std::iter::once(value);
            return self.concatenate(hash, key, slices, value.len(), mode, now);
        }
        if let Some(refused) = self.refusal(hash, key, mode, now) {
            return refused;
        }
        if !self.shared().fits(key.bytes().len(), flags, value.len()) {
            return Stored::TooLarge;
        }
        if !self.prepare(now) {
            return Stored::NoMemory;
        }
        let Some(draft) = self.draft(key, flags, value.len(), now) else {
            return Stored::NoMemory;
        };
        self.fill(&mut draft.fill_point(), std::iter::once(value));
        self.store_draft(hash, key, draft, lifetime, mode, now)
    }

    /// Begins to receive a value of `value_len` bytes for a key. Memory is charged as the bytes
    /// come, not for what is announced.
    ///
    /// # Errors
    /// [`UploadError::TooLarge`] when such an item is above `item_size_max`.
    pub fn begin_upload(
        &mut self,
        key: Key<'_>,
        flags: ClientFlags,
        value_len: usize,
    ) -> Result<Upload, UploadError> {
        if !self.shared().fits(key.bytes().len(), flags, value_len) {
            return Err(UploadError::TooLarge);
        }
        Ok(Upload::new(self, value_len))
    }

    /// [`Worker::set`] with a value that was received before.
    ///
    /// # Panics
    /// When bytes are [missing](Upload::missing).
    pub fn store_upload(
        &mut self,
        key: Key<'_>,
        mut upload: Upload,
        flags: ClientFlags,
        lifetime: Lifetime,
        mode: Mode,
        now: Now,
    ) -> Stored {
        assert_eq!(upload.missing(), 0, "the upload is complete");
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        if matches!(mode, Mode::Append | Mode::Prepend) {
            upload.complete();
            return self.concatenate(hash, key, upload.slices(), upload.value_len(), mode, now);
        }
        if let Some(refused) = self.refusal(hash, key, mode, now) {
            return refused;
        }
        if !self.shared().fits(key.bytes().len(), flags, upload.value_len()) {
            return Stored::TooLarge;
        }
        if !self.prepare(now) {
            return Stored::NoMemory;
        }
        let Some(draft) = upload.into_draft(self, key, flags, now) else {
            return Stored::NoMemory;
        };
        self.store_draft(hash, key, draft, lifetime, mode, now)
    }

    /// What the condition of `mode` says now, before memory is taken; publishing asks again.
    fn refusal(&self, hash: u64, key: Key<'_>, mode: Mode, now: Now) -> Option<Stored> {
        let expect = expectation(mode)?;
        let found = self.find_alive(hash, key, now);
        let refused = self.check(expect, found).err()?;
        if let Some(item) = found
            && matches!(refused, Stored::Exists)
        {
            self.count(self.shared().item_state(item).class(), Count::CasBadval, 1);
        }
        Some(refused)
    }

    fn store_draft(
        &mut self,
        hash: u64,
        key: Key<'_>,
        draft: Draft,
        lifetime: Lifetime,
        mode: Mode,
        now: Now,
    ) -> Stored {
        let expect = expectation(mode).unwrap_or(Expect::Anything);
        let class = draft.state.class();
        match self.publish(hash, key, draft, expect, lifetime, now) {
            Ok(cas) => {
                self.count(class, Count::CmdSet, 1);
                if matches!(mode, Mode::Cas(_)) {
                    self.count(class, Count::CasHits, 1);
                }
                Stored::Stored(cas)
            }
            Err(Refused::Because(stored)) => {
                if stored == Stored::Exists {
                    self.count(class, Count::CasBadval, 1);
                }
                stored
            }
            Err(Refused::Changed) => unreachable!("no particular item was expected"),
        }
    }

    /// Append and prepend: a new item of both values, in place of the very item it was made from.
    fn concatenate<'a>(
        &mut self,
        hash: u64,
        key: Key<'_>,
        slices: impl Iterator<Item = &'a [u8]> + Clone,
        len: usize,
        mode: Mode,
        now: Now,
    ) -> Stored {
        loop {
            let Some(old) = self.find_alive(hash, key, now) else { return Stored::NotStored };
            let state = self.shared().item_state(old);
            let flags = self.shared().item_flags(old, state);
            let total = state.value_len() + len;
            if !self.shared().fits(key.bytes().len(), flags, total) {
                return Stored::TooLarge;
            }
            if !self.prepare(now) {
                return Stored::NoMemory;
            }
            let Some(draft) = self.draft(key, flags, total, now) else {
                return Stored::NoMemory;
            };
            // The turn may have ended meanwhile: only what is found now may be read.
            let old = self.find_alive(hash, key, now).filter(|&old| {
                let state = self.shared().item_state(old);
                state.value_len() + len == total && self.shared().item_flags(old, state) == flags
            });
            let Some(old) = old else {
                self.discard(draft);
                continue;
            };
            let present = self.shared().value_slices(old, self.shared().item_state(old));
            let mut at = draft.fill_point();
            if mode == Mode::Prepend {
                self.fill(&mut at, slices.clone());
            }
            self.fill(&mut at, present);
            if mode == Mode::Append {
                self.fill(&mut at, slices.clone());
            }
            let class = draft.state.class();
            match self.publish(hash, key, draft, Expect::Same(old), Lifetime::Never, now) {
                Ok(cas) => {
                    self.count(class, Count::CmdSet, 1);
                    return Stored::Stored(cas);
                }
                Err(Refused::Changed) => {}
                Err(Refused::Because(stored)) => return stored,
            }
        }
    }

    /// Deletes the key's item; with `cas`, only if it has this version.
    pub fn delete(&mut self, key: Key<'_>, cas: Option<CasUnique>, now: Now) -> Deleted {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        let mut bucket = self.shared().lock_bucket(hash);
        let Some((slot, item)) = bucket.find(hash, key.bytes()) else { return Deleted::NotFound };
        let dead = self.shared().is_dead(item, now);
        if !dead && cas.is_some_and(|cas| cas != self.shared().version(item)) {
            return Deleted::Exists;
        }
        let line = bucket.remove(slot);
        let state = self.unlink(item);
        drop(bucket);
        self.retire_removed(item, line);
        if dead {
            return Deleted::NotFound;
        }
        self.count(state.class(), Count::DeleteHits, 1);
        Deleted::Deleted
    }

    /// Makes every item that is stored before that moment disappear at that moment.
    pub fn flush_all(&mut self, flush: Flush, now: Now) {
        let superblock = self.shared().superblock();
        let due = self.shared().stamp_least(now) - 1;
        // Release: before `flush_at_s` is changed; pairs with the Acquire in `stamp_least`.
        superblock.flushed_stamp.fetch_max(due, Ordering::Release);
        match flush {
            Flush::Now => {
                // Acquire: versions of finished commands are covered; pairs with `next_cas`.
                let stamps = self.shared().workers.iter();
                let last = stamps.map(|shared| shared.stamp.0.load(Ordering::Acquire)).max();
                superblock.flushed_stamp.fetch_max(last.unwrap_or(0), Ordering::Release);
                superblock.flush_at_s.store(0, Ordering::Release);
                self.shared().force_sweep();
            }
            Flush::At(second) => {
                superblock.flush_at_s.store(u64::from(second), Ordering::Release);
            }
        }
    }
}

fn expectation(mode: Mode) -> Option<Expect> {
    match mode {
        Mode::Add => Some(Expect::Nothing),
        Mode::Replace => Some(Expect::Something),
        Mode::Cas(cas) => Some(Expect::Version(cas)),
        Mode::Set | Mode::Append | Mode::Prepend => None,
    }
}
