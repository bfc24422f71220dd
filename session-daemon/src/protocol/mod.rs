//! Bytes to commands and replies to bytes, one module a wire format. It owns the formats' words,
//! limits and errors; it never touches a socket, the store or a clock, and it never allocates.
#![forbid(unsafe_code)]

pub mod binary;
pub mod meta;
pub mod text;
pub mod udp;
