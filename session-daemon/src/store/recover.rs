//! Taking a region over that another process left, at whatever instruction that ended.
//! It owns the rule of what is kept: a linked item, whole, the newest of its key, not dead.
//!
//! Nothing but the items, the uses of the pages and a few words of the superblock is believed:
//! index, lists, counts and locks are made anew from them, and every offset and length is checked
//! before it is followed. What is found does not depend on how far an earlier take-over came, so
//! one that was interrupted is simply done again. docs/store.md says why the items suffice.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Store;
use crate::store::buckets::Buckets;
use crate::store::chunks::Kind;
use crate::store::classes::{ITEM_CLASS_FIRST, LINE_CLASS};
use crate::store::counters::Count;
use crate::store::epoch::Retired;
use crate::store::failpoint::step;
use crate::store::filling::{Filled, Fills, Parts};
use crate::store::item::{LINKED, PIECE_HEADER_LEN, PIECE_OWNER, State, Times};
use crate::store::layout::PageState;
use crate::store::reader::{stamp_at, stamp_of};
use crate::store::sync::{AtomicU32, Ordering};
use crate::store::types::KEY_LEN_MAX;
use std::thread;

mod pieces;

/// Most threads that scan pages.
const THREADS_MAX: usize = 16;
/// Pages that a thread scans in one go.
const PAGES_PER_CLAIM: u32 = 16;
/// How far ahead of an item that is put into its bucket the bucket and its overflow line are on
/// their way from memory.
const BUCKETS_AHEAD: usize = 32;
const LINES_AHEAD: usize = 16;
/// Chunks whose headers are, and the cache lines of each: header and key.
const CHUNKS_AHEAD: u32 = 8;
const CHUNK_LINES: usize = 2;
/// Overflow lines that a thread takes in one go.
const LINES_TAKEN: usize = 16;
/// How far a stamp may be ahead of the clock, in its units: about five hours.
const STAMP_AHEAD_MAX: u64 = 1 << 40;

/// Relaxed throughout this module: a thread sees what the one that started it did before, and the
/// other way round at its end; threads meet in the index alone, which has its own orderings.
const RELAXED: Ordering = Ordering::Relaxed;

/// Who is told how many pages were looked at, of how many.
pub(super) type Progress<'p> = &'p (dyn Fn(u32, u32) + Sync);

/// What was kept of a memory file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Items kept.
    pub items: u64,
    /// Bytes of their headers, keys and values.
    pub bytes: u64,
    /// Items that had expired or were flushed.
    pub dead: u64,
    /// Versions that a newer one had been written to replace.
    pub replaced: u64,
    /// Items that are damaged, or lie beyond a smaller `-m`, or for which there is no room.
    pub lost: u64,
    /// Whether the store goes on with the index that was there. Dead items are counted among
    /// the others then.
    pub in_place: bool,
}

/// What one thread finds.
struct Scan<'s> {
    store: &'s Store,
    now: Now,
    /// Items to be put into the index.
    parts: Parts,
    /// Overflow lines at hand.
    lines: Vec<u64>,
    /// Items and their bytes by class; those replaced are taken off again, so it wraps.
    counts: Vec<(u64, u64)>,
    /// Items with pieces, to be looked at when all pages have been.
    extents: Vec<u64>,
    /// Pages whose free chunks must be listed again.
    again: Vec<u32>,
    /// Chunks that may hold items that were to replace others, and whether they did is not known.
    unpublished: Vec<u64>,
    /// Items for which there was no overflow line.
    homeless: Vec<(u64, u64)>,
    /// Items whose key another one has already.
    twins: Vec<(u64, u64)>,
    /// Items that have ended, which nevertheless replace older versions of their keys first.
    dead: Vec<(u64, u64)>,
    /// Whether free chunks are listed: what is dropped from now on goes the way of all chunks.
    listed: bool,
    stamp_max: u64,
    kept: Kept,
}

