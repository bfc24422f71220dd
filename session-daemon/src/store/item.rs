//! The bytes of an item: its words, and where key and value stand.
//! It owns the drawing of an item; it never decides about one.
//!
//! ```text
//!  0        8        16       24
//! +--------+--------+--------+- - - - - - - - - - -+- - - - - - - - -+-----+- - - - - - - +------+
//! | state  | times  |  cas   |  link (EXTENT)      |  version (VE)   | key | flags (CF)   | tail |
//! +--------+--------+--------+- - - - - - - - - - -+- - - - - - - - -+-----+- - - - - - - +------+
//!
//! state  63   56 55     48 47       18 17 11  10   9    8    7    6    5   4  3  2    1    0
//!       | class | key_len | value_len |  0  | KB | VE | GO | ST | CF | EX | FREQ | FE | PI | LI |
//! times  63                32 31 30             0
//!       |  last access, tick | WO |  exptime, s |       exptime 0: never, 1: past
//!        63                32 31 30   24 23  8 7     0
//!       |  successor, high   | 0 | all 1 |  inc  |  low  |  successor: offset / 8, 0 for none
//! cas    63                             8 7     0
//!       |  stamp                         | worker|
//! link   63  56 55            40 39             0
//!       |   0  |  tail_len      | first piece  |        in 8-byte units
//! ```
//! version: what clients see as the cas unique when one of them has chosen it; the cas word stays
//! the store's own. KB: clients spell the key in base64. ST: stale. WO: somebody has to renew it.
//!
//! The times word decides about an item: while it holds times, the item is what its key has. One
//! compare-and-swap ends that: with a successor, which the key has from then on, or with none.
//! docs/store.md says who may do that, and what follows.
//!
//! A value that does not fit into one chunk is a chain of pieces followed by the tail in the head
//! chunk. A piece is a page or a chunk:
//!
//! ```text
//!  0        8        16
//! +--------+--------+-----------------+   word  63 ... 24      23 ... 7   1   0
//! |  word  | owner  |  value bytes    |        |  next piece  |   len   | PI| 0 |
//! +--------+--------+-----------------+   owner: incarnation 63 ... 48, offset of the head or 0:
//!                                         while it is not linked, and before the piece is retired
//! ```
//! The first word of a free chunk is 0. A scan reads a chunk as an item only while LINKED is set;
//! GO (gone) takes its place before the chunk is retired, and neither bit is set before the item
//! is published.
#![forbid(unsafe_code)]

use crate::store::reuse::TICKS_PER_S;
use crate::store::types::{CasUnique, ClientFlags, Lifetime};
use session_common::region;
use session_common::region::state::{CLASS_SHIFT, KEY_LEN_SHIFT};

/// Offsets of the words.
pub(super) const TIMES: u64 = 8;
pub(super) const CAS: u64 = 16;
pub(super) const LINK: u64 = 24;
/// Bytes of the link word.
pub(super) const LINK_LEN: usize = 8;
/// Bytes of a version that a client chose.
pub(super) const VERSION_LEN: usize = 8;
/// Bytes of stored client flags.
pub(super) const FLAGS_LEN: usize = 4;
/// Bytes of a piece before its part of the value.
pub(super) const PIECE_HEADER_LEN: usize = 16;
/// Offset of a piece's owner word.
pub(super) const PIECE_OWNER: u64 = 8;

/// Highest count of accesses that a state word holds.
pub(super) const FREQ_MAX: u64 = 3;

/// Set while the item is in the index.
pub(super) const LINKED: u64 = 1;
const PIECE: u64 = 1 << 1;
const FETCHED: u64 = 1 << 2;
const FREQ_SHIFT: u32 = 3;
const EXTENT: u64 = 1 << 5;
const CFLAGS: u64 = 1 << 6;
pub(super) const STALE: u64 = 1 << 7;
/// Set when the item was in the index, and is not any more.
pub(super) const GONE: u64 = 1 << 8;
const VERSION: u64 = 1 << 9;
const KEY_BINARY: u64 = 1 << 10;
/// What counts an item's accesses.
pub(super) const ACCESSES: u64 = FETCHED | FREQ_MAX << FREQ_SHIFT;
const VALUE_LEN_SHIFT: u32 = 18;
const VALUE_LEN_MASK: u64 = (1 << 30) - 1;

