//! The statuses of replies and memcached's words for them. It owns which outcome is which status;
//! it never writes a byte.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::opcode::{Command, decode};
use crate::command::request::Outcome;

/// Why a request was not done (protocol_binary.h, `protocol_binary_response_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// There is no such item.
    NotFound = 0x01,
    /// An item is there, or it has another version.
    Exists = 0x02,
    /// The value is larger than the largest item.
    TooLarge = 0x03,
    /// The lengths do not make the command.
    InvalidArguments = 0x04,
    /// There is nothing to append to.
    NotStored = 0x05,
    /// The value is not a decimal number.
    NonNumeric = 0x06,
    /// The command is switched off.
    AuthFailure = 0x20,
    /// A further message is expected.
    AuthContinue = 0x21,
    /// No such command.
    UnknownCommand = 0x81,
    /// The store cannot make room.
    OutOfMemory = 0x82,
}

impl Status {
    /// The body of a reply with this status.
    #[must_use]
    pub const fn words(self) -> &'static [u8] {
        match self {
            Self::NotFound => b"Not found",
            Self::Exists => b"Data exists for key.",
            Self::TooLarge => b"Too large.",
            Self::InvalidArguments => b"Invalid arguments",
            Self::NotStored => b"Not stored.",
            Self::NonNumeric => b"Non-numeric server-side value for incr or decr",
            Self::AuthFailure => b"Auth failure.",
            Self::AuthContinue => b"",
            Self::UnknownCommand => b"Unknown command",
            Self::OutOfMemory => b"Out of memory",
        }
    }
}

/// The status of what became of a request of this opcode; none for success. memcached says of an
/// `add` that was not stored that the data exists, and of a `replace` that it was not found.
#[must_use]
pub const fn of(outcome: Outcome, opcode: u8) -> Option<Status> {
    Some(match outcome {
        Outcome::NotStored => match decode(opcode).0 {
            Command::Add => Status::Exists,
            Command::Replace => Status::NotFound,
            _ => Status::NotStored,
        },
        Outcome::Exists => Status::Exists,
        Outcome::NotFound => Status::NotFound,
        Outcome::TooLarge => Status::TooLarge,
        Outcome::NoMemory | Outcome::OutOfMemory => Status::OutOfMemory,
        Outcome::NonNumeric => Status::NonNumeric,
        Outcome::FlushNotAllowed | Outcome::Confined => Status::AuthFailure,
        Outcome::ShutdownNotEnabled | Outcome::BadShutdownMode => Status::UnknownCommand,
        Outcome::Stored
        | Outcome::Deleted
        | Outcome::Touched
        | Outcome::Number(_)
        | Outcome::Ok
        | Outcome::Reset
        | Outcome::Version => return None,
    })
}
