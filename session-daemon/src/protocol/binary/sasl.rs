//! SASL in the binary protocol (protocol_binary.h, opcodes 0x20 to 0x22), with PLAIN (RFC 4616)
//! alone. It owns which frames are part of it and their words; it never knows a password.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::encode::Tag;
use super::header::Header;
use super::status::Status;
use super::{HEADER_LEN, REQUEST_MAGIC};

/// The one mechanism.
pub const MECHANISMS: &[u8] = b"PLAIN";

/// What a client that was recognised is told.
pub const AUTHENTICATED: &[u8] = b"Authenticated";

/// Longest name of a mechanism (memcached's `MAX_SASL_MECH_LEN`).
const MECHANISM_LEN_MAX: usize = 32;

/// Longest message that is read. The longest that can be right is far below it.
pub const MESSAGE_LEN_MAX: usize = 2048;

/// What stands at the start of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// The ways to authenticate are asked for.
    Mechanisms(Tag),
    /// A mechanism is chosen, and its first message may be there.
    Start {
        /// What the reply repeats.
        tag: Tag,
        /// Whether the mechanism is [`MECHANISMS`].
        known: bool,
        /// The message.
        message: &'a [u8],
        /// Bytes of the frame.
        len: usize,
    },
    /// A further message.
    Step {
        /// What the reply repeats.
        tag: Tag,
        /// The message.
        message: &'a [u8],
        /// Bytes of the frame.
        len: usize,
    },
    /// The one command that needs no authentication.
    Version(Tag),
    /// A frame that is refused; so many bytes behind its header are passed over, or the
    /// connection ends.
    Refused(Tag, Status, Option<u32>),
    /// The rest has not come yet.
    Wait,
    /// No request: the connection ends without an answer.
    Foreign,
}

/// Whether a frame belongs to SASL.
#[must_use]
pub fn is_sasl(input: &[u8]) -> bool {
    matches!(input, [REQUEST_MAGIC, 0x20..=0x22, ..])
}

/// Looks at the start of the input of a client that is not known, or wants to be known anew.
#[must_use]
pub fn hear(input: &[u8]) -> Heard<'_> {
    match input.first() {
        None => return Heard::Wait,
        Some(&REQUEST_MAGIC) => {}
        Some(_) => return Heard::Foreign,
    }
    let Some(header) = Header::read(input) else { return Heard::Wait };
    let tag = Tag { opcode: header.opcode, opaque: header.opaque, quiet: false };
    let Some(message_len) = header.value_len() else {
        return Heard::Refused(tag, Status::UnknownCommand, None);
    };
    let empty = header.body_len == 0;
    match header.opcode {
        0x20 if empty => Heard::Mechanisms(tag),
        0x0b if empty => Heard::Version(tag),
        0x21 | 0x22 if header.extras_len == 0 && header.key_len > 0 => {
            message(input, tag, &header, message_len)
        }
        0x0b | 0x20..=0x22 => Heard::Refused(tag, Status::InvalidArguments, None),
        _ => Heard::Refused(tag, Status::AuthFailure, None),
    }
}

fn message<'a>(input: &'a [u8], tag: Tag, header: &Header, message_len: u32) -> Heard<'a> {
    let mechanism_len = usize::from(header.key_len);
    if mechanism_len > MECHANISM_LEN_MAX {
        return Heard::Refused(tag, Status::InvalidArguments, Some(header.body_len));
    }
    let Some(message_len) = usize::try_from(message_len).ok().filter(|len| *len <= MESSAGE_LEN_MAX)
    else {
        return Heard::Refused(tag, Status::OutOfMemory, Some(header.body_len));
    };
    let message_at = HEADER_LEN.saturating_add(mechanism_len);
    let len = message_at.saturating_add(message_len);
    let (Some(mechanism), Some(message)) =
        (input.get(HEADER_LEN..message_at), input.get(message_at..len))
    else {
        return Heard::Wait;
    };
    match header.opcode {
        0x21 => Heard::Start { tag, known: mechanism == MECHANISMS, message, len },
        _ => Heard::Step { tag, message, len },
    }
}