// The kernel plane reads the same words.
const _: () = {
    assert!(TIMES == region::TIMES && CAS == region::CAS && LINK == region::BODY);
    assert!(VERSION_LEN as u64 == region::VERSION_LEN && FLAGS_LEN as u64 == region::FLAGS_LEN);
    assert!(LINKED == region::state::LINKED && PIECE == region::state::PIECE);
    assert!(ACCESSES == region::state::ACCESSES && EXTENT == region::state::EXTENT);
    assert!(CFLAGS == region::state::HAS_FLAGS && STALE == region::state::STALE);
    assert!(VERSION == region::state::HAS_VERSION && KEY_BINARY == region::state::KEY_IS_BINARY);
    assert!(VALUE_LEN_SHIFT == region::state::VALUE_LEN_SHIFT);
    assert!(VALUE_LEN_MASK == region::state::VALUE_LEN_MASK);
    assert!(EXPTIME_MASK == region::times::EXPTIME_MASK && WON == region::times::WON);
    assert!(EXPTIME_PAST as u64 == region::times::EXPTIME_PAST && ENDED == region::times::ENDED);
};

/// The state word of an item: everything that decides about it in one compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(pub(super) u64);

impl State {
    pub(super) fn new(
        class: u32,
        key_len: usize,
        value_len: usize,
        extent: bool,
        marks: Marks,
    ) -> Self {
        let mut word = u64::from(class) << CLASS_SHIFT
            | (key_len as u64) << KEY_LEN_SHIFT
            | (value_len as u64) << VALUE_LEN_SHIFT;
        for (is_set, bit) in [
            (extent, EXTENT),
            (marks.flags.0 != 0, CFLAGS),
            (marks.version.is_some(), VERSION),
            (marks.key_is_binary, KEY_BINARY),
        ] {
            word |= if is_set { bit } else { 0 };
        }
        Self(word)
    }

    pub(super) fn class(self) -> u32 {
        (self.0 >> CLASS_SHIFT) as u32
    }

    pub(super) fn key_len(self) -> usize {
        (self.0 >> KEY_LEN_SHIFT & 0xff) as usize
    }

    pub(super) fn value_len(self) -> usize {
        (self.0 >> VALUE_LEN_SHIFT & VALUE_LEN_MASK) as usize
    }

    pub(super) fn is_linked(self) -> bool {
        self.0 & LINKED != 0
    }

    /// Whether no bit says that this is something else than an item. Of the word of a region that
    /// somebody else wrote.
    pub(super) fn is_plain_item(self) -> bool {
        const UNUSED: u64 = (1 << VALUE_LEN_SHIFT) - (KEY_BINARY << 1);
        self.0 & (PIECE | UNUSED) == 0
    }

    pub(super) fn is_piece(self) -> bool {
        self.0 & (LINKED | PIECE) == PIECE
    }

    pub(super) fn is_fetched(self) -> bool {
        self.0 & FETCHED != 0
    }

    pub(super) fn is_extent(self) -> bool {
        self.0 & EXTENT != 0
    }

    pub(super) fn has_flags(self) -> bool {
        self.0 & CFLAGS != 0
    }

    pub(super) fn is_stale(self) -> bool {
        self.0 & STALE != 0
    }

    /// Whether it is a written item that was not published yet, if it is an item at all.
    pub(super) fn is_unpublished(self) -> bool {
        self.0 != 0 && self.0 & (LINKED | GONE | PIECE) == 0
    }

    pub(super) fn has_version(self) -> bool {
        self.0 & VERSION != 0
    }

    pub(super) fn key_is_binary(self) -> bool {
        self.0 & KEY_BINARY != 0
    }

    /// With those of `bits` that `other` has.
    pub(super) fn with_bits_of(self, other: Self, bits: u64) -> Self {
        Self(self.0 | other.0 & bits)
    }

    pub(super) fn freq(self) -> u64 {
        self.0 >> FREQ_SHIFT & FREQ_MAX
    }

    /// After one more access.
    pub(super) fn accessed(self) -> Self {
        let step = u64::from(self.freq() < FREQ_MAX) << FREQ_SHIFT;
        Self((self.0 | FETCHED) + step)
    }

    /// With this count of accesses, at most [`FREQ_MAX`].
    pub(super) fn with_freq(self, freq: u64) -> Self {
        Self(self.0 & !(FREQ_MAX << FREQ_SHIFT) | freq << FREQ_SHIFT)
    }

    /// Offset of the version, if there is one: a client chose it.
    pub(super) fn version_offset(self) -> u64 {
        LINK + if self.is_extent() { LINK_LEN as u64 } else { 0 }
    }

    /// Offset of the key in the chunk.
    pub(super) fn key_offset(self) -> u64 {
        self.version_offset() + if self.has_version() { VERSION_LEN as u64 } else { 0 }
    }

