//! The key list of `get`, `gets`, `gat` and `gats`, read one token at a time so that a list of
//! any length needs no memory. It owns where a token ends; it never knows what a key is for.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::CRLF;
use crate::command::request::KEY_LEN_MAX;
use memchr::memchr2;

/// What stands at the start of the rest of a key list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextKey<'a> {
    /// A key of 1 to [`KEY_LEN_MAX`] bytes.
    Key {
        /// The key.
        key: &'a [u8],
        /// Blanks before the key, bytes.
        blank_len: usize,
        /// Bytes up to and with the newline, when nothing else stands between.
        end_len: Option<usize>,
    },
    /// The line ends here.
    End {
        /// Bytes up to and with the newline.
        consumed_len: usize,
    },
    /// A key longer than [`KEY_LEN_MAX`], whether or not it has ended.
    TooLong,
    /// The bytes stop before the token does.
    Partial {
        /// Leading blanks, which need not be kept.
        blank_len: usize,
    },
}

/// The key of a line `get <key>` and what stands behind the line, if it stands whole at the start of
/// `input` as clients spell it. Whatever else may stand there is for
/// [`key_list`](super::parse::key_list) and [`next_key`] to read.
#[must_use]
pub fn lone_get(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = input.strip_prefix(b"get ")?;
    let len = plain_len(rest.get(..KEY_WINDOW).unwrap_or(rest));
    let (key, end) = rest.split_at_checked(len)?;
    let behind = end.strip_prefix(CRLF)?;
    (1..=KEY_LEN_MAX).contains(&len).then_some((key, behind))
}

/// Looks at the next token of a key list. A carriage return belongs to the line's end when the
/// newline follows it, and to the key when anything else does.
#[must_use]
pub fn next_key(rest: &[u8]) -> NextKey<'_> {
    let blank_len = rest.iter().take_while(|byte| **byte == b' ').count();
    let token_on = rest.get(blank_len..).unwrap_or_default();
    let Some(stop) = token_end(token_on.get(..KEY_WINDOW).unwrap_or(token_on)) else {
        // One byte more than the longest key may be the carriage return of the line's end.
        return if token_on.len() >= KEY_WINDOW {
            NextKey::TooLong
        } else {
            NextKey::Partial { blank_len }
        };
    };
    let token = token_on.get(..stop).unwrap_or_default();
    if token_on.get(stop) == Some(&b' ') {
        return key(token, blank_len, None);
    }
    let consumed_len = blank_len.saturating_add(stop).saturating_add(1);
    match token.strip_suffix(b"\r").unwrap_or(token) {
        [] => NextKey::End { consumed_len },
        token => key(token, blank_len, Some(consumed_len)),
    }
}

/// Where the first blank or newline stands.
fn token_end(bytes: &[u8]) -> Option<usize> {
    let len = plain_len(bytes);
    match bytes.get(len..)? {
        [b' ' | b'\n', ..] => Some(len),
        [b'\r', b'\n', ..] => Some(len.saturating_add(1)),
        rest => memchr2(b' ', b'\n', rest).map(|at| len.saturating_add(at)),
    }
}

/// Bytes up to the first blank or control character, eight at a time: most keys are shorter than
/// what a vector search needs to begin.
#[must_use]
pub fn plain_len(bytes: &[u8]) -> usize {
    const LOW: u64 = u64::MAX / 0xff;
    const HIGH: u64 = LOW << 7;
    const FIRST_PLAIN: u64 = LOW.wrapping_mul(b' ' as u64 + 1);
    let (eights, rest) = bytes.as_chunks::<8>();
    for (idx, eight) in eights.iter().enumerate() {
        let word = u64::from_le_bytes(*eight);
        // The lowest bit that is set stands in the first byte that is not plain.
        let found = word.wrapping_sub(FIRST_PLAIN) & !word & HIGH;
        if found != 0 {
            let before_len = (found.trailing_zeros() / 8) as usize;
            return idx.saturating_mul(8).saturating_add(before_len);
        }
    }
    let tail_len = rest.iter().position(|byte| *byte <= b' ').unwrap_or(rest.len());
    eights.len().saturating_mul(8).saturating_add(tail_len)
}

/// The longest key, a carriage return and the newline or blank that ends it.
const KEY_WINDOW: usize = KEY_LEN_MAX + 2;

