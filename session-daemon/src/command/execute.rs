//! Doing what was asked. It owns what each request does to the store and which counters move;
//! it never sees the words of a wire format.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::counters::{Counter, Counters};
use super::expiry;
use super::observe::{Event, Observer};
use super::request::{
    Counting, Exptime, Fetch, Key, Outcome, Request, Shutdown, StatsTopic, Store, StoreMode,
    Versioned,
};
use crate::clock::Now;
use crate::store::types::{
    CasUnique, ClientFlags, Deleted, Lifetime, Mode, Placed, Stored, Terms, UploadError,
};
use crate::store::{Item, Upload, Worker, types};

/// What a worker needs to execute requests.
pub struct Executor<'w> {
    /// The worker's access to the store.
    pub store: &'w mut Worker,
    /// The worker's counters.
    pub counters: &'w Counters,
    /// The time of this turn.
    pub now: Now,
    /// False for `-F`.
    pub flush_allowed: bool,
    /// Nobody wins an item: what is asked must change nothing.
    pub reads_only: bool,
    /// Who is told of what happens; none while nobody watches.
    pub observer: Option<&'w dyn Observer>,
}

/// The store's key of a request's.
#[must_use]
pub fn store_key(key: Key<'_>) -> types::Key<'_> {
    types::Key::new(key.bytes()).expect("both kinds of key have the same bounds")
}

/// Counts one key that was asked for. memcached counts `gat` among the touches, not the hits.
pub fn count_fetch(counters: &Counters, fetch: Fetch, found: bool) {
    count_fetches(counters, fetch, 1, u64::from(found));
}

/// [`count_fetch`] of `asked` keys of which so many were found.
pub fn count_fetches(counters: &Counters, fetch: Fetch, asked: u64, found: u64) {
    let is_touch = fetch.touch.is_some();
    let (hits, misses) = if is_touch {
        (Counter::TouchHits, Counter::TouchMisses)
    } else {
        (Counter::GetHits, Counter::GetMisses)
    };
    counters.add(Counter::CmdGet, asked);
    counters.add(hits, found);
    counters.add(misses, asked.saturating_sub(found));
    if is_touch {
        counters.add(Counter::CmdTouch, asked);
    }
}

/// Counts one key that was touched by a command that memcached does not count as a fetch.
pub fn count_touch(counters: &Counters, found: bool) {
    counters.add_one(Counter::CmdTouch);
    counters.add_one(if found { Counter::TouchHits } else { Counter::TouchMisses });
}

/// Looks up the keys of one fetch: all of them first, so that their memory is on its way while
/// the next is asked for. `items` is as long as `keys`.
pub fn fetch<'w>(
    store: &'w Worker,
    fetch: Fetch,
    keys: &[types::Key<'_>],
    now: Now,
    items: &mut [Option<Item<'w>>],
) {
    let Some(exptime) = fetch.touch else { return store.get_batch(keys, now, items) };
    let lifetime = expiry::lifetime(exptime, now);
    for (key, item) in keys.iter().zip(items) {
        *item = store.get_and_touch(*key, lifetime, now);
    }
}

/// What became of a request: a line, or something that only the server can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done; this is the reply.
    Line(Outcome),
    /// Counters are to be listed.
    Stats(StatsTopic),
    /// Counters are to be zeroed.
    StatsReset,
    /// The log level is to be set.
    Verbosity(u32),
    /// The process is asked to end; by none of the ways there are.
    Shutdown(Option<Shutdown>),
}

impl Executor<'_> {
    /// Tells whoever watches.
    pub fn note(&self, event: &Event<'_>) {
        if let Some(observer) = self.observer {
            observer.note(event);
        }
    }

    /// Executes a request that carries no value and is no fetch.
    pub fn execute(&mut self, request: Request<'_>) -> Answer {
        Answer::Line(match request {
            Request::Delete { key } => self.delete(key, None),
            Request::Arithmetic { key, direction, delta } => {
                self.count(&Counting::new(key, direction, delta)).outcome()
            }
            Request::Touch { key, exptime } => self.touch(key, exptime),
            Request::FlushAll { at } => self.flush_all(at),
            Request::Version => Outcome::Version,
            Request::Verbosity { level } => return Answer::Verbosity(level),
            Request::Stats(topic) => return Answer::Stats(topic),
            Request::StatsReset => return Answer::StatsReset,
            Request::Shutdown(shutdown) => return Answer::Shutdown(shutdown),
        })
    }

    /// Removes an item; with `cas`, only if it has this version.
    pub fn delete(&mut self, key: Key<'_>, cas: Option<u64>) -> Outcome {
        let seen = self.seen(key);
        let deleted = self.store.delete(store_key(key), cas.map(CasUnique), self.now);
        let found = seen.filter(|_| deleted == Deleted::Deleted);
        self.note(&Event::Deleted { key: key.bytes(), command: "delete", found });
        match deleted {
            Deleted::Deleted => self.counted(Counter::DeleteHits, Outcome::Deleted),
            Deleted::NotFound => self.counted(Counter::DeleteMisses, Outcome::NotFound),
            Deleted::Exists => Outcome::Exists,
        }
    }

    fn touch(&mut self, key: Key<'_>, exptime: Exptime) -> Outcome {
        self.counters.add_one(Counter::CmdTouch);
        if self.store.touch(store_key(key), expiry::lifetime(exptime, self.now), self.now) {
            self.counted(Counter::TouchHits, Outcome::Touched)
        } else {
            self.counted(Counter::TouchMisses, Outcome::NotFound)
        }
    }

    /// Counted even where it is switched off, as memcached does.
    fn flush_all(&mut self, at: Exptime) -> Outcome {
        self.counters.add_one(Counter::CmdFlush);
        if !self.flush_allowed {
            return Outcome::FlushNotAllowed;
        }
        self.store.flush_all(expiry::flush(at, self.now), self.now);
        Outcome::Ok
    }

    /// A storage command whose value is at hand.
    pub fn store(&mut self, store: &Store<'_>, value: &[u8]) -> Versioned {
        self.counters.add_one(Counter::CmdSet);
        let placed = self.store.put(store_key(store.key), value, &self.terms(store), self.now);
        let versioned = self.stored(store, placed);
        self.note_stored(store, value.len(), versioned.outcome);
        versioned
    }

    /// A storage command whose value comes in pieces.
    ///
    /// # Errors
    /// The reply, when such a value cannot be taken.
    pub fn begin_upload(&mut self, store: &Store<'_>, value_len: usize) -> Result<Upload, Outcome> {
        let flags = ClientFlags(store.terms.flags);
        self.store
            .begin_upload(store_key(store.key), flags, value_len)
            .map_err(|error| self.upload_failed(store, error))
            .inspect_err(|outcome| self.note_stored(store, 0, *outcome))
    }

    /// The next piece of a value.
    ///
    /// # Errors
    /// The reply, when there is no room for it; the upload has to be dropped.
    pub fn upload(
        &mut self,
        store: &Store<'_>,
        upload: &mut Upload,
        bytes: &[u8],
    ) -> Result<(), Outcome> {
        upload.write(self.store, bytes, self.now).map_err(|error| self.upload_failed(store, error))
    }

    /// A storage command whose value has come in pieces.
    pub fn store_upload(&mut self, store: &Store<'_>, upload: Upload) -> Versioned {
        let value_len = upload.value_len();
        self.counters.add_one(Counter::CmdSet);
        let (key, terms) = (store_key(store.key), self.terms(store));
        let placed = self.store.put_upload(key, upload, &terms, self.now);
        let versioned = self.stored(store, placed);
        self.note_stored(store, value_len, versioned.outcome);
        versioned
    }

    fn note_stored(&self, store: &Store<'_>, value_len: usize, outcome: Outcome) {
        if self.observer.is_none() {
            return;
        }
        let ttl_s = match expiry::lifetime(store.terms.exptime, self.now) {
            Lifetime::Until(second) => {
                u64::from(second).saturating_sub(self.now.boottime_ns / 1_000_000_000) as u32
            }
            Lifetime::Never | Lifetime::Past => 0,
        };
        let (key, mode) = (store.key.bytes(), store.terms.mode);
        self.note(&Event::Stored { key, outcome, mode, ttl_s, value_len });
    }

    fn terms(&self, store: &Store<'_>) -> Terms {
        let mode = match store.terms.mode {
            StoreMode::Set => Mode::Set,
            StoreMode::Add => Mode::Add,
            StoreMode::Replace => Mode::Replace,
            StoreMode::Append => Mode::Append,
            StoreMode::Prepend => Mode::Prepend,
            StoreMode::Cas(cas) => Mode::Cas(CasUnique(cas)),
        };
        let lifetime = |exptime| expiry::lifetime(exptime, self.now);
        Terms {
            flags: ClientFlags(store.terms.flags),
            lifetime: lifetime(store.terms.exptime),
            mode,
            joined_to: store.terms.joined_to.map(CasUnique),
            vivify: store.terms.vivify.map(lifetime),
            older_is_stale: store.terms.older_is_stale,
            version: store.terms.version.map(CasUnique),
            key_is_binary: store.terms.key_is_binary,
        }
    }

    fn stored(&mut self, store: &Store<'_>, placed: Placed) -> Versioned {
        let mode = store.terms.mode;
        let outcome = match placed.stored {
            Stored::Stored(cas) => {
                if matches!(mode, StoreMode::Cas(_)) {
                    self.counters.add_one(Counter::CasHits);
                }
                let (outcome, value_len) = (Outcome::Stored, placed.value_len);
                return Versioned { outcome, cas: cas.0, value_len };
            }
            Stored::NotStored => Outcome::NotStored,
            Stored::Exists => self.counted(Counter::CasBadval, Outcome::Exists),
            Stored::NotFound => self.counted(Counter::CasMisses, Outcome::NotFound),
            // memcached has one answer to values that cannot be joined, whatever the reason.
            Stored::TooLarge | Stored::NoMemory
                if matches!(mode, StoreMode::Append | StoreMode::Prepend) =>
            {
                Outcome::NotStored
            }
            Stored::TooLarge => self.upload_failed(store, UploadError::TooLarge),
            Stored::NoMemory => self.upload_failed(store, UploadError::NoMemory),
        };
        outcome.into()
    }

    /// A `set` that fails takes the old item with it, so that no stale value is served.
    fn upload_failed(&mut self, store: &Store<'_>, error: UploadError) -> Outcome {
        if store.terms.mode == StoreMode::Set {
            self.store.delete(store_key(store.key), None, self.now);
        }
        match error {
            UploadError::TooLarge => self.counted(Counter::StoreTooLarge, Outcome::TooLarge),
            UploadError::NoMemory => self.counted(Counter::StoreNoMemory, Outcome::NoMemory),
        }
    }

    pub(super) fn counted(&self, counter: Counter, outcome: Outcome) -> Outcome {
        self.counters.add_one(counter);
        outcome
    }
}
