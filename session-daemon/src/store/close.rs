//! A store that is closed, and the start that goes on with it as it stands.
//! It owns the note that a closed store leaves: that nothing in the region is half done, and the
//! counts that stand nowhere else. A start that finds no note does as after a crash (`adopt`).
//!
//! The note is the last thing that is written and the first that a start takes away: a process
//! that is killed at any moment leaves none, or one that is true. It names the file, and when that
//! was changed last by anything but a mapping: a file that somebody wrote to, cut or copied is not
//! taken for what was closed.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Store;
use crate::store::backing::{Identity, MemoryFile};
use crate::store::counters::Count;
use crate::store::failpoint::step;
use crate::store::layout::{ClassMeta, PageState, folded};
use crate::store::recover::Kept;
use crate::store::sync::{AtomicU32, Ordering};
use std::sync::Arc;

/// Relaxed throughout this module, but for the sum of the note: nobody else has the store.
const RELAXED: Ordering = Ordering::Relaxed;

/// What a closed store says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    /// Items and their bytes by class.
    counts: Vec<(u64, u64)>,
    /// Highest stamp of a version.
    stamp: u64,
    changed_ns: u64,
    incarnation: u64,
    pages: u32,
    buckets: u64,
    /// First page, used pages and end of the pool.
    pool: [u32; 3],
}

impl Note {
    /// A sum over all of it, never 0.
    fn sum(&self) -> u64 {
        let [head, used, fresh] = self.pool.map(u64::from);
        let pages = u64::from(self.pages);
        let rest =
            [self.stamp, self.changed_ns, self.incarnation, pages, self.buckets, head, used, fresh];
        let counts = self.counts.iter().flat_map(|(items, bytes)| [*items, *bytes]);
        folded(rest.into_iter().chain(counts)) | 1
    }
}

fn put(halves: &[AtomicU32; 2], value: u64) {
    halves[0].store(value as u32, RELAXED);
    halves[1].store((value >> 32) as u32, RELAXED);
}

fn get(halves: &[AtomicU32; 2]) -> u64 {
    u64::from(halves[1].load(RELAXED)) << 32 | u64::from(halves[0].load(RELAXED))
}

impl Store {
    /// Ends a store in a file so that the next start goes on with it as it stands. False, and
    /// nothing lost, while somebody has the store, or a check is under way: the next start does as
    /// after a crash then.
    pub fn close(self: Arc<Self>) -> bool {
        let Some(store) = self.at_rest() else { return false };
        store.note_counts();
        // Behind all that may store to a page for the first time.
        let identity = store.memory.as_ref().map(MemoryFile::identity).transpose();
        let Ok(identity) = identity else { return false };
        store.leave_note(identity.unwrap_or_default());
        true
    }

    /// The store with nothing under way; none if somebody else has it.
    pub(super) fn at_rest(self: Arc<Self>) -> Option<Self> {
        if Arc::strong_count(&self) > 1 || self.is_checking() {
            return None;
        }
        let mut worker = self.worker().ok()?;
        let waits = |id: &usize| self.epochs.limbo_len(*id) > 0;
        // No worker is in a turn, so each round makes the epoch advance, and two make all ripe.
        while (0..self.epochs.workers()).any(|id| waits(&id)) {
            self.epochs.advance();
            for id in (0..self.epochs.workers()).filter(waits) {
                worker.collect(id);
            }
            // A page that is empty with it waits in its turn.
            worker.put_back();
        }
        drop(worker);
        let store = Arc::into_inner(self)?;
        // Pages that were on their way to other classes stay where they are.
        for page in store.lists.draining.iter() {
            if let PageState::Draining(class) = store.page_state(page) {
                store.page_meta(page).word.reopen();
                store.class_adopt_page(class, page);
            }
        }
        Some(store)
    }

    /// Notes that the store is closed.
    pub(super) fn leave_note(&self, file: Identity) {
        self.superblock().closed_changed_ns.store(file.changed_ns, RELAXED);
        step("close: counted");
        // Release: after all that it vouches for; pairs with the Acquire in `take_note`.
        self.superblock().closed.store(self.note(self.page_count()).sum(), Ordering::Release);
        step("close: noted");
    }

    /// Notes what is there, for a start that goes on with it.
    pub(super) fn note_counts(&self) {
        for class in 0..self.classes.count() {
            let (items, bytes) = self.linked(class);
            let ClassMeta { noted_items, noted_bytes, .. } = self.class_meta(class);
            put(noted_items, items);
            put(noted_bytes, bytes);
        }
        let stamps = self.workers.iter().map(|worker| worker.stamp.0.load(RELAXED));
        self.superblock().noted_stamp.store(stamps.max().unwrap_or(0), RELAXED);
    }

    /// Items of a class and their bytes when that was noted last.
    pub(super) fn noted(&self, class: u32) -> (u64, u64) {
        let ClassMeta { noted_items, noted_bytes, .. } = self.class_meta(class);
        (get(noted_items), get(noted_bytes))
    }

    fn note(&self, pages: u32) -> Note {
        let superblock = self.superblock();
        Note {
            counts: (0..self.classes.count()).map(|class| self.noted(class)).collect(),
            stamp: superblock.noted_stamp.load(RELAXED),
            changed_ns: superblock.closed_changed_ns.load(RELAXED),
            incarnation: superblock.incarnation.load(RELAXED),
            pages,
            buckets: superblock.buckets.load(RELAXED),
            pool: self.pool_words(),
        }
    }

    /// Takes the note away, if there is one that is whole.
    fn take_note(&self, pages: u32) -> Option<Note> {
        let superblock = self.superblock();
        // Acquire: pairs with the Release in `leave_note`, though another process did that.
        let sum = superblock.closed.load(Ordering::Acquire);
        let note = self.note(pages);
        // SeqCst: before anything is changed, so that nothing that is changed is seen beside it.
        superblock.closed.swap(0, Ordering::SeqCst);
        step("close: note taken");
        (sum == note.sum()).then_some(note)
    }

    fn pool_words(&self) -> [u32; 3] {
        let pool = &self.superblock().pool;
        [pool.head(), pool.used(), pool.fresh()]
    }

    /// Makes the store serve a region as it was closed, with `pages` pages and in a file that was
    /// `file` before this start. `None` if it was not closed so, or has fewer pages now: nothing
    /// but the note is touched then.
    pub(super) fn resume(&self, pages: u32, file: Identity, now: Now) -> Option<Kept> {
        let note = self.take_note(pages)?;
        if !self.is_trusted(file) || note.changed_ns != file.changed_ns || self.layout.pages < pages
        {
            return None;
        }
        self.clear_tables(pages..self.layout.pages);
        self.find_pages();
        for (class, &(items, bytes)) in (0..).zip(&note.counts) {
            let counters = &self.workers[0].counters;
            counters.add(class, Count::Linked, items);
            counters.add(class, Count::BytesLinked, bytes);
        }
        let sum = |one: fn(&(u64, u64)) -> u64| note.counts.iter().map(one).sum();
        let kept = Kept {
            items: sum(|counts| counts.0),
            bytes: sum(|counts| counts.1),
            in_place: true,
            ..Kept::default()
        };
        self.go_on(kept.items, note.stamp, now);
        Some(kept)
    }
}
