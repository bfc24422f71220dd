//! Counters in values: incr and decr. It owns memcached's rules for numbers in text.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::counters::Count;
use crate::store::item::{ACCESSES, Marks, STALE};
use crate::store::publish::{Expect, Heritage, Refused};
use crate::store::types::{Arithmetic, CasUnique, CountTerms, Counted, Key, Lifetime};
use std::io::Write;

/// Longest value that incr and decr look at: 20 digits and room for padding.
const NUMBER_LEN_MAX: usize = 64;

impl Worker {
    /// [`Worker::count_up_or_down`] without a new lifetime or a chosen version.
    pub fn arithmetic(
        &mut self,
        key: Key<'_>,
        arithmetic: Arithmetic,
        delta: u64,
        cas: Option<CasUnique>,
        now: Now,
    ) -> Counted {
        let terms = CountTerms { cas, ..CountTerms::default() };
        self.count_up_or_down(key, arithmetic, delta, &terms, now)
    }

    /// Adds to or takes from the decimal number that the item holds, if it has the version that
    /// `terms` ask for. Flags stay, and so does the lifetime unless there is a new one; an item
    /// that was stale or won is so afterwards. A number that has fewer digits than the value has
    /// bytes is padded with spaces behind, as memcached does.
    pub fn count_up_or_down(
        &mut self,
        key: Key<'_>,
        arithmetic: Arithmetic,
        delta: u64,
        terms: &CountTerms,
        now: Now,
    ) -> Counted {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        loop {
            if !self.lines_at_hand(now) {
                return Counted::NoMemory;
            }
            let Some(old) = self.find_alive(hash, key, now) else { return Counted::NotFound };
            // As memcached: that there is no number at all is told before the version is asked for.
            if self.shared().item_state(old).value_len() == 0 {
                return Counted::NonNumeric;
            }
            if self.is_other_version(old, terms.cas) {
                return Counted::Exists;
            }
            let Some(sum) = self.sum(old, arithmetic, delta) else { return Counted::NonNumeric };
            let marks = self.marks_of(old, terms.version);
            let Some(draft) = self.draft(key, marks, sum.text().len(), now) else {
                return Counted::NoMemory;
            };
            // The turn may have ended meanwhile: only what is found now may be built upon.
            let again = self.find_alive(hash, key, now).filter(|&old| {
                self.marks_of(old, terms.version) == marks
                    && !self.is_other_version(old, terms.cas)
                    && self.sum(old, arithmetic, delta).is_some_and(|again| again == sum)
            });
            let Some(old) = again else {
                self.discard(draft);
                continue;
            };
            self.fill(&mut draft.fill_point(), std::iter::once(sum.text()));
            let (class, before) = (draft.state.class(), self.shared().item_times(old).lifetime());
            let lifetime = terms.lifetime.is_none();
            let heritage = Heritage { lifetime, win: true, bits: ACCESSES | STALE };
            let (expect, lifetime) =
                (Expect::Same(old, heritage), terms.lifetime.unwrap_or(Lifetime::Never));
            match self.publish(hash, key, draft, expect, lifetime, now) {
                Ok(cas) => {
                    let count = match arithmetic {
                        Arithmetic::Increment => Count::IncrHits,
                        Arithmetic::Decrement => Count::DecrHits,
                    };
                    self.count(class, count, 1);
                    return Counted::Value { value: sum.value, cas, lifetime: before };
                }
                Err(Refused::Changed) => {}
                Err(Refused::Because(_)) => unreachable!("only a particular item was expected"),
            }
        }
    }

    /// What an item that is made from another one carries.
    pub(super) fn marks_of(&self, item: u64, version: Option<CasUnique>) -> Marks {
        let state = self.shared().item_state(item);
        let flags = self.shared().item_flags(item, state);
        Marks { flags, version: self.chosen(version), key_is_binary: state.key_is_binary() }
    }

    /// The number that an item will hold, as it will be written.
    fn sum(&self, item: u64, arithmetic: Arithmetic, delta: u64) -> Option<Sum> {
        let state = self.shared().item_state(item);
        if state.is_extent() || state.value_len() > NUMBER_LEN_MAX {
            return None;
        }
        let text = self.shared().value_slices(item, state).next()?;
        let number = parse_number(text)?;
        let value = match arithmetic {
            Arithmetic::Increment => number.wrapping_add(delta),
            Arithmetic::Decrement => number.saturating_sub(delta),
        };
        Some(Sum::new(value, text.len()))
    }
}

/// A number as it will be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    value: u64,
    text: [u8; NUMBER_LEN_MAX],
    len: usize,
}

impl Sum {
    /// `value` in decimal, padded with spaces to `len_min` bytes.
    fn new(value: u64, len_min: usize) -> Self {
        let mut text = [b' '; NUMBER_LEN_MAX];
        let mut rest = &mut text[..];
        write!(rest, "{value}").expect("20 digits fit");
        let digits = NUMBER_LEN_MAX - rest.len();
        Self { value, text, len: digits.max(len_min) }
    }

    fn text(&self) -> &[u8] {
        &self.text[..self.len]
    }
}

/// memcached's `safe_strtoull`, kept within the value: spaces, an optional plus, digits, then the
/// end or a space.
fn parse_number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if !rest.first().is_none_or(u8::is_ascii_whitespace) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_memcached_reads_them() {
        for (text, number) in [
            (&b"7"[..], Some(7)),
            (b" 7", Some(7)),
            (b"+7", Some(7)),
            (b"7 x", Some(7)),
            (b"007", Some(7)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", None),
            (b"7x", None),
            (b"-7", None),
            (b"+", None),
            (b" ", None),
            (b"", None),
        ] {
            assert_eq!(parse_number(text), number, "{text:?}");
        }
    }
}
