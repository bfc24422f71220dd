//! Reading items from another process that maps the file and takes no part in reclamation.
//! It owns the rule by which such a reader tells a whole item from a torn or reused one.
//!
//! The rule: load header and slot, then state and stamp; copy; then, after a fence, the header and
//! every link that led to the slot, the slot, the state and the stamp are what they were. A chunk
//! is reused only after its slot was changed, and never with the same stamp. docs/store.md has why.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Store;
use crate::store::attach::Cold;
use crate::store::backing::MemoryFile;
use crate::store::item::{CAS, LINK, Link, PIECE_HEADER_LEN, Piece, State, TIMES, Times};
use crate::store::reader::{second, stamp_of};
use crate::store::sync::{Ordering, fence};
use crate::store::types::{CasUnique, Key, StoreError};
use crate::store::words::{
    LINE_LEN, SLOTS, depth, has_tag, is_pending, link, new_place, place_of, redirect, slot_item,
};

/// Times that a lookup begins again before it counts as a miss.
const ATTEMPTS_MAX: u32 = 10_000;
/// Lines of a bucket's chain, and redirections, that are followed.
const HOPS_MAX: usize = 64;

/// A reader of a memory file that a daemon may be serving from. It writes nothing.
#[derive(Debug)]
pub struct OutsideReader {
    /// Mapped without permission to write: only what loads words may be called.
    store: Store,
}

/// What was being read changed meanwhile.
struct Changed;

/// Words that led to an item, and what they were.
type Path = Vec<(u64, u64)>;

impl OutsideReader {
    /// Maps a memory file for reading. Needs no lock.
    ///
    /// # Errors
    /// When the file cannot be read or mapped.
    pub fn open(memory: &MemoryFile, now: Now) -> Result<Result<Self, Cold>, StoreError> {
        Ok(Store::for_reading(memory, now)?.map(|store| Self { store }))
    }

    /// A copy of the key's value, if the key has an item that is alive at `now`.
    #[must_use]
    pub fn copy(&self, key: Key<'_>, now: Now) -> Option<Vec<u8>> {
        let hash = self.store.secret.hash(key.bytes());
        for _ in 0..ATTEMPTS_MAX {
            match self.attempt(hash, key.bytes(), now) {
                Ok(outcome) => return outcome,
                Err(Changed) => std::hint::spin_loop(),
            }
        }
        None
    }

    /// A word of the region, whatever offset was read there.
    fn word(&self, offset: u64) -> Result<u64, Changed> {
        let is_inside = offset.is_multiple_of(8) && offset + 8 <= self.store.region.len();
        // Acquire: pairs with the Release stores of the writers in the other process.
        let load = || self.store.region.word(offset).load(Ordering::Acquire);
        is_inside.then(load).ok_or(Changed)
    }

    /// Offset and header of the bucket of a hash.
    fn bucket(&self, hash: u64) -> Result<(u64, u64), Changed> {
        let layout = &self.store.layout;
        // Acquire: the buckets below the count are complete; pairs with the Release in `split`.
        let buckets = self.store.superblock().buckets.load(Ordering::Acquire);
        let level = buckets.checked_ilog2().filter(|level| *level < 62).ok_or(Changed)?;
        let high = hash & ((2 << level) - 1);
        let mut bucket = if high < buckets { high } else { hash & ((1 << level) - 1) };
        let shift = layout.page_shift - LINE_LEN.trailing_zeros();
        for _ in 0..HOPS_MAX {
            let idx = bucket >> shift;
            if idx >= u64::from(layout.pages) {
                return Err(Changed);
            }
            let entry = self.store.region.half(layout.directory(idx)).load(Ordering::Acquire);
            let page = entry.checked_sub(1).filter(|page| *page < layout.pages).ok_or(Changed)?;
            let offset = layout.page(page) + (bucket & ((1 << shift) - 1)) * LINE_LEN;
            let header = self.word(offset)?;
            if depth(header) > 62 {
                return Err(Changed);
            }
            match redirect(header, bucket, hash) {
                Some(next) => bucket = next,
                None => return Ok((offset, header)),
            }
        }
        Err(Changed)
    }

