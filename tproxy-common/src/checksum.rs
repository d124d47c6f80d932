//! The Internet checksum (RFC 1071).

/// A one's complement sum of octets, as long as it grows.
///
/// Octets are added as they lie in memory: the sum of swapped octets is the swapped sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum and that of further octets; an odd number of them is padded with a zero.
    #[must_use]
    #[inline(always)]
    pub const fn plus<const LENGTH: usize>(self, octets: &[u8; LENGTH]) -> Self {
        let mut sum = self.0;
        let mut at = 0;
        while at < LENGTH {
            let second = if at + 1 < LENGTH { octets[at + 1] } else { 0 };
            sum += u16::from_ne_bytes([octets[at], second]) as u64;
            at += 2;
        }
        Self(sum)
    }

    /// The sum and one of 32 bits, as the kernel counts (`__wsum`).
    #[must_use]
    #[inline(always)]
    pub const fn plus_partial(self, sum: u32) -> Self {
        Self(self.0 + sum as u64)
    }

    /// The sum of two.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum of everything that was added, as it lies in memory.
    #[must_use]
    #[inline(always)]
    pub const fn checksum(self) -> [u8; 2] {
        let mut sum = self.0;
        // Each fold leaves at most 49, 34, 19 and 16 bits.
        let mut fold = 0;
        while fold < 4 {
            sum = (sum & 0xffff) + (sum >> 16);
            fold += 1;
        }
        (!(sum as u16)).to_ne_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of RFC 1071, section 3.
    #[test]
    fn the_example_of_the_standard() {
        let octets = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().plus(&octets).checksum(), [0x22, 0x0d]);
    }

    proptest! {
        #[test]
        fn it_is_that_of_another_implementation(octets: [u8; 31], more: [u8; 8]) {
            let sum = Sum::default().plus(&more).with(Sum::default().plus(&octets));
            let other = etherparse::checksum::Sum16BitWords::new()
                .add_slice(&more)
                .add_slice(&octets);
            prop_assert_eq!(sum.checksum(), other.ones_complement().to_ne_bytes());
        }
    }
}
