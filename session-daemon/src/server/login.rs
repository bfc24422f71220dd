//! Clients that have to say who they are first: `-Y` (text) and `-S` (binary). It owns which
//! connection is open and whose passwords are right; it never reads a file.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::request::Outcome;
use crate::protocol::binary::HEADER_LEN;
use crate::protocol::binary::encode::{self, Tag};
use crate::protocol::binary::sasl;
use crate::protocol::binary::status::Status;
use crate::protocol::text::login as token;
use crate::server::buffers::{Input, Output};
use crate::server::connection::{Services, Turn};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hint::black_box;

/// How a client says who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// It does not: everybody may ask everything.
    #[default]
    Free,
    /// By a `set` in the text protocol (`-Y`).
    Token,
    /// By SASL in the binary protocol (`-S`).
    Sasl,
}

/// Longest user and longest password, bytes.
pub const WORD_LEN_MAX: usize = 255;

/// Most users. Every attempt is compared with all of them.
pub const USERS_MAX: usize = 64;

/// The users and their passwords.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials(Vec<(Vec<u8>, Vec<u8>)>);

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what they are.
        write!(formatter, "Credentials({})", self.0.len())
    }
}

/// What is wrong with a file of passwords; lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The file names nobody.
    #[error("it names no user; write user:password, one a line")]
    Empty,
    /// A line is not `user:password`.
    #[error("line {0} is not user:password")]
    Malformed(usize),
    /// A user or a password is too long.
    #[error("line {0}: user and password may have {WORD_LEN_MAX} bytes each")]
    TooLong(usize),
    /// There are too many lines.
    #[error("more than {USERS_MAX} users")]
    TooMany,
}

impl Credentials {
    /// Reads `user:password`, one a line; the last newline may be missing.
    ///
    /// # Errors
    /// The first line that cannot be used. Nobody is let in by a file that is half read.
    pub fn parse(file: &[u8]) -> Result<Self, CredentialsError> {
        let mut users = Vec::new();
        for (line, number) in file.split(|byte| *byte == b'\n').zip(1..) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            let malformed = CredentialsError::Malformed(number);
            let colon = line.iter().position(|byte| *byte == b':').ok_or(malformed.clone())?;
            let (user, password) = line.split_at_checked(colon).ok_or(malformed.clone())?;
            let password = password.get(1..).unwrap_or_default();
            if user.is_empty() || password.is_empty() || line.contains(&0) {
                return Err(malformed);
            }
            if user.len() > WORD_LEN_MAX || password.len() > WORD_LEN_MAX {
                return Err(CredentialsError::TooLong(number));
            }
            if users.len() == USERS_MAX {
                return Err(CredentialsError::TooMany);
            }
            users.push((user.to_vec(), password.to_vec()));
        }
        if users.is_empty() { Err(CredentialsError::Empty) } else { Ok(Self(users)) }
    }

    /// Whether a user has this password. It takes as long for a wrong one as for a right one,
    /// whoever it is and wherever they differ. `user@host` in the file is `user` too, as in
    /// memcached's SASL password files.
    #[must_use]
    pub fn admit(&self, user: &[u8], password: &[u8]) -> bool {
        self.0.iter().fold(false, |admitted, (name, secret)| {
            let host = name.iter().position(|byte| *byte == b'@').unwrap_or(name.len());
            let short = name.get(..host).unwrap_or(name);
            let is_user = same(user, name) | same(user, short);
            admitted | (is_user & same(password, secret))
        })
    }
}

/// Whether two words are the same, in a time that does not tell where they differ.
fn same(said: &[u8], known: &[u8]) -> bool {
    let byte = |word: &[u8], idx: usize| word.get(idx).copied().unwrap_or_default();
    let difference = (0..=WORD_LEN_MAX)
        .fold(0, |all, idx| black_box(all | (byte(said, idx) ^ byte(known, idx))));
    (difference == 0) & (said.len() == known.len())
}

/// Whether a connection's client is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lock {
    login: Login,
    open: bool,
    /// A mechanism was chosen and its message is expected.
    started: bool,
}

/// What [`Lock::hear`] led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// There may be more to do.
    More,
    /// What is there is too short to go on.
    Wait,
    /// So many bytes of the input are to be passed over.
    PassOver(u32),
    /// The connection has to end, after its answers are sent.
    Close,
}

impl Lock {
    /// The lock of a connection in which nothing has been said.
    #[must_use]
    pub fn new(login: Login) -> Self {
        Self { login, open: false, started: false }
    }

    /// Whether the client is known; none while it is saying who it is.
    #[must_use]
    pub fn known(&self) -> Option<bool> {
        (self.open || !self.started).then_some(self.open)
    }

    /// The client is known: another process heard who it is.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// Whether what stands in the input is for the lock and not for the protocol behind it.
    #[must_use]
    pub fn concerns(&self, input: &[u8]) -> bool {
        match self.login {
            Login::Free => false,
            Login::Token => !self.open,
            Login::Sasl => !self.open || sasl::is_sasl(input),
        }
    }

