//! Addresses of both families as the search trees want them.

/// Address family of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

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

    /// Whether routers forward packets to this destination: false for multicast, broadcast,
    /// loopback, link-local IPv6 and unspecified addresses (RFC 6890, RFC 4291).
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
                let in_zero_block = self.high == 0 && self.low <= 1;
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
