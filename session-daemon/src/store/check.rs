//! The check behind a start that goes on with what a killed process left: it gives back the memory
//! that only the dead knew of, a page at a time, while the store serves.
//!
//! A page that was not checked gives no chunks and takes none: what ends in it stays as it is. So
//! in such a page nothing is private, and each chunk is one of four: what an item that counts
//! needs; what ended in this incarnation, whose ender gives it back; what ended in an earlier one
//! or never counted, which the check takes out of the index and retires; or free. Pieces are
//! decided when all items have said which are theirs, overflow lines when all buckets have.
#![forbid(unsafe_code)]

use crate::store::buckets::Buckets;
use crate::store::classes::LINE_CLASS;
use crate::store::counters::Count;
use crate::store::epoch::Retired;
use crate::store::failpoint::step;
use crate::store::item::{GONE, LINKED, PIECE_OWNER, Piece, State};
use crate::store::layout::PageState;
use crate::store::page_set::PageSet;
use crate::store::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::store::types::StoreError;
use crate::store::words::{LINE_LEN, PENDING, slot_word, slots_of};
use crate::store::{Store, Worker};
use std::sync::{Arc, OnceLock};

/// Pages that a call of `maintain` checks, and buckets that count as one.
const PAGES_PER_SLICE: u32 = 2;
const BUCKETS_PER_PAGE: u64 = 1024;
/// Lines that a word of the marks stands for.
const LINES_PER_WORD: u32 = 64;

/// Values of a page's `unchecked`: it is known which chunks are free; it is not; somebody looks;
/// somebody leaves a chunk to who will look. Nobody waits for the last two.
pub(super) const CHECKED: u32 = 0;
const UNCHECKED: u32 = 1;
const CHECKING: u32 = 2;
const LEAVING: u32 = 3;

/// What became of a chunk that was given back while its page may not have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUnchecked {
    /// It is left to the check.
    Left,
    /// The page was checked: it goes the usual way.
    Checked,
    /// Somebody is at the page: it waits for turns once more.
    Busy,
}

/// Work that has to wait until all pages of items and all buckets were seen.
#[derive(Clone, Copy, Debug)]
enum Rest {
    /// A page of a class that had pieces.
    Pieces(u32),
    /// A page that is a piece.
    Extent(u32),
    /// A page of overflow lines, and where its marks begin.
    Lines(u32, usize),
}

/// A check: what there is to do, and how far it is.
#[derive(Debug)]
pub(super) struct Check {
    active: AtomicBool,
    /// Pages of items.
    pages: Vec<u32>,
    /// Buckets when the check began: none is added meanwhile.
    buckets: u64,
    /// Parts of `pages` and `buckets` that somebody has begun.
    begun: AtomicUsize,
    /// Parts that are not done.
    left: AtomicUsize,
    extents: Vec<u32>,
    /// Pages with pieces that are still to be decided.
    with_pieces: PageSet,
    /// Pages that somebody was at when their turn had come.
    again: PageSet,
    lines: Vec<u32>,
    /// A bit for each overflow line of `lines`: a bucket has it.
    marks: Box<[AtomicU64]>,
    rest: OnceLock<Vec<Rest>>,
    rest_claimed: AtomicBool,
    rest_begun: AtomicUsize,
    rest_left: AtomicUsize,
    /// Items and their bytes by class that were there at the start, as far as they are known.
    found: Box<[[AtomicU64; 2]]>,
    /// What they were taken for.
    estimate: Vec<(u64, u64)>,
    lost: AtomicU64,
}

/// What an adopted region holds.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    pub(super) pages: Vec<u32>,
    pub(super) lines: Vec<u32>,
    pub(super) extents: Vec<u32>,
    pub(super) estimate: Vec<(u64, u64)>,
}

impl Check {
    /// A check of a region of so many pages.
    pub(super) fn new(mut adopted: Adopted, pages: u32, buckets: u64, lines_per_page: u32) -> Self {
        adopted.lines.sort_unstable();
        let words = adopted.lines.len() * lines_per_page.div_ceil(LINES_PER_WORD) as usize;
        let parts = adopted.pages.len() + buckets.div_ceil(BUCKETS_PER_PAGE) as usize;
        Self {
            active: AtomicBool::new(true),
            buckets,
            begun: AtomicUsize::new(0),
            left: AtomicUsize::new(parts),
            with_pieces: PageSet::new(pages),
            again: PageSet::new(pages),
            marks: (0..words).map(|_| AtomicU64::new(0)).collect(),
            rest: OnceLock::new(),
            rest_claimed: AtomicBool::new(false),
            rest_begun: AtomicUsize::new(0),
            rest_left: AtomicUsize::new(0),
            found: adopted.estimate.iter().map(|_| Default::default()).collect(),
            lost: AtomicU64::new(0),
            pages: adopted.pages,
            lines: adopted.lines,
            extents: adopted.extents,
            estimate: adopted.estimate,
        }
    }

