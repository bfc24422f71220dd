//! Growth of the index, in small steps beside the commands that need it.
//! It owns the decision when a bucket is split, and the pages that buckets stand in.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::classes::LINE_CLASS;
use crate::store::epoch::Retired;
use crate::store::index::{ITEMS_PER_BUCKET, Split};
use crate::store::layout::PageState;
use crate::store::sync::Ordering;
use crate::store::{Store, Worker};

/// Keys added or removed before the store is told.
const KEYS_TOLD_AT: i64 = if cfg!(session_schedule) { 4 } else { 32 };
/// Buckets split for one stored item while the index lags behind.
const SPLITS_PER_STORE: u32 = 2;
/// Most splits that are owed at a time.
const SPLITS_OWED_MAX: u64 = 256;

impl Worker {
    /// Tells the store how many keys this worker has added.
    pub(super) fn tell_keys_added(&self) -> u64 {
        let added = self.keys_added.take();
        // Relaxed: an estimate that decides about growth only.
        let before = self.shared().keys.0.fetch_add(added, Ordering::Relaxed);
        u64::try_from(before + added).unwrap_or(0)
    }

    /// Does what may need room for the index before a command takes memory for an item: room is
    /// made by eviction, and the item that is being stored must not be what goes. False when
    /// there is no room.
    pub(super) fn prepare(&mut self, now: Now) -> bool {
        self.grow(now);
        self.lines_at_hand(now)
    }

    /// Splits a bucket or two while there are more items than the buckets are meant for.
    pub(super) fn grow(&mut self, now: Now) {
        if self.keys_added.get().abs() >= KEYS_TOLD_AT {
            let wanted = self.tell_keys_added() / ITEMS_PER_BUCKET;
            let owed = wanted.saturating_sub(self.shared().bucket_count());
            self.splits_owed = owed.min(SPLITS_OWED_MAX) as u32;
        }
        if self.shared().is_checking() {
            return;
        }
        for _ in 0..self.splits_owed.min(SPLITS_PER_STORE) {
            let mut lines = std::mem::take(&mut self.lines);
            let split = self.shared().split(&mut lines);
            self.lines = lines;
            match split {
                Split::Done(emptied) => {
                    self.splits_owed -= 1;
                    for line in emptied {
                        self.shared().epochs.retire(self.id, Retired::Alone(line));
                    }
                }
                Split::Busy => return,
                Split::NeedsPage => {
                    if !self.add_index_page(now) {
                        self.splits_owed = 0;
                    }
                }
                Split::NeedsLines(count) => {
                    while self.lines.len() < count {
                        let Some(line) = self.take_chunk(LINE_CLASS, now) else { return };
                        self.lines.push(line);
                    }
                }
            }
        }
    }

    fn add_index_page(&mut self, now: Now) -> bool {
        let taken = if self.shared().config.evictions {
            self.take_page(now)
        } else {
            self.shared().pool_take()
        };
        let Some(taken) = taken else { return false };
        self.shared().prepare_index_page(taken);
        if !self.shared().index_add_page(taken.page) {
            self.shared().pool_give(taken.page);
        }
        true
    }
}

impl Store {
    /// Whether a page is the index's.
    pub(super) fn is_index_page(&self, page: u32) -> bool {
        self.page_state(page) == PageState::Index
    }
}
