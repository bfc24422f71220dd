//! The words of a line. It owns what separates them; it never knows what one means.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

/// The words of a line: what stands between blanks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words<'a>(pub &'a [u8]);

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let blank_len = self.0.iter().take_while(|byte| **byte == b' ').count();
        let rest = self.0.get(blank_len..)?;
        if rest.is_empty() {
            return None;
        }
        let (word, rest) = rest.split_at_checked(word_len(rest))?;
        self.0 = rest;
        Some(word)
    }
}

/// Bytes up to the first blank, eight at a time: most words are shorter than what a vector search
/// needs to begin.
fn word_len(bytes: &[u8]) -> usize {
    const LOW: u64 = u64::MAX / 0xff;
    const HIGH: u64 = LOW << 7;
    const BLANKS: u64 = LOW.wrapping_mul(b' ' as u64);
    let (eights, rest) = bytes.as_chunks::<8>();
    for (idx, eight) in eights.iter().enumerate() {
        let zero_where_blank = u64::from_le_bytes(*eight) ^ BLANKS;
        // The lowest bit that is set stands in the first byte that is zero.
        let found = zero_where_blank.wrapping_sub(LOW) & !zero_where_blank & HIGH;
        if found != 0 {
            let before_len = (found.trailing_zeros() / 8) as usize;
            return idx.saturating_mul(8).saturating_add(before_len);
        }
    }
    let tail_len = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
    eights.len().saturating_mul(8).saturating_add(tail_len)
}

impl Words<'_> {
    /// Whether the last of the remaining words is `noreply`.
    #[must_use]
    pub fn noreply(self) -> bool {
        self.last() == Some(b"noreply")
    }
}

#[cfg(test)]
mod tests {
    use super::{Words, word_len};

    #[test]
    fn a_word_ends_at_the_first_blank_wherever_it_stands() {
        for len in 0..20 {
            let mut line = vec![0x21 | 0x80; len];
            assert_eq!(word_len(&line), len);
            line.extend_from_slice(b" !\x1f\x21 \xa0\x00 ");
            assert_eq!(word_len(&line), len, "{line:?}");
        }
    }

    #[test]
    fn words_stand_between_blanks() {
        let words = |line| Words(line).collect::<Vec<_>>();
        assert_eq!(
            words(b"  set a-key-of-many-bytes  0 "),
            [&b"set"[..], b"a-key-of-many-bytes", b"0"]
        );
        assert_eq!(words(b"mg k v"), [b"mg".as_slice(), b"k", b"v"]);
        assert!(words(b"   ").is_empty() && words(b"").is_empty());
        assert!(Words(b"a key noreply").noreply() && !Words(b"noreply key").noreply());
    }
}
