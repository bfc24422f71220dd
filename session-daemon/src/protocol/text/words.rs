//! The words of a line. It owns what separates them; it never knows what one means.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use memchr::memchr;

/// The words of a line: what stands between blanks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words<'a>(pub &'a [u8]);

/// Bytes that are looked at one by one.
const SHORT_LEN: usize = 8;

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let blank_len = self.0.iter().take_while(|byte| **byte == b' ').count();
        let rest = self.0.get(blank_len..)?;
        if rest.is_empty() {
            return None;
        }
        // Most words are shorter than what a vector search needs to begin.
        let (near, far) = rest.split_at(rest.len().min(SHORT_LEN));
        let word_len = match near.iter().position(|byte| *byte == b' ') {
            Some(len) => len,
            None => memchr(b' ', far).unwrap_or(far.len()).saturating_add(near.len()),
        };
        let (word, rest) = rest.split_at_checked(word_len)?;
        self.0 = rest;
        Some(word)
    }
}

impl Words<'_> {
    /// Whether the last of the remaining words is `noreply`.
    #[must_use]
    pub fn noreply(self) -> bool {
        self.last() == Some(b"noreply")
    }
}
