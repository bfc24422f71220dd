//! Items as callers see them, and the reading of published items.
//! It owns the borrow that keeps an item readable; it never changes one.

use crate::clock::Now;
use crate::store::item::{CAS, LINK, LINK_LEN, Link, PIECE_HEADER_LEN, Piece, State, TIMES, Times};
use crate::store::sync::Ordering;
use crate::store::types::{CasUnique, ClientFlags, Lifetime};
use crate::store::{Store, Worker};

/// Boot-time seconds of a turn.
pub(super) fn second(now: Now) -> u32 {
    u32::try_from(now.boottime_ns / 1_000_000_000).unwrap_or(u32::MAX)
}

/// Nanoseconds in a step of stamps, as a shift: 56 bits of 16 ns last 36 years of uptime.
pub(super) const STAMP_SHIFT: u32 = 4;
/// Bits of the worker's number below the stamp in a cas unique.
pub(super) const CAS_WORKER_BITS: u32 = 8;

/// The stamp of a moment.
pub(super) fn stamp_at(boottime_ns: u64) -> u64 {
    boottime_ns >> STAMP_SHIFT
}

/// The stamp in a cas unique.
pub(super) fn stamp_of(cas: CasUnique) -> u64 {
    cas.0 >> CAS_WORKER_BITS
}

impl Store {
    pub(super) fn item_state(&self, item: u64) -> State {
        // Acquire: with LINKED set the item's bytes are visible; pairs with the Release in
        // `publish`.
        State(self.region.word(item).load(Ordering::Acquire))
    }

    /// The times of an item, or what has come of it.
    pub(super) fn item_times(&self, item: u64) -> Times {
        // Relaxed: one word, complete in itself; published with the item.
        Times(self.region.word(item + TIMES).load(Ordering::Relaxed))
    }

    pub(super) fn item_cas(&self, item: u64) -> CasUnique {
        // Relaxed: written once, before the item is published.
        CasUnique(self.region.word(item + CAS).load(Ordering::Relaxed))
    }

    /// The version that a client chose for an item.
    pub(super) fn item_version(&self, item: u64, state: State) -> CasUnique {
        // Relaxed: as in `item_cas`.
        CasUnique(self.region.word(item + state.version_offset()).load(Ordering::Relaxed))
    }

    pub(super) fn item_link(&self, item: u64) -> Link {
        // Relaxed: as in `item_cas`.
        Link(self.region.word(item + LINK).load(Ordering::Relaxed))
    }

    pub(super) fn item_flags(&self, item: u64, state: State) -> ClientFlags {
        if !state.has_flags() {
            return ClientFlags(0);
        }
        // SAFETY: the flags of a published item are not written again, and the caller's turn or
        // bucket lock keeps the chunk from reuse.
        let bytes = unsafe { self.region.bytes(item + state.flags_offset(), 4) };
        ClientFlags(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// The key of a published item that the caller's turn protects.
    pub(super) fn item_key(&self, item: u64) -> &[u8] {
        self.key_of(item, self.item_state(item))
    }

    /// The same of an item whose state was loaded.
    pub(super) fn key_of(&self, item: u64, state: State) -> &[u8] {
        // SAFETY: the key of a published item is not written again, and the caller's turn keeps
        // the chunk from reuse.
        unsafe { self.region.bytes(item + state.key_offset(), state.key_len()) }
    }

    pub(super) fn item_has_key(&self, item: u64, key: &[u8]) -> bool {
        self.item_key(item) == key
    }

    pub(super) fn item_hash(&self, item: u64) -> u64 {
        self.secret.hash(self.item_key(item))
    }

    /// Items with a lower stamp than this are flushed.
    pub(super) fn stamp_least(&self, now: Now) -> u64 {
        let superblock = self.superblock();
        // Acquire: a past `flush_at_s` that is gone has been turned into `flushed_stamp` before;
        // pairs with the Release in `flush_all`.
        let flush_at_s = superblock.flush_at_s.load(Ordering::Acquire);
        let flushed = superblock.flushed_stamp.load(Ordering::Acquire) + 1;
        if flush_at_s != 0 && u64::from(second(now)) >= flush_at_s {
            return flushed.max(stamp_at(flush_at_s * 1_000_000_000));
        }
        flushed
    }

    /// Whether an item has expired or was flushed.
    pub(super) fn is_dead(&self, item: u64, now: Now) -> bool {
        self.is_over(item, self.item_times(item), now)
    }

    /// Whether an item that was seen with these times has expired or was flushed.
    pub(super) fn is_over(&self, item: u64, times: Times, now: Now) -> bool {
        times.is_expired(second(now)) || stamp_of(self.item_cas(item)) < self.stamp_least(now)
    }

    /// The value of a published item, in order.
    pub(super) fn value_slices(&self, item: u64, state: State) -> ValueSlices<'_> {
        let tail = item + state.tail_offset();
        if !state.is_extent() {
            return ValueSlices { store: self, piece: 0, tail, tail_len: state.value_len() };
        }
        let link = self.item_link(item);
        ValueSlices { store: self, piece: link.first(), tail, tail_len: link.tail_len() }
    }
}

/// Slices of a value, in order; together they are the value.
#[derive(Clone, Debug)]
pub struct ValueSlices<'a> {
    store: &'a Store,
    /// Offset of the next piece; 0 when only the tail is left.
    piece: u64,
    tail: u64,
    tail_len: usize,
}

