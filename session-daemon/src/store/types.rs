//! The words of the store's interface: keys, lifetimes, modes and outcomes.
//! It owns no memory and knows no layout.
#![forbid(unsafe_code)]

use thiserror::Error;

/// Longest key in bytes (memcached's `KEY_MAX_LENGTH`).
pub const KEY_LEN_MAX: usize = 250;

/// A key of 1 to [`KEY_LEN_MAX`] bytes; any byte value is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key<'a>(&'a [u8]);

impl<'a> Key<'a> {
    /// Checks the length; `None` for an empty key or one longer than [`KEY_LEN_MAX`].
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Option<Self> {
        if bytes.is_empty() || bytes.len() > KEY_LEN_MAX { None } else { Some(Self(bytes)) }
    }

    /// The bytes of the key.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// The client's opaque 32 bits that are stored with an item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientFlags(pub u32);

/// The version of an item: unique among all versions of all keys, growing for one key, except for
/// versions that a client chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CasUnique(pub u64);

/// How long an item lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is deleted, replaced, flushed or evicted.
    Never,
    /// Until this second of `CLOCK_BOOTTIME`: the item is gone when `now` has reached it.
    Until(u32),
    /// Already over: a negative exptime, or an absolute one that has passed.
    Past,
}

/// What a storage command asks of the key's present item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Store, whatever is there.
    Set,
    /// Store only if there is no item.
    Add,
    /// Store only if there is an item.
    Replace,
    /// Put the value behind the present one; flags and lifetime stay as they are.
    Append,
    /// Put the value before the present one; flags and lifetime stay as they are.
    Prepend,
    /// Store only if the present item has this version.
    Cas(CasUnique),
}

/// All that a storage command may ask beside key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The client's own bits.
    pub flags: ClientFlags,
    /// How long the item lives.
    pub lifetime: Lifetime,
    /// What is asked of the present item.
    pub mode: Mode,
    /// [`Mode::Append`] and [`Mode::Prepend`]: the version that the present item must have.
    pub joined_to: Option<CasUnique>,
    /// [`Mode::Append`] and [`Mode::Prepend`]: where no item is, the value alone is stored, and
    /// lives so long.
    pub vivify: Option<Lifetime>,
    /// [`Mode::Cas`]: a version below the present one stores too; the item keeps the present
    /// lifetime then, and is stale.
    pub older_is_stale: bool,
    /// The version that clients see, in place of the store's own. Nothing else goes by it.
    pub version: Option<CasUnique>,
    /// Clients spell the key in base64.
    pub key_is_binary: bool,
}

impl Terms {
    /// The terms of a command of the classic protocols.
    #[must_use]
    pub const fn new(flags: ClientFlags, lifetime: Lifetime, mode: Mode) -> Self {
        Self {
            flags,
            lifetime,
            mode,
            joined_to: None,
            vivify: None,
            older_is_stale: false,
            version: None,
            key_is_binary: false,
        }
    }
}

/// Outcome of a storage command, with the length of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What became of it.
    pub stored: Stored,
    /// Bytes of the value that was stored: for append and prepend, of both together. 0 when
    /// nothing was.
    pub value_len: usize,
}

impl From<Stored> for Placed {
    fn from(stored: Stored) -> Self {
        Self { stored, value_len: 0 }
    }
}

/// Outcome of a storage command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `STORED`, with the new item's version.
    Stored(CasUnique),
    /// `NOT_STORED`: the condition of add, replace, append or prepend does not hold.
    NotStored,
    /// `EXISTS`: cas met another version.
    Exists,
    /// `NOT_FOUND`: cas met no item.
    NotFound,
    /// The item would be larger than `item_size_max`. Nothing changed: memcached also deletes the
    /// key's present item when a `set` is too large, which is left to the caller.
    TooLarge,
    /// No memory, and eviction is off or found nothing to evict. Nothing changed.
    NoMemory,
}

/// Outcome of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// The item is gone.
    Deleted,
    /// There was none.
    NotFound,
    /// It has another version than the one asked for.
    Exists,
}

