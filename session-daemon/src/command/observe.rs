//! What happens to items, told to whoever watches. It owns the kinds of events; while nobody
//! watches nothing of it is called.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::request::{Outcome, StoreMode};
use crate::store::Item;

/// An item as events tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its slab class.
    pub class: u32,
    /// Bytes of its value.
    pub value_len: usize,
}

impl Seen {
    /// What is told of an item.
    #[must_use]
    pub fn of(item: &Item<'_>) -> Self {
        Self { class: item.class(), value_len: item.value_len() }
    }
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A command came, its line without the line's end.
    Command(&'a [u8]),
    /// A key was looked up.
    Fetched {
        /// Which.
        key: &'a [u8],
        /// What was found.
        found: Option<Seen>,
    },
    /// A value came for a key.
    Stored {
        /// Which.
        key: &'a [u8],
        /// What became of it.
        outcome: Outcome,
        /// By which command.
        mode: StoreMode,
        /// Seconds that the item has; 0 for no end.
        ttl_s: u32,
        /// Bytes of the value.
        value_len: usize,
    },
    /// A key was to be deleted.
    Deleted {
        /// Which.
        key: &'a [u8],
        /// By which command.
        command: &'static str,
        /// The item, if it was there and is no longer as it was.
        found: Option<Seen>,
    },
}

/// Takes events. Called between a request and its answer, so it must not wait.
pub trait Observer {
    /// Notes an event.
    fn note(&self, event: &Event<'_>);
}