fn key(token: &[u8], blank_len: usize, end_len: Option<usize>) -> NextKey<'_> {
    if token.len() > KEY_LEN_MAX {
        return NextKey::TooLong;
    }
    NextKey::Key { key: token, blank_len, end_len }
}

#[cfg(test)]
mod tests {
    use super::{KEY_LEN_MAX, NextKey, lone_get, next_key, plain_len};
    use crate::protocol::text::parse::{KeyList, key_list};

    #[test]
    fn tokens() {
        let key = |key, blank_len, end_len| NextKey::Key { key, blank_len, end_len };
        assert_eq!(next_key(b" ab c\r\n"), key(b"ab", 1, None));
        assert_eq!(next_key(b"ab\r\n"), key(b"ab", 0, Some(4)));
        assert_eq!(next_key(b"  ab\nget"), key(b"ab", 2, Some(5)));
        assert_eq!(next_key(b"ab \r\n"), key(b"ab", 0, None));
        assert_eq!(next_key(b"\r\n"), NextKey::End { consumed_len: 2 });
        assert_eq!(next_key(b"  \nget"), NextKey::End { consumed_len: 3 });
        assert_eq!(next_key(b"  \r"), NextKey::Partial { blank_len: 2 });
        assert_eq!(next_key(b"a\rb c"), key(b"a\rb", 0, None));
    }

    #[test]
    fn plain_bytes_end_at_the_first_that_is_none_wherever_it_stands() {
        for len in 0..20 {
            for first in [b' ', b'\r', b'\n', 0, 0x1f] {
                let mut bytes: Vec<u8> = (0x21..=0xff).rev().take(len).collect();
                assert_eq!(plain_len(&bytes), len);
                bytes.push(first);
                bytes.extend_from_slice(b"\x21 \xa0\x00 ");
                assert_eq!(plain_len(&bytes), len, "{bytes:?}");
            }
        }
    }

    /// Whatever is taken for a lone get is read the same by the parts of the grammar.
    #[test]
    fn a_lone_get_is_one_key_to_the_end_of_its_line() {
        for key_len in [1, 7, 8, 24, KEY_LEN_MAX] {
            for (end, is_lone) in [
                (&b"\r\nget b\r\n"[..], true),
                (b"\r\n", true),
                (b"\n", false),
                (b"\r", false),
                (b"", false),
                (b" \r\n", false),
                (b" b\r\n", false),
                (b"\x01\r\n", false),
                (b"\rb\r\n", false),
            ] {
                let key = vec![0x80 | b'k'; key_len];
                let line = [b"get ", &key[..], end].concat();
                let lone = lone_get(&line);
                assert_eq!(lone.is_some(), is_lone, "{line:?}");
                let Some((found, behind)) = lone else { continue };
                let KeyList::Start { consumed_len, error: None, .. } = key_list(&line) else {
                    panic!("{line:?} is a key list");
                };
                let from_key = line.get(consumed_len..).expect("a verb stands before");
                let end_len = Some(from_key.len().saturating_sub(behind.len()));
                let rest = NextKey::Key { key: found, blank_len: 0, end_len };
                assert_eq!(next_key(from_key), rest);
            }
        }
        for line in [&b"gets a\r\n"[..], b"get  a\r\n", b"get \r\n", b"get", b"", b"GET a\r\n"] {
            assert_eq!(lone_get(line), None, "{line:?}");
        }
        let long = [&b"get "[..], &[b'k'; KEY_LEN_MAX + 1], b"\r\n"].concat();
        assert_eq!(lone_get(&long), None);
    }

    #[test]
    fn longest() {
        let mut line = vec![b'k'; KEY_LEN_MAX];
        assert_eq!(next_key(&line), NextKey::Partial { blank_len: 0 });
        line.extend_from_slice(b"\r\n");
        let key = line.get(..KEY_LEN_MAX).expect("longer than that");
        let end_len = Some(KEY_LEN_MAX + 2);
        assert_eq!(next_key(&line), NextKey::Key { key, blank_len: 0, end_len });
        let mut line = vec![b'k'; KEY_LEN_MAX + 1];
        line.extend_from_slice(b" a\r\n");
        assert_eq!(next_key(&line), NextKey::TooLong);
        assert_eq!(next_key(&[b'k'; KEY_LEN_MAX + 2]), NextKey::TooLong);
    }
}
