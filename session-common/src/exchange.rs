//! What the generator of requests by datagram is told, and what it finds of their answers. Tests
//! and benchmarks alone use it.
#![forbid(unsafe_code)]

/// Bytes that there is room for in a frame, and in the text of an answer.
pub const ROOM: usize = 256;

/// Requests that are prepared; the next ones are the first ones again.
pub const DRAWS: usize = 1 << 18;

/// Digits of a key's number, which make the key and, again and again, the value.
pub const DIGITS: usize = 8;

/// Bit of the first digit's byte that makes a draw a write; no digit has it.
pub const WRITE: u8 = 1 << 7;

/// Length of a value: a multiple of half the digits, so that its last digits end with it.
pub const VALUE_LEN: usize = 100;

/// Client sockets that requests seem to come from: ports from the frame's own one on.
pub const CLIENTS: u16 = 1024;

/// Bytes of a frame before the text: Ethernet, IPv4, UDP and memcached's header.
pub const HEADERS_LEN: usize = 14 + 20 + 8 + 8;

/// Where the digits stand in a frame and, of a write, the value: `get session:........`,
/// `set session:........ 0 0 100`, and a line's end.
pub const ASKED_KEY_AT: usize = HEADERS_LEN + 12;
/// See [`ASKED_KEY_AT`].
pub const WRITTEN_VALUE_AT: usize = ASKED_KEY_AT + DIGITS + 10;

/// The same in an answer that has the item: `VALUE session:........ 0 100`, and a line's end.
pub const ANSWERED_KEY_AT: usize = 14;
/// See [`ANSWERED_KEY_AT`].
pub const ANSWERED_VALUE_AT: usize = ANSWERED_KEY_AT + DIGITS + 8;

/// Bytes with places for digits.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Bytes that are used.
    pub len: u64,
    /// The bytes, with anything in the places for digits.
    pub bytes: [u8; ROOM],
}

/// A dialogue by datagrams over IPv4: as many requests as the answers allow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Index of the device that the requests leave by.
    pub ifindex: u32,
    /// Port that answers come from.
    pub port: u32,
    /// Requests without an answer at most; less than there are numbers for them.
    pub window: u64,
    /// Requests that are not waited for any more.
    pub forgiven: u64,
    /// The frame of a read, and of a write.
    pub asks: [Template; 2],
    /// The texts of their answers. The one of a write has no digits; nor has one that is shorter
    /// than an item.
    pub answers: [Template; 2],
}

/// How far it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that were sent.
    pub sent: u64,
    /// Answers to one of the last requests.
    pub heard: u64,
    /// Those of them that were not what they had to be.
    pub wrong: u64,
    /// Answers to no such request.
    pub strange: u64,
}

const _: () = {
    assert!(DRAWS.is_power_of_two() && CLIENTS.is_power_of_two());
    assert!(VALUE_LEN.is_multiple_of(DIGITS / 2) && VALUE_LEN >= DIGITS);
    assert!(WRITTEN_VALUE_AT + VALUE_LEN + 2 <= ROOM && ROOM.is_multiple_of(8));
    assert!(ANSWERED_VALUE_AT + VALUE_LEN + 7 <= ROOM);
    assert!(size_of::<Template>() == 8 + ROOM);
    assert!(size_of::<Exchange>() == 24 + 4 * size_of::<Template>());
};