    /// Offset of the client flags.
    pub(super) fn flags_offset(self) -> u64 {
        self.key_offset() + self.key_len() as u64
    }

    /// Offset of the value's tail.
    pub(super) fn tail_offset(self) -> u64 {
        self.flags_offset() + if self.has_flags() { FLAGS_LEN as u64 } else { 0 }
    }

    /// Bytes of header, key, flags and value together.
    pub(super) fn item_len(self) -> usize {
        self.tail_offset() as usize + self.value_len()
    }
}

/// What an item carries beside key and value. It takes part in the item's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) flags: ClientFlags,
    /// The version that clients see, when one of them has chosen it.
    pub(super) version: Option<CasUnique>,
    /// Clients spell the key in base64.
    pub(super) key_is_binary: bool,
}

impl Marks {
    /// Bytes that the marks take.
    pub(super) fn len(self) -> usize {
        let flags_len = if self.flags.0 == 0 { 0 } else { FLAGS_LEN };
        flags_len + if self.version.is_some() { VERSION_LEN } else { 0 }
    }
}

/// The times word of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times(pub(super) u64);

/// The exptime that has passed at any time.
const EXPTIME_PAST: u32 = 1;
const EXPTIME_MASK: u64 = (1 << 31) - 1;
const WON: u64 = 1 << 31;
/// In place of an exptime: the item has ended.
const ENDED: u64 = 0x7f << 24;
/// Latest exptime, 67 years after boot; later ones count as this one.
const EXPTIME_LATEST: u32 = ENDED as u32 - 1;

impl Times {
    pub(super) fn new(lifetime: Lifetime, last_access_tick: u32) -> Self {
        let exptime = match lifetime {
            Lifetime::Never => 0,
            Lifetime::Past => EXPTIME_PAST,
            Lifetime::Until(second) => second.clamp(EXPTIME_PAST, EXPTIME_LATEST),
        };
        Self(u64::from(last_access_tick) << 32 | u64::from(exptime))
    }

    /// The word of an item that has ended. `successor` is the item that the key has instead, or 0.
    pub(super) fn ended(successor: u64) -> Self {
        let unit = successor / 8;
        Self(unit >> 8 << 32 | ENDED | unit & 0xff)
    }

    /// The same, with the incarnation of the store in which the item ended.
    pub(super) fn in_incarnation(self, incarnation: u16) -> Self {
        Self(self.0 | u64::from(incarnation) << 8)
    }

    /// The incarnation in which the item ended. Only of such an item's word.
    pub(super) fn ended_in(self) -> u16 {
        (self.0 >> 8) as u16
    }

    /// The successor of an item that has ended, 0 for none; `None` while these are times.
    pub(super) fn successor(self) -> Option<u64> {
        (self.0 & ENDED == ENDED).then_some((self.0 >> 32 << 8 | self.0 & 0xff) * 8)
    }

    /// With the mark that somebody has to renew the item, if `won`.
    pub(super) fn with_win(self, won: bool) -> Self {
        Self(self.0 | if won { WON } else { 0 })
    }

    pub(super) fn is_won(self) -> bool {
        self.0 & WON != 0
    }

    /// The same with another time of last access.
    pub(super) fn accessed_at(self, tick: u32) -> Self {
        Self(u64::from(tick) << 32 | self.0 & u64::from(u32::MAX))
    }

    pub(super) fn exptime_s(self) -> u32 {
        (self.0 & EXPTIME_MASK) as u32
    }

    pub(super) fn lifetime(self) -> Lifetime {
        match self.exptime_s() {
            0 => Lifetime::Never,
            EXPTIME_PAST => Lifetime::Past,
            second => Lifetime::Until(second),
        }
    }

    pub(super) fn last_access_tick(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) fn last_access_s(self) -> u32 {
        self.last_access_tick() / TICKS_PER_S
    }

    pub(super) fn is_expired(self, now_s: u32) -> bool {
        self.exptime_s() != 0 && (self.exptime_s() <= now_s || self.exptime_s() == EXPTIME_PAST)
    }
}

/// The link word of an item with pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link(pub(super) u64);

impl Link {
    pub(super) fn new(first: u64, tail_len: usize) -> Self {
        Self((first / 8) | ((tail_len as u64) << 40))
    }

    /// Offset of the first piece; 0 for none.
    pub(super) fn first(self) -> u64 {
        (self.0 & ((1 << 40) - 1)) * 8
    }

