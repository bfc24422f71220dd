//! memcached's binary protocol (protocol_binary.h). It owns the layout of frames, their statuses
//! and words, and which lengths an opcode may have; it never reads a value, waits or stores.
//!
//! ```text
//! request   | magic 80 | opcode   | key length      |    reply: magic 81, and in place of the
//!           | extras   | type 0   | vbucket         |    vbucket the status
//!           | body length (extras + key + value)    |
//!           | opaque                                |
//!           | cas unique (8 bytes)                  |
//!           | extras ... key ... value ...          |
//! ```
#![forbid(unsafe_code)]

pub mod encode;
pub mod header;
pub mod opcode;
pub mod parse;
pub mod sasl;
pub mod status;
#[cfg(test)]
mod tests;

/// First byte of every request, by which a connection is known as binary.
pub const REQUEST_MAGIC: u8 = 0x80;

/// First byte of every reply.
pub const REPLY_MAGIC: u8 = 0x81;

/// Bytes of a header, in both directions.
pub const HEADER_LEN: usize = 24;

/// Longest body that a request may announce: memcached's own bound, its largest `-I`.
pub const BODY_LEN_MAX: u32 = 1 << 30;

/// The expiry time by which `incr` and `decr` ask not to create what is missing.
pub const DO_NOT_CREATE: u32 = u32::MAX;
