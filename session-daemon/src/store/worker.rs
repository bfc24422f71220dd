//! A thread's access to the store: its turn, its magazines, its part of reclamation.
//! It owns the way chunks and pages are got and given back; it knows no command.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Store;
use crate::store::check::GivenUnchecked;
use crate::store::chunks::Kind;
use crate::store::classes::LINE_CLASS;
use crate::store::counters::Count;
use crate::store::epoch::Retired;
use crate::store::failpoint::step;
use crate::store::item::{PIECE_OWNER, Piece};
use crate::store::layout::PageState;
use crate::store::magazines::MAGAZINE_CHUNKS_MAX;
use crate::store::pages::Given;
use crate::store::pool::TakenPage;
use crate::store::stats::Evicted;
use crate::store::sync::{Ordering, yield_now};
use crate::store::types::StoreError;
use rustix::thread::{Timespec, nanosleep};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Entries of the limbo that are looked at in one go.
const COLLECT_MAX: usize = 512;
/// A worker with more in its limbo tries to empty it before it allocates.
const LIMBO_HIGH: usize = 256;
/// Overflow lines that a worker keeps at hand, because none can be had under a bucket's lock.
const LINES_AT_HAND: usize = 2;

/// One thread's access to the store. It may move between threads, but serves one at a time.
#[derive(Debug)]
pub struct Worker {
    store: Arc<Store>,
    pub(super) id: usize,
    in_turn: Cell<bool>,
    /// Filled places of each magazine; some of them may have been emptied by others.
    magazine_len: Box<[Cell<u8>]>,
    magazine_capacity: Box<[u8]>,
    /// Overflow lines at hand.
    pub(super) lines: Vec<u64>,
    ripe: RefCell<Vec<Retired>>,
    /// Stamp of the version made last.
    pub(super) stamp: Cell<u64>,
    /// Keys added less keys removed since the store was told.
    pub(super) keys_added: Cell<i64>,
    pub(super) splits_owed: u32,
    /// Uses and evictions since the worth of items was computed.
    pub(super) events: Cell<u32>,
    random: Cell<u64>,
    pub(super) swept_ns: u64,
    /// Whether evictions are noted, and those that were.
    pub(super) evicted_noted: bool,
    pub(super) evicted: RefCell<Vec<Evicted>>,
    /// Whether any key is protected.
    pub(super) protects: bool,
    /// Whether items with such keys are spared now.
    pub(super) sparing: Cell<bool>,
    /// Whether nothing but them was found to make room.
    pub(super) desperate: Cell<bool>,
}

/// How long an allocation has waited for other workers' turns.
#[derive(Debug, Default)]
pub(super) struct Patience {
    rounds: u32,
    idle: u32,
}

/// Rounds in which nothing could be evicted and nothing waited, after which there is no memory.
const IDLE_ROUNDS_MAX: u32 = 4;
/// Rounds that only give the core away, before rounds that sleep for a short time, and before those
/// that sleep for a longer one.
const YIELD_ROUNDS: u32 = 2_000;
const NAP_ROUNDS: u32 = YIELD_ROUNDS + 2_000;
/// Rounds after which an allocation gives up although memory waits for another worker's turn: some
/// two seconds and a half. A worker whose core is taken away in a turn comes back sooner.
const ROUNDS_MAX: u32 = NAP_ROUNDS + 2_000;
/// Rounds between two evictions while earlier victims still wait, before rounds that sleep.
const ROUNDS_PER_EVICTION: u32 = 256;
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };
const SLEEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

impl Patience {
    /// Whether this round should make room: the first, one with nothing on its way, and now and
    /// then, but seldom when it is time that is lacking.
    pub(super) fn is_eviction_due(&self, coming: bool) -> bool {
        !coming
            || if self.rounds < YIELD_ROUNDS {
                self.rounds.is_multiple_of(ROUNDS_PER_EVICTION)
            } else {
                self.rounds.is_power_of_two()
            }
    }