    fn is_active(&self) -> bool {
        // Acquire: who sees the end sees what the check did; pairs with the Release in `end`.
        self.active.load(Ordering::Acquire)
    }

    /// Counts an item that was there at the start.
    fn count(&self, class: u32, state: State) {
        let [items, bytes] = &self.found[class as usize];
        // Relaxed: summed up when all have been counted, behind `left`.
        items.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(state.item_len() as u64, Ordering::Relaxed);
    }

    fn counted(&self) -> impl Iterator<Item = (u64, u64)> {
        // Relaxed: as in `count`.
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        self.found.iter().map(move |[items, bytes]| (load(items), load(bytes)))
    }
}

/// What the check of an adopted region has found so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Hundredths that are done.
    pub percent: u8,
    /// Items that were there at the start, and their bytes; once all is done.
    pub items: Option<(u64, u64)>,
    /// Items that were damaged.
    pub lost: u64,
}

impl Store {
    /// Does all of the check behind a start that went on with what a killed process left, and
    /// returns when it is done. Nobody else may have a worker.
    ///
    /// # Errors
    /// Somebody has all workers.
    pub fn check_now(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut worker = self.worker()?;
        while worker.check_more() {}
        Ok(())
    }

    /// Whether memory of a dead process is still being looked for.
    pub(super) fn is_checking(&self) -> bool {
        self.check.as_ref().is_some_and(Check::is_active)
    }

    /// How far the check is behind a start that went on with what a killed process left; `None`
    /// if the store did not begin so.
    #[must_use]
    pub fn checked(&self) -> Option<Checked> {
        let check = self.check.as_ref()?;
        let done = !check.is_active();
        let parts = check.pages.len() + check.buckets.div_ceil(BUCKETS_PER_PAGE) as usize;
        // Relaxed: a figure for people.
        let left = check.left.load(Ordering::Relaxed);
        let percent = if done { 100 } else { ((parts - left) * 99 / parts.max(1)) as u8 };
        let sum = || {
            let add = |sum: (u64, u64), one: (u64, u64)| (sum.0 + one.0, sum.1 + one.1);
            check.counted().fold((0, 0), add)
        };
        let lost = check.lost.load(Ordering::Relaxed);
        Some(Checked { percent, items: done.then(sum), lost })
    }

    /// Whether a page has not been checked, so that nobody may take or keep its chunks.
    pub(super) fn is_unchecked(&self, page: u32) -> bool {
        // Without a check under way all are checked, and no page has to be asked.
        // Acquire: who sees it checked sees its lists; pairs with the Release in `class_list_page`.
        self.is_checking() && self.page_meta(page).unchecked.load(Ordering::Acquire) != 0
    }

    /// Leaves a chunk that nobody knows any more to the check of its page.
    #[cold]
    pub(super) fn give_unchecked(&self, worker: usize, chunk: u64) -> GivenUnchecked {
        let page = self.layout.page_of(chunk);
        let (Some(check), PageState::Slab(class)) = (&self.check, self.page_state(page)) else {
            return GivenUnchecked::Checked;
        };
        let unchecked = &self.page_meta(page).unchecked;
        // Acquire: what others have left in the page; pairs with the Release below.
        let (success, failure) = (Ordering::Acquire, Ordering::Acquire);
        match unchecked.compare_exchange(UNCHECKED, LEAVING, success, failure) {
            Ok(_) => {}
            Err(CHECKED) => return GivenUnchecked::Checked,
            Err(_) => return GivenUnchecked::Busy,
        }
        let state = self.item_state(chunk);
        if class != LINE_CLASS && !state.is_piece() {
            check.count(class, state);
            self.protected_found(worker, chunk, state);
        }
        // Release: whoever takes the chunk sees it free; scans see no item.
        self.region.word(chunk).store(0, Ordering::Release);
        // Release: the check sees what was done; pairs with the Acquire that begins it.
        unchecked.store(UNCHECKED, Ordering::Release);
        GivenUnchecked::Left
    }

