//! Pages and chunks: the pool of free pages, the pages of each class, who may write to which chunk.
//! It never knows what is in one.
//!
//! Nobody waits here for anybody. What a page is, and which of its chunks are free, is one word
//! (`chunks`); which pages a class has, and which of those have room, are sets of pages
//! (`page_set`) that only say where to look: the word decides.
#![forbid(unsafe_code)]

use crate::store::Store;
use crate::store::check::CHECKED;
use crate::store::chunks::{Kind, View};
use crate::store::classes::LINE_CLASS;
use crate::store::failpoint::step;
use crate::store::layout::{ClassMeta, Layout, PageMeta, PageState, Superblock};
use crate::store::magazines::MAGAZINE_CHUNKS_MAX;
use crate::store::page_set::PageSet;
use crate::store::pool::TakenPage;
use crate::store::sync::{AtomicU32, AtomicU64, Ordering};

/// Most bytes of chunks in a worker's magazine of one class.
const MAGAZINE_LEN_MAX: usize = 4096;
/// Share of the limit that all magazines together may hold.
const MAGAZINES_SHARE: usize = 16;
/// An empty page stays with its class unless the class has this many free chunks beside it.
const SURPLUS_CHUNKS_MAX: u32 = 64;
/// Most chunks that are taken of a page in one go.
const TAKEN_MAX: usize = MAGAZINE_CHUNKS_MAX + 1;
/// New pages that a claim of the hand passes by, at most.
const NEW_PAGES_PASSED_MAX: u32 = 64;

/// The pages of a class, as far as it is known where to look for them.
#[derive(Debug)]
struct ClassPages {
    /// Pages of the class, and perhaps some that were.
    members: PageSet,
    /// Those with a chunk to hand out, and perhaps some without.
    partial: PageSet,
    /// Those that have to be checked before chunks are taken of them.
    unchecked: PageSet,
    /// Where a chunk was found last.
    at: AtomicU32,
    /// The clock's hand: a page, and below it a chunk.
    hand: AtomicU64,
}

/// Which pages have which use. It stands beside the region: a start makes it anew.
#[derive(Debug)]
pub(super) struct PageLists {
    classes: Box<[ClassPages]>,
    /// Pages that drain, and perhaps some that did.
    pub(super) draining: PageSet,
    /// Where a draining page is looked for next.
    pub(super) drain_at: AtomicU32,
    /// Pages that have drained and wait for turns to end.
    ripening: AtomicU32,
}

impl PageLists {
    pub(super) fn new(layout: &Layout, classes: u32) -> Self {
        let of_class = |_| ClassPages {
            members: PageSet::new(layout.pages_max),
            partial: PageSet::new(layout.pages_max),
            unchecked: PageSet::new(layout.pages_max),
            at: AtomicU32::new(0),
            hand: AtomicU64::new(0),
        };
        Self {
            classes: (0..classes).map(of_class).collect(),
            draining: PageSet::new(layout.pages_max),
            drain_at: AtomicU32::new(0),
            ripening: AtomicU32::new(0),
        }
    }
}

/// What became of a chunk's page when the chunk was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    Kept,
    /// It is empty, and its class has room enough without it.
    Surplus(u32, u32),
    /// It has drained: the caller retires it.
    Drained(u32),
}

impl Store {
    pub(super) fn superblock(&self) -> &Superblock {
        self.region.shared(0)
    }

    pub(super) fn page_meta(&self, page: u32) -> &PageMeta {
        self.region.shared(self.layout.page_meta(page))
    }

    pub(super) fn class_meta(&self, class: u32) -> &ClassMeta {
        self.region.shared(self.layout.class_meta(class))
    }

    /// What a page is used for. Who sees it in a turn to be of a class can read it as such until
    /// the turn ends, and its class is that one until then.
    pub(super) fn page_state(&self, page: u32) -> PageState {
        let meta = self.page_meta(page);
        // Relaxed: behind the Acquire of the word, which was stored after it.
        PageState::new(meta.word.view().kind(), || meta.class.load(Ordering::Relaxed))
    }

