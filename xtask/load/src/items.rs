//! The items: key, flags and value of each number, which can all be told from the number, so that
//! any reply can be checked without a record of what was stored.
#![forbid(unsafe_code)]

use crate::keys::Random;
use crate::sizes::{KeyLen, Shape, ValueLen};

/// Longest key of the protocol, in bytes.
pub(crate) const KEY_LEN_MAX: usize = 250;
/// Digits in front of a key, by which keys differ.
const DIGITS: usize = 8;
/// Digits in front of a value: its number and its length.
const HEADER_LEN: usize = 16;
/// Values begin at one of so many places of the pattern.
const PATTERN_STARTS: usize = 4096;

/// Every item of a load.
#[derive(Debug)]
pub(crate) struct Items {
    count: u32,
    lens: Lens,
    pattern: Vec<u8>,
    has_flags: bool,
}

/// Lengths of each item's key and value.
#[derive(Debug)]
enum Lens {
    Fixed { key: u32, value: u32 },
    Drawn(Vec<(u32, u32)>),
}

impl Items {
    /// `count` items with lengths as `shape` has them. The same arguments give the same items.
    pub(crate) fn new(count: u32, shape: &Shape) -> Self {
        let mut random = Random::new(0x5e55_1011);
        let lens = match (shape.key, shape.value) {
            (KeyLen::Fixed(key), ValueLen::Fixed(value)) => Lens::Fixed { key, value },
            (key, value) => Lens::Drawn(
                (0..count).map(|_| (key.draw(&mut random), value.draw(&mut random))).collect(),
            ),
        };
        let longest = match &lens {
            Lens::Fixed { value, .. } => *value,
            Lens::Drawn(lens) => lens.iter().map(|(_, value)| *value).max().unwrap_or(0),
        };
        let pattern_len = (PATTERN_STARTS + longest as usize).next_multiple_of(8);
        let pattern = (0..pattern_len / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        Self { count, lens, pattern, has_flags: true }
    }

    /// The same with client flags 0.
    pub(crate) fn without_flags(self) -> Self {
        Self { has_flags: false, ..self }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    fn key_len(&self, idx: u32) -> usize {
        match &self.lens {
            Lens::Fixed { key, .. } => *key as usize,
            Lens::Drawn(lens) => lens[idx as usize].0 as usize,
        }
    }

    pub(crate) fn value_len(&self, idx: u32) -> usize {
        match &self.lens {
            Lens::Fixed { value, .. } => *value as usize,
            Lens::Drawn(lens) => lens[idx as usize].1 as usize,
        }
    }

    /// The flags stored with the item.
    pub(crate) fn flags(&self, idx: u32) -> u32 {
        if self.has_flags { idx & 0xffff } else { 0 }
    }

    /// Appends the item's key.
    pub(crate) fn push_key(&self, idx: u32, out: &mut Vec<u8>) {
        const FILLER: &[u8; KEY_LEN_MAX] = &[b'-'; KEY_LEN_MAX];
        out.extend_from_slice(&hex(scatter(idx)));
        out.extend_from_slice(&FILLER[..self.key_len(idx) - DIGITS]);
    }

    /// Appends the item's value.
    pub(crate) fn push_value(&self, idx: u32, out: &mut Vec<u8>) {
        let len = self.value_len(idx);
        let header = self.header(idx);
        out.extend_from_slice(&header[..len.min(HEADER_LEN)]);
        if len > HEADER_LEN {
            out.extend_from_slice(self.body(idx));
        }
    }

    /// Whether `bytes` are those of the item's value from position `at` on.
    pub(crate) fn matches(&self, idx: u32, at: usize, bytes: &[u8]) -> bool {
        let len = self.value_len(idx);
        if at + bytes.len() > len {
            return false;
        }
        if at >= HEADER_LEN {
            return bytes == &self.body(idx)[at - HEADER_LEN..at - HEADER_LEN + bytes.len()];
        }
        let (first, second) = bytes.split_at(bytes.len().min(HEADER_LEN - at));
        first == &self.header(idx)[at..at + first.len()]
            && (second.is_empty() || second == &self.body(idx)[..second.len()])
    }

    fn header(&self, idx: u32) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..DIGITS].copy_from_slice(&hex(idx));
        header[DIGITS..].copy_from_slice(&hex(self.value_len(idx) as u32));
        header
    }

    /// What follows the header in a value that is longer than it.
    fn body(&self, idx: u32) -> &[u8] {
        let start = idx.wrapping_mul(2_654_435_761) as usize % PATTERN_STARTS;
        &self.pattern[start..start + self.value_len(idx) - HEADER_LEN]
    }
}

/// A permutation of the 32-bit numbers, so that neighbours in rank are none in their keys.
fn scatter(idx: u32) -> u32 {
    let mixed = idx.wrapping_mul(0x9e37_79b1);
    (mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca77)
}

fn hex(number: u32) -> [u8; DIGITS] {
    // Spreads the nibbles over bytes, then turns each into its digit without a branch.
    let mut spread = u64::from(number);
    spread = (spread | (spread << 16)) & 0x0000_ffff_0000_ffff;
    spread = (spread | (spread << 8)) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | (spread << 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((spread + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (spread + 0x3030_3030_3030_3030 + letters * 0x27).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Items, hex};
    use crate::sizes::{KeyLen, Shape, ValueLen};

    fn items(value: ValueLen) -> Items {
        Items::new(1000, &Shape { key: KeyLen::Fixed(24), value, gets: 1.0, zipf: 0.0 })
    }

    #[test]
    fn digits_are_those_of_the_formatter() {
        for number in [0, 1, 9, 10, 0xabcd_ef12, 0xffff_ffff, 0x9a9a_9a9a] {
            assert_eq!(hex(number), *format!("{number:08x}").as_bytes());
        }
    }

    #[test]
    fn keys_differ_and_have_their_length() {
        let items = items(ValueLen::Fixed(100));
        let mut keys = HashSet::new();
        for idx in 0..items.count() {
            let mut key = Vec::new();
            items.push_key(idx, &mut key);
            assert_eq!(key.len(), 24);
            assert!(keys.insert(key));
        }
    }

    #[test]
    fn a_value_matches_in_every_split_and_no_other_does() {
        for len in [0, 3, 15, 16, 17, 100, 5000] {
            let items = items(ValueLen::Fixed(len));
            let mut value = Vec::new();
            items.push_value(7, &mut value);
            assert_eq!(value.len(), len as usize);
            for cut in 0..=value.len() {
                let (first, second) = value.split_at(cut);
                assert!(items.matches(7, 0, first) && items.matches(7, cut, second), "{len} {cut}");
            }
            value.push(0);
            assert!(!items.matches(7, 0, &value), "a byte too many");
            value.pop();
            for at in 0..value.len() {
                value[at] ^= 1;
                assert!(!items.matches(7, 0, &value), "{len}: byte {at} is wrong");
                value[at] ^= 1;
            }
        }
    }

    #[test]
    fn flags_are_each_items_own_or_none() {
        let items = items(ValueLen::Fixed(9));
        assert_eq!((items.flags(0x1_0007), items.flags(8)), (7, 8));
        assert_eq!(items.without_flags().flags(8), 0);
    }

    #[test]
    fn drawn_lengths_are_the_same_each_time() {
        let (one, other) = (items(ValueLen::Etc), items(ValueLen::Etc));
        assert!((0..1000).all(|idx| one.value_len(idx) == other.value_len(idx)));
    }
}
