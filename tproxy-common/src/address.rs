//! Addresses of both families as the search trees want them.

use crate::bit::one_bit;

/// Address family of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

one_bit!(Family::{V4, V6});

/// An address as two 64-bit halves in host byte order, most significant first.
///
/// An IPv4 address occupies the upper 32 bits of `high`, so that prefixes of both families are
/// ranges of `high` and only IPv6 prefixes longer than /64 ever look at `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    family: Family,
    high: u64,
    low: u64,
}

impl Address {
    /// An IPv4 address from its four octets in network order.
    #[must_use]
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self {
            family: Family::V4,
            high: (u32::from_be_bytes(octets) as u64) << 32,
            low: 0,
        }
    }

    /// An IPv6 address from its sixteen octets in network order.
    #[must_use]
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        let value = u128::from_be_bytes(octets);
        Self {
            family: Family::V6,
            high: (value >> 64) as u64,
            low: value as u64,
        }
    }

    /// The address with these halves, as [`high`](Self::high) and [`low`](Self::low) tell them.
    #[must_use]
    #[inline(always)]
    pub const fn from_halves(family: Family, [high, low]: [u64; 2]) -> Self {
        Self { family, high, low }
    }

    /// The address that stands for none (RFC 1122, 3.2.1.3; RFC 4291, 2.5.2).
    #[must_use]
    #[inline(always)]
    pub const fn unspecified(family: Family) -> Self {
        Self {
            family,
            high: 0,
            low: 0,
        }
    }

    /// An address as sockets have it that serve both families: a v4-mapped one (RFC 4291, 2.5.5.2) is
    /// the IPv4 address in it.
    #[must_use]
    #[inline(always)]
    pub const fn v6_or_mapped(octets: [u8; 16]) -> Self {
        let v6 = Self::v6(octets);
        if v6.high == 0 && v6.low >> 32 == 0xffff {
            Self {
                family: Family::V4,
                high: v6.low << 32,
                low: 0,
            }
        } else {
            v6
        }
    }

    /// The family.
    #[must_use]
    #[inline(always)]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The upper 64 bits (for IPv4 the address followed by 32 zero bits).
    #[must_use]
    #[inline(always)]
    pub const fn high(&self) -> u64 {
        self.high
    }

    /// The lower 64 bits (zero for IPv4).
    #[must_use]
    #[inline(always)]
    pub const fn low(&self) -> u64 {
        self.low
    }

    /// The address as 16 octets in network order, IPv4 as v4-mapped IPv6 (RFC 4291, 2.5.5.2).
    #[must_use]
    #[inline(always)]
    pub const fn mapped_octets(&self) -> [u8; 16] {
        let value = match self.family {
            Family::V4 => 0xffff_0000_0000 | (self.high >> 32) as u128,
            Family::V6 => (self.high as u128) << 64 | self.low as u128,
        };
        value.to_be_bytes()
    }

    /// Whether this is an IPv4 link-local address (RFC 3927), of which the best known answers with the
    /// credentials of a machine in a cloud (169.254.169.254).
    #[must_use]
    #[inline(always)]
    pub const fn is_v4_link_local(&self) -> bool {
        matches!(self.family, Family::V4) && self.high >> 48 == 0xa9fe
    }

    /// Whether routers forward packets to this destination: false for multicast, broadcast and
    /// reserved, loopback, link-local IPv6, v4-mapped IPv6 and unspecified addresses (RFC 6890,
    /// RFC 4291).
    ///
    /// A v4-mapped address on the wire would otherwise reach the IPv4 host that it names, past the
    /// rules for IPv4.
    #[must_use]
    #[inline(always)]
    pub const fn is_forwardable(&self) -> bool {
        match self.family {
            Family::V4 => {
                let first = (self.high >> 56) as u8;
                first != 0 && first != 127 && first < 224
            }
            Family::V6 => {
                let top = self.high >> 48;
                let in_zero_block = self.high == 0 && (self.low <= 1 || self.low >> 32 == 0xffff);
                let link_local = top & 0xffc0 == 0xfe80;
                let multicast = top & 0xff00 == 0xff00;
                !(in_zero_block || link_local || multicast)
            }
        }
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn the_halves_hold_the_octets_from_the_most_significant_on() {
        let v4 = address("192.0.2.9");
        assert_eq!(v4.family(), Family::V4);
        assert_eq!((v4.high(), v4.low()), (0xc000_0209_0000_0000, 0));
        let v6 = address("2001:db8:1:2:3:4:5:6");
        assert_eq!(v6.family(), Family::V6);
        assert_eq!(
            (v6.high(), v6.low()),
            (0x2001_0db8_0001_0002, 0x0003_0004_0005_0006)
        );
    }

    #[test]
    fn only_unicast_addresses_beyond_this_link_are_forwardable() {
        for (text, forwardable) in [
            ("0.0.0.0", false),
            ("0.255.255.255", false),
            ("1.0.0.0", true),
            ("10.0.0.1", true),
            ("126.255.255.255", true),
            ("127.0.0.1", false),
            ("127.255.255.255", false),
            ("128.0.0.1", true),
            ("223.255.255.255", true),
            ("224.0.0.1", false),
            ("239.255.255.250", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::2", true),
            ("::fffe:7f00:1", true),
            ("::ffff:127.0.0.1", false),
            ("::ffff:192.0.2.9", false),
            ("::1:ffff:192.0.2.9", true),
            ("0:0:0:1::", true),
            ("0:0:0:1::1", true),
            ("64:ff9b::192.0.2.9", true),
            ("2001:db8::1", true),
            ("fc00::1", true),
            ("fdff::1", true),
            ("fe7f::1", true),
            ("fe80::1", false),
            ("febf:ffff::1", false),
            ("fec0::1", true),
            ("feff::1", true),
            ("ff00::", false),
            ("ff02::1", false),
            ("ffff::1", false),
        ] {
            assert_eq!(address(text).is_forwardable(), forwardable, "{text}");
        }
    }

    #[test]
    fn link_local_addresses_are_those_of_the_one_prefix() {
        for (text, link_local) in [
            ("169.253.255.255", false),
            ("169.254.0.0", true),
            ("169.254.169.254", true),
            ("169.254.255.255", true),
            ("169.255.0.0", false),
            ("fe80::1", false),
            ("a9fe::1", false),
        ] {
            assert_eq!(address(text).is_v4_link_local(), link_local, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_mapped_address_is_the_one_in_it(address: IpAddr) {
            let octets = Address::from(address).mapped_octets();
            let canonical: Address = address.to_canonical().into();
            prop_assert_eq!(Address::v6_or_mapped(octets), canonical);
        }

        #[test]
        fn mapped_octets_are_those_of_the_standard_library(address: IpAddr) {
            let mapped = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            prop_assert_eq!(Address::from(address).mapped_octets(), mapped.octets());
        }

        #[test]
        fn addresses_are_ordered_as_numbers(one: IpAddr, other: IpAddr) {
            let (of_one, of_other) = (Address::from(one), Address::from(other));
            prop_assert_eq!(of_one.cmp(&of_other), one.cmp(&other));
        }
    }
}
