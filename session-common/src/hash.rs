//! The arithmetic of the hash of keys, which the store and the program in the kernel each compute
//! over their own bytes: NH over words and a secret, and a mixer behind it. What a key's words and
//! the secret are stands in `session-daemon/src/store/hash.rs`.
#![forbid(unsafe_code)]

/// What a word adds to the sum, by a word of the secret.
#[inline(always)]
#[must_use]
pub const fn product(word: u64, secret: u64) -> u64 {
    let low = (word as u32).wrapping_add(secret as u32);
    let high = ((word >> 32) as u32).wrapping_add((secret >> 32) as u32);
    (low as u64).wrapping_mul(high as u64)
}

/// Spreads a sum over all bits: MurmurHash3's 64-bit finalizer.
#[inline(always)]
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}
