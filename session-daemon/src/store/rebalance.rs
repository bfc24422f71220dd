//! Moving pages between uses: which page a class gives up, and what becomes of its items.
//! It owns the drain of pages.
//!
//! A page is given up by the class whose least items are worth least for their bytes. It drains in
//! slices, a slice beside each store: items that the hand of the class would have spared move to
//! other chunks of the class, the rest is evicted.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::buckets::Buckets;
use crate::store::classes::LINE_CLASS;
use crate::store::counters::Count;
use crate::store::epoch::Retired;
use crate::store::evict::Reason;
use crate::store::failpoint::step;
use crate::store::item::{ACCESSES, CAS, GONE, LINKED, PIECE_OWNER, TIMES};
use crate::store::layout::PageState;
use crate::store::reuse::{TICKS_PER_S, Worth};
use crate::store::sync::Ordering;
use crate::store::{Store, Worker};

/// Pages looked at to choose one to move, and chunks looked at in each.
const PAGE_SAMPLES: u32 = 8;
const CHUNK_SAMPLES: usize = 16;
/// The least of those chunks, that stand for what the class would lose.
const LEAST_SAMPLES: usize = 2;
/// A page is moved when the bytes of the class that asks are worth more by this ratio: much more
/// at first, less when the class has asked so often in vain.
const WORTH_RATIOS: [(u32, f32); 3] = [(32, 1.5), (8, 2.0), (0, 4.0)];
/// A class that has less than this part of its usual hits gives up several pages at a time.
const COLD: f32 = 0.8;
const COLD_PAGES: u32 = 8;
/// Chunks of draining pages that are looked at beside one store.
const DRAIN_CHUNKS: u32 = 64;
/// Slices that wait for a chunk to move an item to, before what is left of the page is evicted.
const WAITS_MAX: u32 = 64;
/// What is worth so many times the usual victim is spared by the hand, and the claims after which
/// it is twice as many, and after which nothing is.
const SPARED_RATIO: f32 = 2.0;
const SPARED_CLAIMS: u32 = 10;
const SPARING_CLAIMS: u32 = 30;
/// Weight of the newest victims in what a class's least items are worth.
const MARGIN_SHARE: f32 = 0.02;

/// A page that could be given up, and what a byte of it is worth.
#[derive(Clone, Copy, Debug)]
struct Offer {
    page: u32,
    state: PageState,
    /// Of the least items of its class, as far as the class is used.
    margin: f32,
    /// Of its own items on average.
    mean: f32,
    /// Protected items have to move for it.
    moves: bool,
}

impl Store {
    /// Whether a page drains, as one does at a time without need. One that only waits for a
    /// private chunk, such as a client's half-sent value, does not count.
    pub(super) fn drains(&self) -> bool {
        // Relaxed: a hint.
        let is_begun = |page: &u32| {
            matches!(self.page_state(*page), PageState::Draining(_))
                && self.page_meta(*page).drain_passed.load(Ordering::Relaxed) == 0
        };
        self.lists.draining.iter().any(|page| is_begun(&page))
    }

    /// Measures how much the classes are used.
    pub(super) fn look_at_heat(&self, now: Now) {
        let classes = (0..self.classes.count()).map(|class| {
            // Relaxed: an estimate.
            let pages = u64::from(self.class_meta(class).pages.load(Ordering::Relaxed));
            (self.class_hits(class), pages * self.layout.page_len() as u64)
        });
        self.heat.look(now.boottime_ns, 1_000_000_000 / u64::from(TICKS_PER_S), classes);
    }

    /// What the bytes of a class are worth: hits a tick and byte of its least items.
    fn margin(&self, class: u32) -> f32 {
        // Relaxed: an estimate.
        let rate = Worth::from_bits(self.margins[class as usize].load(Ordering::Relaxed)).rate();
        rate / self.classes.size(class) as f32
    }

    /// What the hand spares although nothing near it is worth less: what is worth several times
    /// what victims are; the more the longer the hand has found none, and nothing in the end.
    pub(super) fn spared_from(&self, class: u32, claims: u32) -> Worth {
        let claims = claims.min(SPARING_CLAIMS + 1);
        // Relaxed: an estimate.
        let rate = Worth::from_bits(self.margins[class as usize].load(Ordering::Relaxed)).rate();
        let spared = rate * SPARED_RATIO * (1 << (claims / SPARED_CLAIMS)) as f32;
        Worth::new(if rate == 0.0 || claims > SPARING_CLAIMS { f32::MAX } else { spared })
    }

