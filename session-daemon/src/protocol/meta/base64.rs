//! Keys in base64 (RFC 4648, section 4), padded. It owns the alphabet; it never allocates.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::request::KEY_LEN_MAX;

/// Longest key that is spelled in [`KEY_LEN_MAX`] characters.
pub const DECODED_LEN_MAX: usize = KEY_LEN_MAX / 4 * 3;

/// Room for a decoded key.
pub type Buffer = [u8; DECODED_LEN_MAX];

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Decodes a key; none unless it is a whole number of groups of the alphabet, padded at the end,
/// and fits.
#[must_use]
pub fn decode<'b>(text: &[u8], buffer: &'b mut Buffer) -> Option<&'b [u8]> {
    let (groups, rest) = text.as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    let last = groups.last()?;
    let padding_len = last.iter().rev().take_while(|byte| **byte == b'=').count();
    let mut places = buffer.chunks_exact_mut(3);
    for (idx, group) in groups.iter().enumerate() {
        let is_last = idx.saturating_add(1) == groups.len();
        let padding_len = if is_last { padding_len } else { 0 };
        places.next()?.copy_from_slice(&decode_group(group, padding_len)?);
    }
    let len = groups.len().checked_mul(3)?.checked_sub(padding_len)?;
    buffer.get(..len)
}

/// Three bytes; those that the padding stands for are 0.
fn decode_group(group: &[u8; 4], padding_len: usize) -> Option<[u8; 3]> {
    let mut word: u32 = 0;
    for (idx, character) in group.iter().enumerate() {
        let is_padding = idx >= group.len().checked_sub(padding_len)?;
        let value = match is_padding {
            true if padding_len <= 2 => 0,
            true => return None,
            false => value(*character)?,
        };
        word = word << 6 | u32::from(value);
    }
    let [_, one, two, three] = word.to_be_bytes();
    Some([one, two, three])
}

fn value(character: u8) -> Option<u8> {
    let (first, offset) = match character {
        b'A'..=b'Z' => (b'A', 0),
        b'a'..=b'z' => (b'a', 26),
        b'0'..=b'9' => (b'0', 52),
        b'+' => return Some(62),
        b'/' => return Some(63),
        _ => return None,
    };
    character.checked_sub(first)?.checked_add(offset)
}

/// Appends a key's spelling.
pub fn encode(out: &mut Vec<u8>, key: &[u8]) {
    for group in key.chunks(3) {
        let mut word = [0; 4];
        for (place, byte) in word.iter_mut().skip(1).zip(group) {
            *place = *byte;
        }
        let word = u32::from_be_bytes(word);
        let characters = [18, 12, 6, 0].map(|shift: u32| {
            let value = word.unbounded_shr(shift) & 0x3f;
            ALPHABET.get(value as usize).copied().unwrap_or(b'=')
        });
        let len = group.len().saturating_add(1);
        out.extend(characters.iter().take(len));
        out.extend(std::iter::repeat_n(b'=', 4usize.saturating_sub(len)));
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, DECODED_LEN_MAX, decode, encode};
    use proptest::prelude::{any, prop_assert_eq, proptest};

    const EMPTY: Buffer = [0; DECODED_LEN_MAX];

    #[test]
    fn vectors() {
        // RFC 4648, section 10.
        for (key, text) in [
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            encode(&mut out, key.as_bytes());
            assert_eq!(out, text.as_bytes());
            assert_eq!(decode(text.as_bytes(), &mut { EMPTY }), Some(key.as_bytes()));
        }
        for bad in ["", "Z", "Zg", "Zg=", "Zg==Zg==", "=", "====", "Z===", "Zm9v=", "Zm 9", "Zm9-"]
        {
            assert_eq!(decode(bad.as_bytes(), &mut { EMPTY }), None, "{bad}");
        }
        assert_eq!(decode(&[b'A'; 248], &mut { EMPTY }).map(<[u8]>::len), Some(186));
        assert_eq!(decode(&[b'A'; 252], &mut { EMPTY }), None);
    }

    proptest! {
        #[test]
        fn keys_come_back(key in proptest::collection::vec(any::<u8>(), 1..=DECODED_LEN_MAX)) {
            let mut out = Vec::new();
            encode(&mut out, &key);
            let mut buffer = EMPTY;
            prop_assert_eq!(decode(&out, &mut buffer), Some(key.as_slice()));
        }

        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&text, &mut { EMPTY });
        }
    }
}
