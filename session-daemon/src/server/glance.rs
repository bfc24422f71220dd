//! Which key a client asks for first, told by a glance at what it has sent, so that the key's memory is
//! on its way before the request is read. A guess: a wrong one costs a little, and changes nothing.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::protocol::binary::header::Header;
use crate::protocol::binary::{HEADER_LEN, REQUEST_MAGIC};
use crate::protocol::text::keys::plain_len;
use crate::store::types::{KEY_LEN_MAX, Key};

/// Longest verb before a key: `prepend`.
const VERB_LEN_MAX: usize = 7;

/// The second word of a line, or the key of a frame.
#[must_use]
pub fn first_key(input: &[u8]) -> Option<Key<'_>> {
    if input.first() == Some(&REQUEST_MAGIC) {
        let header = Header::read(input)?;
        let start = HEADER_LEN.saturating_add(usize::from(header.extras_len));
        return Key::new(input.get(start..start.saturating_add(usize::from(header.key_len)))?);
    }
    let verb = input.get(..=VERB_LEN_MAX).unwrap_or(input);
    let verb_len = verb.iter().position(|byte| *byte == b' ')?;
    let from_key = input.get(verb_len.saturating_add(1)..)?;
    let window = from_key.get(..=KEY_LEN_MAX).unwrap_or(from_key);
    Key::new(window.get(..plain_len(window))?)
}

#[cfg(test)]
mod tests {
    use super::{KEY_LEN_MAX, first_key};

    #[test]
    fn the_key_is_the_second_word_or_where_the_header_says() {
        let key = |input| first_key(input).map(|key| key.bytes());
        for line in [&b"get key\r\n"[..], b"prepend key 0 0 1\r\n", b"mg key v\r\n", b"get key"] {
            assert_eq!(key(line), Some(&b"key"[..]), "{line:?}");
        }
        for line in [&b""[..], b"get", b"get ", b"get  key\r\n", b"verbosity 1\r\n", b"mn\r\n"] {
            assert_eq!(key(line), None, "{line:?}");
        }
        let long = [b"get ", &[b'k'; KEY_LEN_MAX + 1][..]].concat();
        assert_eq!(key(&long), None);
        let frame = [&b"\x80\x01\x00\x03\x08"[..], &[0; 19], &[1; 8], b"keyvalue"].concat();
        assert_eq!(key(&frame), Some(&b"key"[..]));
        assert_eq!(frame.get(..34).and_then(key), None);
        assert_eq!(key(&[0x80; 23]), None);
    }
}
