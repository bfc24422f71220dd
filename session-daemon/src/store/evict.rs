//! Making room: eviction by a clock for each class, moving pages between classes, expiry.
//! It owns the choice of what has to go.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::classes::LINE_CLASS;
use crate::store::counters::Count;
use crate::store::epoch::Retired;
use crate::store::failpoint::step;
use crate::store::item::{PIECE_OWNER, State, Times};
use crate::store::layout::PageState;
use crate::store::reader::second;
use crate::store::sync::{Ordering, fence};

/// Chunks that the hand passes in one claim.
const CLAIM_CHUNKS: u32 = 32;
/// Chunks that the hand passes in one call before it takes items that were used again.
const SCAN_MAX: u32 = 512;
/// Most items evicted ahead of need, and the share of a class's chunks as a divisor.
const AHEAD_MAX: u32 = 32;
const AHEAD_SHARE: u32 = 20;
/// Pages looked at to choose one to move, and items looked at in each.
const PAGE_SAMPLES: u32 = 16;
const ITEM_SAMPLES: u32 = 8;
/// What a free or dead chunk counts in seconds of age.
const DEAD_AGE_S: u64 = 1 << 24;
/// A page is moved when its items are older than the evicted ones by this ratio, in quarters.
const AGE_RATIO_X4: u64 = 5;
/// Pages that a store without eviction looks through for dead items before it refuses.
const DEAD_PAGES: u32 = 16;
/// Time between two sweeps of a page for expired items by one worker.
const SWEEP_INTERVAL_NS: u64 = 500_000;
/// Pages without anything to expire that one call skips.
const SWEEP_SKIPS_MAX: u32 = 64;

/// Why an item goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// To make room, whatever it is.
    Room,
    /// It is dead, and room is needed.
    Dead,
    /// It is dead, and the sweep or a lookup found it.
    Swept,
}

impl Worker {
    /// Makes room for a chunk of `class`, or for a page. True if anything was removed.
    pub(super) fn make_room(&mut self, class: Option<u32>, now: Now) -> bool {
        if !self.shared().config.evictions {
            return self.reclaim_dead(now);
        }
        let Some(class) = class.filter(|class| *class != LINE_CLASS) else {
            return self.steal_page(None, now);
        };
        // Relaxed: a hint; marking and evicting are exact.
        let pages = self.shared().class_meta(class).pages.load(Ordering::Relaxed);
        pages > 0 && self.evict_and_grow(class, now) > 0 || self.steal_page(None, now)
    }

    /// Evicts from `class`, and moves a page to it for each page's worth of evictions if another
    /// class holds older items.
    fn evict_and_grow(&mut self, class: u32, now: Now) -> u32 {
        let evictions = &self.shared().class_meta(class).evictions;
        // Relaxed: a rate, not a count that must be exact.
        if evictions.load(Ordering::Relaxed) >= self.shared().chunks_per_page(class) {
            evictions.store(0, Ordering::Relaxed);
            self.steal_page(Some(class), now);
        }
        self.evict(class, self.ahead(class), now)
    }

    /// How many items of `class` are evicted at a time.
    fn ahead(&self, class: u32) -> u32 {
        let pages = self.shared().class_meta(class).pages.load(Ordering::Relaxed);
        let chunks = pages * self.shared().chunks_per_page(class);
        (chunks / AHEAD_SHARE).clamp(1, AHEAD_MAX)
    }

    /// Evicts a few items when the free chunks of `class` run out and no page is left, so that
    /// later allocations need not wait for turns to end.
    pub(super) fn evict_ahead(&mut self, class: u32, now: Now) {
        let store = self.shared();
        if class == LINE_CLASS || !store.config.evictions {
            return;
        }
        let ahead = self.ahead(class);
        // Relaxed: a hint.
        let free = store.class_meta(class).free.load(Ordering::Relaxed);
        if free < ahead && store.pool_len() == 0 {
            self.evict_and_grow(class, now);
        }
    }

    /// Evicts up to `want` items of `class`; returns how many.
    fn evict(&self, class: u32, want: u32, now: Now) -> u32 {
        let (mut evicted, mut passed) = (0, 0);
        while evicted < want && passed < SCAN_MAX * 3 {
            let Some((page, first, count)) = self.shared().class_claim(class, CLAIM_CHUNKS) else {
                break;
            };
            if self.shared().page_state(page) == PageState::Slab(class) {
                let pressed = if evicted > 0 { 0 } else { passed / SCAN_MAX };
                for idx in first..first + count {
                    let chunk = self.shared().chunk(page, class, idx);
                    evicted += u32::from(self.evict_or_age(chunk, u64::from(pressed) * 2, now));
                }
            }
            passed += count.max(1);
        }
        self.shared().class_meta(class).evictions.fetch_add(evicted, Ordering::Relaxed);
        evicted
    }