impl<'a> ValueSlices<'a> {
    /// A chain of pieces without tail that the caller owns.
    pub(super) fn of_pieces(store: &'a Store, piece: u64) -> Self {
        Self { store, piece, tail: 0, tail_len: 0 }
    }
}

impl<'a> Iterator for ValueSlices<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.piece != 0 {
            // Relaxed: written before the item was published.
            let piece = Piece(self.store.region.word(self.piece).load(Ordering::Relaxed));
            let start = self.piece + PIECE_HEADER_LEN as u64;
            self.piece = piece.next();
            // SAFETY: a published value is not written again, and what the slices borrow keeps
            // the piece from reuse: the worker's open turn, or a pin; or the caller owns the chain.
            return Some(unsafe { self.store.region.bytes(start, piece.len()) });
        }
        if self.tail_len == 0 {
            return None;
        }
        let len = std::mem::take(&mut self.tail_len);
        // SAFETY: as above.
        Some(unsafe { self.store.region.bytes(self.tail, len) })
    }
}

/// An item as it was when it was looked up. It borrows the worker: the worker's turn cannot end
/// while an item is alive, and until then nobody reuses its memory.
#[derive(Clone, Debug)]
pub struct Item<'w> {
    pub(super) worker: &'w Worker,
    pub(super) offset: u64,
    pub(super) state: State,
    pub(super) times: Times,
}

impl<'w> Item<'w> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &'w [u8] {
        self.worker.shared().item_key(self.offset)
    }

    /// Bytes of the value.
    #[must_use]
    pub fn value_len(&self) -> usize {
        self.state.value_len()
    }

    /// The value in order as slices; most values have one.
    #[must_use]
    pub fn value(&self) -> ValueSlices<'w> {
        self.worker.shared().value_slices(self.offset, self.state)
    }

    /// The value where it stands in one place, as most do.
    #[must_use]
    pub fn value_in_one(&self) -> Option<&'w [u8]> {
        if self.state.is_extent() {
            return None;
        }
        let (start, len) = (self.offset + self.state.tail_offset(), self.value_len());
        // SAFETY: a published value is not written again, and the worker's open turn, which the item
        // borrows, keeps the chunk from reuse.
        Some(unsafe { self.worker.shared().region.bytes(start, len) })
    }

    /// The client's flags.
    #[must_use]
    pub fn flags(&self) -> ClientFlags {
        self.worker.shared().item_flags(self.offset, self.state)
    }

    /// The version; 0 when the store runs without cas.
    #[must_use]
    pub fn cas(&self) -> CasUnique {
        self.worker.shared().version(self.offset)
    }

    /// How long the item lives.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        self.times.lifetime()
    }

    /// Boot-time second of the last access before this one.
    #[must_use]
    pub fn last_access_s(&self) -> u32 {
        self.times.last_access_s()
    }

    /// Whether the item had been fetched before.
    #[must_use]
    pub fn fetched(&self) -> bool {
        self.state.is_fetched()
    }

    /// Whether the item is marked stale.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.state.is_stale()
    }

    /// Whether somebody had been told to renew the item.
    #[must_use]
    pub fn is_won(&self) -> bool {
        self.times.is_won()
    }

    /// Whether clients spell the key in base64.
    #[must_use]
    pub fn key_is_binary(&self) -> bool {
        self.state.key_is_binary()
    }

    /// Number of the slab class.
    #[must_use]
    pub fn class(&self) -> u32 {
        self.state.class()
    }

    /// Bytes of header, key, flags and value together.
    #[must_use]
    pub fn item_len(&self) -> usize {
        self.state.item_len()
    }
}

const _: () = assert!(LINK + LINK_LEN as u64 == 32);
