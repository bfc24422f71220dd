//! Values on their way in. It owns memory that nobody else knows, charged as the bytes come.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::draft::{Chain, Draft};
use crate::store::item::Marks;
use crate::store::reader::ValueSlices;
use crate::store::types::{Key, UploadError};
use crate::store::{Store, Worker};
use std::sync::Arc;

/// Bytes of an upload's first piece, if less is announced by its first bytes.
const STAGE_FIRST_LEN: usize = 512;

/// A value on its way in. Dropped before it is stored, it gives its memory back.
#[derive(Debug)]
pub struct Upload {
    store: Arc<Store>,
    /// Worker into whose limbo the memory goes.
    worker: usize,
    value_len: usize,
    received: usize,
    /// Full pieces.
    chain: Chain,
    chain_len: usize,
    /// The piece that is being filled.
    stage: Option<Stage>,
}

#[derive(Clone, Copy, Debug)]
struct Stage {
    piece: u64,
    capacity: usize,
    len: usize,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let first = self.close();
        self.store.retire_pieces(self.worker, first);
    }
}

impl Upload {
    pub(super) fn new(worker: &Worker, value_len: usize) -> Self {
        Self {
            store: Arc::clone(worker.store()),
            worker: worker.id,
            value_len,
            received: 0,
            chain: Chain::default(),
            chain_len: 0,
            stage: None,
        }
    }

    /// Takes the next bytes of the value, at most [`Upload::missing`].
    ///
    /// # Errors
    /// [`UploadError::NoMemory`]: the upload can only be dropped then.
    ///
    /// # Panics
    /// When there are more bytes than missing, or the worker is of another store.
    pub fn write(
        &mut self,
        worker: &mut Worker,
        bytes: &[u8],
        now: Now,
    ) -> Result<(), UploadError> {
        assert!(bytes.len() <= self.missing(), "more bytes than announced");
        assert!(Arc::ptr_eq(&self.store, worker.store()), "the worker is of another store");
        worker.begin();
        let mut rest = bytes;
        while !rest.is_empty() {
            let stage = self.stage_with_room(worker, rest.len(), now)?;
            let (part, later) = rest.split_at(rest.len().min(stage.capacity - stage.len));
            self.store.fill_piece(stage.piece, stage.len, part);
            self.stage = Some(Stage { len: stage.len + part.len(), ..stage });
            self.received += part.len();
            rest = later;
        }
        Ok(())
    }

    /// Bytes still to come.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.value_len - self.received
    }

    /// The piece to fill, with room for at least a byte.
    fn stage_with_room(
        &mut self,
        worker: &mut Worker,
        wanted: usize,
        now: Now,
    ) -> Result<Stage, UploadError> {
        if let Some(stage) = self.stage
            && stage.len < stage.capacity
        {
            return Ok(stage);
        }
        let old = self.stage;
        let piece_max = self.store.classes.piece_max();
        // The first piece grows by doubling, so that little is charged for little.
        let grows = old.filter(|stage| self.chain_len == 0 && stage.capacity < piece_max);
        if let Some(full) = old
            && grows.is_none()
        {
            self.seal(full);
        }
        let page_max = self.store.page_piece_max();
        let missing = self.missing();
        let page = grows.is_none() && self.chain_len >= page_max && missing >= page_max;
        let capacity = match grows {
            _ if page => page_max,
            Some(stage) => (stage.capacity * 2).max(stage.len + wanted).min(stage.len + missing),
            None if self.chain_len == 0 => wanted.max(STAGE_FIRST_LEN).min(missing),
            None => missing,
        };
        let capacity = if page { page_max } else { capacity.min(piece_max) };
        let piece = worker.take_piece(page, capacity, now).ok_or(UploadError::NoMemory)?;
        let mut stage = Stage { piece, capacity, len: 0 };
        if let Some(full) = grows {
            for bytes in self.staged(full) {
                self.store.fill_piece(piece, 0, bytes);
            }
            stage.len = full.len;
            self.store.retire_pieces(self.worker, full.piece);
        }
        self.stage = Some(stage);
        Ok(stage)
    }

    /// What a piece holds that is in no chain; one slice.
    fn staged(&self, stage: Stage) -> ValueSlices<'_> {
        self.store.link_piece(&mut Chain::default(), stage.piece, stage.len);
        ValueSlices::of_pieces(&self.store, stage.piece)
    }

    fn seal(&mut self, stage: Stage) {
        self.store.link_piece(&mut self.chain, stage.piece, stage.len);
        self.chain_len += stage.len;
        self.stage = None;
    }

    /// Seals what is there; returns the first piece and forgets them all.
    fn close(&mut self) -> u64 {
        if let Some(stage) = self.stage {
            self.seal(stage);
        }
        std::mem::take(&mut self.chain).first
    }

    /// Makes one chain of all that was received.
    pub(super) fn complete(&mut self) {
        if let Some(stage) = self.stage {
            self.seal(stage);
        }
    }

    /// The value received so far. Only after [`Upload::complete`].
    pub(super) fn slices(&self) -> ValueSlices<'_> {
        ValueSlices::of_pieces(&self.store, self.chain.first)
    }

    /// Bytes announced.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    /// Makes an item of the value; its pieces become the item's. Gives the memory back if it
    /// cannot.
    pub(super) fn into_draft(
        mut self,
        worker: &mut Worker,
        key: Key<'_>,
        marks: Marks,
        now: Now,
    ) -> Option<Draft> {
        let key_len = key.bytes().len();
        if self.store.classes.is_single(key_len, marks, self.value_len) {
            self.complete();
            let draft = worker.draft(key, marks, self.value_len, now)?;
            worker.fill(&mut draft.fill_point(), self.slices());
            return Some(draft);
        }
        let tail_max = self.store.classes.tail_max(key_len, marks);
        let tail = self.stage.filter(|stage| stage.len <= tail_max && self.chain_len > 0);
        if tail.is_some() {
            self.stage = None;
        }
        let first = self.close();
        let tail_len = tail.map_or(0, |stage| stage.len);
        let draft = worker.draft_head(key, marks, self.value_len, first, tail_len, now);
        if let Some(stage) = tail {
            if let Some(draft) = &draft {
                for bytes in self.staged(stage) {
                    worker.fill_tail(draft.head + draft.state.tail_offset(), bytes);
                }
            }
            self.store.retire_pieces(self.worker, stage.piece);
        }
        draft
    }
}