    /// Hears who the client is.
    pub fn hear(&mut self, input: &mut Input, output: &mut Output, turn: &mut Turn<'_>) -> Heard {
        turn.requests_left = turn.requests_left.saturating_sub(1);
        match self.login {
            Login::Free | Login::Token => self.hear_token(input, output, turn),
            Login::Sasl => self.hear_sasl(input, output, turn),
        }
    }

    fn hear_token(&mut self, input: &mut Input, output: &mut Output, turn: &mut Turn<'_>) -> Heard {
        let (answer, len) = match token::hear(input.waiting()) {
            token::Heard::Wait => return Heard::Wait,
            token::Heard::Endless => return Heard::Close,
            token::Heard::Other(answer, len) => (answer, len),
            token::Heard::Token { user, password, len } => {
                self.open = turn.services.authenticate(user, password);
                (if self.open { token::Answer::Stored } else { token::Answer::Failure }, len)
            }
        };
        output.tail(turn.pool).extend_from_slice(answer.words());
        input.consume(len);
        Heard::More
    }

    fn hear_sasl(&mut self, input: &mut Input, output: &mut Output, turn: &mut Turn<'_>) -> Heard {
        let out = output.tail(turn.pool);
        let len = match sasl::hear(input.waiting()) {
            sasl::Heard::Wait => return Heard::Wait,
            sasl::Heard::Foreign => return Heard::Close,
            sasl::Heard::Refused(tag, status, behind) => {
                encode::error(out, tag, status);
                let Some(behind) = behind else { return Heard::Close };
                input.consume(HEADER_LEN);
                return Heard::PassOver(behind);
            }
            sasl::Heard::Version(tag) => {
                encode::outcome(out, tag, Outcome::Version, 0);
                HEADER_LEN
            }
            sasl::Heard::Mechanisms(tag) => {
                self.open = false;
                encode::said(out, tag, sasl::MECHANISMS);
                HEADER_LEN
            }
            sasl::Heard::Start { tag, known, message, len } => {
                self.open = false;
                self.started = known;
                // The mechanism is right and its message comes in a step.
                if known && message.is_empty() {
                    encode::error(out, tag, Status::AuthContinue);
                } else {
                    self.judge(tag, message, out, turn.services);
                }
                len
            }
            sasl::Heard::Step { tag, message, len } => {
                self.open = false;
                self.judge(tag, message, out, turn.services);
                len
            }
        };
        input.consume(len);
        Heard::More
    }

    fn judge(&mut self, tag: Tag, message: &[u8], out: &mut Vec<u8>, services: &dyn Services) {
        // Whatever is wrong is compared and counted like a wrong password.
        let (user, password) = sasl::plain(message).unwrap_or_default();
        let right = services.authenticate(user, password);
        self.open = right && self.started;
        self.started = false;
        if self.open {
            encode::said(out, tag, sasl::AUTHENTICATED);
        } else {
            encode::error(out, tag, Status::AuthFailure);
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::{Credentials, CredentialsError, same};

    #[test]
    fn files_are_read_whole_or_not_at_all() {
        let read = |file: &[u8]| Credentials::parse(file);
        let two = read(b"a:1\r\n\nb@host:x:y").unwrap();
        assert_eq!(format!("{two:?}"), "Credentials(2)", "a password in a log");
        for (user, password, right) in [
            ("a", "1", true),
            ("b", "x:y", true),
            ("b@host", "x:y", true),
            ("b@other", "x:y", false),
            ("a", "x:y", false),
            ("a", "", false),
            ("", "", false),
            ("a", "1\0", false),
            ("a\0", "1", false),
        ] {
            let admitted = two.admit(user.as_bytes(), password.as_bytes());
            assert_eq!(admitted, right, "{user} {password}");
        }
        assert_eq!(read(b"").unwrap_err(), CredentialsError::Empty);
        assert_eq!(read(b"\n\n").unwrap_err(), CredentialsError::Empty);
        for bad in [&b"a:1\nnocolon\n"[..], b"a:1\n:x", b"a:1\nb:", b"a:1\nb:x\0y"] {
            assert_eq!(read(bad).unwrap_err(), CredentialsError::Malformed(2));
        }
        let long = [&b"a:"[..], &[b'x'; 256]].concat();
        assert_eq!(read(&long).unwrap_err(), CredentialsError::TooLong(1));
        assert!(read(&long[..257]).unwrap().admit(b"a", &[b'x'; 255]));
        assert_eq!(read(&b"a:b\n".repeat(65)).unwrap_err(), CredentialsError::TooMany);
    }

    #[test]
    fn words_of_any_length_are_compared() {
        let long = [b'x'; 400];
        assert!(same(b"", b"") && same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"abc\0") && !same(b"", b"\0"));
        assert!(!same(&long, &long[..255]) && !same(&long[..255], &long));
    }
}