impl Store {
    /// Makes the store serve what the region holds. `pages_before` is the number of pages that it
    /// was used with. `None` if there is nothing to build an index in. Nobody else has the store.
    pub(super) fn recover(
        &self,
        pages_before: u32,
        now: Now,
        progress: Progress<'_>,
    ) -> Option<Kept> {
        let index = self.recover_pages(pages_before)?;
        step("recover: pages");
        // As many buckets as these pages hold are no fewer than before, so the same items need no
        // more overflow lines than before.
        self.index_format(&index, threads());
        step("recover: index");
        let mut all = self.scan_all(now, progress);
        step("recover: scanned");
        for item in std::mem::take(&mut all.unpublished) {
            all.published(item);
        }
        all.fill_all();
        for (hash, item) in std::mem::take(&mut all.twins) {
            all.insert_or_keep(hash, item);
        }
        for item in std::mem::take(&mut all.extents) {
            all.extent(item);
        }
        step("recover: extents");
        for (hash, item) in std::mem::take(&mut all.dead) {
            all.remove_dead(hash, item);
        }
        step("recover: dead");
        all.again.sort_unstable();
        all.again.dedup();
        for page in std::mem::take(&mut all.again) {
            all.list_again(page);
        }
        self.recover_lists();
        step("recover: lists");
        all.listed = true;
        for (hash, item) in std::mem::take(&mut all.homeless) {
            // Now with the pages that became free. Without them it is lost, as to an eviction.
            if !all.insert(hash, item) {
                all.kept.lost += 1;
                all.drop_item(item);
            }
        }
        all.give_lines();
        Some(self.settle(all))
    }

    /// Brings every page into a state in which nobody works on it; returns those of the index.
    fn recover_pages(&self, pages_before: u32) -> Option<Vec<u32>> {
        let superblock = self.superblock();
        superblock.split_lock.store(0, RELAXED);
        // None is taken for zeros: they were written to, or an interrupted take-over did.
        superblock.pool.format(self.layout.pages, self.layout.pages);
        self.format_classes();
        let mut index = Vec::new();
        for page in (0..self.layout.pages).rev() {
            let meta = self.page_meta(page);
            let state = if page < pages_before { self.page_state(page) } else { PageState::Free };
            match state {
                PageState::Slab(class) | PageState::Draining(class)
                    if (ITEM_CLASS_FIRST..self.classes.count()).contains(&class)
                        && meta.word.view().carved() <= self.chunks_per_page(class) =>
                {
                    meta.unchecked.store(0, RELAXED);
                    meta.is_new.store(0, RELAXED);
                    meta.word.set_unlisted();
                }
                PageState::Extent => {}
                PageState::Index => index.push(page),
                _ => self.pool_give(page),
            }
        }
        if index.is_empty() {
            let taken = self.pool_take()?;
            self.set_page_kind(taken.page, Kind::Index);
            index.push(taken.page);
        }
        Some(index)
    }