    /// Passes the hand over a chunk: an item that was used more than `spared` times stays.
    fn evict_or_age(&self, chunk: u64, spared: u64, now: Now) -> bool {
        let state = self.shared().item_state(chunk);
        if !state.is_linked() {
            return false;
        }
        if self.shared().is_dead(chunk, now) {
            return self.remove_item(chunk, Reason::Dead, now);
        }
        if state.freq() > spared {
            // Relaxed: the count orders nothing. A lost race is another access.
            let word = self.shared().region.word(chunk);
            let (new, relaxed) = (state.aged().0, Ordering::Relaxed);
            let _ = word.compare_exchange(state.0, new, relaxed, relaxed);
            return false;
        }
        self.remove_item(chunk, Reason::Room, now)
    }

    /// Removes an item that was seen linked in this turn; false if it is gone or not dead.
    pub(super) fn remove_item(&self, item: u64, reason: Reason, now: Now) -> bool {
        let hash = self.shared().item_hash(item);
        let mut bucket = self.shared().lock_bucket(hash);
        let Some(slot) = bucket.find_item(hash, item) else { return false };
        let dead = self.shared().is_dead(item, now);
        if reason != Reason::Room && !dead {
            return false;
        }
        let times = self.shared().item_times(item);
        let state = self.unlink(item);
        let line = bucket.remove(slot);
        drop(bucket);
        if self.evicted_noted && reason == Reason::Room && !dead {
            self.note_evicted(item, state, times, now);
        }
        self.retire_removed(item, line);
        let reason = if dead && reason == Reason::Room { Reason::Dead } else { reason };
        self.count_removal(state, times, reason, now);
        true
    }

    /// Retires an item and the overflow line that it left empty.
    pub(super) fn retire_removed(&self, item: u64, line: Option<u64>) {
        if let Some(line) = line {
            self.shared().epochs.retire(self.id, Retired::Line(line));
        }
        self.retire_item(item);
        self.keys_added.set(self.keys_added.get() - 1);
    }

    fn count_removal(&self, state: State, times: Times, reason: Reason, now: Now) {
        let class = state.class();
        if reason != Reason::Room {
            let count =
                if reason == Reason::Dead { Count::Reclaimed } else { Count::CrawlerReclaimed };
            self.count(class, count, 1);
            if !state.is_fetched() && times.is_expired(second(now)) {
                self.count(class, Count::ExpiredUnfetched, 1);
            }
            return;
        }
        self.count(class, Count::Evicted, 1);
        self.count(class, Count::EvictedNonzero, u64::from(times.exptime_s() != 0));
        self.count(class, Count::EvictedUnfetched, u64::from(!state.is_fetched()));
        self.count(class, Count::EvictedActive, u64::from(state.freq() > 0));
        let age_s = second(now).saturating_sub(times.last_access_s());
        let smoothed = &self.shared().class_meta(class).age_s_x8;
        // Relaxed: an estimate; a lost update does not matter.
        let old = smoothed.load(Ordering::Relaxed);
        smoothed.store((old - old / 8).saturating_add(age_s), Ordering::Relaxed);
    }

    /// Begins to drain the page whose items are the oldest of a sample. With `class`, only a page
    /// of another class, and only if it is older than what that class evicts.
    fn steal_page(&mut self, class: Option<u32>, now: Now) -> bool {
        let Some((page, state, age_s)) = self.choose_page(class, now) else { return false };
        if let Some(class) = class {
            let own_x8 = self.shared().class_meta(class).age_s_x8.load(Ordering::Relaxed);
            if age_s * 4 * 8 <= u64::from(own_x8) * AGE_RATIO_X4 {
                return false;
            }
            self.count(class, Count::PagesMoved, 1);
        }
        match state {
            PageState::Slab(from) => self.drain(page, from, now),
            PageState::Extent => self.evict_owner(self.shared().layout.page(page), now),
            _ => false,
        }
    }

    fn choose_page(&self, not: Option<u32>, now: Now) -> Option<(u32, PageState, u64)> {
        let pages = self.shared().layout.pages;
        let sampled = (0..PAGE_SAMPLES).map(|_| self.random(pages));
        let best = sampled.filter_map(|page| self.page_age(page, not, now)).max_by_key(|c| c.2);
        if best.is_some() || not.is_some() {
            return best;
        }
        let start = self.random(pages);
        (0..pages).find_map(|idx| self.page_age((start + idx) % pages, None, now))
    }

    /// A page that could be drained, and the mean age of its items in seconds.
    fn page_age(&self, page: u32, not: Option<u32>, now: Now) -> Option<(u32, PageState, u64)> {
        let state = self.shared().page_state(page);
        let age_s = match state {
            PageState::Slab(class) if class != LINE_CLASS && Some(class) != not => {
                let per_page = self.shared().chunks_per_page(class);
                let carved = self.shared().page_carved(class, page);
                let samples = ITEM_SAMPLES.min(per_page);
                let ages = (0..samples).map(|_| {
                    let idx = self.random(per_page);
                    let chunk = self.shared().chunk(page, class, idx);
                    if idx < carved { self.chunk_age(chunk, now) } else { DEAD_AGE_S }
                });
                ages.sum::<u64>() / u64::from(samples)
            }
            PageState::Extent => {
                let owner = self.owner(self.shared().layout.page(page))?;
                self.chunk_age(owner, now)
            }
            _ => return None,
        };
        Some((page, state, age_s))
    }