    /// Notes what victims of a class were worth.
    pub(super) fn note_margin(&self, class: u32, worth: Worth) {
        let margin = &self.margins[class as usize];
        // Relaxed: an estimate; a lost update does not matter.
        let old = Worth::from_bits(margin.load(Ordering::Relaxed)).rate();
        let new = if old == 0.0 { worth.rate() } else { old + (worth.rate() - old) * MARGIN_SHARE };
        margin.store(Worth::new(new).bits(), Ordering::Relaxed);
    }
}

impl Worker {
    /// Begins to drain a page of another class if its bytes are worth less than this class's.
    pub(super) fn ask_for_page(&mut self, class: u32, now: Now) {
        if self.shared().drains() {
            return;
        }
        let asked = &self.shared().asked[class as usize];
        // Relaxed: a rate, not a count that must be exact.
        let times = asked.load(Ordering::Relaxed);
        let ratio = WORTH_RATIOS.iter().find(|(least, _)| times >= *least).map_or(4.0, |r| r.1);
        for taken in 0..COLD_PAGES {
            let Some(offer) = self.choose_page(Some(class), now) else { return };
            let is_cheap =
                offer.margin * ratio < self.shared().margin(class) * self.shared().heat.of(class);
            if taken == 0 {
                asked.store(if is_cheap { 0 } else { times.saturating_add(1) }, Ordering::Relaxed);
            } else if !self.is_cold(&offer) {
                return;
            }
            if !is_cheap {
                return;
            }
            // A large item goes as a whole, and its pages with it: none of them moves to the class.
            if self.give_up_page(&offer, None, now) && offer.state != PageState::Extent {
                self.count(class, Count::PagesMoved, 1);
            }
        }
    }

    /// Whether a page is of a class that is used much less than it was.
    fn is_cold(&self, offer: &Offer) -> bool {
        matches!(offer.state, PageState::Slab(class) if self.shared().heat.of(class) < COLD)
    }

    /// Empties the page that is worth least, of any class, at once: for `class`, or for the pool.
    /// False if that brings no memory.
    pub(super) fn take_page_from_others(&mut self, class: Option<u32>, now: Now) -> bool {
        let Some(offer) = self.choose_page(None, now) else { return false };
        let is_given_up = self.give_up_page(&offer, class, now);
        if let PageState::Extent = offer.state {
            // The whole item goes, and its pages with it: none moves.
            return is_given_up;
        }
        if is_given_up {
            self.count(LINE_CLASS, Count::PagesMoved, 1);
        }
        let removed = self.drain_all(now);
        // It was empty, or something in it could go: if not by this worker it has gone by another.
        removed || !offer.moves
    }

    /// Has an estimate of what a class's victims are worth before the first is chosen.
    pub(super) fn know_margin(&self, class: u32, now: Now) {
        // Relaxed: an estimate.
        if self.shared().margins[class as usize].load(Ordering::Relaxed) == 0 {
            let pages = self.shared().page_count();
            for _ in 0..PAGE_SAMPLES {
                self.page_offer(self.random(pages), None, now);
            }
        }
    }

    fn give_up_page(&self, offer: &Offer, heir: Option<u32>, now: Now) -> bool {
        match offer.state {
            PageState::Slab(class) => {
                // Who is asked for less than promised has fewer items that are worth a move.
                let size = self.shared().classes.size(class) as f32;
                let least = self.shared().margin(class) * size / self.shared().heat.of(class);
                self.drain(offer.page, class, Worth::new(least), heir)
            }
            PageState::Extent => self.evict_owner(self.shared().layout.page(offer.page), now),
            _ => false,
        }
    }