    /// Changes the use of a page that is the caller's alone.
    pub(super) fn set_page_kind(&self, page: u32, kind: Kind) {
        self.page_meta(page).word.set(kind);
    }

    /// Chunks in a page of `class`.
    pub(super) fn chunks_per_page(&self, class: u32) -> u32 {
        (self.layout.page_len() / self.classes.size(class)) as u32
    }

    /// Offset of a chunk.
    pub(super) fn chunk(&self, page: u32, class: u32, idx: u32) -> u64 {
        self.layout.page(page) + u64::from(idx) * self.classes.size(class) as u64
    }

    /// How many chunks of `class` a magazine holds.
    pub(super) fn magazine_capacity(&self, class: u32) -> usize {
        let magazines = self.epochs.workers() * self.classes.count() as usize;
        let fair = self.config.memory_limit / MAGAZINES_SHARE / magazines;
        (fair.min(MAGAZINE_LEN_MAX) / self.classes.size(class)).min(MAGAZINE_CHUNKS_MAX)
    }

    /// Takes a page from the pool.
    pub(super) fn pool_take(&self) -> Option<TakenPage> {
        let next = |page| &self.page_meta(page).next;
        let taken = self.superblock().pool.take(self.limit.pages(), || self.page_count(), next)?;
        step("page: taken");
        Some(taken)
    }

    /// Gives a page to the pool. No turn may still know it as anything else.
    pub(super) fn pool_give(&self, page: u32) {
        self.set_page_kind(page, Kind::Free);
        self.superblock().pool.give(page, &self.page_meta(page).next);
    }

    /// Gives a page that has drained to the class for which it was emptied, or else to the pool.
    /// No turn may still know it as anything else.
    pub(super) fn pass_on(&self, page: u32) {
        // Relaxed: written in a turn that was open when the page was retired, and that is over.
        match self.page_meta(page).heir.load(Ordering::Relaxed).checked_sub(1) {
            Some(class) => self.class_add_page(class, TakenPage { page, fresh: false }),
            None => self.pool_give(page),
        }
        // Relaxed: as in `pages_ripening`. Only now: who waits for the page finds it.
        self.lists.ripening.fetch_sub(1, Ordering::Relaxed);
    }

    /// Pages that the pool could give now.
    pub(super) fn pool_len(&self) -> u32 {
        self.limit.pages().saturating_sub(self.pool_used())
    }

    /// Pages that the pool has handed out.
    pub(super) fn pool_used(&self) -> u32 {
        self.superblock().pool.used()
    }

    /// Makes a page from the pool a page of `class`.
    pub(super) fn class_add_page(&self, class: u32, taken: TakenPage) {
        let TakenPage { page, fresh } = taken;
        let meta = self.page_meta(page);
        if !fresh {
            // Relaxed: no scan reads them before the word says that they have been handed out, and
            // after a crash no chunk of the page shows a former use.
            for idx in 0..self.chunks_per_page(class) {
                self.region.word(self.chunk(page, class, idx)).store(0, Ordering::Relaxed);
            }
            step("page: cleared");
        }
        // Relaxed: published by the word.
        meta.class.store(class, Ordering::Relaxed);
        meta.unchecked.store(0, Ordering::Relaxed);
        meta.deadline_s.store(u32::MAX, Ordering::Relaxed);
        // Pages that came from others are swept last: what is in them is new.
        meta.is_new.store(u32::from(!fresh), Ordering::Relaxed);
        meta.word.set(Kind::Slab);
        step("page: of a class");
        // Its room as it was given the word: who is quick may have found it, and taken of it.
        self.class_enter_page(class, page, self.chunks_per_page(class));
    }

    /// Puts a page of `class` whose chunks are listed into the lists of its class. Nobody else has
    /// the store.
    pub(super) fn class_adopt_page(&self, class: u32, page: u32) {
        let room = self.page_meta(page).word.view().room(self.chunks_per_page(class));
        self.class_enter_page(class, page, room);
    }

