//! Models of who has which memory: chunks of a page, magazines, pages of the pool, pins. A table of
//! owners stands beside them: who is given something that another has is found at once.
#![forbid(unsafe_code)]

use crate::store::chunks::{Kind, PageWord};
use crate::store::epoch::{Epochs, Retired};
use crate::store::magazines::Magazines;
use crate::store::page_set::PageSet;
use crate::store::pins::Pins;
use crate::store::pool::Pool;
use crate::store::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::store::tests::model;
use loom::sync::Arc;
use loom::thread;

const RELAXED: Ordering = Ordering::Relaxed;
const CHUNKS: u32 = 3;

/// Runs two threads on something that they share.
fn both<T: 'static>(shared: &Arc<T>, one: fn(&T), other: fn(&T)) {
    let mine = Arc::clone(shared);
    let thread = thread::spawn(move || one(&mine));
    other(shared);
    thread.join().unwrap();
}

/// A page of a class, the set of pages with room, and a magazine for each of two workers.
struct Page {
    word: PageWord,
    links: Vec<AtomicU64>,
    owners: Vec<AtomicU64>,
    partial: PageSet,
    magazines: [Magazines; 2],
    retired: AtomicU64,
}

impl Page {
    /// With so many chunks handed out before, which are on its list of free ones.
    fn new(listed: usize) -> Arc<Self> {
        let words = || (0..CHUNKS).map(|_| AtomicU64::new(0)).collect();
        let page = Self {
            word: PageWord::default(),
            links: words(),
            owners: words(),
            partial: PageSet::new(1),
            magazines: [Magazines::new(1), Magazines::new(1)],
            retired: AtomicU64::new(0),
        };
        page.word.set(Kind::Slab);
        page.partial.insert(0);
        let taken = page.take(listed);
        assert_eq!(taken.len(), listed);
        taken.into_iter().for_each(|chunk| page.give(chunk));
        Arc::new(page)
    }

    /// As `page_take` and `class_give` of the store do it.
    fn take(&self, count: usize) -> Vec<u32> {
        let mut taken = vec![0; count];
        let link = |chunk: u32| &self.links[chunk as usize];
        let (count, room) = (self.word.take(CHUNKS, &mut taken, link, || true))
            .map_or((0, 0), |(count, after)| (count, after.room(CHUNKS)));
        taken.truncate(count);
        for chunk in &taken {
            let before = self.owners[*chunk as usize].swap(1, RELAXED);
            assert_eq!(before, 0, "chunk {chunk} is somebody's");
        }
        if room == 0 {
            self.partial.leave(0, || self.has_room());
        }
        taken
    }

    fn has_room(&self) -> bool {
        let view = self.word.view();
        view.kind() == Kind::Slab && view.room(CHUNKS) > 0
    }

    fn give(&self, chunk: u32) {
        self.owners[chunk as usize].store(0, RELAXED);
        let (before, after) = self.word.give(chunk, &self.links[chunk as usize]);
        match after.kind() {
            Kind::Draining => self.retire_if_drained(),
            _ if before.room(CHUNKS) == 0 => self.partial.insert(0),
            _ => {}
        }
    }

    fn close(&self) {
        if self.word.close(|_| true).is_some() {
            self.partial.leave(0, || self.has_room());
            self.retire_if_drained();
        }
    }

    fn retire_if_drained(&self) {
        if self.word.retire_drained() {
            for owner in &self.owners {
                assert_eq!(owner.load(RELAXED), 0, "a chunk of a retired page is somebody's");
            }
            self.retired.fetch_add(1, RELAXED);
        }
    }

    /// A worker's chunk goes into its magazine, and comes out of it unless it was raided.
    fn through_magazine(&self, worker: usize) {
        for chunk in self.take(1) {
            self.magazines[worker].put(0, 0, u64::from(chunk) + 1);
        }
        if let Some(chunk) = self.magazines[worker].take(0, 0) {
            self.give(chunk as u32 - 1);
        }
    }

    fn raid(&self) {
        for magazines in &self.magazines {
            magazines.raid(0, |_| true, |chunk| self.give(chunk as u32 - 1));
        }
    }

