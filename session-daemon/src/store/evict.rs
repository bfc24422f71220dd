//! Making room within a class: which items have to go. It owns the choice of victims and what is
//! remembered of them.
//!
//! The hand of a class passes its chunks in order. Of the items that it passes in a row, the dead
//! go, or else those that are worth least; reuse.rs says what an item is worth.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::buckets::Buckets;
use crate::store::classes::LINE_CLASS;
use crate::store::counters::Count;
use crate::store::failpoint::step;
use crate::store::item::{FREQ_MAX, State, Times};
use crate::store::layout::PageState;
use crate::store::reader::second;
use crate::store::reuse::{TICKS_PER_S, Tally, Worth, tick};
use crate::store::sync::Ordering;

/// Chunks that are compared with each other, at most: the hand claims as many at a time.
const COMPARED: usize = 64;
/// One in so many of them goes.
const VICTIM_SHARE: usize = 8;
/// Most items evicted ahead of need, and the share of a class's chunks as a divisor.
const AHEAD_MAX: u32 = 32;
const AHEAD_SHARE: u32 = 20;
/// Claims of the hand in one call.
const CLAIMS_MAX: u32 = 64;
/// A class asks for a page of another class each time it has evicted this part of a page's items.
const ASK_SHARE: u32 = 8;
/// Events of one worker after which the worth of items is computed anew, for each so many workers:
/// all of their tallies are summed.
const LEARN_EVERY: u32 = 4096;
const LEARN_WORKERS: usize = 4;

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
        self.look_at_share();
        if self.make_room_for(class, now) {
            return true;
        }
        // What was evicted before this may still have to wait for turns, and what drains too.
        if !self.sparing.get() || self.is_waiting() || self.shared().drains() {
            return false;
        }
        self.unprotected(|worker| {
            worker.look_at_share();
            worker.make_room_for(class, now)
        })
    }

    fn make_room_for(&mut self, class: Option<u32>, now: Now) -> bool {
        let Some(class) = class.filter(|class| *class != LINE_CLASS) else {
            return self.take_page_from_others(None, now);
        };
        // Relaxed: a hint; marking and evicting are exact.
        let pages = self.shared().class_meta(class).pages.load(Ordering::Relaxed);
        pages > 0 && self.evict_and_grow(class, now) > 0
            || self.take_page_from_others(Some(class), now)
    }

    /// Evicts from `class`, and now and then asks for a page of a class whose items are worth
    /// less.
    fn evict_and_grow(&mut self, class: u32, now: Now) -> u32 {
        self.learn_if_due(now);
        if self.spares_most_of(class) {
            let is_coming = self.is_waiting() || self.shared().pages_draining() > 0;
            return u32::from(!is_coming && self.take_page_from_others(Some(class), now));
        }
        self.know_margin(class, now);
        let evictions = &self.shared().class_meta(class).evictions;
        // Relaxed: a rate, not a count that must be exact.
        let due = (self.shared().chunks_per_page(class) / ASK_SHARE).max(1);
        if evictions.load(Ordering::Relaxed) >= due {
            evictions.store(0, Ordering::Relaxed);
            self.ask_for_page(class, now);
        }
        self.evict(class, self.ahead(class), now)
    }

    fn learn_if_due(&self, now: Now) {
        let share = self.shared().workers.len().div_ceil(LEARN_WORKERS) as u32;
        if self.events.get() < LEARN_EVERY * share {
            return;
        }
        self.events.set(0);
        let tallies: Vec<_> = self.shared().workers.iter().map(|shared| &shared.tally).collect();
        // Relaxed: an estimate.
        let items = self.shared().keys.0.load(Ordering::Relaxed);
        self.shared().reuse.learn(&tallies, u64::try_from(items).unwrap_or(0));
        self.shared().look_at_heat(now);
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
        // What was evicted in this turn is free when it has ended: it is not evicted for twice.
        let coming = store.epochs.limbo_len(self.id) as u32;
        if free.saturating_add(coming) < ahead && store.pool_len() == 0 {
            self.look_at_share();
            self.evict_and_grow(class, now);
        }
    }

    /// Evicts about `want` items of `class`; returns how many.
    pub(super) fn evict(&self, class: u32, want: u32, now: Now) -> u32 {
        let mut evicted = 0;
        let mut claims = 0;
        while evicted < want && claims < CLAIMS_MAX {
            let mut compared = [(Worth::NONE, 0); COMPARED];
            let mut len = 0;
            let mut dead = 0;
            let mut first = None;
            while len < COMPARED / 2 && claims < CLAIMS_MAX {
                let room = (COMPARED - len) as u32;
                let Some(claim) = self.shared().class_claim(class, room) else { break };
                claims += 1;
                // Once round a small class.
                if first.is_some_and(|(page, chunk)| page == claim.0 && chunk <= claim.1) {
                    break;
                }
                first = first.or(Some((claim.0, claim.1)));
                if self.shared().is_unchecked(claim.0) {
                    self.check_page(claim.0);
                }
                if self.shared().page_state(claim.0) == PageState::Slab(class) {
                    for idx in claim.1..claim.1 + claim.2 {
                        let chunk = self.shared().chunk(claim.0, class, idx);
                        match self.worth_or_remove(chunk, now) {
                            Ok(Some(worth)) => {
                                compared[len] = (worth, chunk);
                                len += 1;
                            }
                            Ok(None) => {}
                            Err(()) => dead += 1,
                        }
                    }
                }
            }
            evicted += dead;
            if dead == 0 {
                let most = self.shared().spared_from(class, claims);
                evicted += self.evict_least(class, &mut compared[..len], most, now);
            }
            if len == 0 && dead == 0 {
                break;
            }
        }
        self.shared().class_meta(class).evictions.fetch_add(evicted, Ordering::Relaxed);
        evicted
    }

    /// The worth of a linked item, if it may go; removes it if it is dead, which is the error.
    fn worth_or_remove(&self, chunk: u64, now: Now) -> Result<Option<Worth>, ()> {
        let state = self.shared().item_state(chunk);
        if !state.is_linked() {
            return Ok(None);
        }
        let times = self.shared().item_times(chunk);
        if times.successor().is_some() {
            return Ok(None);
        }
        if self.shared().is_over(chunk, times, now) && self.remove_item(chunk, Reason::Dead, now) {
            return Err(());
        }
        if self.spares(chunk) {
            return Ok(None);
        }
        Ok(Some(self.worth(state, times, now)))
    }

    /// What an item is worth now.
    pub(super) fn worth(&self, state: State, times: Times, now: Now) -> Worth {
        let age = tick(now).saturating_sub(times.last_access_tick());
        self.shared().reuse.worth(state.freq(), age)
    }

    /// Evicts those of the items that are worth least, and less than `most`.
    fn evict_least(&self, class: u32, items: &mut [(Worth, u64)], most: Worth, now: Now) -> u32 {
        let count = items.len().div_ceil(VICTIM_SHARE);
        if count == 0 {
            return 0;
        }
        items.select_nth_unstable(count - 1);
        let (mut evicted, mut sum) = (0, 0.0);
        for &(worth, item) in &items[..count] {
            if worth < most && self.remove_item(item, Reason::Room, now) {
                evicted += 1;
                sum += worth.rate();
            }
        }
        if evicted > 0 {
            self.shared().note_margin(class, Worth::new(sum / evicted as f32));
        }
        evicted
    }

    /// Removes an item that was seen linked in this turn; false if it is gone or not dead.
    pub(super) fn remove_item(&self, item: u64, reason: Reason, now: Now) -> bool {
        let store = self.shared();
        let (times, dead) = loop {
            let times = store.times(item);
            if times.successor().is_some() {
                return false;
            }
            let dead = store.is_over(item, times, now);
            if reason != Reason::Room && !dead {
                return false;
            }
            if store.supersede(item, times, 0) {
                break (times, dead);
            }
        };
        step("delete: decided");
        let lost = self.protects && reason == Reason::Room && !dead && store.is_protected(item);
        let hash = store.item_hash(item);
        let state = self.bury(hash, item, 0);
        if self.evicted_noted && reason == Reason::Room && !dead {
            self.note_evicted(item, state, times, now);
        }
        if reason == Reason::Room && !dead {
            self.remember(hash, state, times, now);
        }
        let reason = if dead && reason == Reason::Room { Reason::Dead } else { reason };
        if lost {
            self.count(state.class(), Count::ProtectedLost, 1);
        }
        self.count_removal(state, times, reason, now);
        true
    }

    /// Leaves a ghost of an evicted item.
    fn remember(&self, hash: u64, state: State, times: Times, now: Now) {
        let (freq, last_s) = (state.freq(), times.last_access_s());
        self.tally().evicted(freq);
        if let Some(old) = self.shared().ghosts.insert(hash, freq, last_s, second(now)) {
            self.tally().forgotten(old.freq, old.age_s.saturating_mul(TICKS_PER_S));
        }
        self.events.set(self.events.get() + 1);
    }

    /// How often the item of a key that is stored now had been used when it was evicted, with this
    /// use; 0 if that is not remembered.
    pub(super) fn returning(&self, hash: u64, now: Now) -> u64 {
        let Some(ghost) = self.shared().ghosts.take(hash, second(now)) else { return 0 };
        self.tally().returned(ghost.freq, ghost.age_s.saturating_mul(TICKS_PER_S));
        self.events.set(self.events.get() + 1);
        (ghost.freq + 1).min(FREQ_MAX)
    }

    /// Notes the use of an item that had been used `freq` times, the last time `age` ticks ago.
    pub(super) fn note_use(&self, freq: u64, age: u32) {
        self.tally().hit(freq, age);
        self.events.set(self.events.get() + 1);
    }

    fn tally(&self) -> &Tally {
        &self.shared().workers[self.id].tally
    }

    /// Counts an item that is gone by why it went.
    pub(super) fn count_removal(&self, state: State, times: Times, reason: Reason, now: Now) {
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
}
