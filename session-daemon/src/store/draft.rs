//! Items before they are published: memory that one worker owns and fills.
//! It owns the shape of large values; nothing here is visible to a lookup.

use crate::clock::Now;
use crate::store::chunks::Kind;
use crate::store::classes::{Classes, HEADER_LEN};
use crate::store::failpoint::step;
use crate::store::item::{
    LINK, LINK_LEN, Link, Marks, PIECE_HEADER_LEN, PIECE_OWNER, Piece, State,
};
use crate::store::sync::Ordering;
use crate::store::types::Key;
use crate::store::{Store, Worker};

/// An item that is not published: its head, and the pieces of its value.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) head: u64,
    pub(super) state: State,
    /// First piece; 0 for none.
    pub(super) first: u64,
    pub(super) tail_len: usize,
    /// Whether somebody has been told to renew the item.
    pub(super) won: bool,
}

/// How far a draft's value has been copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct FillPoint {
    piece: u64,
    filled: usize,
    tail: u64,
    end: u64,
}

impl Draft {
    /// The beginning of the value.
    pub(super) fn fill_point(&self) -> FillPoint {
        let tail = self.head + self.state.tail_offset();
        FillPoint { piece: self.first, filled: 0, tail, end: tail + self.tail_len as u64 }
    }
}

/// A growing chain of pieces that one thread owns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    pub(super) first: u64,
    last: u64,
}

/// Bytes before the value in a head.
fn head_len(key_len: usize, marks: Marks, extent: bool) -> usize {
    HEADER_LEN + key_len + marks.len() + if extent { LINK_LEN } else { 0 }
}

impl Classes {
    /// Whether a whole item fits into one chunk.
    pub(super) fn is_single(&self, key_len: usize, marks: Marks, value_len: usize) -> bool {
        head_len(key_len, marks, false) + value_len <= self.chunk_max()
    }

    /// Bytes of a value that fit into the head behind the link.
    pub(super) fn tail_max(&self, key_len: usize, marks: Marks) -> usize {
        self.chunk_max() - head_len(key_len, marks, true)
    }

    /// Bytes of a value in a piece that is a chunk of the largest class.
    pub(super) fn piece_max(&self) -> usize {
        self.chunk_max() - PIECE_HEADER_LEN
    }
}

impl Store {
    /// Bytes of a value in a piece that is a page.
    pub(super) fn page_piece_max(&self) -> usize {
        self.layout.page_len() - PIECE_HEADER_LEN
    }

    /// Copies bytes into a piece at `at`.
    pub(super) fn fill_piece(&self, piece: u64, at: usize, bytes: &[u8]) {
        let start = piece + (PIECE_HEADER_LEN + at) as u64;
        // SAFETY: the piece belongs to a draft or an upload, whose owner is the caller; `bytes`
        // are a caller's buffer or a published item, never this piece.
        unsafe { self.region.write(start, bytes) };
    }

    /// Copies version, key, flags and value of an item without pieces to a chunk of the same class.
    pub(super) fn copy_item(&self, item: u64, target: u64, state: State) {
        let start = state.version_offset();
        let len = state.item_len() - start as usize;
        // SAFETY: a published item's bytes are not written again, and the caller's turn keeps the
        // chunk from reuse.
        let bytes = unsafe { self.region.bytes(item + start, len) };
        // SAFETY: the caller has just taken the target; nobody else knows it.
        unsafe { self.region.write(target + start, bytes) };
    }

    /// Sets a piece's length and successor.
    pub(super) fn set_piece(&self, piece: u64, word: Piece) {
        // Release: scans of the page see a piece without owner or a whole one.
        self.region.word(piece).store(word.0, Ordering::Release);
    }

    /// Makes a chunk or page that was just taken an empty piece.
    pub(super) fn begin_piece(&self, piece: u64) {
        // Relaxed: before the first word, which is stored with Release.
        self.region.word(piece + PIECE_OWNER).store(self.owner_word(0), Ordering::Relaxed);
        self.set_piece(piece, Piece::new(0, 0));
        step("upload: piece begun");
    }

    /// Appends a piece of `len` bytes to a chain.
    pub(super) fn link_piece(&self, chain: &mut Chain, piece: u64, len: usize) {
        self.set_piece(piece, Piece::new(len, 0));
        if chain.last == 0 {
            chain.first = piece;
        } else {
            // Relaxed: the chain is the caller's.
            let last = Piece(self.region.word(chain.last).load(Ordering::Relaxed));
            self.set_piece(chain.last, Piece::new(last.len(), piece));
        }
        chain.last = piece;
        step("upload: piece linked");
    }
}