    /// The cheapest of some pages: for a class, of which the bytes of the page's class are worth
    /// least, and for a use that cannot wait, of which its own bytes are.
    fn choose_page(&self, asking: Option<u32>, now: Now) -> Option<Offer> {
        let pages = self.shared().page_count();
        let price = |offer: &Offer| {
            if asking.is_some() { (offer.margin, offer.mean) } else { (offer.mean, offer.margin) }
        };
        let sampled = (0..PAGE_SAMPLES).map(|_| self.random(pages));
        let offers = sampled.filter_map(|page| self.page_offer(page, asking, now));
        let best = offers.min_by(|a, b| {
            (a.moves.cmp(&b.moves))
                .then(price(a).0.total_cmp(&price(b).0))
                .then(price(a).1.total_cmp(&price(b).1))
        });
        if best.is_some_and(|best| !best.moves) || asking.is_some() {
            return best;
        }
        let start = self.random(pages);
        let all = || (0..pages).filter_map(|idx| self.page_offer((start + idx) % pages, None, now));
        all().find(|offer| !offer.moves).or(best).or_else(|| {
            // None at all, unless pages were found from which items have to move.
            self.sparing.get().then(|| all().next()).flatten()
        })
    }

    /// A page that could be given up, and what it is worth. The sample also tells of its class.
    fn page_offer(&self, page: u32, asking: Option<u32>, now: Now) -> Option<Offer> {
        let state = self.shared().page_state(page);
        let mut moves = false;
        let (margin, mean) = match state {
            PageState::Slab(class) if class != LINE_CLASS && Some(class) != asking => {
                moves = self.may_give_up(page, class, asking.is_some())?;
                let (least, mean) = self.sample_page(page, class, now);
                if mean == 0.0 && !moves && !self.may_empty(page, class, now) {
                    return None;
                }
                let size = self.shared().classes.size(class) as f32;
                self.shared().note_margin(class, Worth::new(least * size));
                self.shared().heat.note_promise(class, mean);
                (self.shared().margin(class) * self.shared().heat.of(class), mean)
            }
            PageState::Extent => {
                let value = self.chunk_value(self.owner(self.shared().layout.page(page))?, now)?;
                (value, value)
            }
            _ => return None,
        };
        Some(Offer { page, state, margin, mean, moves })
    }

    /// What a byte is worth of the least items of a page, and of all that were sampled.
    fn sample_page(&self, page: u32, class: u32, now: Now) -> (f32, f32) {
        let per_page = self.shared().chunks_per_page(class);
        let carved = self.shared().page_carved(page);
        let mut values = [0.0; CHUNK_SAMPLES];
        let mut len = 0;
        for _ in 0..CHUNK_SAMPLES {
            let idx = self.random(per_page);
            // A free chunk waits to be used: it says nothing of the class.
            if idx < carved
                && let Some(value) = self.chunk_value(self.shared().chunk(page, class, idx), now)
            {
                values[len] = value;
                len += 1;
            }
        }
        let values = &mut values[..len];
        values.sort_unstable_by(f32::total_cmp);
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len().max(1) as f32;
        (mean(&values[..len.min(LEAST_SAMPLES)]), mean(values) * len as f32 / CHUNK_SAMPLES as f32)
    }

    /// Whether a page of which a sample found nothing to be worth anything is empty, or has an item
    /// that may go. What is private would only keep it from others.
    fn may_empty(&self, page: u32, class: u32, now: Now) -> bool {
        let store = self.shared();
        let view = store.page_meta(page).word.view();
        let has_value = |idx| self.chunk_value(store.chunk(page, class, idx), now).is_some();
        view.out() == 0 || (0..view.carved()).any(has_value)
    }

    /// What a byte of the item in a chunk is worth: 0 for a dead item, nothing for a free chunk
    /// and for one that does not go.
    fn chunk_value(&self, chunk: u64, now: Now) -> Option<f32> {
        let state = self.shared().item_state(chunk);
        // An upload's piece has no owner: its page cannot be had before the upload ends.
        let item = if state.is_piece() { self.owner(chunk)? } else { chunk };
        let state = self.shared().item_state(item);
        if !state.is_linked() {
            return None;
        }
        let times = self.shared().item_times(item);
        if times.successor().is_some() {
            return None;
        }
        if self.shared().is_over(item, times, now) {
            return Some(0.0);
        }
        if self.spares(item) {
            return None;
        }
        let worth = self.worth(state, times, now);
        let len = if state.is_extent() {
            state.item_len()
        } else {
            self.shared().classes.size(state.class())
        };
        Some(worth.rate() / len as f32)
    }

