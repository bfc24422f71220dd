//! What the machine gives two threads that do nothing but compute: no cache at all.
//! Two virtual processors may be two halves of one core.
#![forbid(unsafe_code)]

use anyhow::Result;

use crate::load::{Cache, Handle, Key, Value, number_of};

/// Rounds of arithmetic for a request: about what a lookup takes.
const ROUNDS: u32 = 64;

/// Computes something of a key, in registers.
pub(crate) struct Arithmetic;

impl Cache for Arithmetic {
    const NAME: &'static str = "arithmetic alone";
    type Handle<'c> = &'c Self;

    fn new(_items: usize) -> Result<Self> {
        Ok(Self)
    }

    fn handle(&self) -> Result<&Self> {
        Ok(self)
    }
}

/// A chain of multiplications that nothing can shorten.
fn chain(number: u32) -> u64 {
    let step = |sum: u64, _| sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ sum >> 29;
    std::hint::black_box((0..ROUNDS).fold(u64::from(number), step))
}

impl Handle for &Arithmetic {
    fn get(&mut self, keys: &[Key], out: &mut Value, mut found: impl FnMut(usize, bool, &Value)) {
        for (idx, key) in keys.iter().enumerate() {
            let number = number_of(key);
            out[..4].copy_from_slice(&number.to_le_bytes());
            out[4..12].copy_from_slice(&chain(number).to_le_bytes());
            found(idx, true, out);
        }
    }

    fn set(&mut self, key: &Key, _value: &Value) {
        std::hint::black_box(chain(number_of(key)));
    }
}
