//! Why a command line is refused.
#![forbid(unsafe_code)]

/// Why the command line is refused, and the exit status that says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// For stderr, one or more lines.
    pub text: String,
    /// Exit status.
    pub status: u8,
}

impl Refusal {
    /// A refusal with an exit status.
    #[must_use]
    pub fn new(status: u8, text: impl Into<String>) -> Self {
        Self { text: text.into(), status }
    }
}