/// The user and the password of a PLAIN message: `[authzid] NUL authcid NUL passwd`. Whom the
/// client wants to act for means nothing here.
#[must_use]
pub fn plain(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = message.split(|byte| *byte == 0);
    let (_, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some((user, password))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::super::encode::Tag;
    use super::super::status::Status;
    use super::{Heard, hear, plain};

    fn frame(opcode: u8, key: &[u8], message: &[u8]) -> Vec<u8> {
        let len = |len: usize| u16::try_from(len).unwrap().to_be_bytes();
        let (key_len, body_len) = (len(key.len()), len(key.len() + message.len()));
        let mut frame = vec![0x80, opcode, key_len[0], key_len[1], 0, 0, 0, 0, 0, 0];
        frame.extend_from_slice(&body_len);
        frame.extend_from_slice(&[0; 12]);
        frame.extend_from_slice(key);
        frame.extend_from_slice(message);
        frame
    }

    fn tag(opcode: u8) -> Tag {
        Tag { opcode, ..Tag::default() }
    }

    #[test]
    fn the_three_frames_of_sasl_and_version_are_heard() {
        assert_eq!(hear(&frame(0x20, b"", b"")), Heard::Mechanisms(tag(0x20)));
        assert_eq!(hear(&frame(0x0b, b"", b"")), Heard::Version(tag(0x0b)));
        let start = frame(0x21, b"PLAIN", b"\0u\0p");
        let heard = Heard::Start { tag: tag(0x21), known: true, message: b"\0u\0p", len: 33 };
        assert_eq!(hear(&start), heard);
        for at in 0..start.len() {
            assert_eq!(hear(&start[..at]), Heard::Wait, "{at}");
        }
        let other = frame(0x21, b"CRAM-MD5", b"");
        let other = hear(&other);
        assert!(matches!(other, Heard::Start { known: false, message: b"", .. }), "{other:?}");
        let step = Heard::Step { tag: tag(0x22), message: b"m", len: 30 };
        assert_eq!(hear(&frame(0x22, b"PLAIN", b"m")), step);
    }

    #[test]
    fn everything_else_is_refused() {
        let refused = |frame: &[u8]| match hear(frame) {
            Heard::Refused(_, status, behind) => (status, behind),
            heard => panic!("{heard:?}"),
        };
        for opcode in [0x00, 0x01, 0x07, 0x08, 0x0a, 0x10, 0x1c, 0x30, 0xff] {
            let frame = frame(opcode, b"key", b"value");
            assert_eq!(refused(&frame), (Status::AuthFailure, None), "{opcode:x}");
        }
        assert_eq!(refused(&frame(0x21, b"", b"x")), (Status::InvalidArguments, None));
        assert_eq!(refused(&frame(0x20, b"x", b"")), (Status::InvalidArguments, None));
        let mechanism = frame(0x21, &[b'M'; 33], b"x");
        assert_eq!(refused(&mechanism), (Status::InvalidArguments, Some(34)));
        let message = frame(0x21, b"PLAIN", &[0; 2049]);
        assert_eq!(refused(&message[..24]), (Status::OutOfMemory, Some(2054)));
        let mut lying = frame(0x21, b"PLAIN", b"");
        lying[3] = 200;
        assert_eq!(refused(&lying), (Status::UnknownCommand, None));
        assert_eq!(hear(b"get a\r\n"), Heard::Foreign);
    }

    #[test]
    fn plain_messages() {
        assert_eq!(plain(b"\0user\0pass"), Some((&b"user"[..], &b"pass"[..])));
        assert_eq!(plain(b"admin\0user\0pass"), Some((&b"user"[..], &b"pass"[..])));
        for bad in [&b""[..], b"user", b"user\0pass", b"\0user\0pass\0", b"a\0b\0c\0d"] {
            assert_eq!(plain(bad), None, "{}", bad.escape_ascii());
        }
    }
}