/// Which way a counter goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `incr`: wraps at 2^64.
    Increment,
    /// `decr`: stops at 0.
    Decrement,
}

/// What `incr` and `decr` may ask beside key and delta.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountTerms {
    /// The version that the item must have.
    pub cas: Option<CasUnique>,
    /// A new lifetime.
    pub lifetime: Option<Lifetime>,
    /// The version that clients see, in place of the store's own.
    pub version: Option<CasUnique>,
}

/// What is to become of an item that is neither stored nor deleted: stale, empty, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// The version that the item must have.
    pub cas: Option<CasUnique>,
    /// The item is marked stale, gets a new version, and may be won again.
    pub stale: bool,
    /// The value goes, and these flags take the place of the item's.
    pub emptied: Option<ClientFlags>,
    /// A new lifetime.
    pub lifetime: Option<Lifetime>,
    /// The version that clients see, in place of the store's own. An item that is emptied but not
    /// stale keeps the version it had, unless there is one here.
    pub version: Option<CasUnique>,
}

/// Outcome of a [`Renewal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// Done.
    Renewed,
    /// There is no item.
    NotFound,
    /// It has another version than the one asked for.
    Exists,
    /// No memory for the new item. The old one stays.
    NoMemory,
}

/// What a lookup may do to the item beside reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseTerms {
    /// A new lifetime.
    pub touch: Option<Lifetime>,
    /// An empty item is made where none is, lives so long, and is won.
    pub vivify: Option<Lifetime>,
    /// An item that ends before this is won, if nobody has won it yet.
    pub recache: Option<Lifetime>,
    /// `recache` looks at the new lifetime, not at the old one.
    pub touch_first: bool,
    /// The version that clients see of an item that is made.
    pub version: Option<CasUnique>,
    /// Clients spell the key in base64.
    pub key_is_binary: bool,
    /// The lookup leaves no trace for eviction and for later lookups.
    pub unmarked: bool,
}

/// Outcome of `incr` and `decr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// The new number and the new version.
    Value {
        /// The number now stored.
        value: u64,
        /// Version of the item that holds it.
        cas: CasUnique,
        /// How long the item was to live before a new lifetime was given.
        lifetime: Lifetime,
    },
    /// There is no item.
    NotFound,
    /// The item has another version than the one asked for.
    Exists,
    /// The value is not a decimal number below 2^64 of at most 20 digits.
    NonNumeric,
    /// No memory for the new item. The old one stays.
    NoMemory,
}

/// Outcome of taking a page from a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reassigned {
    /// The page is being emptied.
    Begun {
        /// The class that loses it.
        from: u32,
    },
    /// Another page is being emptied.
    Running,
    /// There is no such class.
    BadClass,
    /// The class has no page to spare.
    NoSpare,
    /// Both classes are the same.
    Same,
}

/// When `flush_all` takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// At once: every item stored before the call is gone, every later one stays.
    Now,
    /// At this second of `CLOCK_BOOTTIME`. Replaces an earlier flush that is still to come.
    At(u32),
}

/// What a store is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoreConfig {
    /// `-m` in bytes: the most that index, page table and pages take together.
    pub memory_limit: usize,
    /// `-I` in bytes: largest item, counted as memcached does (key, value and 59 bytes, 63 with
    /// client flags). At most half of `memory_limit`.
    pub item_size_max: usize,
    /// False for `-M`: an error instead of eviction.
    pub evictions: bool,
    /// False for `-C`: items report version 0, and cas meets no version.
    pub cas: bool,
    /// `-f`: ratio between the chunk sizes of neighbouring classes; `None` for the fine default.
    pub growth_factor: Option<f64>,
    /// `-n`: least bytes for key, value and flags in a chunk; `None` for the default.
    pub chunk_min: Option<usize>,
    /// Most workers that exist at one time.
    pub workers: usize,
    /// Whether addresses are reserved for a limit of up to sixteen times `memory_limit`, so that
    /// it can be raised while serving.
    pub growing: bool,
    /// Whether a limit that the process before has set while serving goes on.
    pub succeeding: bool,
    /// Makes the secret of the hash from this number, for measurements that must repeat; `None`
    /// for a random one, which alone keeps clients from choosing keys that collide.
    pub hash_seed: Option<u64>,
}

