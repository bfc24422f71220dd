//! What `stats`, `stats items` and `stats slabs` need to know of the store.
//! It owns the shapes; the counting is done where things happen.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Figures of the whole store, in memcached's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Items that are linked now.
    pub curr_items: u64,
    /// Items ever linked.
    pub total_items: u64,
    /// Bytes of headers, keys and values of linked items.
    pub bytes: u64,
    /// `-m` in bytes.
    pub limit_maxbytes: u64,
    /// Live items removed to make room.
    pub evictions: u64,
    /// Dead items whose memory was taken for new ones.
    pub reclaimed: u64,
    /// Lookups that met an item whose time was over.
    pub get_expired: u64,
    /// Lookups that met an item from before a flush.
    pub get_flushed: u64,
    /// Expired items that were never fetched.
    pub expired_unfetched: u64,
    /// Evicted items that were never fetched.
    pub evicted_unfetched: u64,
    /// Evicted items that had been fetched since the sweep last passed them.
    pub evicted_active: u64,
    /// Stores that failed for want of memory.
    pub outofmemory: u64,
    /// Pages moved from one use to another.
    pub slabs_moved: u64,
    /// Items that moved to another chunk when their page was, instead of being evicted.
    pub items_moved: u64,
    /// Items looked at by the expiry sweep.
    pub crawler_items_checked: u64,
    /// Items that the expiry sweep removed.
    pub crawler_reclaimed: u64,
    /// Bytes of the index.
    pub hash_bytes: u64,
    /// Binary logarithm of the number of index slots, rounded down.
    pub hash_power_level: u32,
    /// Pages in use by items, uploads and the index.
    pub pages_used: u64,
    /// Pages in use by nobody.
    pub pages_free: u64,
    /// Pages that are being emptied.
    pub pages_draining: u64,
    /// Bytes of a page.
    pub page_len: u64,
    /// Bytes of all pages in use by slab classes and large items.
    pub total_malloced: u64,
}

/// An item that was evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// Its key.
    pub key: Box<[u8]>,
    /// Whether it was ever fetched.
    pub fetched: bool,
    /// Seconds that it had left; none for no end.
    pub ttl_s: Option<u32>,
    /// Seconds since its last access.
    pub age_s: u32,
    /// Its slab class.
    pub class: u32,
    /// Bytes of its value.
    pub value_len: usize,
}

/// Figures of one slab class, in memcached's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassStats {
    /// Number of the class, from 1.
    pub class: u32,
    /// Bytes of a chunk.
    pub chunk_size: u64,
    /// Chunks in a page.
    pub chunks_per_page: u64,
    /// Pages of the class, with those of large items whose heads are in it.
    pub total_pages: u64,
    /// Chunks of those pages.
    pub total_chunks: u64,
    /// Chunks that hold something.
    pub used_chunks: u64,
    /// Chunks that hold nothing.
    pub free_chunks: u64,
    /// Bytes asked for by the linked items.
    pub mem_requested: u64,
    /// Linked items.
    pub number: u64,
    /// Items ever linked.
    pub total_items: u64,
    /// Seconds since the last access of the item that was evicted last.
    pub evicted_time: u64,
    /// Live items evicted.
    pub evicted: u64,
    /// Of them, those with an explicit lifetime.
    pub evicted_nonzero: u64,
    /// Of them, those never fetched.
    pub evicted_unfetched: u64,
    /// Of them, those fetched since the sweep last passed them.
    pub evicted_active: u64,
    /// Stores that failed for want of memory.
    pub outofmemory: u64,
    /// Dead items whose memory was taken for new ones.
    pub reclaimed: u64,
    /// Expired items that were never fetched.
    pub expired_unfetched: u64,
    /// Items looked at by the expiry sweep.
    pub crawler_items_checked: u64,
    /// Items that the expiry sweep removed.
    pub crawler_reclaimed: u64,
    /// Hits of get and gat.
    pub get_hits: u64,
    /// Storage commands that stored.
    pub cmd_set: u64,
    /// Deletes that found an item.
    pub delete_hits: u64,
    /// Increments that found a number.
    pub incr_hits: u64,
    /// Decrements that found a number.
    pub decr_hits: u64,
    /// cas commands that stored.
    pub cas_hits: u64,
    /// cas commands that met another version.
    pub cas_badval: u64,
    /// touch and gat that found an item.
    pub touch_hits: u64,
}
