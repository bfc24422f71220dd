//! memcached's meta protocol (protocol.txt, "Meta Commands"). It owns its grammar, flags and
//! words; lines and numbers are those of the text protocol, with which it is mixed.
#![forbid(unsafe_code)]

pub mod base64;
pub mod encode;
pub mod flags;
pub mod parse;
#[cfg(test)]
mod tests;

/// Most words of a line, verb and key among them.
pub const WORDS_MAX: usize = 20;

/// Longest opaque token, with its letter.
pub const OPAQUE_LEN_MAX: usize = 32;