impl Default for StoreConfig {
    /// memcached's defaults: 64 MB, items to 1 MiB, evictions and cas on, 4 workers.
    fn default() -> Self {
        Self {
            memory_limit: 64 << 20,
            item_size_max: 1 << 20,
            evictions: true,
            cas: true,
            growth_factor: None,
            chunk_min: None,
            workers: 4,
            growing: true,
            succeeding: false,
            hash_seed: None,
        }
    }
}

/// Why a store, a worker or an upload cannot be had.
#[derive(Debug, Error)]
pub enum StoreError {
    /// `memory_limit` is below what a store can work with.
    #[error("memory limit of {limit} bytes is too small: the least is {least} bytes")]
    MemoryLimit {
        /// What was asked for.
        limit: usize,
        /// What is possible.
        least: usize,
    },
    /// `item_size_max` does not fit.
    #[error(
        "item size limit of {limit} bytes is out of range: {least} to {most} (half of the memory limit, at most 1 GiB)"
    )]
    ItemSizeMax {
        /// What was asked for.
        limit: usize,
        /// Lower bound.
        least: usize,
        /// Upper bound.
        most: usize,
    },
    /// `growth_factor` or `chunk_min` does not give usable classes.
    #[error("{0}")]
    Classes(&'static str),
    /// `workers` is out of range.
    #[error("{workers} workers asked for: 1 to {most} are possible")]
    Workers {
        /// What was asked for.
        workers: usize,
        /// Upper bound.
        most: usize,
    },
    /// All workers of the configuration exist.
    #[error("all {0} workers of the store are taken")]
    NoWorkerLeft(usize),
    /// The file holds something else, which is not overwritten.
    #[error(
        "it is not a memory file of sessiond, and is left as it is; name another file, or remove it"
    )]
    NotOurs,
    /// A memory file cannot be used.
    #[error("{what} the memory file: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The file system of the memory file has no room for what `-m` promises.
    #[error("the memory file cannot have its {len} bytes: {source}")]
    Room {
        /// `memory_limit` in bytes.
        len: usize,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The limit that the process before had set cannot be set again.
    #[error("the limit that was set by cache_memlimit: {0}")]
    Limit(LimitError),
    /// The kernel refused the mapping.
    #[error("cannot map {len} bytes for the store: {source}")]
    Map {
        /// Length of the mapping in bytes.
        len: usize,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// Why a limit cannot be set while serving.
#[derive(Debug, Error)]
pub enum LimitError {
    /// The store cannot work with so little.
    #[error("that is too little to work with")]
    TooSmall,
    /// It is beyond the addresses that were reserved at the start.
    #[error("that is more than can be had without a start: see -m")]
    NoRoom,
    /// Another is being set by somebody else.
    #[error("another is being set")]
    Busy,
    /// The kernel refused the memory.
    #[error("the kernel has no memory for it: {0}")]
    Memory(std::io::Error),
}

impl From<StoreError> for LimitError {
    /// What a layout refuses is a limit that is too small.
    fn from(_: StoreError) -> Self {
        Self::TooSmall
    }
}

/// Why an upload cannot begin or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UploadError {
    /// The item would be larger than `item_size_max`.
    #[error("object too large for cache")]
    TooLarge,
    /// No memory, and eviction is off or found nothing to evict. The upload can only be dropped.
    #[error("out of memory storing object")]
    NoMemory,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked_by_length() {
        assert!(Key::new(b"").is_none());
        assert!(Key::new(&[b'k'; KEY_LEN_MAX]).is_some());
        assert!(Key::new(&[b'k'; KEY_LEN_MAX + 1]).is_none());
    }
}
