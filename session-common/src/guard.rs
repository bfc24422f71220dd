//! Map keys, map values and counter indices of the guard.
//!
//! Every layout has no implicit padding, because the kernel hashes a key's raw bytes.
//! Addresses and prefixes are in network byte order, all other numbers in the host's.

use core::mem::size_of;

/// Version of every layout in this module and of the pin directory that holds such maps.
/// A change of any layout, map size or meaning raises it.
pub const SCHEMA: u32 = 4;

/// First word of [`Meta`]: `sess` in ASCII.
pub const MAGIC: u32 = 0x7365_7373;

/// Most lists (one a daemon) that one guard, hence one network namespace, can hold.
pub const LISTS_MAX: u32 = 8;

/// Most guarded (protocol, port) pairs.
pub const ENDPOINTS_MAX: u32 = 256;

/// Most host entries of one family in a list whose hosts stand in the tables that all lists share;
/// a larger list has tables of its own.
pub const SMALL_HOSTS_MAX: u32 = 4_096;

/// Most host entries of one family in the shared tables: of each list those in force and those of
/// the successor that is written beside them until the switch.
pub const HOSTS_MAX: u32 = 2 * LISTS_MAX * SMALL_HOSTS_MAX;

/// Most host entries of one family in a table of a list's own.
pub const LARGE_HOSTS_MAX: u32 = 1_048_576;

/// Places for tables of lists' own: a list in force and its successor each have one.
pub const LARGE_PLACES: u32 = 2 * LISTS_MAX;

/// Most prefix entries of one family over all lists, doubled for the same reason and because
/// kernels before 6.13 refuse to update an existing key of a full LPM trie.
pub const PREFIXES_MAX: u32 = 262_144;

/// Most own addresses of one family.
pub const LOCAL_MAX: u32 = 65_536;

/// Rule counters. Entries beyond this share index 0.
pub const RULES_MAX: u32 = 65_536;

/// Identifies the maps as ours before any of them is trusted with a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`SCHEMA`].
    pub schema: u32,
    /// Bits of [`settings`].
    pub settings: u32,
    /// Zero.
    pub reserved: u32,
}

/// Bits of [`Meta::settings`].
pub mod settings {
    /// Judge packets for any destination, not only for the host's own addresses.
    pub const DESTINATION_ANY: u32 = 1;
    /// Count what would be dropped, and pass it.
    pub const AUDIT: u32 = 2;
    /// Refused sources are answered by a reset, unless the entry that decides says otherwise.
    pub const REFUSE_RESET: u32 = 4;
    /// Refused sources are answered by ICMP, unless the entry that decides says otherwise.
    pub const REFUSE_ICMP: u32 = 8;
}

/// A guarded (protocol, port) pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// Destination port, host byte order.
    pub port: u16,
    /// `IPPROTO_TCP` (6) or `IPPROTO_UDP` (17).
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// Which list judges a guarded endpoint: an index below [`LISTS_MAX`] into the list words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointValue {
    /// Index of the list.
    pub list: u32,
}

/// The one word that a packet reads once to learn which entries are in force.
///
/// ```text
///  31            8   7      6     5    0
/// +---------------+-------+------+------+
/// |  generation   | large | half | list |    0 = no list: everything is refused
/// +---------------+-------+------+------+
/// ```
/// `large`: the list's hosts stand in tables of its own, and `half` says in which of its two places.
/// The whole word is part of every entry's key, so that a replaced list (four maps) changes at
/// one instant: the new entries are written under the next generation, then the word is stored.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListWord(pub u32);

impl ListWord {
    /// No list: every source is refused. A list is registered while its word is another one, so
    /// its first word is stored before its endpoints are, even when it has no entries.
    pub const NONE: Self = Self(0);

    /// The word of `list` (below [`LISTS_MAX`]) in `generation` (1 to 2^24 - 1).
    #[must_use]
    pub const fn new(list: u32, generation: u32) -> Self {
        Self(generation << 8 | (list & LIST_BITS))
    }

