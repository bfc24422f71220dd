//! The slow check of everything: every bucket, chunk, page, list and count.
//! It owns the list of invariants; it changes nothing.
#![forbid(unsafe_code)]

use crate::store::Store;
use crate::store::classes::LINE_CLASS;
use crate::store::epoch::Retired;
use crate::store::item::{PIECE_OWNER, Piece};
use crate::store::layout::PageState;
use crate::store::pool::NO_PAGE;
use crate::store::sync::Ordering;
use std::collections::{HashMap, HashSet};
use thiserror::Error;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// What a store holds, counted by walking it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Linked items.
    pub items: u64,
    /// Bytes of their headers, keys and values.
    pub bytes: u64,
    /// Buckets of the index.
    pub buckets: u64,
    /// Overflow lines in use.
    pub overflow_lines: u64,
    /// Pages of the index, with those of overflow lines.
    pub index_pages: u64,
    /// Pages that nobody uses.
    pub pages_free: u64,
    /// Chunks that wait for turns to end.
    pub chunks_in_limbo: u64,
    /// Chunks in magazines.
    pub chunks_in_magazines: u64,
    /// Chunks and pages that belong to uploads or to commands that run.
    pub chunks_private: u64,
}

/// Where a chunk or page piece was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Head,
    Piece,
    OverflowLine,
    FreeList,
    Magazine,
    Limbo,
    /// A page that has drained.
    LimboPage,
}

struct Walk<'s> {
    store: &'s Store,
    census: Census,
    places: HashMap<u64, Place>,
}

type Checked = Result<(), Violation>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Violation(what())) }
}

impl Store {
    /// Walks the whole store and checks every invariant. No other thread may use the store
    /// meanwhile, or what is in motion is reported as wrong.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn validate(&self) -> Result<Census, Violation> {
        let mut walk = Walk { store: self, census: Census::default(), places: HashMap::new() };
        ensure(!self.is_checking(), || "the check behind the start is not done".to_owned())?;
        walk.index()?;
        walk.waiting()?;
        walk.pages()?;
        walk.classes()?;
        walk.counts()?;
        self.protected_miscounted().map_or(Ok(()), |what| Err(Violation(what)))?;
        Ok(walk.census)
    }
}