    /// Lists the free chunks of a page that was looked through, and counts its items by `worker`.
    /// `stale` are chunks, in order, that are retired next.
    fn list_checked(&self, check: &Check, worker: usize, page: u32, class: u32, stale: &[u64]) {
        let carved = self.page_carved(page);
        let (mut head, mut free) = (0, 0);
        for idx in (0..carved).rev() {
            let chunk = self.chunk(page, class, idx);
            let state = self.item_state(chunk);
            if state.0 == 0 {
                self.list_chunk(chunk, head);
                head = idx + 1;
                free += 1;
            } else if !state.is_piece() && stale.binary_search(&chunk).is_err() {
                check.count(class, state);
                self.protected_found(worker, chunk, state);
            }
        }
        self.class_list_page(class, page, head, free);
    }

    /// Tells the pieces of an item that counts whose they are. False if they are not its value.
    fn confirm_pieces(&self, head: u64, state: State) -> bool {
        if !self.has_pieces(head, state) {
            return false;
        }
        let is_protected = self.is_protected(head);
        let mut next = self.item_link(head).first();
        while next != 0 {
            let owner = self.region.word(next + PIECE_OWNER);
            // Relaxed throughout: the word tells nothing but what it says. If it is of now the
            // item has ended meanwhile, and its ender gives all pieces back.
            let relaxed = Ordering::Relaxed;
            let seen = owner.load(relaxed);
            let tag = || owner.compare_exchange(seen, self.owner_word(head), relaxed, relaxed);
            if self.is_of_now(seen) || tag().is_err() {
                break;
            }
            if is_protected {
                self.note_piece(next, true);
            }
            next = Piece(self.region.word(next).load(relaxed)).next();
        }
        true
    }

    /// Whether the chain of an item is its value. True as well if the item has ended meanwhile.
    fn has_pieces(&self, head: u64, state: State) -> bool {
        let link = self.item_link(head);
        let mut missing = state.value_len().checked_sub(link.tail_len());
        let mut next = link.first();
        while next != 0 {
            let Some(len_max) = self.piece_len_max(next) else { return false };
            // Acquire: who has ended the item has said so in the owner's word first.
            let word = self.region.word(next).load(Ordering::Acquire);
            let owner = self.region.word(next + PIECE_OWNER).load(Ordering::Acquire);
            if self.is_of_now(owner) {
                return true;
            }
            let piece = Piece(word);
            if !State(word).is_piece() || piece.len() > len_max || owner_at(owner) != head {
                return false;
            }
            missing = missing.and_then(|missing| missing.checked_sub(piece.len()));
            next = piece.next();
        }
        link.first() != 0 && missing == Some(0)
    }

    /// The owner word of a piece of this incarnation: of an item, or of nobody (0).
    pub(super) fn owner_word(&self, head: u64) -> u64 {
        u64::from(self.incarnation) << OWNER_BITS | head
    }

    /// Whether an owner word was written in this incarnation.
    fn is_of_now(&self, owner: u64) -> bool {
        owner >> OWNER_BITS == u64::from(self.incarnation)
    }

    /// The item that an owner word names, if that can be relied on.
    pub(super) fn owner_of(&self, owner: u64) -> Option<u64> {
        let head = owner_at(owner);
        (self.is_of_now(owner) && head != 0).then_some(head)
    }

    /// Marks the overflow lines that some buckets have.
    fn mark_lines(&self, check: &Check, first: u64) {
        let words = self.chunks_per_page(LINE_CLASS).div_ceil(LINES_PER_WORD) as usize;
        for number in first..(first + BUCKETS_PER_PAGE).min(check.buckets) {
            let bucket = self.bucket(number);
            let header = self.settle(bucket);
            for line in self.lines(bucket, header).skip(1) {
                let page = self.layout.page_of(line);
                if let Ok(at) = check.lines.binary_search(&page) {
                    let idx = ((line - self.layout.page(page)) / LINE_LEN) as u32;
                    let word = at * words + (idx / LINES_PER_WORD) as usize;
                    // Relaxed: read when all buckets have been seen, behind `left`.
                    check.marks[word].fetch_or(1 << (idx % LINES_PER_WORD), Ordering::Relaxed);
                }
            }
        }
    }

