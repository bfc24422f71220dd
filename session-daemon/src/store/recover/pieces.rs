//! Items with pieces at a start that believes the items alone: which pieces are whose.
//! It owns the owners' words of pieces then; the rest of such a start is `recover`'s.
#![forbid(unsafe_code)]

use super::{RELAXED, Scan};
use crate::store::item::{PIECE_OWNER, Piece, State};

impl Scan<'_> {
    /// Takes a piece from whoever had it.
    pub(super) fn disown(&self, piece: u64) {
        self.store.region.word(piece + PIECE_OWNER).store(0, RELAXED);
    }

    /// Takes an item with pieces, if all of them are there and nobody else's.
    pub(super) fn extent(&mut self, item: u64) {
        if !self.claim_pieces(item) {
            self.kept.lost += 1;
            self.drop_item(item);
            return;
        }
        self.insert_or_keep(self.store.item_hash(item), item);
    }

    /// Makes the pieces of an item its own; false if they are not its value.
    fn claim_pieces(&self, head: u64) -> bool {
        let store = self.store;
        let state = store.item_state(head);
        let link = store.item_link(head);
        let in_head = state.tail_offset() as usize + link.tail_len();
        if link.first() == 0 || in_head > store.classes.size(state.class()) {
            return false;
        }
        let mut missing = state.value_len().checked_sub(link.tail_len());
        let mut next = link.first();
        while next != 0 {
            let Some(piece) = self.unowned_piece(next) else { return false };
            store.region.word(next + PIECE_OWNER).store(store.owner_word(head), RELAXED);
            missing = missing.and_then(|missing| missing.checked_sub(piece.len()));
            next = piece.next();
        }
        missing == Some(0)
    }

    /// The piece at an offset that may be anything.
    fn unowned_piece(&self, offset: u64) -> Option<Piece> {
        let store = self.store;
        let len_max = store.piece_len_max(offset)?;
        let word = store.region.word(offset).load(RELAXED);
        let owner = store.region.word(offset + PIECE_OWNER).load(RELAXED);
        let piece = Piece(word);
        (State(word).is_piece() && owner == 0 && piece.len() <= len_max).then_some(piece)
    }

    /// Gives up the pieces at the beginning of a chain that belong to `head`.
    pub(super) fn release_pieces(&self, head: u64, first: u64) {
        let mut next = first;
        while self.is_piece_of(next, head) {
            self.disown(next);
            next = Piece(self.store.region.word(next).load(RELAXED)).next();
        }
    }

    fn is_piece_of(&self, piece: u64, head: u64) -> bool {
        self.store.piece_len_max(piece).is_some()
            && State(self.store.region.word(piece).load(RELAXED)).is_piece()
            && self.store.region.word(piece + PIECE_OWNER).load(RELAXED)
                == self.store.owner_word(head)
    }
}