    fn check_whole(&self) {
        let view = self.word.view();
        assert_eq!(view.out(), 0);
        assert_eq!(self.partial.contains(0), view.kind() == Kind::Slab);
        let mut seen = [false; CHUNKS as usize];
        let mut head = view.head();
        while head != 0 {
            let was_seen = std::mem::replace(&mut seen[head as usize - 1], true);
            assert!(!was_seen, "chunk {head} is free twice");
            head = self.links[head as usize - 1].load(RELAXED) as u32;
        }
        let free = seen.iter().filter(|seen| **seen).count();
        assert_eq!(free, view.carved() as usize);
    }
}

#[test]
fn a_chunk_is_handed_out_to_one() {
    model(|| {
        let page = Page::new(2);
        let use_one = |page: &Page| page.take(1).into_iter().for_each(|chunk| page.give(chunk));
        both(&page, use_one, |page| {
            let taken = page.take(2);
            page.give(taken[0]);
            page.give(taken[1]);
        });
        page.check_whole();
    });
}

/// The head of the list is what it was, and what it names is not: a magazine's ABA.
#[test]
fn a_list_that_came_to_the_same_head_again_is_not_taken_for_what_it_was() {
    model(|| {
        let page = Page::new(2);
        both(
            &page,
            |page| {
                let taken = page.take(1);
                taken.into_iter().for_each(|chunk| page.give(chunk));
            },
            |page| {
                let first = page.take(1);
                let second = page.take(1);
                first.into_iter().for_each(|chunk| page.give(chunk));
                second.into_iter().for_each(|chunk| page.give(chunk));
            },
        );
        page.check_whole();
    });
}

#[test]
fn a_page_with_room_is_found() {
    model(|| {
        let page = Page::new(0);
        let held = page.take(CHUNKS as usize - 1);
        assert_eq!(held, [0, 1]);
        both(&page, |page| drop(page.take(1)), |page| page.give(0));
        assert!(page.has_room() && page.partial.contains(0));
    });
}

#[test]
fn a_page_drains_once_and_when_all_chunks_are_back() {
    model(|| {
        let page = Page::new(1);
        both(
            &page,
            |page| page.take(2).into_iter().for_each(|chunk| page.give(chunk)),
            Page::close,
        );
        assert_eq!(page.retired.load(RELAXED), 1);
        assert!(!page.partial.contains(0) && page.word.view().kind() == Kind::Retired);
    });
}

#[test]
fn magazines_are_raided_while_their_owners_use_them() {
    model(|| {
        let page = Page::new(1);
        both(
            &page,
            |page| page.through_magazine(0),
            |page| {
                page.close();
                page.raid();
            },
        );
        page.raid();
        assert_eq!(page.retired.load(RELAXED), 1);
    });
}

#[test]
fn a_raid_and_an_owner_do_not_get_the_same_chunk() {
    model(|| {
        let page = Page::new(1);
        for chunk in page.take(1) {
            page.magazines[0].put(0, 0, u64::from(chunk) + 1);
        }
        both(&page, Page::raid, |page| {
            if let Some(chunk) = page.magazines[0].take(0, 0) {
                page.give(chunk as u32 - 1);
            }
        });
        page.check_whole();
    });
}

/// A pool of pages, and who has them.
struct Pages {
    pool: Pool,
    links: Vec<AtomicU32>,
    owners: Vec<AtomicU64>,
}

const PAGES: u32 = 3;

impl Pages {
    fn new() -> Arc<Self> {
        let pages = Self {
            pool: Pool::default(),
            links: (0..PAGES).map(|_| AtomicU32::new(0)).collect(),
            owners: (0..PAGES).map(|_| AtomicU64::new(0)).collect(),
        };
        pages.pool.format(0, 0);
        Arc::new(pages)
    }

    fn take(&self, limit: u32) -> Option<u32> {
        let taken = self.pool.take(limit, || PAGES, |page| &self.links[page as usize])?;
        let before = self.owners[taken.page as usize].swap(1, RELAXED);
        assert_eq!(before, 0, "page {} is somebody's", taken.page);
        Some(taken.page)
    }

