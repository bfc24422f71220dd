//! The key list of `get`, `gets`, `gat` and `gats`, read one token at a time so that a list of
//! any length needs no memory. It owns where a token ends; it never knows what a key is for.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

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

/// Looks at the next token of a key list. A carriage return belongs to the line's end when the
/// newline follows it, and to the key when anything else does.
#[must_use]
pub fn next_key(rest: &[u8]) -> NextKey<'_> {
    let blank_len = rest.iter().take_while(|byte| **byte == b' ').count();
    let token_on = rest.get(blank_len..).unwrap_or_default();
    let Some(stop) = memchr2(b' ', b'\n', token_on.get(..KEY_WINDOW).unwrap_or(token_on)) else {
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
    use super::{KEY_LEN_MAX, NextKey, next_key};

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