    /// Lists the lines of a page that no bucket has. None has been unlinked since the start.
    fn list_lines(&self, check: &Check, page: u32, at: usize) {
        let words = self.chunks_per_page(LINE_CLASS).div_ceil(LINES_PER_WORD) as usize;
        let (mut head, mut free) = (0, 0);
        for idx in (0..self.page_carved(page)).rev() {
            let word = &check.marks[at * words + (idx / LINES_PER_WORD) as usize];
            if word.load(Ordering::Relaxed) & 1 << (idx % LINES_PER_WORD) == 0 {
                self.list_chunk(self.chunk(page, LINE_CLASS, idx), head);
                head = idx + 1;
                free += 1;
            }
        }
        self.class_list_page(LINE_CLASS, page, head, free);
    }
}

/// Bits of an owner word that name an item; the incarnation is above them.
const OWNER_BITS: u32 = 48;

fn owner_at(owner: u64) -> u64 {
    owner & ((1 << OWNER_BITS) - 1)
}

impl Worker {
    /// A slice of the check, if one is under way; false if not.
    pub(super) fn check_some(&self) -> bool {
        let store = self.shared();
        let Some(check) = store.check.as_ref().filter(|check| check.is_active()) else {
            return false;
        };
        self.begin();
        for _ in 0..PAGES_PER_SLICE {
            if let Some(page) = check.again.next_from(0) {
                check.again.remove(page);
                if !self.check_page(page) && store.is_unchecked(page) {
                    check.again.insert(page);
                }
            }
            // Relaxed: a cursor.
            let idx = check.begun.fetch_add(1, Ordering::Relaxed);
            if let Some(page) = check.pages.get(idx) {
                if !self.check_page(*page) && store.is_unchecked(*page) {
                    check.again.insert(*page);
                }
                continue;
            }
            let first = (idx - check.pages.len()) as u64 * BUCKETS_PER_PAGE;
            if first < check.buckets {
                store.mark_lines(check, first);
                self.part_done(check);
                continue;
            }
            self.check_rest(check);
        }
        true
    }

    fn part_done(&self, check: &Check) {
        // AcqRel: what was found is seen by who finds that nothing is left.
        check.left.fetch_sub(1, Ordering::AcqRel);
    }

    /// Checks a page unless somebody does. True if this call did.
    pub(super) fn check_page(&self, page: u32) -> bool {
        let store = self.shared();
        let (Some(check), PageState::Slab(class)) = (&store.check, store.page_state(page)) else {
            return false;
        };
        let unchecked = &store.page_meta(page).unchecked;
        // Acquire: what others have left in the page; pairs with the Release in `give_unchecked`.
        let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
        let begins = || unchecked.compare_exchange(UNCHECKED, CHECKING, success, failure).is_ok();
        if class == LINE_CLASS || !begins() {
            return false;
        }
        self.begin();
        let (stale, has_pieces) = self.look_through(check, page, class);
        step("check: looked through");
        if has_pieces {
            check.with_pieces.insert(page);
        }
        store.list_checked(check, self.id, page, class, &stale);
        step("check: listed");
        for chunk in &stale {
            // Its pieces, if it has any, are found by themselves.
            store.epochs.retire(self.id, Retired::Alone(*chunk));
        }
        // A hint; marking is exact.
        if store.page_meta(page).word.view().out() == 0 {
            self.drain_empty(page, class);
        }
        self.part_done(check);
        true
    }

    /// The chunks of a page, in order, that are nobody's and not free, taken out of the index;
    /// and whether pieces are left to be decided.
    fn look_through(&self, check: &Check, page: u32, class: u32) -> (Vec<u64>, bool) {
        let store = self.shared();
        let (mut stale, mut has_pieces) = (Vec::new(), false);
        for idx in 0..store.page_carved(page) {
            let chunk = store.chunk(page, class, idx);
            let state = store.item_state(chunk);
            if state.0 == 0 {
                continue;
            }
            if state.is_piece() {
                has_pieces = true;
                continue;
            }
            let times = store.times(chunk);
            let counts = match times.successor() {
                Some(_) if times.ended_in() == store.incarnation => continue,
                _ if !store.is_whole(state, class) => {
                    check.lost.fetch_add(1, Ordering::Relaxed);
                    stale.push(chunk);
                    continue;
                }
                Some(_) => false,
                None => state.is_linked() || self.is_found(chunk),
            };
            if counts && (!state.is_extent() || store.confirm_pieces(chunk, state)) {
                continue;
            }
            if counts {
                if !store.supersede(chunk, times, 0) {
                    continue;
                }
                check.lost.fetch_add(1, Ordering::Relaxed);
            }
            store.correct_all(store.item_hash(chunk));
            // Release: after the slots; as in `finish`, wherever in that it was left.
            store.word(chunk).fetch_or(GONE, Ordering::Release);
            store.word(chunk).fetch_and(!LINKED, Ordering::Release);
            stale.push(chunk);
        }
        (stale, has_pieces)
    }