    pub(super) fn is_first(&self) -> bool {
        self.rounds == 0
    }

    /// Gives the core away, unless the wait has just begun.
    fn pause(&self) {
        if self.rounds > YIELD_ROUNDS && !cfg!(session_schedule) {
            // A signal may cut the sleep short, which only makes the round shorter.
            let _ = nanosleep(if self.rounds > NAP_ROUNDS { &SLEEP } else { &NAP });
        } else if self.rounds > 2 {
            yield_now();
        }
    }

    /// Ends a round; false to give up.
    pub(super) fn go_on(&mut self, progress: bool, waiting: bool) -> bool {
        self.rounds += 1;
        self.idle = if progress || waiting { 0 } else { self.idle + 1 };
        self.idle < IDLE_ROUNDS_MAX && self.rounds < ROUNDS_MAX
    }
}

impl Worker {
    pub(super) fn new(store: &Arc<Store>, id: usize) -> Self {
        let classes = store.classes.count();
        // Relaxed: the place was taken with an Acquire after its last owner's Release.
        let stamp = store.workers[id].stamp.0.load(Ordering::Relaxed);
        Self {
            store: Arc::clone(store),
            id,
            in_turn: Cell::new(false),
            magazine_len: (0..classes).map(|_| Cell::new(0)).collect(),
            magazine_capacity: (0..classes).map(|c| store.magazine_capacity(c) as u8).collect(),
            lines: Vec::new(),
            ripe: RefCell::new(Vec::new()),
            stamp: Cell::new(stamp),
            keys_added: Cell::new(0),
            splits_owed: 0,
            events: Cell::new(0),
            random: Cell::new(0x9e37_79b9_7f4a_7c15 ^ (id as u64 + 1) << 32),
            swept_ns: 0,
            evicted_noted: false,
            evicted: RefCell::new(Vec::new()),
            protects: store.protection.get().is_some(),
            sparing: Cell::new(false),
            desperate: Cell::new(false),
        }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(super) fn shared(&self) -> &Store {
        &self.store
    }

    pub(super) fn count(&self, class: u32, count: Count, by: u64) {
        self.store.workers[self.id].counters.add(class, count, by);
    }

    /// Begins a turn unless one is open.
    pub(super) fn begin(&self) {
        if !self.in_turn.get() {
            self.store.epochs.enter(self.id);
            self.in_turn.set(true);
        }
    }

    /// Ends a turn: the worker holds no item any more. To be called before the thread sleeps, and
    /// at least once in a few hundred commands.
    pub fn quiesce(&mut self) {
        if !self.in_turn.get() {
            return;
        }
        self.store.epochs.leave(self.id);
        self.in_turn.set(false);
        if self.store.epochs.limbo_len(self.id) > 0 {
            self.store.epochs.advance();
            self.collect(self.id);
        }
    }

    /// Ends the turn, lets the epoch advance, takes what became ripe, begins a turn.
    pub(super) fn turn_over(&mut self, all: bool) {
        self.store.epochs.leave(self.id);
        self.in_turn.set(false);
        while self.store.epochs.advance() && self.store.epochs.limbo_len(self.id) > 0 {
            if self.collect(self.id) > 0 {
                break;
            }
        }
        if all {
            for worker in 0..self.store.epochs.workers() {
                self.collect(worker);
            }
        }
        self.begin();
    }

    /// Frees what is ripe in a worker's limbo; returns how much.
    pub(super) fn collect(&self, worker: usize) -> usize {
        let mut ripe = self.ripe.take();
        self.store.epochs.collect(worker, COLLECT_MAX, &mut ripe);
        let count = ripe.len();
        for retired in ripe.drain(..) {
            self.release(retired);
        }
        self.ripe.replace(ripe);
        count
    }

    fn release(&self, retired: Retired) {
        match retired {
            Retired::Chunk(chunk) if self.store.pins.keep(chunk, self.id) => {}
            Retired::Chunk(chunk) => {
                let state = self.store.item_state(chunk);
                if state.is_extent() && !state.is_piece() {
                    self.release_pieces(self.store.item_link(chunk).first());
                }
                self.give_chunk(chunk);
            }
            Retired::Pieces(first) => self.release_pieces(first),
            Retired::Alone(chunk) => self.give_chunk(chunk),
            Retired::Page(page) => self.store.pass_on(page),
        }
    }

    fn release_pieces(&self, first: u64) {
        let mut next = first;
        while next != 0 {
            let offset = next;
            next = self.piece(offset).next();
            let page = self.store.layout.page_of(offset);
            match self.store.page_state(page) {
                PageState::Retired | PageState::Extent => self.store.pool_give(page),
                _ => self.give_chunk(offset),
            }
        }
    }

    pub(super) fn piece(&self, offset: u64) -> Piece {
        // Relaxed: the chain is ours, or was published with an item found in this turn.
        Piece(self.store.region.word(offset).load(Ordering::Relaxed))
    }

    /// Gives a chunk that nobody can know any more back.
    pub(super) fn give_chunk(&self, chunk: u64) {
        let page = self.store.layout.page_of(chunk);
        if self.store.is_unchecked(page) {
            match self.store.give_unchecked(self.id, chunk) {
                GivenUnchecked::Left => return,
                GivenUnchecked::Busy => {
                    return self.store.epochs.retire(self.id, Retired::Alone(chunk));
                }
                GivenUnchecked::Checked => {}
            }
        }
        // Release: whoever takes the chunk from a magazine sees it free; scans see no item.
        self.store.region.word(chunk).store(0, Ordering::Release);
        if let PageState::Slab(class) = self.store.page_state(page) {
            let len = self.magazine_len[class as usize].get();
            if len < self.magazine_capacity[class as usize] {
                self.store.workers[self.id].magazines.put(class, usize::from(len), chunk);
                self.magazine_len[class as usize].set(len + 1);
                return;
            }
        }
        self.give_chunk_to_page(chunk);
    }

    pub(super) fn give_chunk_to_page(&self, chunk: u64) {
        match self.store.class_give(chunk) {
            Given::Kept => {}
            Given::Surplus(page, class) => {
                self.give_up_empty(page, class);
            }
            Given::Drained(page) => self.store.epochs.retire(self.id, Retired::Page(page)),
        }
    }

    /// Takes a chunk of `class`, making room if need be. Ends the turn if it has to wait: the
    /// caller must hold nothing that it found in the index.
    pub(super) fn take_chunk(&mut self, class: u32, now: Now) -> Option<u64> {
        if self.store.epochs.limbo_len(self.id) > LIMBO_HIGH {
            self.turn_over(false);
        }
        if let Some(chunk) = self.magazine_take(class) {
            return Some(chunk);
        }
        self.drain_some(now);
        if let Some(chunk) = self.refill(class) {
            self.evict_ahead(class, now);
            return Some(chunk);
        }
        self.take_chunk_slow(class, now)
    }

    #[cold]
    fn take_chunk_slow(&mut self, class: u32, now: Now) -> Option<u64> {
        let mut patience = Patience::default();
        loop {
            let progress = self.make_room_round(Some(class), &patience, now);
            self.wait(&patience);
            if let Some(chunk) = self.magazine_take(class).or_else(|| self.refill(class)) {
                return Some(chunk);
            }
            if !patience.go_on(progress, self.is_coming()) {
                self.count(class, Count::OutOfMemory, 1);
                return None;
            }
            if self.raid(class) {
                continue;
            }
        }
    }

    /// Takes a page from the pool, making room if need be. As for [`Worker::take_chunk`].
    pub(super) fn take_page(&mut self, now: Now) -> Option<TakenPage> {
        let mut patience = Patience::default();
        loop {
            if let Some(taken) = self.store.pool_take() {
                return Some(taken);
            }
            let progress = self.make_room_round(None, &patience, now);
            self.wait(&patience);
            if let Some(taken) = self.store.pool_take() {
                return Some(taken);
            }
            if !patience.go_on(progress, self.is_coming()) {
                self.count(LINE_CLASS, Count::OutOfMemory, 1);
                return None;
            }
        }
    }

    /// Waits a little for others' turns to end, in no turn itself: of several workers that wait none
    /// holds back what another waits for.
    fn wait(&mut self, patience: &Patience) {
        self.store.epochs.leave(self.id);
        self.in_turn.set(false);
        patience.pause();
        self.turn_over(!patience.is_first());
    }

    fn make_room_round(&mut self, class: Option<u32>, patience: &Patience, now: Now) -> bool {
        // A second round means that it is urgent.
        let swept = if patience.is_first() { self.drain_some(now) } else { self.drain_all(now) };
        let progress = self.check_some() || swept;
        // What others have retired is theirs: it says nothing of what this worker will get.
        let is_ours_coming =
            self.store.epochs.limbo_len(self.id) > 0 || self.store.pages_ripening() > 0;
        if !patience.is_eviction_due(is_ours_coming) {
            return progress;
        }
        self.make_room(class, now) || progress
    }

    /// Whether anything waits for turns to end.
    pub(super) fn is_waiting(&self) -> bool {
        (0..self.store.epochs.workers()).any(|worker| self.store.epochs.limbo_len(worker) > 0)
    }

    /// Whether memory is on its way: it waits for turns to end, or a worker has a page in hand that
    /// has drained.
    fn is_coming(&self) -> bool {
        self.is_waiting() || self.store.pages_ripening() > 0
    }

    fn magazine_take(&self, class: u32) -> Option<u64> {
        let len = &self.magazine_len[class as usize];
        while len.get() > 0 {
            len.set(len.get() - 1);
            let place = usize::from(len.get());
            // Others may have raided the place.
            let Some(chunk) = self.store.workers[self.id].magazines.take(class, place) else {
                continue;
            };
            let page = self.store.layout.page_of(chunk);
            if self.store.page_state(page) == PageState::Slab(class) {
                return Some(chunk);
            }
            self.give_chunk_to_page(chunk);
        }
        None
    }

    /// Takes a chunk of `class` if one is free in its pages.
    pub(super) fn spare_chunk(&self, class: u32) -> Option<u64> {
        let mut chunk = [0];
        let taken = self.store.class_take(class, &mut chunk);
        (taken == 1).then_some(chunk[0]).or_else(|| self.magazine_take(class))
    }

    /// Takes chunks of `class` from its pages, or a page for it from the pool.
    fn refill(&self, class: u32) -> Option<u64> {
        let mut chunks = [0; MAGAZINE_CHUNKS_MAX + 1];
        let want = usize::from(self.magazine_capacity[class as usize] / 2) + 1;
        let mut checked = false;
        loop {
            let taken = self.store.class_take(class, &mut chunks[..want]);
            if let Some((first, rest)) = chunks[..taken].split_first() {
                for chunk in rest {
                    self.give_chunk(*chunk);
                }
                return Some(*first);
            }
            // One at a time, or a class that is full would be checked here as a whole.
            if let Some(page) = self.store.class_unchecked(class).filter(|_| !checked) {
                self.check_page(page);
                checked = true;
                continue;
            }
            let page = self.store.pool_take()?;
            self.store.class_add_page(class, page);
        }
    }

    /// Takes free chunks out of all magazines of `class` back to their pages.
    fn raid(&self, class: u32) -> bool {
        let mut found = false;
        for shared in &self.store.workers {
            shared.magazines.raid(
                class,
                |_| true,
                |chunk| {
                    self.give_chunk_to_page(chunk);
                    found = true;
                },
            );
        }
        found
    }

    /// Takes the chunks of a draining page out of all magazines.
    pub(super) fn raid_page(&self, class: u32, page: u32) {
        let is_of_page = |chunk| self.store.layout.page_of(chunk) == page;
        for shared in &self.store.workers {
            shared.magazines.raid(class, is_of_page, |chunk| self.give_chunk_to_page(chunk));
        }
    }

    /// Has overflow lines at hand, as a bucket may need one. As for [`Worker::take_chunk`].
    pub(super) fn lines_at_hand(&mut self, now: Now) -> bool {
        while self.lines.len() < LINES_AT_HAND {
            match self.take_chunk(LINE_CLASS, now) {
                Some(line) => self.lines.push(line),
                None => return !self.lines.is_empty(),
            }
        }
        true
    }

    /// Retires an item's chunk that was unlinked from the index.
    pub(super) fn retire_item(&self, item: u64) {
        if self.store.item_state(item).is_extent() {
            self.disown_pieces(self.store.item_link(item).first());
        }
        self.store.epochs.retire(self.id, Retired::Chunk(item));
    }

    /// Retires a chain of pieces that has no head.
    pub(super) fn retire_pieces(&self, first: u64) {
        self.store.retire_pieces(self.id, first);
    }

    fn disown_pieces(&self, first: u64) {
        self.store.disown_pieces(first);
    }

    /// A number below `below`, from a sequence of this worker's own.
    pub(super) fn random(&self, below: u32) -> u32 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (((x >> 32) * u64::from(below)) >> 32) as u32
    }
}

