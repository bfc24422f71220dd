//! Which protocol a connection speaks, as the server was told. Words alone: what follows from it is
//! the business of `connection`.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Which protocol a connection speaks (`-B`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binding {
    /// The one that its first byte is of.
    #[default]
    Auto,
    /// Text, whatever comes.
    Ascii,
    /// Binary; a connection that begins otherwise is closed.
    Binary,
}

impl Binding {
    /// memcached's word for it in `stats settings`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto-negotiate",
            Self::Ascii => "ascii",
            Self::Binary => "binary",
        }
    }
}
