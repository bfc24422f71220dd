//! How a storage command wants to be answered, remembered until its value has come. It owns the
//! choice of the encoder; the words are the protocols'.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::request::{Key, Outcome, Versioned};
use crate::protocol::meta::encode::Echo;
use crate::protocol::text::words::Words;
use crate::protocol::{meta, text};

/// How the command in the input wants to be answered.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// In the words of the classic protocol.
    Text {
        /// Not at all.
        noreply: bool,
    },
    /// In those of the meta protocol.
    Meta {
        /// What the reply repeats.
        echo: Echo<'a>,
        /// Bytes of the value that the command sends.
        value_len: usize,
    },
}

impl Reply<'_> {
    /// Writes the answer.
    pub fn write(&self, out: &mut Vec<u8>, versioned: Versioned) {
        match self {
            Self::Text { noreply: true } => {}
            Self::Text { noreply: false } => text::encode::outcome(out, versioned.outcome),
            Self::Meta { echo, value_len } => {
                let is_stored = versioned.outcome == Outcome::Stored;
                let len = if is_stored { versioned.value_len } else { *value_len };
                meta::encode::stored(out, echo, versioned.outcome, versioned.cas, len);
            }
        }
    }

    /// The same, apart from the input.
    #[must_use]
    pub fn kept(&self) -> KeptReply {
        match *self {
            Self::Text { noreply } => KeptReply::Text { noreply },
            Self::Meta { echo, value_len } => {
                let Echo { key, key_is_binary, quiet, words } = echo;
                let (key, words) = (key.bytes().into(), words.0.into());
                KeptReply::Meta(Box::new(KeptEcho { key, key_is_binary, quiet, words, value_len }))
            }
        }
    }
}

/// A [`Reply`] that outlives the input.
#[derive(Debug)]
pub enum KeptReply {
    /// In the words of the classic protocol.
    Text {
        /// Not at all.
        noreply: bool,
    },
    /// In those of the meta protocol.
    Meta(Box<KeptEcho>),
}

/// What a reply repeats of a request that is gone.
#[derive(Debug)]
pub struct KeptEcho {
    key: Box<[u8]>,
    key_is_binary: bool,
    quiet: bool,
    words: Box<[u8]>,
    value_len: usize,
}

impl KeptReply {
    /// Writes the answer.
    pub fn write(&self, out: &mut Vec<u8>, versioned: Versioned) {
        let reply = match self {
            Self::Text { noreply } => Reply::Text { noreply: *noreply },
            Self::Meta(kept) => {
                let KeptEcho { key_is_binary, quiet, value_len, .. } = **kept;
                let key = Key::new(&kept.key).expect("its length was checked when it was read");
                let words = Words(&kept.words);
                Reply::Meta { echo: Echo { key, key_is_binary, quiet, words }, value_len }
            }
        };
        reply.write(out, versioned);
    }
}
