//! The 24 bytes before every body. It owns their layout; it never judges them.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::HEADER_LEN;

/// The fields of a request's header that mean something; data type and vbucket are ignored, as
/// memcached ignores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked.
    pub opcode: u8,
    /// Bytes of the key.
    pub key_len: u16,
    /// Bytes of the extras.
    pub extras_len: u8,
    /// Bytes of extras, key and value.
    pub body_len: u32,
    /// Comes back in the reply as it is.
    pub opaque: [u8; 4],
    /// The version asked for; 0 for any.
    pub cas: u64,
}

impl Header {
    /// The header at the start of `input`, whatever its magic; none if it is not all there.
    #[must_use]
    pub fn read(input: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_LEN] = input.first_chunk()?;
        let [_, opcode, k0, k1, extras_len, _, _, _, rest @ ..] = *header;
        let [b0, b1, b2, b3, o0, o1, o2, o3, cas @ ..] = rest;
        Some(Self {
            opcode,
            key_len: u16::from_be_bytes([k0, k1]),
            extras_len,
            body_len: u32::from_be_bytes([b0, b1, b2, b3]),
            opaque: [o0, o1, o2, o3],
            cas: u64::from_be_bytes(cas),
        })
    }

    /// Bytes of extras and key.
    #[must_use]
    pub fn head_len(&self) -> u32 {
        u32::from(self.key_len).saturating_add(u32::from(self.extras_len))
    }

    /// Bytes of the value; none when extras and key are longer than the body that holds them.
    #[must_use]
    pub fn value_len(&self) -> Option<u32> {
        self.body_len.checked_sub(self.head_len())
    }
}