    /// The same for hosts in a table of the list's own, in the first or second of its places.
    #[must_use]
    pub const fn in_large(self, half: bool) -> Self {
        Self(self.0 | LARGE | if half { HALF } else { 0 })
    }

    /// Index of the list.
    #[must_use]
    pub const fn list(self) -> u32 {
        self.0 & LIST_BITS
    }

    /// Whether the hosts stand in tables of the list's own.
    #[must_use]
    pub const fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }

    /// In which of the list's places these stand.
    #[must_use]
    pub const fn half(self) -> bool {
        self.0 & HALF != 0
    }

    /// Index of that place, below [`LARGE_PLACES`] for every list there is.
    #[must_use]
    pub const fn large_place(self) -> u32 {
        self.list() << 1 | self.half() as u32
    }

    /// Generation of the entries in force; 0 stands for none.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.0 >> 8
    }
}

/// Bits of a [`ListWord`].
const LIST_BITS: u32 = 0x3f;
const HALF: u32 = 0x40;
const LARGE: u32 = 0x80;

/// Key of one IPv4 host (a /32).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostKey4 {
    /// The list and generation that the entry belongs to.
    pub list: ListWord,
    /// Source address, network byte order.
    pub address: [u8; 4],
}

/// Key of one IPv6 host (a /128).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostKey6 {
    /// The list and generation that the entry belongs to.
    pub list: ListWord,
    /// Source address, network byte order.
    pub address: [u8; 16],
}

/// Data of an IPv6 prefix: [`HostKey6`], and padding behind the address, where no prefix length
/// reaches, so that the trie aligns its [`Rule`] to eight bytes. IPv4 prefixes use [`HostKey4`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PrefixKey6 {
    /// The list and generation that the entry belongs to.
    pub list: ListWord,
    /// Network address, network byte order.
    pub address: [u8; 16],
    /// Zero.
    pub reserved: u32,
}

/// Bits of an LPM key that the list word takes before the address begins: the trie's prefix
/// length of an entry is this plus the length of its network prefix.
pub const LPM_LIST_BITS: u32 = 8 * size_of::<ListWord>() as u32;

/// What an entry says about its sources.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `CLOCK_BOOTTIME` nanoseconds after which the entry refuses; 0 for no deadline.
    pub deadline_ns: u64,
    /// Index of the entry's counter, below [`RULES_MAX`].
    pub counter: u32,
    /// [`ACTION_ALLOW`]; every other value refuses.
    pub action: u32,
}

/// The entry refuses its sources, in the style that the settings name.
pub const ACTION_DENY: u32 = 0;
/// The entry lets its sources through.
pub const ACTION_ALLOW: u32 = 1;
/// The entry refuses its sources silently.
pub const ACTION_DROP: u32 = 2;
/// The entry refuses its sources by a TCP reset.
pub const ACTION_RESET: u32 = 3;
/// The entry refuses its sources by ICMP.
pub const ACTION_ICMP: u32 = 4;

/// One per-CPU counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes from the start of the link-layer header, as the IP length field claims them; at tcx,
    /// which may have no such header, it counts as 14.
    pub bytes: u64,
}

/// Why a packet met its verdict: the index of its counter.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Passed: neither IPv4 nor IPv6.
    NotIp = 0,
    /// Passed: to a port that is not guarded, or of another protocol.
    NotGuarded = 1,
    /// Passed: guarded port, but forwarded to another host.
    NotLocal = 2,
    /// Passed: the source is allowed.
    Allowed = 3,
    /// Passed: a fragment with an offset; its first fragment was judged.
    LaterFragment = 4,
    /// Dropped: no entry names the source.
    NotListed = 5,
    /// Dropped: a deny entry names the source.
    DenyEntry = 6,
    /// Dropped: the entry's deadline has passed.
    Deadline = 7,
    /// Dropped: a source that no packet from outside may carry (`::ffff:0:0/96`, and an own
    /// address, if the list allows it).
    ForgedSource = 8,
    /// Dropped: cut off before the port could be read.
    Truncated = 9,
    /// Dropped: header length fields that contradict each other.
    BadHeader = 10,
    /// Dropped: more VLAN tags than the parser walks.
    TooManyTags = 11,
    /// Dropped: more IPv6 extension headers than the parser walks.
    TooManyHeaders = 12,
}

