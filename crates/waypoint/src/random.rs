//! Random numbers for balancing and request ids. Nothing here protects a secret.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

use http::HeaderValue;

/// A source of numbers that nobody outside can foretell: SipHash of a counter under a random key.
#[derive(Debug, Default)]
pub(crate) struct Random {
    key: RandomState,
    counter: AtomicU64,
}

const HEX: &[u8; 16] = b"0123456789abcdef";
const NO_ID: [u8; 36] = *b"00000000-0000-4000-8000-000000000000";
/// Where a UUID says of itself that it is random (RFC 9562 5.4), and what it says.
const VERSION_AND_VARIANT_MASK: u128 = 0xf000_c000_0000_0000_0000;
const VERSION_AND_VARIANT: u128 = 0x4000_8000_0000_0000_0000;

// === impl Random ===

impl Random {
    /// The next number.
    pub(crate) fn next(&self) -> u64 {
        self.key.hash_one(self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// A number below `bound`, which isn't 0.
    pub(crate) fn below(&self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    /// A value for `x-request-id`: a UUID of version 4.
    pub(crate) fn request_id(&self) -> HeaderValue {
        let (high, low) = (self.next(), self.next());
        let number = u128::from(high) << 64 | u128::from(low);
        let number = number & !VERSION_AND_VARIANT_MASK | VERSION_AND_VARIANT;
        let mut text = NO_ID;
        let mut left = number;
        for place in text.iter_mut().rev().filter(|place| **place != b'-') {
            *place = HEX[(left & 0xf) as usize];
            left >>= 4;
        }
        // INVARIANT: hexadecimal digits and dashes are visible ASCII.
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("00000000-0000-4000-8000-000000000000"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_version_4_uuid_and_not_repeated() {
        let random = Random::default();
        let (first, second) = (random.request_id(), random.request_id());
        assert_ne!(first, second);
        let text = first.to_str().expect("ascii");
        let parts: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&text[14..15], "4");
        assert!(["8", "9", "a", "b"].contains(&&text[19..20]), "{text}");
    }
}