    /// Whether an item that was whole and not linked is what its key has. If not, no slot leads to
    /// it, not even one that was pending.
    fn is_found(&self, item: u64) -> bool {
        let store = self.shared();
        let hash = store.item_hash(item);
        let found = store.find(hash, store.item_key(item));
        if found.item == Some(item) {
            return true;
        }
        let pending = slot_word(hash, item) | PENDING;
        let spot = store.open(hash);
        for slot in store.lines(spot.bucket, spot.header).flat_map(slots_of) {
            // Relaxed: it counted for nobody. Nobody else takes a pending slot that is not his.
            let relaxed = Ordering::Relaxed;
            let _ = store.word(slot).compare_exchange(pending, 0, relaxed, relaxed);
        }
        false
    }

    /// What had to wait until all items and buckets had been seen.
    fn check_rest(&self, check: &Check) {
        // Acquire: pairs with `part_done`.
        if check.left.load(Ordering::Acquire) > 0 {
            return;
        }
        // Nobody waits for the one who lists it.
        if check.rest.get().is_none() && !check.rest_claimed.swap(true, Ordering::Relaxed) {
            let pieces = check.with_pieces.iter();
            let lines = check.lines.iter().enumerate().map(|(at, page)| Rest::Lines(*page, at));
            let rest: Vec<Rest> = (pieces.map(Rest::Pieces))
                .chain(check.extents.iter().copied().map(Rest::Extent))
                .chain(lines)
                .collect();
            check.rest_left.store(rest.len() + 1, Ordering::Relaxed);
            // Who sees the list sees its length.
            let listed = check.rest.set(rest);
            debug_assert!(listed.is_ok(), "one thread lists it");
        }
        let Some(rest) = check.rest.get() else { return };
        // Relaxed: a cursor. One more than there is work ends the check.
        let idx = check.rest_begun.fetch_add(1, Ordering::Relaxed);
        if idx > rest.len() {
            return;
        }
        if let Some(part) = rest.get(idx) {
            self.check_part(check, *part);
        }
        // AcqRel: as in `part_done`.
        if check.rest_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.end_check(check);
        }
    }

    fn check_part(&self, check: &Check, part: Rest) {
        let store = self.shared();
        let is_stale = |piece: u64| {
            // Acquire: who makes a piece writes the owner first.
            let is_piece = store.item_state(piece).is_piece();
            is_piece
                && !store.is_of_now(store.region.word(piece + PIECE_OWNER).load(Ordering::Acquire))
        };
        match part {
            Rest::Lines(page, at) => store.list_lines(check, page, at),
            Rest::Extent(page) => {
                if store.page_state(page) == PageState::Extent && is_stale(store.layout.page(page))
                {
                    store.pool_give(page);
                }
            }
            Rest::Pieces(page) => {
                let (PageState::Slab(class) | PageState::Draining(class)) = store.page_state(page)
                else {
                    return;
                };
                for idx in 0..store.page_carved(page) {
                    let chunk = store.chunk(page, class, idx);
                    if is_stale(chunk) {
                        self.give_chunk_to_page(chunk);
                    }
                }
            }
        }
        step("check: rest");
    }

    /// Puts what was counted in the place of what was estimated.
    fn end_check(&self, check: &Check) {
        let mut keys = 0_i64;
        for (class, (found, taken)) in (0..).zip(check.counted().zip(&check.estimate)) {
            // They wrap: one counter may be below 0 as long as the sum is not.
            self.count(class, Count::Linked, found.0.wrapping_sub(taken.0));
            self.count(class, Count::BytesLinked, found.1.wrapping_sub(taken.1));
            keys += found.0.wrapping_sub(taken.0) as i64;
        }
        // Relaxed: an estimate, as ever.
        self.shared().keys.0.fetch_add(keys, Ordering::Relaxed);
        self.shared().note_incarnation();
        check.active.store(false, Ordering::Release);
        step("check: done");
    }

    /// A slice of the check behind a start that went on with what a killed process left, for when
    /// nothing else is to be done; [`Worker::maintain`] does one now and then. Ends the turn. True
    /// when there is more.
    pub fn check_more(&mut self) -> bool {
        let checks = self.check_some();
        if checks {
            self.quiesce();
        }
        checks
    }
}