    fn attempt(&self, hash: u64, key: &[u8], now: Now) -> Result<Option<Vec<u8>>, Changed> {
        let (bucket, header) = self.bucket(hash)?;
        let mut path: Path = vec![(bucket, header)];
        let mut line = bucket;
        loop {
            for slot in (1..=SLOTS).map(|idx| line + idx * 8) {
                let word = self.word(slot)?;
                // What is pending counts if the header names it, which must not have changed.
                let place = place_of(bucket, header, slot);
                let is_named = || place != 0 && place == new_place(header);
                if has_tag(word, hash) && (!is_pending(word) || is_named()) {
                    path.push((slot, word));
                    if let Some(outcome) = self.item(slot_item(word), key, now, &path)? {
                        return Ok(outcome);
                    }
                    path.pop();
                }
            }
            let word = path.last().map_or(0, |(_, word)| *word);
            line = link(word);
            if line == 0 {
                return self.unchanged(bucket, header).map(|()| None);
            }
            if path.len() > HOPS_MAX {
                return Err(Changed);
            }
            path.push((line, self.word(line)?));
        }
    }

    fn unchanged(&self, offset: u64, word: u64) -> Result<(), Changed> {
        if self.word(offset)? == word { Ok(()) } else { Err(Changed) }
    }

    /// The value of an item if it has the key: `Some(None)` if it is dead. The last of the path is
    /// the slot.
    fn item(
        &self,
        item: u64,
        key: &[u8],
        now: Now,
        path: &Path,
    ) -> Result<Option<Option<Vec<u8>>>, Changed> {
        let state = State(self.word(item)?);
        let exptime = Times(self.word(item + TIMES)?);
        if let Some(successor) = exptime.successor() {
            return self.successor(item, exptime, successor, key, now, path);
        }
        let cas = self.word(item + CAS)?;
        let class_len = self.store.classes.sizes().get(state.class() as usize).ok_or(Changed)?;
        let in_head =
            if state.is_extent() { state.tail_offset() as usize } else { state.item_len() };
        if !state.is_linked() || in_head > *class_len as usize {
            return Err(Changed);
        }
        let is_key = self.bytes(item + state.key_offset(), state.key_len())? == key;
        let value = if is_key { self.value(item, state)? } else { Vec::new() };
        // Acquire: none of the loads above is made after those below.
        fence(Ordering::Acquire);
        for (offset, word) in path {
            self.unchanged(*offset, *word)?;
        }
        let after = State(self.word(item)?);
        let same = after.is_linked() && shape(after) == shape(state);
        if !same || self.word(item + CAS)? != cas {
            return Err(Changed);
        }
        let dead = exptime.is_expired(second(now))
            || stamp_of(CasUnique(cas)) < self.store.stamp_least(now);
        Ok(is_key.then(|| (!dead).then_some(value)))
    }

    /// The value of what has taken the place of an item: its times word is part of the path then.
    fn successor(
        &self,
        item: u64,
        ended: Times,
        successor: u64,
        key: &[u8],
        now: Now,
        path: &Path,
    ) -> Result<Option<Option<Vec<u8>>>, Changed> {
        if successor == 0 {
            return Ok(None);
        }
        if path.len() > HOPS_MAX {
            return Err(Changed);
        }
        let mut longer = path.clone();
        longer.push((item + TIMES, ended.0));
        self.item(successor, key, now, &longer)
    }

    fn value(&self, item: u64, state: State) -> Result<Vec<u8>, Changed> {
        let tail = item + state.tail_offset();
        if !state.is_extent() {
            return self.bytes(tail, state.value_len());
        }
        let head_link = Link(self.word(item + LINK)?);
        let mut value = Vec::new();
        let mut next = head_link.first();
        while next != 0 {
            let piece = Piece(self.word(next)?);
            if piece.len() == 0 || value.len() + piece.len() > state.value_len() {
                return Err(Changed);
            }
            value.extend(self.bytes(next + PIECE_HEADER_LEN as u64, piece.len())?);
            next = piece.next();
        }
        if value.len() + head_link.tail_len() != state.value_len() {
            return Err(Changed);
        }
        value.extend(self.bytes(tail, head_link.tail_len())?);
        Ok(value)
    }

    /// Bytes that somebody may be writing: copied word by word, each whole.
    fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>, Changed> {
        let end = offset.checked_add(len as u64).ok_or(Changed)?;
        let start = offset / 8 * 8;
        if end.next_multiple_of(8) > self.store.region.len() {
            return Err(Changed);
        }
        let words = (start..end).step_by(8);
        // Relaxed: the fence behind the copy and the loads after it decide whether it counts.
        let load = |at| self.store.region.word(at).load(Ordering::Relaxed).to_le_bytes();
        let bytes: Vec<u8> = words.flat_map(load).collect();
        let skip = (offset - start) as usize;
        Ok(bytes.get(skip..skip + len).ok_or(Changed)?.to_vec())
    }
}

/// What of a state word never changes while the item lives.
fn shape(state: State) -> (u32, usize, usize, bool, u64) {
    (state.class(), state.key_len(), state.value_len(), state.is_extent(), state.tail_offset())
}
