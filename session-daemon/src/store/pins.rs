//! Values that are still being sent when the turn that found them ends. It owns which items are
//! kept readable beyond their turn; it holds no turn, eviction or other memory back.
//!
//! A pin is taken within a turn that found the item, and only `Worker::release` asks for it: an
//! item that is ripe while it is pinned is kept here, and goes back into limbo with its last pin.
#![forbid(unsafe_code)]

use crate::store::Store;
use crate::store::epoch::Retired;
use crate::store::item::State;
use crate::store::reader::{Item, ValueSlices};
use crate::store::sync::{AtomicUsize, Ordering, SpinMutex};
use std::collections::BTreeMap;
use std::sync::Arc;

/// At most so much of the store is pinned, as a divisor: what is pinned cannot make room.
const PINNED_SHARE: usize = 8;

/// The pinned items of a store.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// Items that are pinned.
    count: AtomicUsize,
    table: SpinMutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// By the offset of the item.
    items: BTreeMap<u64, Entry>,
    /// Bytes of all of them.
    len: usize,
}

#[derive(Debug)]
struct Entry {
    pins: u32,
    len: usize,
    /// The worker in whose limbo it was when it became ripe.
    ripe_of: Option<usize>,
}

impl Pins {
    /// Pins an item of `len` bytes; false when that would be more than `len_max` in all.
    fn take(&self, item: u64, len: usize, len_max: usize) -> bool {
        let mut table = self.table.lock();
        if let Some(entry) = table.items.get_mut(&item) {
            entry.pins += 1;
            return true;
        }
        if table.len + len > len_max {
            return false;
        }
        table.len += len;
        table.items.insert(item, Entry { pins: 1, len, ripe_of: None });
        // Relaxed: the turn in which the pin is taken ends after this, and an item that it found
        // is ripe only after that: the epochs order this store before the load in `keep`.
        self.count.store(table.items.len(), Ordering::Relaxed);
        true
    }

    /// Takes one pin off; the worker into whose limbo the item goes if it was the last.
    fn give(&self, item: u64) -> Option<usize> {
        let mut table = self.table.lock();
        let entry = table.items.get_mut(&item)?;
        entry.pins -= 1;
        if entry.pins > 0 {
            return None;
        }
        let entry = table.items.remove(&item)?;
        table.len -= entry.len;
        self.count.store(table.items.len(), Ordering::Relaxed);
        entry.ripe_of
    }

    /// Keeps an item that is ripe if it is pinned; false when it may be released.
    pub(super) fn keep(&self, item: u64, worker: usize) -> bool {
        // Relaxed: as in `take`; an item that is ripe gets no first pin any more.
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        match self.table.lock().items.get_mut(&item) {
            None => false,
            Some(entry) => {
                entry.ripe_of = Some(worker);
                true
            }
        }
    }

    /// Calls `visit` for every item that is ripe and kept.
    pub(super) fn for_each_kept(&self, mut visit: impl FnMut(u64)) {
        let table = self.table.lock();
        let kept = table.items.iter().filter(|(_, entry)| entry.ripe_of.is_some());
        kept.for_each(|(item, _)| visit(*item));
    }
}

/// A value that stays readable, though its item be replaced, deleted or evicted meanwhile.
#[derive(Debug)]
pub struct PinnedValue {
    store: Arc<Store>,
    item: u64,
    state: State,
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
        if let Some(worker) = self.store.pins.give(self.item) {
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
        let taken = store.pins.take(self.offset, self.state.item_len(), len_max);
        let (item, state) = (self.offset, self.state);
        taken.then(|| PinnedValue { store: Arc::clone(store), item, state })
    }
}

#[cfg(test)]
mod tests {
    use super::Pins;

    #[test]
    fn the_last_pin_gives_a_ripe_item_back() {
        let pins = Pins::default();
        assert!(!pins.keep(64, 0));
        assert!(pins.take(64, 10, 15) && pins.take(64, 10, 15));
        assert!(!pins.take(128, 10, 15), "more than may be pinned");
        assert_eq!(pins.give(64), None);
        assert!(pins.keep(64, 3) && !pins.keep(128, 3));
        let mut kept = Vec::new();
        pins.for_each_kept(|item| kept.push(item));
        assert_eq!(kept, [64]);
        assert_eq!(pins.give(64), Some(3));
        assert!(pins.take(128, 10, 15) && !pins.keep(64, 0));
        assert_eq!(pins.give(128), None);
    }
}