    /// The item that a piece belongs to, if it is linked. Safe to follow until the turn ends.
    fn owner(&self, piece: u64) -> Option<u64> {
        // Acquire: the item is complete; pairs with the Release in `publish`.
        let owner = self.shared().region.word(piece + PIECE_OWNER).load(Ordering::Acquire);
        self.shared().owner_of(owner)
    }

    fn evict_owner(&self, piece: u64, now: Now) -> bool {
        self.owner(piece).is_some_and(|owner| {
            self.shared().item_state(owner).is_linked()
                && (!self.spares(owner) || self.shared().is_dead(owner, now))
                && self.remove_item(owner, Reason::Room, now)
        })
    }

    /// Stops allocation from a page, whose items are then removed or moved in slices. `heir` is the
    /// class that gets it; none, and the index's own, leave it to the pool.
    pub(super) fn drain(&self, page: u32, class: u32, least: Worth, heir: Option<u32>) -> bool {
        if self.shared().is_unchecked(page) {
            self.check_page(page);
        }
        let store = self.shared();
        if !store.class_mark_draining(class, page, |_| true) {
            return false;
        }
        let meta = store.page_meta(page);
        // Relaxed throughout: published with the page in the set. Who meets them before that looks
        // at some chunks twice, or moves what could go.
        let relaxed = Ordering::Relaxed;
        for word in [&meta.drain_next, &meta.drain_waits, &meta.drain_passed] {
            word.store(0, relaxed);
        }
        meta.drain_least.store(least.bits(), relaxed);
        // Before the page is passed on, which this turn holds back.
        let heir = heir.filter(|class| *class != LINE_CLASS);
        meta.heir.store(heir.map_or(0, |class| class + 1), relaxed);
        store.lists.draining.insert(page);
        self.retire_if_drained(page);
        // It may have drained before it was in the set.
        if store.page_state(page) != PageState::Draining(class) {
            store.forget_draining(page);
        }
        true
    }

    /// Stops allocation from a page that holds nothing. It goes to the pool when turns have ended.
    pub(super) fn drain_empty(&self, page: u32, class: u32) -> bool {
        self.raid_page(class, page);
        self.give_up_empty(page, class)
    }

    /// [`Worker::drain_empty`] for a page of which no magazine has a chunk.
    pub(super) fn give_up_empty(&self, page: u32, class: u32) -> bool {
        // Exact: who has taken a chunk of the page meanwhile keeps it.
        let marked = self.shared().class_mark_draining(class, page, |view| view.out() == 0);
        if marked {
            // Relaxed: nobody else retires a page of which no chunk is out.
            self.shared().page_meta(page).heir.store(0, Ordering::Relaxed);
            self.retire_if_drained(page);
        }
        marked
    }

    fn retire_if_drained(&self, page: u32) {
        if self.shared().is_drained(page) {
            self.shared().epochs.retire(self.id, Retired::Page(page));
        }
    }

    /// A slice of the work on draining pages: at most [`DRAIN_CHUNKS`] chunks of one page.
    pub(super) fn drain_some(&self, now: Now) -> bool {
        let lists = &self.shared().lists;
        // Relaxed: where to look.
        let Some(page) = lists.draining.next_around(lists.drain_at.load(Ordering::Relaxed)) else {
            return false;
        };
        // The others come first next time.
        lists.drain_at.store(page + 1, Ordering::Relaxed);
        self.look_at_share();
        self.drain_page(page, DRAIN_CHUNKS, false, now)
    }

    /// Empties all draining pages without regard to what is in them: an allocation waits.
    pub(super) fn drain_all(&self, now: Now) -> bool {
        self.look_at_share();
        let mut removed = false;
        for page in self.shared().lists.draining.iter() {
            removed |= self.drain_page(page, u32::MAX, true, now);
        }
        removed
    }

