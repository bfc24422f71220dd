//! The one reading of numbers from the wire: digits only, no sign, no blank, no wrap. It owns the
//! bounds; it never looks past the token that it is given.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

/// An unsigned decimal number that fits 64 bits; leading zeros are allowed.
#[must_use]
pub fn unsigned(token: &[u8]) -> Option<u64> {
    if token.is_empty() {
        return None;
    }
    token.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// An unsigned decimal number that fits 32 bits.
#[must_use]
pub fn unsigned_32(token: &[u8]) -> Option<u32> {
    unsigned(token).and_then(|number| u32::try_from(number).ok())
}

/// A decimal number that fits 64 bits and may carry one minus sign.
#[must_use]
pub fn signed(token: &[u8]) -> Option<i64> {
    match token.strip_prefix(b"-") {
        Some(digits) => unsigned(digits).and_then(|number| 0i64.checked_sub_unsigned(number)),
        None => unsigned(token).and_then(|number| i64::try_from(number).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::{signed, unsigned, unsigned_32};

    #[test]
    fn only_digits_count() {
        assert_eq!(unsigned(b"0"), Some(0));
        assert_eq!(unsigned(b"007"), Some(7));
        assert_eq!(unsigned(b"18446744073709551615"), Some(u64::MAX));
        for bad in [&b""[..], b"+1", b"-1", b" 1", b"1 ", b"0x1", b"1\r", b"18446744073709551616"] {
            assert_eq!(unsigned(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn bounds_of_the_narrow_kinds() {
        assert_eq!(unsigned_32(b"4294967295"), Some(u32::MAX));
        assert_eq!(unsigned_32(b"4294967296"), None);
        assert_eq!(signed(b"-1"), Some(-1));
        assert_eq!(signed(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed(b"-9223372036854775809"), None);
        assert_eq!(signed(b"9223372036854775808"), None);
        for bad in [&b"-"[..], b"--1", b"+1", b"- 1"] {
            assert_eq!(signed(bad), None, "{bad:?}");
        }
    }
}
