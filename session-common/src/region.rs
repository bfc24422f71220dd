//! What the kernel plane knows of the store's region: the shapes of index and items that it reads.
//! It owns numbers alone; the drawings stand in the store, which is compiled only if it agrees.
#![forbid(unsafe_code)]

/// Version of the store's layout that these numbers are of.
pub const LAYOUT_VERSION: u32 = 6;

/// First word of the region.
pub const MAGIC: u64 = u64::from_le_bytes(*b"session\0");

/// Bytes of a bucket and of an overflow line.
pub const LINE_LEN: u64 = 64;
/// Slots of either, behind its first word.
pub const SLOTS: u64 = 7;
/// The overflow line in the first word of a bucket or line: its offset in lines.
pub const LINK_MASK: u64 = (1 << 36) - 1;
/// Where a bucket's depth begins in its header.
pub const DEPTH_SHIFT: u32 = 36;
/// Bits of it.
pub const DEPTH_MASK: u64 = 0x3f;
/// Where the hash's tag begins in a slot; below it in the hash, as well.
pub const TAG_SHIFT: u32 = 48;
/// A slot that counts only if the header names it.
pub const PENDING: u64 = 1 << 47;
/// The item in a slot: its offset in words.
pub const OFFSET_MASK: u64 = (1 << 40) - 1;

/// Offsets of an item's words.
pub const TIMES: u64 = 8;
/// See [`TIMES`].
pub const CAS: u64 = 16;
/// Where an item's version stands, if it has one, and its key otherwise.
pub const BODY: u64 = 24;
/// Bytes of a version.
pub const VERSION_LEN: u64 = 8;
/// Bytes of flags.
pub const FLAGS_LEN: u64 = 4;

/// Bits of an item's state word.
pub mod state {
    /// In the index.
    pub const LINKED: u64 = 1;
    /// A part of a value.
    pub const PIECE: u64 = 1 << 1;
    /// Fetched, and the count of accesses.
    pub const ACCESSES: u64 = 7 << 2;
    /// The value is in pieces.
    pub const EXTENT: u64 = 1 << 5;
    /// There are client flags.
    pub const HAS_FLAGS: u64 = 1 << 6;
    /// Stale.
    pub const STALE: u64 = 1 << 7;
    /// There is a version that a client chose.
    pub const HAS_VERSION: u64 = 1 << 9;
    /// Clients spell the key in base64.
    pub const KEY_IS_BINARY: u64 = 1 << 10;
    /// Where the length of the value begins.
    pub const VALUE_LEN_SHIFT: u32 = 18;
    /// Bits of it.
    pub const VALUE_LEN_MASK: u64 = (1 << 30) - 1;
    /// Where the length of the key begins; eight bits.
    pub const KEY_LEN_SHIFT: u32 = 48;
    /// Where the class begins; eight bits.
    pub const CLASS_SHIFT: u32 = 56;
}

/// Bits of an item's times word.
pub mod times {
    /// Second of expiry.
    pub const EXPTIME_MASK: u64 = (1 << 31) - 1;
    /// The exptime that has passed at any time.
    pub const EXPTIME_PAST: u64 = 1;
    /// Somebody has to renew the item.
    pub const WON: u64 = 1 << 31;
    /// In place of an exptime: the item has ended.
    pub const ENDED: u64 = 0x7f << 24;
}

/// Bits of a cas word below its stamp.
pub const CAS_WORKER_BITS: u32 = 8;
/// Nanoseconds of a stamp's unit, as a shift.
pub const STAMP_NS_SHIFT: u32 = 4;
