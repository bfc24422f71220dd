//! Walking over all items a bucket at a time, while others use the store. It owns the order, in
//! which no item that is there all the time is missed or met twice, however the index grows.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::reader::Item;

/// How far a walk has come.
///
/// A bucket of depth `d` holds the keys whose hash has its number in the low `d` bits: with the
/// bits of the hash reversed that is one interval, and a split cuts an interval in two. So the
/// end of any bucket's interval stays one, and a walk in that order is a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Where the next bucket's interval begins, in reversed bits.
    at: u64,
}

impl Worker {
    /// Calls `visit` with the live items of the next bucket; false when it was the last.
    pub fn scan<'w>(&'w self, scan: &mut Scan, now: Now, visit: &mut dyn FnMut(&Item<'w>)) -> bool {
        self.begin();
        let store = self.shared();
        let (items, depth) = store.bucket_items(scan.at.reverse_bits());
        for offset in items {
            let (state, times) = (store.item_state(offset), store.item_times(offset));
            // It was there under the bucket's lock. If it was removed since, or moved with its page,
            // its memory is kept until the turn ends.
            if !store.is_dead(offset, now) {
                visit(&Item { worker: self, offset, state, times });
            }
        }
        let interval = 1_u64.checked_shl(64 - depth).unwrap_or(0);
        match scan.at.checked_add(interval) {
            Some(next) if interval > 0 => {
                scan.at = next;
                true
            }
            _ => false,
        }
    }
}
