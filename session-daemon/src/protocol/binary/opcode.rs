//! What an opcode asks, apart from whether it wants to hear about it. It owns the table of
//! opcodes; it never looks at a length.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

/// What an opcode asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `get` and its kin.
    Fetch {
        /// The reply carries the key.
        with_key: bool,
    },
    /// `gat` and its kin, and `touch`, which has no value in its reply.
    Touch {
        /// The reply carries the key.
        with_key: bool,
        /// The reply carries the value.
        with_value: bool,
    },
    /// Stores, whatever is there.
    Set,
    /// Stores only if nothing is there.
    Add,
    /// Stores only if something is there.
    Replace,
    /// Puts the value behind the one that is there.
    Append,
    /// Puts the value before the one that is there.
    Prepend,
    /// Removes.
    Delete,
    /// Adds to a number.
    Increment,
    /// Takes from a number.
    Decrement,
    /// Ends every older item.
    Flush,
    /// Asks for an answer, and nothing else.
    Noop,
    /// Asks for the version.
    Version,
    /// Asks for counters.
    Stat,
    /// The client takes its leave.
    Quit,
    /// Asks for the ways to authenticate, none of which is offered.
    SaslListMechs,
    /// Authenticates, which is not offered.
    Sasl,
    /// Nothing that exists.
    Unknown,
}

/// What `opcode` asks, and whether it is one of the quiet forms: their success (for the fetches:
/// their miss) is not answered.
#[must_use]
pub const fn decode(opcode: u8) -> (Command, bool) {
    match opcode {
        0x00 => (Command::Fetch { with_key: false }, false),
        0x01 => (Command::Set, false),
        0x02 => (Command::Add, false),
        0x03 => (Command::Replace, false),
        0x04 => (Command::Delete, false),
        0x05 => (Command::Increment, false),
        0x06 => (Command::Decrement, false),
        0x07 => (Command::Quit, false),
        0x08 => (Command::Flush, false),
        0x09 => (Command::Fetch { with_key: false }, true),
        0x0a => (Command::Noop, false),
        0x0b => (Command::Version, false),
        0x0c => (Command::Fetch { with_key: true }, false),
        0x0d => (Command::Fetch { with_key: true }, true),
        0x0e => (Command::Append, false),
        0x0f => (Command::Prepend, false),
        0x10 => (Command::Stat, false),
        0x11 => (Command::Set, true),
        0x12 => (Command::Add, true),
        0x13 => (Command::Replace, true),
        0x14 => (Command::Delete, true),
        0x15 => (Command::Increment, true),
        0x16 => (Command::Decrement, true),
        0x17 => (Command::Quit, true),
        0x18 => (Command::Flush, true),
        0x19 => (Command::Append, true),
        0x1a => (Command::Prepend, true),
        0x1c => (Command::Touch { with_key: false, with_value: false }, false),
        0x1d => (Command::Touch { with_key: false, with_value: true }, false),
        0x1e => (Command::Touch { with_key: false, with_value: true }, true),
        0x20 => (Command::SaslListMechs, false),
        0x21 | 0x22 => (Command::Sasl, false),
        0x23 => (Command::Touch { with_key: true, with_value: true }, false),
        0x24 => (Command::Touch { with_key: true, with_value: true }, true),
        _ => (Command::Unknown, false),
    }
}
