//! What the kernel plane and the daemon must agree on: the store's words that the program reads,
//! what it is told, and what it reports.
//!
//! No layout has implicit padding. All words are in the host's order.
#![deny(unsafe_code)]

use core::mem::size_of;

/// Bytes of an element of the map that the store's region lives in. Elements stand side by side in
/// memory, so the region is one run of bytes.
pub const ELEMENT_LEN: usize = 1 << 20;

/// Words of the hash's secret: one for each word of the longest key, one for the length.
pub const SECRET_WORDS: usize = 33;

/// Addresses that the daemon may listen at, beside all.
pub const LISTENS_MAX: usize = 16;

/// Accesses that a CPU's ring holds. What is not read in time is overwritten.
pub const RING_LEN: usize = 1024;

/// Longest key.
pub const KEY_LEN_MAX: usize = 250;

/// Longest reply in its datagram, the memcached header included.
pub const REPLY_LEN_MAX: usize = 1400;

/// Times that a reply may be longer than its request, headers included.
pub const AMPLIFICATION_MAX: usize = 32;

/// Slab classes that hits are counted for.
pub const CLASSES: usize = 256;

/// What the program is told, in a map of one element that the daemon maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// Until when the region can be answered from, in nanoseconds of CLOCK_BOOTTIME; later all
    /// packets go up. Renewed by the daemon, so that its end is the plane's a little later.
    pub until_ns: u64,
    /// By how much the daemon's CLOCK_BOOTTIME is ahead of the kernel's own, in nanoseconds; what it
    /// is behind, wrapped around.
    pub clock_ahead_ns: u64,
    /// Offset of the bucket directory.
    pub directory: u64,
    /// Offset of the first page.
    pub first_page: u64,
    /// Offsets of words of the superblock: number of buckets, stamp of the last flush, second of a
    /// flush that is still to come.
    pub buckets: u64,
    /// See `buckets`.
    pub flushed_stamp: u64,
    /// See `buckets`.
    pub flush_at_s: u64,
    /// Bytes of a page, as a shift.
    pub page_shift: u32,
    /// Pages of the region.
    pub pages: u32,
    /// UDP port of the daemon.
    pub port: u32,
    /// Bits of [`orders`].
    pub settings: u32,
    /// Used entries of `listens`.
    pub listens_count: u32,
    /// Zero.
    pub reserved: u32,
    /// Addresses that the daemon's sockets are bound to, in network byte order; IPv4 as
    /// `::ffff:a.b.c.d`.
    pub listens: [[u64; 2]; LISTENS_MAX],
    /// The hash's secret.
    pub secret: [u64; SECRET_WORDS],
}

/// For how long a daemon that is gone is answered for: a pause of its first worker is shorter.
pub const LEASE_NS: u64 = 3_000_000_000;

/// The same with `--kernel-plane=persist`: a restart is shorter.
pub const PERSISTENT_LEASE_NS: u64 = 300_000_000_000;

/// Bits of [`Orders::settings`].
pub mod orders {
    /// Answer at all of the host's IPv4 addresses.
    pub const ANY_V4: u32 = 1;
    /// Answer at all of the host's IPv6 addresses.
    pub const ANY_V6: u32 = 2;
    /// Items have versions; without it they report 0.
    pub const CAS: u32 = 4;
}

/// Why a packet was or was not answered, as an index of [`Report::counters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Verdict {
    /// Answered with an item.
    Hit = 0,
    /// Answered: there is no item.
    Miss = 1,
    /// Not a request for one key that the program understands.
    Other = 2,
    /// There may be an item, and none that the program answers with: of several pieces, stale, being
    /// renewed, dead, behind another one's tag or far down in its bucket.
    Item = 3,
    /// The reply would be too long.
    Long = 4,
    /// Writers were at the key twice.
    Raced = 5,
    /// The driver leaves no room for the reply.
    NoRoom = 6,
    /// For another address or port, or nobody serves.
    NotServed = 7,
}

impl Verdict {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Hit,
        Self::Miss,
        Self::Other,
        Self::Item,
        Self::Long,
        Self::Raced,
        Self::NoRoom,
        Self::NotServed,
    ];

    /// Whether it says that the packet was answered.
    #[must_use]
    pub const fn is_answer(self) -> bool {
        matches!(self, Self::Hit | Self::Miss)
    }

    /// The word for it in statistics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hits",
            Self::Miss => "misses",
            Self::Other => "other",
            Self::Item => "item",
            Self::Long => "long",
            Self::Raced => "raced",
            Self::NoRoom => "no_room",
            Self::NotServed => "not_served",
        }
    }
}

/// An access to an item.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accessed {
    /// Offset of the item in the region.
    pub item: u64,
    /// Its cas word, by which it is known again.
    pub cas: u64,
}

/// Bits of the program's `TRIAL`, a word that is 0 unless its loader says otherwise. Tests alone do.
pub mod trial {
    /// A long pause between finding an item and copying it.
    pub const SLOW: u32 = 1;
    /// Long pauses before the lines of a bucket are searched.
    pub const SLOW_SEARCH: u32 = 4;
    /// What was found, or not found, is believed unseen, which is wrong: shows that a test would
    /// notice.
    pub const BELIEVING: u32 = 2;
}

/// What one CPU has done: an element of a map that the daemon maps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Accesses ever reported; the last of them stand in `ring`, at their number modulo its length.
    pub accesses: u64,
    /// Bytes of requests that were answered and of their replies, memcached headers included.
    pub bytes_in: u64,
    /// See `bytes_in`.
    pub bytes_out: u64,
    /// Answers to `mg` among the others.
    pub meta_answers: u64,
    /// Packets by [`Verdict`].
    pub counters: [u64; Verdict::ALL.len()],
    /// Hits by slab class.
    pub class_hits: [u64; CLASSES],
    /// The last accesses.
    pub ring: [Accessed; RING_LEN],
}

const _: () = {
    assert!(size_of::<Orders>() == 7 * 8 + 6 * 4 + LISTENS_MAX * 16 + SECRET_WORDS * 8);
    assert!(size_of::<Report>() == (4 + 8 + CLASSES) * 8 + RING_LEN * 16);
    assert!(RING_LEN.is_power_of_two());
};

/// Marks for aya: the layouts are plain data.
#[cfg(feature = "user")]
#[allow(unsafe_code)]
mod user {
    // SAFETY: `repr(C)`, made of integers and integer arrays only, no padding (asserted above).
    unsafe impl aya::Pod for super::Orders {}
    // SAFETY: as for `Orders`.
    unsafe impl aya::Pod for super::Report {}
}