    fn class_enter_page(&self, class: u32, page: u32, room: u32) {
        let (of, lists) = (self.class_meta(class), &self.lists.classes[class as usize]);
        // Relaxed: counts that are exact when nothing is under way.
        of.pages.fetch_add(1, Ordering::Relaxed);
        of.free.fetch_add(room, Ordering::Relaxed);
        lists.members.insert(page);
        if room > 0 {
            lists.partial.insert(page);
        }
    }

    /// Puts a page of `class` of which it is not known which chunks are free into the lists of its
    /// class. Nobody else has the store.
    pub(super) fn class_adopt_unchecked(&self, class: u32, page: u32) {
        let meta = self.page_meta(page);
        // Relaxed: nobody else has the store.
        let relaxed = Ordering::Relaxed;
        meta.word.set_unlisted();
        meta.is_new.store(0, relaxed);
        meta.unchecked.store(1, relaxed);
        // The sweep looks for itself: the word may have been between two values.
        meta.deadline_s.store(0, relaxed);
        let lists = &self.lists.classes[class as usize];
        lists.members.insert(page);
        if class != LINE_CLASS {
            lists.unchecked.insert(page);
        }
        self.class_meta(class).pages.fetch_add(1, relaxed);
    }

    /// Gives a page that was not checked its list of free chunks, which makes it a checked one.
    /// Nobody takes or gives one until then.
    pub(super) fn class_list_page(&self, class: u32, page: u32, head: u32, free: u32) {
        let word = &self.page_meta(page).word;
        word.list(head, free);
        let room = word.view().room(self.chunks_per_page(class));
        // Relaxed: as in `class_enter_page`.
        self.class_meta(class).free.fetch_add(room, Ordering::Relaxed);
        let lists = &self.lists.classes[class as usize];
        lists.unchecked.remove(page);
        // Release: the lists are complete; pairs with the Acquire in `is_unchecked`. Before the page
        // is found: who finds one that may not be taken from yet looks for it again.
        self.page_meta(page).unchecked.store(CHECKED, Ordering::Release);
        if room > 0 {
            lists.partial.insert(page);
        }
    }

    /// Finds the pages of all classes of a region that was closed. Nobody else has the store.
    pub(super) fn find_pages(&self) {
        for page in 0..self.superblock().pool.fresh().min(self.page_count()) {
            if let PageState::Slab(class) = self.page_state(page) {
                let lists = &self.lists.classes[class as usize];
                lists.members.insert(page);
                if self.page_meta(page).word.view().room(self.chunks_per_page(class)) > 0 {
                    lists.partial.insert(page);
                }
            }
        }
    }

    /// Whether a page of `class` will be found: by the hand and, if it has room, by who takes
    /// chunks.
    pub(super) fn is_listed(&self, class: u32, page: u32, has_room: bool) -> bool {
        let lists = &self.lists.classes[class as usize];
        lists.members.contains(page) && (!has_room || lists.partial.contains(page))
    }

    /// A page of `class` that has to be checked before chunks are taken of it.
    pub(super) fn class_unchecked(&self, class: u32) -> Option<u32> {
        if !self.is_checking() {
            return None;
        }
        self.lists.classes[class as usize].unchecked.next_from(0)
    }

    /// Makes a chunk the head of a list of free chunks, before `head` (number and one).
    pub(super) fn list_chunk(&self, chunk: u64, head: u32) {
        // Relaxed: published with the list; for a scan 0 is no item.
        self.region.word(chunk).store(0, Ordering::Relaxed);
        self.region.word(chunk + 8).store(u64::from(head), Ordering::Relaxed);
    }

    /// Takes up to `lines.len()` overflow lines, of the pages that are there or of one from the
    /// pool; returns how many. 0 when there is no memory.
    pub(super) fn take_lines(&self, lines: &mut [u64]) -> usize {
        loop {
            let taken = self.class_take(LINE_CLASS, lines);
            if taken > 0 {
                return taken;
            }
            let Some(page) = self.pool_take() else { return 0 };
            self.class_add_page(LINE_CLASS, page);
        }
    }

