//! Counters in values: incr and decr. It owns memcached's rules for numbers in text.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::counters::Count;
use crate::store::publish::{Expect, Refused};
use crate::store::types::{Arithmetic, CasUnique, Counted, Key, Lifetime};
use std::io::Write;

/// Longest value that incr and decr look at: 20 digits and room for padding.
const NUMBER_LEN_MAX: usize = 64;

impl Worker {
    /// Adds to or takes from the decimal number that the item holds; with `cas`, only if it has
    /// this version. Flags and lifetime stay. A number that has fewer digits than the value has
    /// bytes is padded with spaces behind, as memcached does.
    pub fn arithmetic(
        &mut self,
        key: Key<'_>,
        arithmetic: Arithmetic,
        delta: u64,
        cas: Option<CasUnique>,
        now: Now,
    ) -> Counted {
        self.begin();
        let hash = self.shared().secret.hash(key.bytes());
        loop {
            if !self.lines_at_hand(now) {
                return Counted::NoMemory;
            }
            let Some(old) = self.find_alive(hash, key, now) else { return Counted::NotFound };
            if cas.is_some_and(|cas| cas != self.shared().version(old)) {
                return Counted::Exists;
            }
            let Some(sum) = self.sum(old, arithmetic, delta) else { return Counted::NonNumeric };
            let state = self.shared().item_state(old);
            let flags = self.shared().item_flags(old, state);
            let Some(draft) = self.draft(key, flags, sum.text().len(), now) else {
                return Counted::NoMemory;
            };
            // The turn may have ended meanwhile: only what is found now may be built upon.
            let again = self.find_alive(hash, key, now).filter(|&old| {
                let state = self.shared().item_state(old);
                self.shared().item_flags(old, state) == flags
                    && cas.is_none_or(|cas| cas == self.shared().version(old))
                    && self.sum(old, arithmetic, delta).is_some_and(|again| again == sum)
            });
            let Some(old) = again else {
                self.discard(draft);
                continue;
            };
            self.fill(&mut draft.fill_point(), std::iter::once(sum.text()));
            let class = draft.state.class();
            match self.publish(hash, key, draft, Expect::Same(old), Lifetime::Never, now) {
                Ok(cas) => {
                    let count = match arithmetic {
                        Arithmetic::Increment => Count::IncrHits,
                        Arithmetic::Decrement => Count::DecrHits,
                    };
                    self.count(class, count, 1);
                    return Counted::Value { value: sum.value, cas };
                }
                Err(Refused::Changed) => {}
                Err(Refused::Because(_)) => unreachable!("only a particular item was expected"),
            }
        }
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