    fn chunk_age(&self, chunk: u64, now: Now) -> u64 {
        let state = self.shared().item_state(chunk);
        let item = if state.is_piece() { self.owner(chunk) } else { Some(chunk) };
        match item {
            Some(item) if self.shared().item_state(item).is_linked() => {
                if self.shared().is_dead(item, now) {
                    return DEAD_AGE_S;
                }
                let last = self.shared().item_times(item).last_access_s();
                u64::from(second(now).saturating_sub(last)) / (1 + state.freq().min(1))
            }
            // An upload's piece: its page cannot be had before the upload ends.
            None => 0,
            Some(_) => DEAD_AGE_S,
        }
    }

    /// The item that a piece belongs to, if it is linked. Safe to follow until the turn ends.
    fn owner(&self, piece: u64) -> Option<u64> {
        // Acquire: the item is complete; pairs with the Release in `publish`.
        let owner = self.shared().region.word(piece + PIECE_OWNER).load(Ordering::Acquire);
        (owner != 0).then_some(owner)
    }

    fn evict_owner(&self, piece: u64, now: Now) -> bool {
        self.owner(piece).is_some_and(|owner| {
            self.shared().item_state(owner).is_linked()
                && self.remove_item(owner, Reason::Room, now)
        })
    }

    /// Stops allocation from a page and empties it.
    pub(super) fn drain(&mut self, page: u32, class: u32, now: Now) -> bool {
        if !self.shared().class_mark_draining(class, page) {
            return false;
        }
        self.shared().epochs.retire(self.id, Retired::DrainMark(page));
        self.sweep_page(page, class, now);
        self.shared().draining.lock().push(page);
        true
    }

    /// Stops allocation from a page that holds nothing. It goes to the pool when its turns end.
    fn drain_empty(&self, page: u32, class: u32) -> bool {
        self.raid_page(class, page);
        // Exact, under the lock of the class: who took a chunk of the page meanwhile keeps it.
        let marked = self.shared().class_mark_empty_draining(class, page);
        if marked {
            self.shared().epochs.retire(self.id, Retired::DrainMark(page));
        }
        marked
    }

    /// Removes what is in a draining page now.
    fn sweep_page(&self, page: u32, class: u32, now: Now) -> bool {
        let Some(carved) = self.shared().drain_walk_begin(class, page) else { return false };
        let mut removed = false;
        if class != LINE_CLASS {
            for idx in 0..carved {
                let chunk = self.shared().chunk(page, class, idx);
                let state = self.shared().item_state(chunk);
                if state.is_piece() {
                    removed |= self.evict_owner(chunk, now);
                } else if state.is_linked() {
                    removed |= self.remove_item(chunk, Reason::Room, now);
                }
            }
        }
        self.raid_page(class, page);
        step("drain: swept");
        self.shared().drain_walk_end(class, page);
        removed
    }

    /// Goes over the pages that still drain: what was private when they were marked may be linked
    /// or free by now.
    pub(super) fn sweep_draining(&mut self, now: Now) -> bool {
        let mut pages = std::mem::take(&mut *self.shared().draining.lock());
        let mut removed = false;
        pages.retain(|&page| match self.shared().page_state(page) {
            PageState::Draining(class) => {
                removed |= self.sweep_page(page, class, now);
                self.shared().page_state(page) == PageState::Draining(class)
            }
            _ => false,
        });
        let mut draining = self.shared().draining.lock();
        draining.extend(pages);
        draining.sort_unstable();
        draining.dedup();
        removed
    }

    /// Looks for dead items and empty pages in a few pages of a store that does not evict.
    fn reclaim_dead(&mut self, now: Now) -> bool {
        let mut removed = false;
        for _ in 0..DEAD_PAGES.min(self.shared().layout.pages) {
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
    fn remove_dead(&self, page: u32, class: u32, reason: Reason, now: Now) -> u32 {
        let deadline = &self.shared().page_meta(page).deadline_s;
        // SeqCst: who links or touches an item looks at the deadline afterwards: either the walk
        // sees the item's times, or `note_deadline` sees this.
        deadline.swap(u32::MAX, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let (mut removed, mut least) = (0, u32::MAX);
        let carved = self.shared().page_carved(class, page);
        for idx in 0..carved {
            let chunk = self.shared().chunk(page, class, idx);
            if !self.shared().item_state(chunk).is_linked() {
                continue;
            }
            if self.shared().is_dead(chunk, now) && self.remove_item(chunk, reason, now) {
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
        let drains = !self.shared().draining.lock().is_empty();
        if drains {
            self.sweep_draining(now);
        }
        self.grow(now);
        if drains {
            self.turn_over(true);
        }
        self.quiesce();
        removed > 0 || drains
    }

    fn sweep_slice(&self, now: Now) -> u32 {
        for _ in 0..SWEEP_SKIPS_MAX.min(self.shared().layout.pages) {
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