    pub(super) fn tail_len(self) -> usize {
        (self.0 >> 40) as usize
    }
}

/// The first word of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece(pub(super) u64);

impl Piece {
    pub(super) fn new(len: usize, next: u64) -> Self {
        Self((next / 8) << 24 | (len as u64) << 7 | PIECE)
    }

    /// Bytes of the value in this piece.
    pub(super) fn len(self) -> usize {
        (self.0 >> 7 & 0x1_ffff) as usize
    }

    /// Offset of the next piece; 0 for none.
    pub(super) fn next(self) -> u64 {
        (self.0 >> 24) * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_words_keep_their_fields() {
        for (class, key_len, value_len) in [(1, 1, 0), (254, 250, (1 << 30) - 1), (77, 9, 4096)] {
            for (extent, flags) in [(false, false), (true, false), (false, true), (true, true)] {
                let marks = Marks { flags: ClientFlags(flags.into()), ..Marks::default() };
                let state = State::new(class, key_len, value_len, extent, marks);
                let state = State(state.0 | LINKED);
                assert_eq!((state.class(), state.key_len()), (class, key_len));
                assert_eq!((state.value_len(), state.is_extent()), (value_len, extent));
                assert_eq!((state.has_flags(), state.freq()), (flags, 0));
                assert!(state.is_linked() && !state.is_piece() && !state.is_fetched());
                let often = state.accessed().accessed().accessed().accessed();
                assert_eq!((often.freq(), often.is_fetched()), (3, true));
                assert_eq!((often.with_freq(1).freq(), often.value_len()), (1, value_len));
            }
        }
    }

    #[test]
    fn marks_have_places_of_their_own() {
        let marks =
            Marks { flags: ClientFlags(1), version: Some(CasUnique(9)), key_is_binary: true };
        let plain = State::new(3, 5, 7, true, Marks::default());
        let marked = State::new(3, 5, 7, true, marks);
        assert!(marked.key_is_binary() && marked.has_version() && marked.has_flags());
        assert_eq!(marked.version_offset(), 32);
        assert_eq!(marked.tail_offset() - plain.tail_offset(), marks.len() as u64);
        assert_eq!((marked.class(), marked.key_len(), marked.value_len()), (3, 5, 7));
        assert!(!marked.is_stale() && marked.is_unpublished());
        let stale = State(marked.accessed().0 | STALE | GONE);
        assert!(stale.is_stale() && !stale.is_unpublished() && stale.freq() == 1);
        let heir = plain.with_bits_of(stale, STALE | ACCESSES);
        assert!(heir.is_stale() && heir.is_unpublished() && heir.is_fetched() && heir.freq() == 1);
        assert_eq!((heir.class(), heir.has_version()), (3, false));
    }

    #[test]
    fn times_links_and_pieces_keep_their_fields() {
        let times = Times::new(Lifetime::Until(2_100_000_000), 5 * TICKS_PER_S + 1);
        assert_eq!((times.exptime_s(), times.last_access_s()), (2_100_000_000, 5));
        let latest = Times::new(Lifetime::Until(u32::MAX), u32::MAX).with_win(true);
        assert_eq!((latest.successor(), latest.exptime_s()), (None, EXPTIME_LATEST));
        assert_eq!((latest.is_won(), times.is_won()), (true, false));
        let accessed = latest.accessed_at(7);
        assert_eq!((accessed.last_access_tick(), accessed.is_won()), (7, true));
        assert_eq!(accessed.lifetime(), Lifetime::Until(EXPTIME_LATEST));
        for successor in [0, 8, 8 * 255, 8 * 256, 8 * ((1 << 40) - 1)] {
            let ended = Times::ended(successor).in_incarnation(0xfedc);
            assert_eq!((ended.successor(), ended.ended_in()), (Some(successor), 0xfedc));
        }
        assert!(Times::new(Lifetime::Past, 0).is_expired(0));
        assert!(!Times::new(Lifetime::Never, 0).is_expired(u32::MAX));
        assert!(Times::new(Lifetime::Until(7), 0).is_expired(7));
        assert!(!Times::new(Lifetime::Until(7), 0).is_expired(6));
        let link = Link::new(8 * ((1 << 40) - 1), 8191);
        assert_eq!((link.first(), link.tail_len()), (8 * ((1 << 40) - 1), 8191));
        let piece = Piece::new(65_520, 8 * ((1 << 40) - 1));
        assert_eq!((piece.len(), piece.next()), (65_520, 8 * ((1 << 40) - 1)));
        assert!(State(piece.0).is_piece());
    }
}