    /// Looks at every page with several threads.
    fn scan_all(&self, now: Now, progress: Progress<'_>) -> Scan<'_> {
        let cursor = AtomicU32::new(0);
        let cursor = &cursor;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..threads())
                .map(|_| {
                    scope.spawn(move || {
                        let mut scan = Scan::new(self, now);
                        scan.claim_pages(cursor, progress);
                        scan
                    })
                })
                .collect();
            let scans = threads.into_iter().map(|thread| thread.join().expect("a scan ends"));
            scans.reduce(Scan::with).expect("there is a thread")
        })
    }

    /// Puts every page into the lists that it belongs to.
    fn recover_lists(&self) {
        for page in 0..self.layout.pages {
            match self.page_state(page) {
                PageState::Slab(class) if class != LINE_CLASS => {
                    if self.page_meta(page).word.view().out() == 0 {
                        self.pool_give(page);
                    } else {
                        self.class_adopt_page(class, page);
                    }
                }
                PageState::Extent => {
                    let owner = self.layout.page(page) + PIECE_OWNER;
                    if self.region.word(owner).load(RELAXED) == 0 {
                        self.pool_give(page);
                    }
                }
                _ => {}
            }
        }
    }

    /// Writes the counts and limits from which the workers go on.
    fn settle(&self, all: Scan<'_>) -> Kept {
        let mut kept = all.kept;
        for (class, &(items, bytes)) in all.counts.iter().enumerate() {
            kept.items = kept.items.wrapping_add(items);
            kept.bytes = kept.bytes.wrapping_add(bytes);
            let counters = &self.workers[0].counters;
            counters.add(class as u32, Count::Linked, items);
            counters.add(class as u32, Count::BytesLinked, bytes);
        }
        self.go_on(kept.items, all.stamp_max, all.now);
        step("recover: settled");
        kept
    }

    /// Writes what the workers go on from: the number of items, the highest stamp of a version.
    pub(super) fn go_on(&self, items: u64, stamp_max: u64, now: Now) {
        self.keys.0.store(items as i64, RELAXED);
        let superblock = self.superblock();
        let flushed = superblock.flushed_stamp.load(RELAXED).min(stamp_limit(now));
        superblock.flushed_stamp.store(flushed, RELAXED);
        for worker in &self.workers {
            worker.stamp.0.store(stamp_max.max(flushed), RELAXED);
        }
        superblock.memory_limit.store(self.config.memory_limit as u64, RELAXED);
        superblock.item_size_max.store(self.config.item_size_max as u64, RELAXED);
        if !self.config.succeeding {
            superblock.limit_set.store(0, RELAXED);
        }
        // Last: until here an interrupted take-over begins again from the pages of before.
        superblock.pages.store(self.layout.pages, Ordering::Release);
    }

    /// Whether what stands in a chunk can be an item of its class that was made by now.
    fn is_sound(&self, chunk: u64, state: State, class: u32, now: Now) -> bool {
        self.is_whole(state, class) && stamp_of(self.item_cas(chunk)) <= stamp_limit(now)
    }

    /// Whether what stands in a chunk can be read as an item of its class.
    pub(super) fn is_whole(&self, state: State, class: u32) -> bool {
        let chunk_len = self.classes.size(class);
        let inside =
            if state.is_extent() { state.tail_offset() as usize } else { state.item_len() };
        state.is_plain_item()
            && state.class() == class
            && (1..=KEY_LEN_MAX).contains(&state.key_len())
            && inside <= chunk_len
    }

    /// Most bytes of a piece at an offset that may be anything; `None` where no piece can be.
    pub(super) fn piece_len_max(&self, offset: u64) -> Option<usize> {
        if !self.layout.is_in_page(offset) {
            return None;
        }
        let page = self.layout.page_of(offset);
        let at = offset - self.layout.page(page);
        match self.page_state(page) {
            PageState::Extent if at == 0 => Some(self.page_piece_max()),
            PageState::Slab(class) | PageState::Draining(class) if class != LINE_CLASS => {
                let size = self.classes.size(class) as u64;
                let carved = self.page_carved(page);
                let is_chunk = at.is_multiple_of(size) && at / size < u64::from(carved);
                is_chunk.then(|| size as usize - PIECE_HEADER_LEN)
            }
            _ => None,
        }
    }
}

/// Threads for the work at a start.
pub(super) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX)
}

/// The deadline that an item's page has for it.
fn deadline_of(times: Times) -> u32 {
    if times.exptime_s() == 0 { u32::MAX } else { times.exptime_s() }
}

/// No version that was made by now can have a higher stamp.
fn stamp_limit(now: Now) -> u64 {
    stamp_at(now.boottime_ns) + STAMP_AHEAD_MAX
}

impl<'s> Scan<'s> {
    fn new(store: &'s Store, now: Now) -> Self {
        Self {
            store,
            now,
            parts: Parts::new(store.bucket_count()),
            lines: Vec::new(),
            counts: vec![(0, 0); store.classes.count() as usize],
            extents: Vec::new(),
            again: Vec::new(),
            unpublished: Vec::new(),
            homeless: Vec::new(),
            twins: Vec::new(),
            dead: Vec::new(),
            listed: false,
            stamp_max: 0,
            kept: Kept::default(),
        }
    }

    /// Both together.
    fn with(mut self, mut other: Self) -> Self {
        other.give_lines();
        for (sum, more) in self.counts.iter_mut().zip(other.counts) {
            *sum = (sum.0.wrapping_add(more.0), sum.1.wrapping_add(more.1));
        }
        self.extents.extend(other.extents);
        self.again.extend(other.again);
        self.unpublished.extend(other.unpublished);
        self.homeless.extend(other.homeless);
        self.twins.extend(other.twins);
        self.dead.extend(other.dead);
        self.stamp_max = self.stamp_max.max(other.stamp_max);
        self.kept.dead += other.kept.dead;
        self.kept.replaced += other.kept.replaced;
        self.kept.lost += other.kept.lost;
        self
    }