impl Walk<'_> {
    fn place(&mut self, offset: u64, place: Place) -> Checked {
        match self.places.insert(offset, place) {
            None => Ok(()),
            Some(other) => {
                Err(Violation(format!("chunk {offset} is {place:?} and {other:?} at once")))
            }
        }
    }

    fn index(&mut self) -> Checked {
        let store = self.store;
        let buckets = store.bucket_count();
        let level = buckets.ilog2();
        let split = buckets - (1 << level);
        let mut result = Ok(());
        store.for_each_bucket(|bucket| {
            if result.is_err() {
                return;
            }
            let is_split = bucket.number < split || bucket.number >= 1 << level;
            let depth = u64::from(level) + u64::from(is_split);
            result = ensure(bucket.depth == depth && !bucket.unfinished, || {
                format!(
                    "bucket {} has depth {} not {depth}, or is unfinished",
                    bucket.number, bucket.depth
                )
            });
            let mut keys = HashSet::new();
            for &(item, tag) in &bucket.slots {
                let key = store.item_key(item);
                let checks = ensure(bucket.owns(store.secret.hash(key), tag), || {
                    format!("item {item} is in bucket {} by mistake", bucket.number)
                })
                .and_then(|()| ensure(keys.insert(key), || format!("key {key:?} is there twice")))
                .and_then(|()| self.item(item));
                if result.is_ok() {
                    result = checks;
                }
            }
            for &line in bucket.overflow {
                self.census.overflow_lines += 1;
                let placed = self.place(line, Place::OverflowLine);
                if result.is_ok() {
                    result = placed;
                }
            }
        });
        self.census.buckets = buckets;
        result
    }

    fn item(&mut self, item: u64) -> Checked {
        let state = self.store.item_state(item);
        let has_ended = self.store.item_times(item).successor().is_some();
        ensure(state.is_linked() && !has_ended, || {
            format!("item {item} is in the index but not linked, or it has ended")
        })?;
        let page = self.store.layout.page_of(item);
        ensure(self.class_of(page) == Some(state.class()), || {
            format!("item {item} of class {} is in page {page} of another", state.class())
        })?;
        let len: usize = self.store.value_slices(item, state).map(<[u8]>::len).sum();
        ensure(len == state.value_len(), || {
            format!("item {item} has {len} bytes of value, not {}", state.value_len())
        })?;
        let exptime_s = self.store.item_times(item).exptime_s();
        let deadline_s = self.store.page_meta(page).deadline_s.load(Ordering::Relaxed);
        ensure(exptime_s == 0 || deadline_s <= exptime_s, || {
            format!("item {item} expires at {exptime_s}, before its page's deadline {deadline_s}")
        })?;
        self.census.items += 1;
        self.census.bytes += state.item_len() as u64;
        self.place(item, Place::Head)?;
        if !state.is_extent() {
            return Ok(());
        }
        let store = self.store;
        self.pieces(store.item_link(item).first(), Place::Piece, |piece| {
            let owner = store.region.word(piece + PIECE_OWNER).load(Ordering::Relaxed);
            ensure(store.owner_of(owner) == Some(item), || {
                format!("piece {piece} of {item} belongs to {owner:x}")
            })
        })
    }

    fn pieces(&mut self, first: u64, place: Place, check: impl Fn(u64) -> Checked) -> Checked {
        let mut next = first;
        while next != 0 {
            let piece = next;
            self.place(piece, place)?;
            check(piece)?;
            next = Piece(self.store.region.word(piece).load(Ordering::Relaxed)).next();
        }
        Ok(())
    }

    fn class_of(&self, page: u32) -> Option<u32> {
        match self.store.page_state(page) {
            PageState::Slab(class) | PageState::Draining(class) => Some(class),
            _ => None,
        }
    }

    /// What is in limbo and in magazines.
    fn waiting(&mut self) -> Checked {
        let mut retired = Vec::new();
        self.store.epochs.for_each(|entry| retired.push(entry));
        self.store.pins.for_each_kept(|item| retired.push(Retired::Chunk(item)));
        for entry in retired {
            match entry {
                Retired::Chunk(chunk) => {
                    let state = self.store.item_state(chunk);
                    ensure(!state.is_linked(), || format!("chunk {chunk} is linked in limbo"))?;
                    self.place(chunk, Place::Limbo)?;
                    if state.is_extent() && !state.is_piece() {
                        let first = self.store.item_link(chunk).first();
                        self.pieces(first, Place::Limbo, |_| Ok(()))?;
                    }
                }
                Retired::Pieces(first) => self.pieces(first, Place::Limbo, |_| Ok(()))?,
                Retired::Alone(line) => self.place(line, Place::Limbo)?,
                Retired::Page(page) => {
                    self.place(self.store.layout.page(page), Place::LimboPage)?;
                }
            }
        }
        for class in 0..self.store.classes.count() {
            for worker in &self.store.workers {
                for place in worker.magazines.of(class) {
                    let chunk = place.load(Ordering::Relaxed);
                    if chunk != 0 {
                        self.census.chunks_in_magazines += 1;
                        self.place(chunk, Place::Magazine)?;
                    }
                }
            }
        }
        let limbo = self.places.values().filter(|place| **place == Place::Limbo).count();
        self.census.chunks_in_limbo = limbo as u64;
        Ok(())
    }

    fn pages(&mut self) -> Checked {
        let mut pool = HashSet::new();
        let words = &self.store.superblock().pool;
        let fresh = words.fresh();
        let mut next = words.head();
        while next != NO_PAGE {
            ensure(pool.insert(next), || format!("page {next} is in the pool twice"))?;
            next = self.store.page_meta(next).next.load(Ordering::Relaxed);
        }
        let used = words.used();
        ensure(pool.len() + used as usize == fresh as usize, || {
            format!("the pool has {} pages of {fresh} and counts {used} as used", pool.len())
        })?;
        for page in 0..self.store.page_count() {
            let state = self.store.page_state(page);
            let is_free = page >= fresh || pool.contains(&page);
            ensure(is_free == (state == PageState::Free), || {
                format!("page {page} is {state:?}, in the pool: {is_free}")
            })?;
            match state {
                PageState::Free => self.census.pages_free += 1,
                PageState::Index => self.census.index_pages += 1,
                PageState::Slab(class) | PageState::Draining(class) => {
                    self.census.index_pages += u64::from(class == LINE_CLASS);
                    self.chunks(page, class)?;
                }
                PageState::Extent | PageState::Retired => {
                    let known = self.places.contains_key(&self.store.layout.page(page));
                    self.census.chunks_private += u64::from(!known);
                }
            }
        }
        let per_page = self.store.layout.page_len() as u64 / crate::store::words::LINE_LEN;
        let directory = self.census.buckets.div_ceil(per_page);
        let buckets = (0..self.store.page_count()).filter(|p| self.store.is_index_page(*p)).count();
        ensure(buckets as u64 == directory || buckets as u64 == directory + 1, || {
            format!("{buckets} pages of buckets for {} buckets", self.census.buckets)
        })
    }

    /// Every chunk of a page that was ever handed out is in exactly one place.
    fn chunks(&mut self, page: u32, class: u32) -> Checked {
        let view = self.store.page_meta(page).word.view();
        let carved = view.carved();
        let mut free = 0;
        let mut head = view.head();
        while head != 0 {
            free += 1;
            let chunk = self.store.chunk(page, class, head - 1);
            ensure(head <= carved, || format!("page {page} has free chunk {head} of {carved}"))?;
            self.place(chunk, Place::FreeList)?;
            head = self.store.region.word(chunk + 8).load(Ordering::Relaxed) as u32;
        }
        let counted = carved - view.out();
        ensure(free == counted, || format!("page {page} has {free} free chunks, not {counted}"))?;
        for idx in 0..carved {
            let chunk = self.store.chunk(page, class, idx);
            let place = self.places.get(&chunk);
            self.census.chunks_private += u64::from(place.is_none() && class != LINE_CLASS);
            if class == LINE_CLASS {
                continue;
            }
            let linked = self.store.item_state(chunk).is_linked();
            ensure(linked == (place == Some(&Place::Head)), || {
                format!("chunk {chunk}: linked is {linked}, found as {place:?}")
            })?;
        }
        Ok(())
    }

    fn classes(&self) -> Checked {
        let classes = self.store.classes.count();
        let mut found = vec![(0_u32, 0_u32); classes as usize];
        for page in 0..self.store.page_count() {
            match self.store.page_state(page) {
                PageState::Slab(class) => {
                    let per_page = self.store.chunks_per_page(class);
                    let room = self.store.page_meta(page).word.view().room(per_page);
                    let (pages, free) = &mut found[class as usize];
                    (*pages, *free) = (*pages + 1, *free + room);
                    ensure(self.store.is_listed(class, page, room > 0), || {
                        format!("page {page} of class {class} with room for {room} is in no list")
                    })?;
                }
                PageState::Draining(class) => {
                    ensure(self.store.lists.draining.contains(page), || {
                        format!("page {page} of class {class} drains, and is in no list")
                    })?;
                }
                _ => {}
            }
        }
        for (class, walked) in (0..classes).zip(found) {
            let of = self.store.class_meta(class);
            let counted = (of.pages.load(Ordering::Relaxed), of.free.load(Ordering::Relaxed));
            ensure(walked == counted, || {
                format!("class {class} has (pages, free) {walked:?}, not {counted:?}")
            })?;
        }
        Ok(())
    }

    fn counts(&self) -> Checked {
        let totals = self.store.totals();
        let counted = (totals.curr_items, totals.bytes);
        let walked = (self.census.items, self.census.bytes);
        ensure(counted == walked, || {
            format!("(items, bytes) are {walked:?} and counted as {counted:?}")
        })
    }
}