impl Worker {
    /// Takes a piece: a whole page, or a chunk for `len` bytes.
    pub(super) fn take_piece(&mut self, page: bool, len: usize, now: Now) -> Option<u64> {
        if page {
            let taken = self.take_page(now)?;
            let piece = self.shared().layout.page(taken.page);
            self.shared().begin_piece(piece);
            self.shared().set_page_kind(taken.page, Kind::Extent);
            return Some(piece);
        }
        let class = self.shared().classes.of(PIECE_HEADER_LEN + len);
        let piece = self.take_chunk(class, now)?;
        self.shared().begin_piece(piece);
        Some(piece)
    }

    /// Takes memory for an item whose value has `value_len` bytes. May end the turn.
    pub(super) fn draft(
        &mut self,
        key: Key<'_>,
        marks: Marks,
        value_len: usize,
        now: Now,
    ) -> Option<Draft> {
        let key_len = key.bytes().len();
        let mut rest = value_len;
        let mut chain = Chain::default();
        if !self.shared().classes.is_single(key_len, marks, value_len) {
            let tail_max = self.shared().classes.tail_max(key_len, marks);
            while rest > tail_max {
                let page = rest >= self.shared().page_piece_max();
                let most = if page {
                    self.shared().page_piece_max()
                } else {
                    self.shared().classes.piece_max()
                };
                let len = rest.min(most);
                let Some(piece) = self.take_piece(page, len, now) else {
                    self.retire_pieces(chain.first);
                    return None;
                };
                self.shared().link_piece(&mut chain, piece, len);
                rest -= len;
            }
        }
        self.draft_head(key, marks, value_len, chain.first, rest, now)
    }

    /// Takes a head for a value whose pieces are there; retires them if it cannot.
    pub(super) fn draft_head(
        &mut self,
        key: Key<'_>,
        marks: Marks,
        value_len: usize,
        first: u64,
        tail_len: usize,
        now: Now,
    ) -> Option<Draft> {
        let key_len = key.bytes().len();
        let len = head_len(key_len, marks, first != 0) + tail_len;
        let class = self.shared().classes.of(len);
        let Some(head) = self.take_chunk(class, now) else {
            self.retire_pieces(first);
            return None;
        };
        let state = State::new(class, key_len, value_len, first != 0, marks);
        let region = &self.shared().region;
        if first != 0 {
            // Relaxed: published with the item.
            region.word(head + LINK).store(Link::new(first, tail_len).0, Ordering::Relaxed);
        }
        if let Some(version) = marks.version {
            // Relaxed: published with the item.
            region.word(head + state.version_offset()).store(version.0, Ordering::Relaxed);
        }
        // SAFETY: the chunk was just taken; nobody else knows it.
        unsafe { region.write(head + state.key_offset(), key.bytes()) };
        if state.has_flags() {
            // SAFETY: as above.
            unsafe { region.write(head + state.flags_offset(), &marks.flags.0.to_le_bytes()) };
        }
        Some(Draft { head, state, first, tail_len, won: false })
    }

    /// Copies slices of a value into a draft, behind those copied before.
    pub(super) fn fill<'a>(&self, at: &mut FillPoint, slices: impl Iterator<Item = &'a [u8]>) {
        for mut slice in slices {
            while at.piece != 0 && !slice.is_empty() {
                let word = self.piece(at.piece);
                let (now, later) = slice.split_at(slice.len().min(word.len() - at.filled));
                self.shared().fill_piece(at.piece, at.filled, now);
                slice = later;
                at.filled += now.len();
                if at.filled == word.len() {
                    at.piece = word.next();
                    at.filled = 0;
                }
            }
            if !slice.is_empty() {
                debug_assert!(at.tail + slice.len() as u64 <= at.end, "the value fits the draft");
                self.fill_tail(at.tail, slice);
                at.tail += slice.len() as u64;
            }
        }
    }

    pub(super) fn fill_tail(&self, offset: u64, bytes: &[u8]) {
        // SAFETY: the head belongs to a draft of this worker; `bytes` are a caller's buffer, a
        // published item or an upload's piece, never this chunk.
        unsafe { self.shared().region.write(offset, bytes) };
    }

    /// Gives the memory of a draft back.
    pub(super) fn discard(&self, draft: Draft) {
        self.retire_pieces(draft.first);
        self.give_chunk(draft.head);
    }
}