/// How many [`Reason`]s there are.
pub const REASONS: usize = 13;

impl Reason {
    /// All reasons in counter order.
    pub const ALL: [Self; REASONS] = [
        Self::NotIp,
        Self::NotGuarded,
        Self::NotLocal,
        Self::Allowed,
        Self::LaterFragment,
        Self::NotListed,
        Self::DenyEntry,
        Self::Deadline,
        Self::ForgedSource,
        Self::Truncated,
        Self::BadHeader,
        Self::TooManyTags,
        Self::TooManyHeaders,
    ];

    /// Whether packets counted here are dropped.
    #[must_use]
    pub const fn drops(self) -> bool {
        self as u32 >= Self::NotListed as u32
    }

    /// The name in `sessionctl status`, metrics and `stats guard`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::NotGuarded => "not_guarded",
            Self::NotLocal => "not_local",
            Self::Allowed => "allowed",
            Self::LaterFragment => "later_fragment",
            Self::NotListed => "not_listed",
            Self::DenyEntry => "deny_entry",
            Self::Deadline => "deadline",
            Self::ForgedSource => "forged_source",
            Self::Truncated => "truncated",
            Self::BadHeader => "bad_header",
            Self::TooManyTags => "too_many_tags",
            Self::TooManyHeaders => "too_many_headers",
        }
    }
}

const _: () = {
    assert!(size_of::<Meta>() == 16);
    assert!(size_of::<EndpointKey>() == 4);
    assert!(size_of::<EndpointValue>() == 4);
    assert!(size_of::<ListWord>() == 4);
    assert!(LISTS_MAX <= LIST_BITS);
    assert!(ListWord::new(LISTS_MAX - 1, 1).in_large(true).large_place() < LARGE_PLACES);
    assert!(size_of::<HostKey4>() == 8);
    assert!(size_of::<HostKey6>() == 20);
    assert!(size_of::<PrefixKey6>() == 24);
    assert!(size_of::<Rule>() == 16);
    assert!(size_of::<Counter>() == 16);
    assert!(Reason::ALL.len() == REASONS);
};

#[cfg(feature = "user")]
#[allow(unsafe_code)]
mod pod {
    //! Plain-data marks for aya; user space only.
    use super::{
        Counter, EndpointKey, EndpointValue, HostKey4, HostKey6, ListWord, Meta, PrefixKey6, Rule,
    };

    // SAFETY: `repr(C)`, made of integers and integer arrays only, no padding (asserted above).
    unsafe impl aya::Pod for Meta {}
    // SAFETY: as for `Meta`.
    unsafe impl aya::Pod for EndpointKey {}
    // SAFETY: as for `Meta`.
    unsafe impl aya::Pod for EndpointValue {}
    // SAFETY: `repr(transparent)` over a u32.
    unsafe impl aya::Pod for ListWord {}
    // SAFETY: as for `Meta`.
    unsafe impl aya::Pod for HostKey4 {}
    // SAFETY: as for `Meta`.
    unsafe impl aya::Pod for HostKey6 {}
    // SAFETY: as for `Meta`.
    unsafe impl aya::Pod for PrefixKey6 {}
    // SAFETY: as for `Meta`.
    unsafe impl aya::Pod for Rule {}
    // SAFETY: as for `Meta`; asserted beside the type.
    unsafe impl aya::Pod for crate::flood::Flood {}
    // SAFETY: as for `Meta`; the asserted lengths are the sums of the fields.
    unsafe impl aya::Pod for crate::exchange::Exchange {}
    // SAFETY: four integers of one size.
    unsafe impl aya::Pod for crate::exchange::Tally {}
    // SAFETY: as for `Meta`; asserted beside the type.
    unsafe impl aya::Pod for crate::answer::Sample {}
    // SAFETY: as for `Meta`; asserted beside the type.
    unsafe impl aya::Pod for crate::answer::Sampling {}
    // SAFETY: as for `Meta`.
    unsafe impl aya::Pod for Counter {}
}
