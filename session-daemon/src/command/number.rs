//! Numbers that are counted up and down. It owns what is made where no number is, and the counters;
//! the rules for numbers in values are the store's.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::counters::Counter;
use super::execute::{Executor, store_key};
use super::expiry;
use super::request::{Counting, Direction, Outcome, Versioned};
use crate::store::types::{
    self, Arithmetic, CasUnique, ClientFlags, CountTerms, Lifetime, Mode, Stored, Terms,
};

/// What became of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// It was counted.
    Counted {
        /// The new number.
        value: u64,
        /// The item's version.
        cas: u64,
        /// How long the item was to live before a new expiry time was given.
        lifetime: Lifetime,
    },
    /// There was none, and it was made.
    Made {
        /// The number.
        value: u64,
        /// The item's version.
        cas: u64,
    },
    /// Neither.
    Refused(Outcome),
}

impl Number {
    /// The outcome in one word.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Counted { value, .. } | Self::Made { value, .. } => Outcome::Number(value),
            Self::Refused(outcome) => outcome,
        }
    }

    /// The outcome with the version.
    #[must_use]
    pub fn versioned(self) -> Versioned {
        let cas = match self {
            Self::Counted { cas, .. } | Self::Made { cas, .. } => cas,
            Self::Refused(_) => 0,
        };
        Versioned { outcome: self.outcome(), cas, value_len: 0 }
    }
}

impl Executor<'_> {
    /// Adds to or takes from a number. What is made where none is counts as neither hit nor miss,
    /// as in memcached.
    pub fn count(&mut self, counting: &Counting<'_>) -> Number {
        let (arithmetic, hit, miss) = match counting.direction {
            Direction::Increment => (Arithmetic::Increment, Counter::IncrHits, Counter::IncrMisses),
            Direction::Decrement => (Arithmetic::Decrement, Counter::DecrHits, Counter::DecrMisses),
        };
        let key = store_key(counting.key);
        let terms = CountTerms {
            cas: counting.cas.map(CasUnique),
            lifetime: counting.touch.map(|exptime| expiry::lifetime(exptime, self.now)),
            version: counting.version.map(CasUnique),
        };
        loop {
            let delta = counting.delta;
            let counted = self.store.count_up_or_down(key, arithmetic, delta, &terms, self.now);
            return Number::Refused(match counted {
                types::Counted::Value { value, cas, lifetime } => {
                    self.counters.add_one(hit);
                    return Number::Counted { value, cas: cas.0, lifetime };
                }
                types::Counted::NotFound if counting.create.is_some() => {
                    match self.make_number(counting) {
                        Some(made) => return made,
                        // Somebody else made it in between: it is counted after all.
                        None => continue,
                    }
                }
                types::Counted::NotFound => self.counted(miss, Outcome::NotFound),
                types::Counted::Exists => Outcome::Exists,
                types::Counted::NonNumeric => Outcome::NonNumeric,
                types::Counted::NoMemory => {
                    self.counted(Counter::StoreNoMemory, Outcome::OutOfMemory)
                }
            });
        }
    }

    /// None when a number is there, or none is to be made.
    fn make_number(&mut self, counting: &Counting<'_>) -> Option<Number> {
        let (value, exptime) = counting.create?;
        let terms = Terms {
            version: counting.version.map(CasUnique),
            key_is_binary: counting.key_is_binary,
            ..Terms::new(ClientFlags(0), expiry::lifetime(exptime, self.now), Mode::Add)
        };
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(value).as_bytes();
        match self.store.put(store_key(counting.key), digits, &terms, self.now).stored {
            Stored::Stored(cas) => Some(Number::Made { value, cas: cas.0 }),
            Stored::NotStored | Stored::Exists | Stored::NotFound => None,
            Stored::TooLarge | Stored::NoMemory => {
                Some(Number::Refused(self.counted(Counter::StoreNoMemory, Outcome::OutOfMemory)))
            }
        }
    }
}
