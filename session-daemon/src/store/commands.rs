//! The commands that change a key: set and its kin, delete, flush. It owns the order in which an
//! item is looked up, given memory, written and published.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::buckets::Buckets;
use crate::store::counters::Count;
use crate::store::draft::Draft;
use crate::store::failpoint::step;
use crate::store::item::Marks;
use crate::store::publish::{Expect, Heritage, Refused};
use crate::store::sync::Ordering;
use crate::store::types::{
    CasUnique, ClientFlags, Deleted, Flush, Key, Lifetime, Mode, Placed, Stored, Terms, UploadError,
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
        self.put(key, value, &Terms::new(flags, lifetime, mode), now).stored
    }

    /// Stores `value` on `terms`.
    pub fn put(&mut self, key: Key<'_>, value: &[u8], terms: &Terms, now: Now) -> Placed {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        let slices = std::iter::once(value);
        if matches!(terms.mode, Mode::Append | Mode::Prepend) {
            return self.join(hash, key, slices, value.len(), terms, now);
        }
        self.put_slices(hash, key, slices, value.len(), terms, now)
    }

    fn put_slices<'a>(
        &mut self,
        hash: u64,
        key: Key<'_>,
        slices: impl Iterator<Item = &'a [u8]>,
        len: usize,
        terms: &Terms,
        now: Now,
    ) -> Placed {
        if let Some(refused) = self.refusal(hash, key, terms, now) {
            return refused.into();
        }
        if !self.shared().fits(key.bytes().len(), terms.flags, len) {
            return Stored::TooLarge.into();
        }
        if !self.prepare(now) {
            return Stored::NoMemory.into();
        }
        let Some(draft) = self.draft(key, self.marks(terms), len, now) else {
            return Stored::NoMemory.into();
        };
        self.fill(&mut draft.fill_point(), slices);
        self.store_draft(hash, key, draft, terms, now)
    }

    /// What an item of these terms carries.
    fn marks(&self, terms: &Terms) -> Marks {
        let Terms { flags, key_is_binary, .. } = *terms;
        Marks { flags, version: self.chosen(terms.version), key_is_binary }
    }

    /// A version that a client chose, unless the store runs without versions.
    pub(super) fn chosen(&self, version: Option<CasUnique>) -> Option<CasUnique> {
        version.filter(|_| self.shared().config.cas)
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
        upload: Upload,
        flags: ClientFlags,
        lifetime: Lifetime,
        mode: Mode,
        now: Now,
    ) -> Stored {
        self.put_upload(key, upload, &Terms::new(flags, lifetime, mode), now).stored
    }

    /// [`Worker::put`] with a value that was received before.
    ///
    /// # Panics
    /// When bytes are [missing](Upload::missing).
    pub fn put_upload(
        &mut self,
        key: Key<'_>,
        mut upload: Upload,
        terms: &Terms,
        now: Now,
    ) -> Placed {
        assert_eq!(upload.missing(), 0, "the upload is complete");
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        if matches!(terms.mode, Mode::Append | Mode::Prepend) {
            upload.complete();
            return self.join(hash, key, upload.slices(), upload.value_len(), terms, now);
        }
        if let Some(refused) = self.refusal(hash, key, terms, now) {
            return refused.into();
        }
        if !self.shared().fits(key.bytes().len(), terms.flags, upload.value_len()) {
            return Stored::TooLarge.into();
        }
        if !self.prepare(now) {
            return Stored::NoMemory.into();
        }
        let marks = self.marks(terms);
        let Some(draft) = upload.into_draft(self, key, marks, now) else {
            return Stored::NoMemory.into();
        };
        self.store_draft(hash, key, draft, terms, now)
    }

    /// What the condition of `terms` says now, before memory is taken; publishing asks again.
    fn refusal(&self, hash: u64, key: Key<'_>, terms: &Terms, now: Now) -> Option<Stored> {
        let expect = expectation(terms)?;
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
        terms: &Terms,
        now: Now,
    ) -> Placed {
        let expect = expectation(terms).unwrap_or(Expect::Anything);
        let (class, value_len) = (draft.state.class(), draft.state.value_len());
        match self.publish(hash, key, draft, expect, terms.lifetime, now) {
            Ok(cas) => {
                self.count(class, Count::CmdSet, 1);
                if matches!(terms.mode, Mode::Cas(_)) {
                    self.count(class, Count::CasHits, 1);
                }
                Placed { stored: Stored::Stored(cas), value_len }
            }
            Err(Refused::Because(stored)) => {
                if stored == Stored::Exists {
                    self.count(class, Count::CasBadval, 1);
                }
                stored.into()
            }
            Err(Refused::Changed) => unreachable!("no particular item was expected"),
        }
    }

    /// Append and prepend: both values in place of the one that is there, or this one alone.
    fn join<'a>(
        &mut self,
        hash: u64,
        key: Key<'_>,
        slices: impl Iterator<Item = &'a [u8]> + Clone,
        len: usize,
        terms: &Terms,
        now: Now,
    ) -> Placed {
        loop {
            if let Some(placed) = self.concatenate(hash, key, slices.clone(), len, terms, now) {
                return placed;
            }
            let Some(lifetime) = terms.vivify else { return Stored::NotStored.into() };
            let alone = Terms { lifetime, mode: Mode::Add, ..*terms };
            let placed = self.put_slices(hash, key, slices.clone(), len, &alone, now);
            // An item has come up in between: it is joined after all.
            if placed.stored != Stored::NotStored {
                return placed;
            }
        }
    }

    /// A new item of both values, in place of the very item it was made from; none without one.
    fn concatenate<'a>(
        &mut self,
        hash: u64,
        key: Key<'_>,
        slices: impl Iterator<Item = &'a [u8]> + Clone,
        len: usize,
        terms: &Terms,
        now: Now,
    ) -> Option<Placed> {
        loop {
            let old = self.find_alive(hash, key, now)?;
            if self.is_other_version(old, terms.joined_to) {
                return Some(Stored::Exists.into());
            }
            let state = self.shared().item_state(old);
            let flags = self.shared().item_flags(old, state);
            let total = state.value_len() + len;
            if !self.shared().fits(key.bytes().len(), flags, total) {
                return Some(Stored::TooLarge.into());
            }
            if !self.prepare(now) {
                return Some(Stored::NoMemory.into());
            }
            let key_is_binary = terms.key_is_binary || state.key_is_binary();
            let marks = Marks { flags, key_is_binary, ..self.marks(terms) };
            let Some(draft) = self.draft(key, marks, total, now) else {
                return Some(Stored::NoMemory.into());
            };
            // The turn may have ended meanwhile: only what is found now may be read.
            let old = self.find_alive(hash, key, now).filter(|&old| {
                let state = self.shared().item_state(old);
                state.value_len() + len == total
                    && self.shared().item_flags(old, state) == flags
                    && !self.is_other_version(old, terms.joined_to)
            });
            let Some(old) = old else {
                self.discard(draft);
                continue;
            };
            let present = self.shared().value_slices(old, self.shared().item_state(old));
            let mut at = draft.fill_point();
            if terms.mode == Mode::Prepend {
                self.fill(&mut at, slices.clone());
            }
            self.fill(&mut at, present);
            if terms.mode == Mode::Append {
                self.fill(&mut at, slices.clone());
            }
            let class = draft.state.class();
            let expect = Expect::Same(old, Heritage { lifetime: true, win: false, bits: 0 });
            match self.publish(hash, key, draft, expect, Lifetime::Never, now) {
                Ok(cas) => {
                    self.count(class, Count::CmdSet, 1);
                    return Some(Placed { stored: Stored::Stored(cas), value_len: total });
                }
                Err(Refused::Changed) => {}
                Err(Refused::Because(stored)) => return Some(stored.into()),
            }
        }
    }

    /// Whether a version is asked for that the item does not have.
    pub(super) fn is_other_version(&self, item: u64, asked: Option<CasUnique>) -> bool {
        asked.is_some_and(|cas| cas != self.shared().version(item))
    }

    /// Deletes the key's item; with `cas`, only if it has this version.
    pub fn delete(&mut self, key: Key<'_>, cas: Option<CasUnique>, now: Now) -> Deleted {
        self.begin();
        let store = self.shared();
        let hash = store.secret.hash(key.bytes());
        let (item, dead) = loop {
            let Some(item) = store.lookup(hash, key.bytes()) else { return Deleted::NotFound };
            let times = store.times(item);
            if times.successor().is_some() {
                continue;
            }
            let dead = store.is_over(item, times, now);
            if !dead && self.is_other_version(item, cas) {
                return Deleted::Exists;
            }
            if store.supersede(item, times, 0) {
                break (item, dead);
            }
        };
        step("delete: decided");
        let state = self.bury(hash, item, 0);
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

fn expectation(terms: &Terms) -> Option<Expect> {
    match terms.mode {
        Mode::Add => Some(Expect::Nothing),
        Mode::Replace => Some(Expect::Something),
        Mode::Cas(cas) if terms.older_is_stale => Some(Expect::VersionOrLater(cas)),
        Mode::Cas(cas) => Some(Expect::Version(cas)),
        Mode::Set | Mode::Append | Mode::Prepend => None,
    }
}
