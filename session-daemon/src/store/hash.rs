//! The keyed hash of keys. It owns the keys' secret, and nothing else.
//!
//! NH over the zero-padded 8-byte words of a key and its length: with random secret words, two
//! different keys have the same sum with probability 2^-32, whoever chose them. A fixed mixer of
//! multiplies and shifts spreads the sum over 64 bits. Little-endian 64-bit integer arithmetic
//! only, so that a BPF program can compute the same, by the same source.
#![forbid(unsafe_code)]

use crate::store::types::KEY_LEN_MAX;
use session_common::hash::{mix, product};
use std::hash::{BuildHasher, Hasher};

/// Words of the longest key.
const WORDS: usize = KEY_LEN_MAX.div_ceil(8);

/// Secret words: one for each word of a key, one for its length.
pub(super) const SECRET_WORDS: usize = WORDS + 1;

/// The secret of one store.
#[derive(Clone, Debug)]
pub(super) struct HashSecret([u64; SECRET_WORDS]);

impl HashSecret {
    /// A secret from the system's randomness.
    pub(super) fn random() -> Self {
        Self(std::array::from_fn(|idx| {
            let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
            hasher.write_usize(idx);
            hasher.finish()
        }))
    }

    /// A secret that anybody can compute.
    pub(super) fn of_seed(seed: u64) -> Self {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        Self(std::array::from_fn(|idx| mix(ODD.wrapping_mul(seed.wrapping_add(idx as u64)))))
    }

    /// The secret that was kept in a superblock.
    pub(super) fn of_words(words: [u64; SECRET_WORDS]) -> Self {
        Self(words)
    }

    /// The words, to be kept in the superblock.
    pub(super) fn words(&self) -> &[u64; SECRET_WORDS] {
        &self.0
    }

    /// The hash of a key of at most [`KEY_LEN_MAX`] bytes.
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        let mut sum = product(key.len() as u64, self.0[WORDS]);
        let (words, tail) = key.as_chunks::<8>();
        for (word, secret) in words.iter().zip(&self.0) {
            sum = sum.wrapping_add(product(u64::from_le_bytes(*word), *secret));
        }
        if !tail.is_empty() {
            let mut word = [0; 8];
            word[..tail.len()].copy_from_slice(tail);
            sum = sum.wrapping_add(product(u64::from_le_bytes(word), self.0[words.len()]));
        }
        mix(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn length_and_padding_count() {
        let secret = HashSecret::random();
        let zeros = [0; KEY_LEN_MAX];
        let hashes: HashSet<u64> = (1..=KEY_LEN_MAX).map(|n| secret.hash(&zeros[..n])).collect();
        assert_eq!(hashes.len(), KEY_LEN_MAX);
    }

    #[test]
    fn low_and_high_bits_spread() {
        let secret = HashSecret::random();
        let mut low = [0_u32; 64];
        let mut high = [0_u32; 64];
        for i in 0..64_000_u32 {
            let hash = secret.hash(format!("key:{i:012}").as_bytes());
            low[(hash & 63) as usize] += 1;
            high[(hash >> 58) as usize] += 1;
        }
        assert!(low.iter().chain(&high).all(|&n| (700..1300).contains(&n)), "{low:?} {high:?}");
    }

    #[test]
    fn two_secrets_differ() {
        assert_ne!(HashSecret::random().hash(b"a"), HashSecret::random().hash(b"a"));
    }
}