    /// Takes up to `chunks.len()` free chunks of `class`; returns how many.
    pub(super) fn class_take(&self, class: u32, chunks: &mut [u64]) -> usize {
        let (of, lists) = (self.class_meta(class), &self.lists.classes[class as usize]);
        let mut taken = 0;
        // Relaxed: a hint. What is given at this moment is found the next time.
        while taken < chunks.len() && of.free.load(Ordering::Relaxed) != 0 {
            let at = lists.at.load(Ordering::Relaxed);
            let Some(page) = lists.partial.find(at) else { break };
            let here = self.page_take(page, class, &mut chunks[taken..]);
            taken += here;
            if page != at {
                lists.at.store(page, Ordering::Relaxed);
            }
        }
        if taken > 0 {
            of.free.fetch_sub(taken as u32, Ordering::Relaxed);
        }
        taken
    }

    /// Takes chunks of a page, if it is of `class`. If none is left it is not looked at again.
    fn page_take(&self, page: u32, class: u32, chunks: &mut [u64]) -> usize {
        let meta = self.page_meta(page);
        let per_page = self.chunks_per_page(class);
        let mut idxs = [0; TAKEN_MAX];
        let most = chunks.len().min(TAKEN_MAX);
        let link = |idx| self.region.word(self.chunk(page, class, idx) + 8);
        // Relaxed: behind the Acquire of the word; if the page gets another class the word changes.
        let may = || meta.class.load(Ordering::Relaxed) == class && !self.is_unchecked(page);
        let taken = meta.word.take(per_page, &mut idxs[..most], link, may);
        let (count, left) = taken.map_or((0, 0), |(count, after)| (count, after.room(per_page)));
        step("chunk: taken");
        for (chunk, idx) in chunks.iter_mut().zip(&idxs[..count]) {
            *chunk = self.chunk(page, class, *idx);
        }
        if left == 0 {
            let lists = &self.lists.classes[class as usize];
            lists.partial.leave(page, || self.has_room(page, class));
        }
        count
    }

    /// Whether a page is one of `class` with a chunk to hand out.
    fn has_room(&self, page: u32, class: u32) -> bool {
        self.page_state(page) == PageState::Slab(class)
            && self.page_meta(page).word.view().room(self.chunks_per_page(class)) > 0
    }

    /// Gives a chunk that nobody can know any more back to its page.
    pub(super) fn class_give(&self, chunk: u64) -> Given {
        let page = self.layout.page_of(chunk);
        let meta = self.page_meta(page);
        // Relaxed: the page is of this class as long as the chunk is out.
        let class = meta.class.load(Ordering::Relaxed);
        let per_page = self.chunks_per_page(class);
        let idx = (chunk - self.layout.page(page)) / self.classes.size(class) as u64;
        // Relaxed: published by the word; for a scan 0 is no item.
        self.region.word(chunk).store(0, Ordering::Relaxed);
        let (before, after) = meta.word.give(idx as u32, self.region.word(chunk + 8));
        if after.kind() == Kind::Draining {
            return if self.is_drained(page) { Given::Drained(page) } else { Given::Kept };
        }
        let of = self.class_meta(class);
        // Relaxed: as in `class_enter_page`.
        let free = of.free.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let partial = &self.lists.classes[class as usize].partial;
        // The second in case that the first to give one has stopped here.
        if before.room(per_page) == 0 || !partial.contains(page) {
            partial.insert(page);
        }
        let enough = per_page + per_page.min(SURPLUS_CHUNKS_MAX);
        let is_surplus = after.out() == 0 && (enough..u32::MAX / 2).contains(&free);
        if is_surplus { Given::Surplus(page, class) } else { Given::Kept }
    }

    /// Whether a draining page is empty. True only once: the caller retires it.
    pub(super) fn is_drained(&self, page: u32) -> bool {
        let drained = self.page_meta(page).word.retire_drained();
        if drained {
            step("drain: drained");
            self.lists.draining.remove(page);
            // Relaxed: as in `pages_ripening`.
            self.lists.ripening.fetch_add(1, Ordering::Relaxed);
        }
        drained
    }