    /// Looks at the next chunks of a page that drains, or from the first on where it is `urgent`.
    /// Others may do so at the same time. True if anything was removed.
    fn drain_page(&self, page: u32, most: u32, urgent: bool, now: Now) -> bool {
        let store = self.shared();
        let PageState::Draining(class) = store.page_state(page) else {
            store.forget_draining(page);
            return false;
        };
        let meta = store.page_meta(page);
        // The turn keeps the page, and its chunks, what they are.
        let carved = store.page_carved(page);
        // Relaxed throughout: where to go on; chunks that are looked at twice do no harm.
        let relaxed = Ordering::Relaxed;
        let mut next = if urgent { 0 } else { meta.drain_next.load(relaxed) };
        let end = next.saturating_add(most).min(carved);
        let mut removed = false;
        while next < end && class != LINE_CLASS {
            let chunk = store.chunk(page, class, next);
            match self.clear_chunk(chunk, page, class, urgent, now) {
                Some(cleared) => removed |= cleared,
                None => break,
            }
            next += 1;
        }
        if next >= carved || class == LINE_CLASS {
            next = 0;
            meta.drain_passed.store(1, relaxed);
        }
        meta.drain_next.store(next, relaxed);
        if meta.drain_passed.load(relaxed) == 1 {
            self.raid_page(class, page);
        }
        step("drain: swept");
        removed
    }

    /// Moves or removes what is in a chunk of a draining page; `None` to try again later.
    fn clear_chunk(
        &self,
        chunk: u64,
        page: u32,
        class: u32,
        urgent: bool,
        now: Now,
    ) -> Option<bool> {
        let meta = self.shared().page_meta(page);
        // Relaxed: written before the page was in the set, or counted up by anybody.
        let least = Worth::from_bits(meta.drain_least.load(Ordering::Relaxed));
        let may_wait = || !urgent && meta.drain_waits.load(Ordering::Relaxed) < WAITS_MAX;
        let state = self.shared().item_state(chunk);
        if state.is_piece() {
            return Some(self.evict_owner(chunk, now));
        }
        if !state.is_linked() {
            return Some(false);
        }
        let times = self.shared().item_times(chunk);
        if times.successor().is_some() {
            return Some(false);
        }
        let spared = self.spares(chunk) && !self.shared().is_over(chunk, times, now);
        if spared && state.is_extent() {
            return Some(false);
        }
        let moves = may_wait()
            && !state.is_extent()
            && self.worth(state, times, now) >= least
            && !self.shared().is_over(chunk, times, now);
        if !moves && !spared {
            return Some(self.remove_item(chunk, Reason::Room, now));
        }
        let Some(target) = self.spare_chunk(class) else {
            meta.drain_waits.fetch_add(1, Ordering::Relaxed);
            self.evict(class, 1, now);
            // What is spared stays where it is until a chunk is free; the others do not wait.
            return (spared && !may_wait()).then_some(false);
        };
        if !self.move_item(chunk, target) {
            self.give_chunk(target);
        }
        Some(true)
    }

    /// Moves an item that was seen linked in this turn to another chunk of its class; false if it
    /// is gone.
    fn move_item(&self, item: u64, target: u64) -> bool {
        let store = self.shared();
        let region = &store.region;
        let state = store.item_state(item);
        let times = store.times(item);
        if times.successor().is_some() {
            return false;
        }
        // Relaxed: published by the state word.
        region.word(target + TIMES).store(times.0, Ordering::Relaxed);
        region.word(target + CAS).store(store.item_cas(item).0, Ordering::Relaxed);
        store.copy_item(item, target, state);
        step("move: copied");
        // Release: the copy is complete; pairs with the Acquire in `item_state`.
        region.word(target).store(state.0 & !(LINKED | GONE), Ordering::Release);
        if !store.supersede(item, times, target) {
            return false;
        }
        step("move: decided");
        self.count_linked(target, state);
        let hash = store.item_hash(item);
        // A reader outside the reclamation scheme must not take the place for what stood there
        // before the item had moved twice: the stamp is the same.
        store.touch_version(hash);
        let last = self.bury(hash, item, target);
        // What was set since the copy goes over. Relaxed: bits that order nothing.
        region.word(target).fetch_or((last.0 & !state.0) & ACCESSES, Ordering::Relaxed);
        self.note_deadline(target, times);
        self.count(state.class(), Count::Moved, 1);
        step("move: done");
        true
    }
}
