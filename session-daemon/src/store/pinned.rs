//! Values that are still being sent when the turn that found them ends. It owns the handle on such
//! a value; it holds no turn, eviction or other memory back.
#![forbid(unsafe_code)]

use crate::store::Store;
use crate::store::epoch::Retired;
use crate::store::item::State;
use crate::store::pins::Place;
use crate::store::reader::{Item, ValueSlices};
use std::sync::Arc;

/// At most so much of the store is pinned, as a divisor: what is pinned cannot make room.
const PINNED_SHARE: usize = 8;

/// A value that stays readable, though its item be replaced, deleted or evicted meanwhile.
#[derive(Debug)]
pub struct PinnedValue {
    store: Arc<Store>,
    item: u64,
    state: State,
    place: Place,
}

impl PinnedValue {
    /// The value in order as slices.
    #[must_use]
    pub fn slices(&self) -> ValueSlices<'_> {
        self.store.value_slices(self.item, self.state)
    }

    /// Bytes of the value.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.value_len()
    }

    /// Whether the value has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for PinnedValue {
    fn drop(&mut self) {
        if let Some(worker) = self.store.pins.give(self.place, self.state.item_len()) {
            // It waits for the turns of its time a second time, which costs little and happens
            // only to what was removed while it was sent.
            self.store.epochs.retire(worker, Retired::Chunk(self.item));
        }
    }
}

impl Item<'_> {
    /// Keeps the value readable for longer than the turn. None when too much of the store is
    /// pinned already, or the value is so small that it costs less to copy it.
    #[must_use]
    pub fn pin(&self) -> Option<PinnedValue> {
        if !self.state.is_extent() {
            return None;
        }
        let store = self.worker.store();
        let len_max = store.config.memory_limit / PINNED_SHARE;
        let place = store.pins.take(self.offset, self.state.item_len(), len_max)?;
        Some(PinnedValue { store: Arc::clone(store), item: self.offset, state: self.state, place })
    }
}