    /// Stops allocation from a page of `class`, if `may` allows it of what the page is then; false
    /// when it does not, or it is no such page any more.
    pub(super) fn class_mark_draining(
        &self,
        class: u32,
        page: u32,
        may: impl Fn(View) -> bool,
    ) -> bool {
        let meta = self.page_meta(page);
        // Relaxed: behind the Acquire of the word, of the view that is asked about.
        let is_ours = || meta.class.load(Ordering::Relaxed) == class && !self.is_unchecked(page);
        let Some(view) = meta.word.close(|view| is_ours() && may(view)) else { return false };
        step("drain: marked");
        let (of, lists) = (self.class_meta(class), &self.lists.classes[class as usize]);
        // Relaxed: as in `class_enter_page`.
        of.pages.fetch_sub(1, Ordering::Relaxed);
        of.free.fetch_sub(view.room(self.chunks_per_page(class)), Ordering::Relaxed);
        lists.partial.leave(page, || self.has_room(page, class));
        lists.members.leave(page, || self.page_state(page) == PageState::Slab(class));
        true
    }

    /// Takes a page that does not drain out of the set of those that do.
    pub(super) fn forget_draining(&self, page: u32) {
        let drains = || matches!(self.page_state(page), PageState::Draining(_));
        self.lists.draining.leave(page, drains);
    }

    /// Pages that drain.
    pub(super) fn pages_draining(&self) -> usize {
        let drains = |page: &u32| matches!(self.page_state(*page), PageState::Draining(_));
        self.lists.draining.iter().filter(drains).count()
    }

    /// Pages that have drained and wait for turns to end.
    pub(super) fn pages_ripening(&self) -> usize {
        // Relaxed: a figure that changes at any time.
        self.lists.ripening.load(Ordering::Relaxed) as usize
    }

    /// A page of a class.
    pub(super) fn page_of_class(&self, class: u32) -> Option<u32> {
        let lists = &self.lists.classes[class as usize];
        // Relaxed: as in `class_claim`.
        self.next_swept(class, (lists.hand.load(Ordering::Relaxed) >> 32) as u32)
    }

    /// Chunks of a page that have been handed out at least once.
    pub(super) fn page_carved(&self, page: u32) -> u32 {
        self.page_meta(page).word.view().carved()
    }

    /// The chunks that the clock's hand of `class` passes next: page, first chunk, number.
    pub(super) fn class_claim(&self, class: u32, most: u32) -> Option<(u32, u32, u32)> {
        let lists = &self.lists.classes[class as usize];
        // Relaxed throughout: which chunks are looked at next decides nothing about them.
        let relaxed = Ordering::Relaxed;
        let mut seen = lists.hand.load(relaxed);
        loop {
            let (at, mut first) = ((seen >> 32) as u32, seen as u32);
            let page = if first == 0 { self.next_swept(class, at)? } else { at };
            if first > 0 && self.page_state(page) != PageState::Slab(class) {
                first = u32::MAX;
            }
            let carved = self.page_carved(page);
            let count = most.min(carved.saturating_sub(first));
            let next = match first.saturating_add(count) {
                end if end >= carved => u64::from(page + 1) << 32,
                end => u64::from(page) << 32 | u64::from(end),
            };
            match lists.hand.compare_exchange(seen, next, relaxed, relaxed) {
                Ok(_) if first < u32::MAX => return Some((page, first, count)),
                Ok(_) => seen = next,
                Err(other) => seen = other,
            }
        }
    }

    /// The page of `class` that the hand comes to, from page `from` on. New ones are passed by.
    fn next_swept(&self, class: u32, from: u32) -> Option<u32> {
        let members = &self.lists.classes[class as usize].members;
        let (mut from, mut passed) = (from, 0);
        loop {
            let page = members.find(from)?;
            if self.page_state(page) != PageState::Slab(class) {
                members.leave(page, || self.page_state(page) == PageState::Slab(class));
                from = page + 1;
                continue;
            }
            // Relaxed: as in `class_claim`.
            if passed == NEW_PAGES_PASSED_MAX
                || self.page_meta(page).is_new.swap(0, Ordering::Relaxed) == 0
            {
                return Some(page);
            }
            (from, passed) = (page + 1, passed + 1);
        }
    }
}
