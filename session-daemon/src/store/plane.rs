//! What a reader in the kernel is told of a store, and what it tells of its accesses.
//! It owns neither: the reader is a program of `session-ebpf`, which goes by the rule of `outside`.
#![forbid(unsafe_code)]

use std::mem::offset_of;

use crate::clock::Now;
use crate::store::buckets::Buckets;
use crate::store::classes::Classes;
use crate::store::layout::{LAYOUT_VERSION, Layout, MAGIC, PageState, Superblock};
use crate::store::reader::{CAS_WORKER_BITS, Item, STAMP_SHIFT};
use crate::store::types::{CasUnique, KEY_LEN_MAX, StoreConfig, StoreError};
use crate::store::{Store, Worker};
use session_common::plane::{LISTENS_MAX, Orders, SECRET_WORDS, orders};
use session_common::region;

// What the program reads as `session_common::region` has it.
const _: () = {
    assert!(LAYOUT_VERSION == region::LAYOUT_VERSION && MAGIC == region::MAGIC);
    assert!(CAS_WORKER_BITS == region::CAS_WORKER_BITS && STAMP_SHIFT == region::STAMP_NS_SHIFT);
    assert!(KEY_LEN_MAX == session_common::plane::KEY_LEN_MAX);
};

impl Store {
    /// Bytes that a store needs of a map to live in.
    ///
    /// # Errors
    /// When a limit is out of range.
    pub fn map_len(config: &StoreConfig) -> Result<usize, StoreError> {
        let page_len = Layout::page_len_for(config.memory_limit);
        let classes = Classes::new(page_len, config.growth_factor, config.chunk_min)?;
        Ok(Layout::tight(config.memory_limit, classes.count())?.region_len())
    }

    /// Where a reader in the kernel finds what it needs of the region. Whom it answers at which
    /// addresses, and whether it may, is the caller's to fill in.
    #[must_use]
    pub fn orders(&self) -> Orders {
        let (directory, first_page) = self.layout.index_places();
        let words: &[u64; SECRET_WORDS] = self.secret.words();
        Orders {
            until_ns: 0,
            clock_ahead_ns: 0,
            directory,
            first_page,
            buckets: offset_of!(Superblock, buckets) as u64,
            flushed_stamp: offset_of!(Superblock, flushed_stamp) as u64,
            flush_at_s: offset_of!(Superblock, flush_at_s) as u64,
            page_shift: self.layout.page_shift,
            pages: self.layout.pages,
            port: 0,
            settings: if self.config.cas { orders::CAS } else { 0 },
            listens_count: 0,
            reserved: 0,
            listens: [[0; 2]; LISTENS_MAX],
            secret: *words,
        }
    }
}

impl Worker {
    /// Marks an item accessed that was answered with by a reader in the kernel: whatever is there
    /// by now. False if it is not that item any more.
    pub fn note_access(&self, item: u64, cas: CasUnique, now: Now) -> bool {
        self.begin();
        match self.accessed_item(item, cas) {
            Some(found) => {
                self.mark_access(&found, now);
                true
            }
            None => false,
        }
    }

    /// The item at an offset, if there is one of this cas unique. What is found stays an item for
    /// the turn: its page is of its class, it is a chunk of it that was handed out, and LINKED.
    fn accessed_item(&self, item: u64, cas: CasUnique) -> Option<Item<'_>> {
        let store = self.shared();
        let layout = &store.layout;
        let page = layout.is_in_page(item).then(|| layout.page_of(item))?;
        let PageState::Slab(class) = store.page_state(page) else { return None };
        let len = u64::from(*store.classes.sizes().get(class as usize)?);
        let in_page = item - layout.page(page);
        // What is below it shows no former use.
        let carved = store.page_meta(page).word.view().carved();
        let is_chunk = in_page.is_multiple_of(len) && in_page / len < u64::from(carved);
        let state = is_chunk.then(|| store.item_state(item))?;
        if !state.is_linked() || state.class() != class || store.item_cas(item) != cas {
            return None;
        }
        let times = store.times(item);
        times.successor().is_none().then_some(Item { worker: self, offset: item, state, times })
    }
}
