//! Logical requests and their outcomes, shared by every wire format. This file owns their
//! meaning; how they look on the wire is the business of `protocol`.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

/// Longest key, bytes (protocol.txt, "Keys").
pub const KEY_LEN_MAX: usize = 250;

/// A key of 1 to [`KEY_LEN_MAX`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a>(&'a [u8]);

impl<'a> Key<'a> {
    /// The key, if its length is in bounds.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        (1..=KEY_LEN_MAX).contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The bytes, 1 to [`KEY_LEN_MAX`] of them.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// An expiry time as a client gives it, seconds (protocol.txt, "Expiration times"): 0 never,
/// negative at once, up to 30 days from now, beyond that a date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exptime(pub i64);

impl Exptime {
    /// As a line gives it. libmemcached writes small negative numbers as unsigned ones of 32 bits:
    /// they are what was meant, not dates of the year 2106.
    #[must_use]
    pub const fn of_line(seconds: i64) -> Self {
        const WRAP: i64 = 1 << 32;
        const NEGATIVE_MIN: i64 = WRAP - 60 * 60 * 24 * 30;
        match seconds {
            NEGATIVE_MIN..WRAP => Self(seconds.wrapping_sub(WRAP)),
            _ => Self(seconds),
        }
    }
}

/// What `get`, `gets`, `gat` and `gats` ask of each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The reply carries the cas unique.
    pub with_cas: bool,
    /// A new expiry time for every item found.
    pub touch: Option<Exptime>,
}

/// How a storage command treats the item that may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreMode {
    /// Whatever is there.
    Set,
    /// Only if nothing is there.
    Add,
    /// Only if something is there.
    Replace,
    /// After the value that is there; its flags and expiry stay.
    Append,
    /// Before the value that is there; its flags and expiry stay.
    Prepend,
    /// Only if what is there carries this cas unique.
    Cas(u64),
}

/// A storage command without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store<'a> {
    /// Where.
    pub key: Key<'a>,
    /// Everything else.
    pub terms: StoreTerms,
}

/// All of a storage command but key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreTerms {
    /// The client's own 32 bits.
    pub flags: u32,
    /// Until when.
    pub exptime: Exptime,
    /// On what condition.
    pub mode: StoreMode,
    /// The version that append and prepend ask of what is there; the other modes have it in
    /// [`StoreMode::Cas`].
    pub joined_to: Option<u64>,
    /// append, prepend: where nothing is the value alone is stored, until then.
    pub vivify: Option<Exptime>,
    /// cas: an older version than the one that is there stores too, and the item is stale then.
    pub older_is_stale: bool,
    /// The version that clients are to see.
    pub version: Option<u64>,
    /// Clients spell the key in base64.
    pub key_is_binary: bool,
}

impl StoreTerms {
    /// The terms of a command of the classic protocol.
    #[must_use]
    pub const fn new(flags: u32, exptime: Exptime, mode: StoreMode) -> Self {
        Self {
            flags,
            exptime,
            mode,
            joined_to: None,
            vivify: None,
            older_is_stale: false,
            version: None,
            key_is_binary: false,
        }
    }
}

/// What a lookup asks that may do more than read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// A new expiry time.
    pub touch: Option<Exptime>,
    /// An empty item is made where none is, until then, and is won.
    pub vivify: Option<Exptime>,
    /// An item with less time left than this is won, if nobody has won it yet.
    pub recache: Option<Exptime>,
    /// `recache` looks at the new expiry time, not at the old one.
    pub touch_first: bool,
    /// The version that clients are to see of an item that is made.
    pub version: Option<u64>,
    /// Clients spell the key in base64.
    pub key_is_binary: bool,
    /// The lookup leaves no trace.
    pub unmarked: bool,
}

/// A removal with all that a wire format can ask of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal<'a> {
    /// Which item.
    pub key: Key<'a>,
    /// The version that it must have.
    pub cas: Option<u64>,
    /// The item stays and is marked stale.
    pub stale: bool,
    /// The item stays without its value, and with these flags.
    pub emptied: Option<u32>,
    /// A new expiry time of an item that stays.
    pub exptime: Option<Exptime>,
    /// The version that clients are to see of an item that stays.
    pub version: Option<u64>,
}