impl Store {
    /// Nobody who finds one of these pieces from now on may follow it to its item. A scan that
    /// sees the mark of a piece, or an extent page, in its turn can: then the piece is retired
    /// after the turn began, and neither it nor its item is reused before the turn ends.
    pub(super) fn disown_pieces(&self, first: u64) {
        let mut next = first;
        while next != 0 {
            let offset = next;
            // Relaxed: as in `Worker::piece`.
            let piece = Piece(self.region.word(offset).load(Ordering::Relaxed));
            next = piece.next();
            let owner = self.region.word(offset + PIECE_OWNER);
            // Release: before the epoch in `retire`, which decides who can still follow. One swap:
            // the check that tells pieces whose they are does so before this, or not at all.
            let head = self.owner_of(owner.swap(self.owner_word(0), Ordering::AcqRel));
            if head.is_some_and(|head| self.is_protected(head)) {
                self.note_piece(offset, false);
            }
            let page = self.layout.page_of(offset);
            if self.page_state(page) == PageState::Extent {
                self.set_page_kind(page, Kind::Retired);
            }
            step("retire: disowned in part");
        }
    }

    /// Retires a chain of pieces that has no head into the limbo of `worker`.
    pub(super) fn retire_pieces(&self, worker: usize, first: u64) {
        if first != 0 {
            self.disown_pieces(first);
            self.epochs.retire(worker, Retired::Pieces(first));
        }
    }

    /// A worker for one thread. It gives its place back when dropped.
    ///
    /// # Errors
    /// When the configured number of workers exists already.
    pub fn worker(self: &Arc<Self>) -> Result<Worker, StoreError> {
        for (id, shared) in self.workers.iter().enumerate() {
            // Acquire: pairs with the Release in `Worker::drop`.
            let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
            if shared.taken.compare_exchange(false, true, success, failure).is_ok() {
                return Ok(Worker::new(self, id));
            }
        }
        Err(StoreError::NoWorkerLeft(self.workers.len()))
    }
}

impl Worker {
    /// Gives back what it took ahead.
    pub(super) fn put_back(&mut self) {
        for line in std::mem::take(&mut self.lines) {
            self.give_chunk_to_page(line);
        }
        for class in 0..self.store.classes.count() {
            while let Some(chunk) = self.magazine_take(class) {
                self.give_chunk_to_page(chunk);
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.quiesce();
        self.put_back();
        self.tell_keys_added();
        // Release: what this worker wrote to its place is seen by the next owner.
        self.store.workers[self.id].taken.store(false, Ordering::Release);
    }
}
