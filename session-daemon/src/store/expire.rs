//! Expiry: items whose time is over, or that were flushed, give their memory back unasked.
//! It owns the sweep, and the slice of background work that each worker does.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::classes::LINE_CLASS;
use crate::store::counters::Count;
use crate::store::evict::Reason;
use crate::store::layout::PageState;
use crate::store::reader::second;
use crate::store::sync::{Ordering, fence};

/// Pages that a store without eviction looks through for dead items before it refuses.
const DEAD_PAGES: u32 = 16;
/// Time between two sweeps of a page for expired items by one worker.
const SWEEP_INTERVAL_NS: u64 = 500_000;
/// Pages without anything to expire that one call skips.
const SWEEP_SKIPS_MAX: u32 = 64;

impl Worker {
    /// Looks for dead items and empty pages in a few pages of a store that does not evict.
    pub(super) fn reclaim_dead(&mut self, now: Now) -> bool {
        let mut removed = false;
        for _ in 0..DEAD_PAGES.min(self.shared().page_count()) {
            let page = self.shared().next_swept_page();
            if let PageState::Slab(class) = self.shared().page_state(page)
                && class != LINE_CLASS
            {
                removed |= self.remove_dead(page, class, Reason::Dead, now) > 0;
                removed |= self.drain_empty(page, class);
            }
        }
        removed
    }

    /// Removes the dead items of a page that was seen to be of `class` in this turn.
    pub(super) fn remove_dead(&self, page: u32, class: u32, reason: Reason, now: Now) -> u32 {
        let deadline = &self.shared().page_meta(page).deadline_s;
        // SeqCst: who links or touches an item looks at the deadline afterwards: either the walk
        // sees the item's times, or `note_deadline` sees this.
        deadline.swap(u32::MAX, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let (mut removed, mut least) = (0, u32::MAX);
        let carved = self.shared().page_carved(page);
        for idx in 0..carved {
            let chunk = self.shared().chunk(page, class, idx);
            if !self.shared().item_state(chunk).is_linked() {
                continue;
            }
            let times = self.shared().item_times(chunk);
            if times.successor().is_some() {
                continue;
            }
            if self.shared().is_over(chunk, times, now) && self.remove_item(chunk, reason, now) {
                removed += 1;
                continue;
            }
            let exptime_s = self.shared().item_times(chunk).exptime_s();
            if exptime_s != 0 {
                least = least.min(exptime_s);
            }
        }
        deadline.fetch_min(least, Ordering::AcqRel);
        self.count(class, Count::CrawlerChecked, u64::from(carved));
        removed
    }

    /// A bounded slice of the work that nobody waits for: the sweep for expired and flushed
    /// items, pages that drain, growth of the index that was put off. To be called about once a
    /// turn and now and then when idle; most calls do nothing. Ends the turn. True when there is
    /// more to do soon.
    pub fn maintain(&mut self, now: Now) -> bool {
        if now.boottime_ns.saturating_sub(self.swept_ns) < SWEEP_INTERVAL_NS && self.swept_ns != 0 {
            return false;
        }
        self.swept_ns = now.boottime_ns.max(1);
        self.begin();
        self.shared().note_time(now);
        let removed = self.sweep_slice(now);
        self.shrink(now);
        let checks = self.check_some();
        let store = self.shared();
        let drains = store.pages_draining() + store.pages_ripening() > 0;
        if drains {
            self.drain_some(now);
        }
        self.grow(now);
        if drains {
            self.turn_over(true);
        }
        self.quiesce();
        removed > 0 || checks || self.shared().drains() || self.shared().sweep_is_forced()
    }

    fn sweep_slice(&self, now: Now) -> u32 {
        for _ in 0..SWEEP_SKIPS_MAX.min(self.shared().page_count()) {
            let forced = self.shared().sweep_is_forced();
            let page = self.shared().next_swept_page();
            let PageState::Slab(class) = self.shared().page_state(page) else { continue };
            // Relaxed: a hint; an item that is linked now is met the next time round.
            let due = self.shared().page_meta(page).deadline_s.load(Ordering::Relaxed);
            if class != LINE_CLASS && (forced || due <= second(now)) {
                return self.remove_dead(page, class, Reason::Swept, now);
            }
        }
        0
    }
}