/// Which way `incr` and `decr` go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Adds, wrapping at 2^64.
    Increment,
    /// Subtracts, stopping at 0.
    Decrement,
}

/// `incr` or `decr` with all that a wire format can ask of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counting<'a> {
    /// Where.
    pub key: Key<'a>,
    /// Which way.
    pub direction: Direction,
    /// By how much.
    pub delta: u64,
    /// The version that the item must have.
    pub cas: Option<u64>,
    /// The number and the expiry time of the item that is made where none is.
    pub create: Option<(u64, Exptime)>,
    /// A new expiry time of the item that is there.
    pub touch: Option<Exptime>,
    /// The version that clients are to see.
    pub version: Option<u64>,
    /// Clients spell the key in base64.
    pub key_is_binary: bool,
}

impl<'a> Counting<'a> {
    /// What the classic protocol asks.
    #[must_use]
    pub const fn new(key: Key<'a>, direction: Direction, delta: u64) -> Self {
        let (cas, create, touch, version) = (None, None, None, None);
        Self { key, direction, delta, cas, create, touch, version, key_is_binary: false }
    }
}

/// What `stats` is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsTopic {
    /// The general counters.
    General,
    /// The settings in force.
    Settings,
    /// Items by slab class.
    Items,
    /// Slab classes and their counters.
    Slabs,
    /// Item sizes.
    Sizes,
    /// Open connections.
    Conns,
    /// What the allowlist did.
    Guard,
    /// The store's own counters.
    Store,
}

/// How `shutdown` asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// At once.
    Now,
    /// After what is under way.
    Graceful,
}

/// A request that is neither a fetch nor carries a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Removes an item.
    Delete {
        /// Which.
        key: Key<'a>,
    },
    /// Adds to or subtracts from a decimal value.
    Arithmetic {
        /// Where.
        key: Key<'a>,
        /// Which way.
        direction: Direction,
        /// By how much.
        delta: u64,
    },
    /// Gives an item a new expiry time.
    Touch {
        /// Which.
        key: Key<'a>,
        /// Until when.
        exptime: Exptime,
    },
    /// Ends every item that is older than the given time.
    FlushAll {
        /// When; `Exptime(0)` is now.
        at: Exptime,
    },
    /// Asks for the version.
    Version,
    /// Sets the log level.
    Verbosity {
        /// 0 to 3; more is 3.
        level: u32,
    },
    /// Asks for counters.
    Stats(StatsTopic),
    /// Zeroes the counters.
    StatsReset,
    /// Ends the process.
    Shutdown(Option<Shutdown>),
}

/// What became of a request that is answered by one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The value was stored.
    Stored,
    /// The mode's condition did not hold.
    NotStored,
    /// The cas unique is another by now.
    Exists,
    /// There is no such item.
    NotFound,
    /// The item was removed.
    Deleted,
    /// The item has its new expiry time.
    Touched,
    /// The value after `incr` or `decr`.
    Number(u64),
    /// Done.
    Ok,
    /// The counters are zero.
    Reset,
    /// The version.
    Version,
    /// The value is larger than the largest item.
    TooLarge,
    /// The store cannot make room.
    NoMemory,
    /// The store cannot make room for a new number.
    OutOfMemory,
    /// The value is not a decimal number.
    NonNumeric,
    /// `flush_all` is switched off.
    FlushNotAllowed,
    /// `shutdown` is switched off.
    ShutdownNotEnabled,
    /// `shutdown` in a way that does not exist.
    BadShutdownMode,
    /// Only `sessionctl` may ask that.
    Confined,
}

/// What became of a request, with the version of the item that it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// What became of it.
    pub outcome: Outcome,
    /// The item's version; 0 when the request left none of its own.
    pub cas: u64,
    /// Bytes of the value that was stored; 0 when none was.
    pub value_len: usize,
}

impl From<Outcome> for Versioned {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, cas: 0, value_len: 0 }
    }
}
