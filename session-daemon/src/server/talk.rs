//! What of a conversation can be told to another process: it owns that form, never how it crosses.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use serde::{Deserialize, Serialize};

/// A conversation between two requests, or in the middle of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Talk {
    /// Whether it is binary; none before the first byte.
    pub binary: Option<bool>,
    /// Whether the client has said who it is.
    pub known: bool,
    /// Received and not yet answered.
    pub unread: Vec<u8>,
    /// Answered and not yet sent.
    pub unsent: Vec<u8>,
}

impl Talk {
    /// Bytes under way.
    #[must_use]
    pub fn under_way_len(&self) -> usize {
        self.unread.len().saturating_add(self.unsent.len())
    }
}