    /// Gives the overflow lines at hand back.
    fn give_lines(&mut self) {
        for line in self.lines.drain(..) {
            self.store.class_give(line);
        }
    }

    fn claim_pages(&mut self, cursor: &AtomicU32, progress: Progress<'_>) {
        let pages = self.store.layout.pages;
        loop {
            let first = cursor.fetch_add(PAGES_PER_CLAIM, RELAXED);
            if first >= pages {
                break;
            }
            progress(first, pages);
            for page in first..pages.min(first + PAGES_PER_CLAIM) {
                match self.store.page_state(page) {
                    PageState::Slab(class) if class != LINE_CLASS => self.page(page, class),
                    PageState::Extent => self.disown(self.store.layout.page(page)),
                    _ => {}
                }
            }
        }
        self.fill_all();
    }

    /// Takes the items of a page, and lists its free chunks.
    fn page(&mut self, page: u32, class: u32) {
        let store = self.store;
        let meta = store.page_meta(page);
        let (mut head, mut free, mut deadline_s, mut pieces) = (0, 0, u32::MAX, false);
        for idx in (0..store.page_carved(page)).rev() {
            let chunk = store.chunk(page, class, idx);
            let ahead = store.chunk(page, class, idx.saturating_sub(CHUNKS_AHEAD));
            store.region.prefetch_lines(ahead, CHUNK_LINES);
            let state = store.item_state(chunk);
            if state.is_piece() {
                self.disown(chunk);
                pieces = true;
            } else if state.is_unpublished() {
                self.unpublished.push(chunk);
                pieces = true;
            } else if self.is_current(chunk, state) && self.accept(chunk, state, class) {
                deadline_s = deadline_s.min(deadline_of(store.item_times(chunk)));
            } else {
                store.list_chunk(chunk, head);
                head = idx + 1;
                free += 1;
            }
        }
        meta.word.list(head, free);
        meta.deadline_s.store(deadline_s, RELAXED);
        if pieces {
            self.again.push(page);
        }
    }

    /// Whether a linked item was what its key had. If it had been replaced, the item that took its
    /// place is linked now, before this one can be forgotten.
    fn is_current(&self, item: u64, state: State) -> bool {
        if !state.is_linked() {
            return false;
        }
        let Some(successor) = self.store.item_times(item).successor() else { return true };
        if self.store.piece_len_max(successor).is_some() {
            let word = self.store.region.word(successor);
            if State(word.load(RELAXED)).is_unpublished() {
                word.fetch_or(LINKED, RELAXED);
            }
        }
        false
    }

    /// Takes an item that was not linked when its page was looked at, if it is now: it had taken
    /// the place of another.
    fn published(&mut self, item: u64) {
        let (state, page) = (self.store.item_state(item), self.store.layout.page_of(item));
        let PageState::Slab(class) = self.store.page_state(page) else { return };
        if self.is_current(item, state) && self.accept(item, state, class) {
            let deadline = &self.store.page_meta(page).deadline_s;
            deadline.fetch_min(deadline_of(self.store.item_times(item)), RELAXED);
        } else {
            self.store.region.word(item).store(0, RELAXED);
        }
    }

    /// Lists the free chunks of a page when it is known which pieces have an owner.
    fn list_again(&self, page: u32) {
        let store = self.store;
        let PageState::Slab(class) = store.page_state(page) else { return };
        let (mut head, mut free) = (0, 0);
        for idx in (0..store.page_carved(page)).rev() {
            let chunk = store.chunk(page, class, idx);
            let state = store.item_state(chunk);
            let owned = || store.region.word(chunk + PIECE_OWNER).load(RELAXED) != 0;
            if !(state.is_linked() || state.is_piece() && owned()) {
                store.list_chunk(chunk, head);
                head = idx + 1;
                free += 1;
            }
        }
        store.page_meta(page).word.list(head, free);
    }

