//! What a text client says before anything else where `-Y` asks for it: a `set` of any key whose
//! value is `user password` (protocol.txt, "Authentication"). It owns the grammar and the words;
//! it never knows a password.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::number::unsigned;
use super::{CRLF, LINE_LEN_MAX};
use memchr::memchr;

/// Longest `user password` that is read. The longest that can be right is far below it.
pub const TOKEN_LEN_MAX: usize = 2048;

/// What stands at the start of the input of a client that nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// Who it says it is.
    Token {
        /// The user.
        user: &'a [u8],
        /// The password.
        password: &'a [u8],
        /// Bytes of line and value.
        len: usize,
    },
    /// Something else, of so many bytes.
    Other(Answer, usize),
    /// The rest has not come yet.
    Wait,
    /// A line without end.
    Endless,
}

/// What an unknown client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is known from here on.
    Stored,
    /// It asked for something.
    Unauthenticated,
    /// The announced value is too long to be one; the connection ends.
    TooLong,
    /// The value does not end where its line said.
    BadEnd,
    /// The value is not two words.
    BadFormat,
    /// The two words are not right.
    Failure,
}

impl Answer {
    /// memcached's words.
    #[must_use]
    pub const fn words(self) -> &'static [u8] {
        match self {
            Self::Stored => b"STORED\r\n",
            Self::Unauthenticated => b"CLIENT_ERROR unauthenticated\r\n",
            Self::TooLong => b"CLIENT_ERROR auth token too long\r\n",
            Self::BadEnd => b"CLIENT_ERROR bad command line termination\r\n",
            Self::BadFormat => b"CLIENT_ERROR bad authentication token format\r\n",
            Self::Failure => b"CLIENT_ERROR authentication failure\r\n",
        }
    }
}

/// Looks at the start of the input. No line but one of `set` is ever taken for more than a line,
/// and none is done, so it does not matter what a value of theirs holds.
#[must_use]
pub fn hear(input: &[u8]) -> Heard<'_> {
    let window = input.get(..LINE_LEN_MAX).unwrap_or(input);
    let Some(end) = memchr(b'\n', window) else {
        return if input.len() < LINE_LEN_MAX { Heard::Wait } else { Heard::Endless };
    };
    let line = input.get(..end).unwrap_or_default();
    let line_len = end.saturating_add(1);
    let Some(token_len) = token_len(line.strip_suffix(b"\r").unwrap_or(line)) else {
        return Heard::Other(Answer::Unauthenticated, line_len);
    };
    let Some(token_len) = usize::try_from(token_len).ok().filter(|len| *len <= TOKEN_LEN_MAX)
    else {
        return Heard::Other(Answer::TooLong, line_len);
    };
    let token_end = line_len.saturating_add(token_len);
    let len = token_end.saturating_add(CRLF.len());
    let (Some(token), Some(end)) = (input.get(line_len..token_end), input.get(token_end..len))
    else {
        return Heard::Wait;
    };
    if end != CRLF {
        return Heard::Other(Answer::BadEnd, len);
    }
    let mut words = words(token);
    match (words.next(), words.next()) {
        (Some(user), Some(password)) => Heard::Token { user, password, len },
        _ => Heard::Other(Answer::BadFormat, len),
    }
}

/// The length that a `set` line announces: its fifth word.
fn token_len(line: &[u8]) -> Option<u64> {
    let mut words = words(line);
    (words.next() == Some(b"set")).then_some(())?;
    words.nth(3).and_then(unsigned)
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b' ').filter(|word| !word.is_empty())
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::{Answer, Heard, hear};

    #[test]
    fn a_set_with_two_words_is_a_token() {
        let input = b"set any 9 x 9 noreply\r\nuser pass\r\nget a\r\n";
        let token = Heard::Token { user: b"user", password: b"pass", len: input.len() - 7 };
        assert_eq!(hear(input), token);
        // Words behind the second are ignored, as in memcached.
        let more = hear(b"set a 0 0 13\r\nuser pass xyz\r\n");
        assert!(matches!(more, Heard::Token { password: b"pass", .. }), "{more:?}");
    }

    #[test]
    fn every_cut_waits_for_the_rest() {
        let input = b"set a 0 0 9\r\nuser pass\r\n";
        for at in 0..input.len() {
            assert_eq!(hear(&input[..at]), Heard::Wait, "{at}");
        }
    }

    #[test]
    fn everything_else_has_memcacheds_answer() {
        let other = |input: &[u8]| match hear(input) {
            Heard::Other(answer, len) => (answer, len),
            heard => panic!("{heard:?}"),
        };
        for line in
            ["get a\r\n", "\r\n", "\n", "set a 0 0\r\n", "set a 0 0 x\r\n", "add a 0 0 1\r\n"]
        {
            let expected = (Answer::Unauthenticated, line.len());
            assert_eq!(other(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(other(b"set a 0 0 2147483646\r\n").0, Answer::TooLong);
        assert_eq!(other(b"set a 0 0 4\r\nu pXXX"), (Answer::BadEnd, 19));
        assert_eq!(other(b"set a 0 0 4\r\nuser\r\n"), (Answer::BadFormat, 19));
        assert_eq!(other(b"set a 0 0 0\r\n\r\n"), (Answer::BadFormat, 15));
        assert_eq!(hear(&[b'x'; 2048]), Heard::Endless);
    }
}