    fn give(&self, page: u32) {
        self.owners[page as usize].store(0, RELAXED);
        self.pool.give(page, &self.links[page as usize]);
    }
}

#[test]
fn a_page_of_the_pool_is_handed_out_to_one_and_within_the_limit() {
    model(|| {
        let pages = Pages::new();
        let first = pages.take(PAGES).unwrap();
        let second = pages.take(PAGES).unwrap();
        pages.give(first);
        pages.give(second);
        both(
            &pages,
            |pages| pages.take(2).into_iter().for_each(|page| pages.give(page)),
            |pages| {
                let taken = [pages.take(2), pages.take(2)];
                assert!(taken[0].is_some());
                taken.into_iter().flatten().for_each(|page| pages.give(page));
            },
        );
        assert_eq!(pages.pool.used(), 0);
        let all = [(); 3].map(|()| pages.take(PAGES).expect("it was given back"));
        assert_eq!(all.iter().sum::<u32>(), 3);
    });
}

#[test]
fn there_is_a_page_for_each_that_the_limit_counts() {
    model(|| {
        let pages = Pages::new();
        for _ in 0..2 {
            pages.take(PAGES).unwrap();
        }
        // One is left, and one comes back.
        both(
            &pages,
            |pages| _ = pages.take(PAGES).expect("two threads, and one gives first"),
            |pages| {
                pages.give(0);
                pages.take(PAGES).expect("two threads, and one gives first");
            },
        );
        assert_eq!(pages.pool.used(), 3);
    });
}

#[test]
fn a_set_finds_what_is_in_it() {
    model(|| {
        let set = Arc::new(PageSet::new(130));
        set.insert(70);
        both(&set, |set| _ = set.remove(70), |set| set.insert(71));
        assert_eq!((set.next_from(0), set.next_from(72)), (Some(71), None));
    });
}

/// An item whose pins are given while it becomes ripe, and how often it was released.
struct Pinned {
    pins: Pins,
    places: [crate::store::pins::Place; 2],
    released: AtomicUsize,
}

impl Pinned {
    fn unpin(&self, which: usize) {
        if let Some(worker) = self.pins.give(self.places[which], 10) {
            assert_eq!(worker, 3);
            self.ripe();
        }
    }

    fn ripe(&self) {
        if !self.pins.keep(64, 3) {
            self.released.fetch_add(1, RELAXED);
        }
    }
}

#[test]
fn an_item_is_released_once_and_after_its_last_pin() {
    model(|| {
        let pins = Pins::default();
        let places = [(); 2].map(|()| pins.take(64, 10, 100).unwrap());
        let pinned = Arc::new(Pinned { pins, places, released: AtomicUsize::new(0) });
        both(&pinned, |pinned| pinned.unpin(0), Pinned::ripe);
        assert_eq!(pinned.released.load(RELAXED), 0, "it is pinned still");
        pinned.unpin(1);
        assert_eq!(pinned.released.load(RELAXED), 1);
    });
}

#[test]
fn the_last_pin_and_ripeness_meet() {
    model(|| {
        let pins = Pins::default();
        let place = pins.take(64, 10, 100).unwrap();
        let pinned = Arc::new(Pinned { pins, places: [place; 2], released: AtomicUsize::new(0) });
        both(&pinned, |pinned| pinned.unpin(0), Pinned::ripe);
        assert_eq!(pinned.released.load(RELAXED), 1);
    });
}

/// A thread that is stopped with a limbo does not stop another from retiring.
#[test]
fn who_finds_a_limbo_taken_retires_into_another() {
    model(|| {
        let epochs = Arc::new(Epochs::new(2));
        epochs.retire(0, Retired::Chunk(8));
        both(
            &epochs,
            |epochs| {
                epochs.advance();
                epochs.collect(0, 1, &mut Vec::new());
            },
            |epochs| epochs.retire(0, Retired::Chunk(16)),
        );
        let waits: usize = (0..2).map(|worker| epochs.limbo_len(worker)).sum();
        assert!((1..=2).contains(&waits), "{waits}");
    });
}