    /// Whether a linked item is to be kept, so far as it alone can tell.
    fn accept(&mut self, item: u64, state: State, class: u32) -> bool {
        let store = self.store;
        if !store.is_sound(item, state, class, self.now) {
            self.kept.lost += 1;
            return false;
        }
        self.stamp_max = self.stamp_max.max(stamp_of(store.item_cas(item)));
        self.count(state, u64::wrapping_add);
        let hash = store.item_hash(item);
        if store.is_dead(item, self.now) {
            self.dead.push((hash, item));
        }
        if state.is_extent() {
            self.extents.push(item);
            return true;
        }
        if let Some(part) = self.parts.put(store.home(hash), hash, item) {
            self.fill_part(part);
        }
        true
    }

    fn fill_all(&mut self) {
        for part in 0..self.parts.count() {
            self.fill_part(part);
        }
    }

    /// Puts the items that belong to a part of the index there.
    fn fill_part(&mut self, part: usize) {
        let store = self.store;
        let items = self.parts.take(part);
        for (hash, _) in items.iter().take(BUCKETS_AHEAD) {
            store.prefetch_bucket(*hash);
        }
        for (at, (hash, item)) in items.iter().enumerate() {
            if let Some((later, _)) = items.get(at + BUCKETS_AHEAD) {
                store.prefetch_bucket(*later);
            }
            if let Some((soon, _)) = items.get(at + LINES_AHEAD) {
                store.prefetch_line(*soon);
            }
            match self.fill_in(*hash, *item) {
                Filled::Done => {}
                Filled::Twin => self.twins.push((*hash, *item)),
                Filled::Homeless => self.homeless.push((*hash, *item)),
            }
        }
        self.parts.give(part, items);
    }

    /// Puts an item into the index unless its key is there.
    fn fill_in(&mut self, hash: u64, item: u64) -> Filled {
        let store = self.store;
        let line = || {
            if self.lines.is_empty() {
                let mut taken = [0; LINES_TAKEN];
                let count = store.take_lines(&mut taken);
                self.lines.extend(&taken[..count]);
            }
            self.lines.pop()
        };
        store.fill_in(hash, item, || store.item_key(item), line)
    }

    /// Puts an item into the index unless a newer one of its key is there. By one thread alone.
    /// False if there is no room.
    fn insert(&mut self, hash: u64, item: u64) -> bool {
        let store = self.store;
        loop {
            let Some(other) = store.find(hash, store.item_key(item)).item else {
                return self.fill_in(hash, item) == Filled::Done;
            };
            let times = store.times(other);
            let is_newer = store.item_cas(item) > store.item_cas(other);
            if is_newer && (times.successor().is_some() || !store.supersede(other, times, item)) {
                continue;
            }
            self.kept.replaced += 1;
            if is_newer {
                store.finish(hash, other, item);
            }
            self.drop_item(if is_newer { other } else { item });
            return true;
        }
    }

    /// Puts an item into the index, or keeps it until there is more room.
    fn insert_or_keep(&mut self, hash: u64, item: u64) {
        if !self.insert(hash, item) {
            self.homeless.push((hash, item));
        }
    }

    /// Takes an item that has ended out of the index, if no newer version has replaced it, and no
    /// older one was waiting for that.
    fn remove_dead(&mut self, hash: u64, item: u64) {
        let store = self.store;
        let times = store.times(item);
        let is_there = store.find(hash, store.item_key(item)).item == Some(item);
        if !is_there || !store.supersede(item, times, 0) {
            return;
        }
        if let (_, Some(line)) = store.finish(hash, item, 0) {
            store.class_give(line);
        }
        self.kept.dead += 1;
        self.drop_item(item);
    }

    fn count(&mut self, state: State, add: impl Fn(u64, u64) -> u64) {
        let sum = &mut self.counts[state.class() as usize];
        *sum = (add(sum.0, 1), add(sum.1, state.item_len() as u64));
    }

    /// Takes an item that was accepted and is in no slot out of the world.
    fn drop_item(&mut self, item: u64) {
        let store = self.store;
        let state = State(store.region.word(item).fetch_and(!LINKED, RELAXED));
        self.count(state, u64::wrapping_sub);
        let pieces = state.is_extent().then(|| store.item_link(item).first());
        if self.listed {
            pieces.into_iter().for_each(|first| store.disown_pieces(first));
            store.epochs.retire(0, Retired::Chunk(item));
            return;
        }
        pieces.into_iter().for_each(|first| self.release_pieces(item, first));
        self.again.push(store.layout.page_of(item));
    }
}
