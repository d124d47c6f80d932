//! The addresses of the lab. They are the same in every test: namespaces keep them apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The IP version that a part of a test runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families, for `for family in FAMILIES`.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// The client's address.
    #[must_use]
    pub fn client(self) -> IpAddr {
        self.choose([10, 77, 1, 2], [0xfd77, 1, 0, 0, 0, 0, 0, 2])
    }

    /// The gateway's address towards the client.
    #[must_use]
    pub fn gateway(self) -> IpAddr {
        self.choose([10, 77, 1, 1], [0xfd77, 1, 0, 0, 0, 0, 0, 1])
    }

    /// The gateway's address towards the server: what the server sees of a relayed flow.
    #[must_use]
    pub fn gateway_upstream(self) -> IpAddr {
        self.choose([10, 77, 2, 1], [0xfd77, 2, 0, 0, 0, 0, 0, 1])
    }

    /// The server's own address.
    #[must_use]
    pub fn server(self) -> IpAddr {
        self.choose([10, 77, 2, 2], [0xfd77, 2, 0, 0, 0, 0, 0, 2])
    }

    /// Another address at which the server answers, in the first of its two prefixes
    /// ([`Family::near_prefix`]; documentation prefixes of RFC 5737 and RFC 3849).
    #[must_use]
    pub fn near(self) -> IpAddr {
        self.choose([192, 0, 2, 9], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 9])
    }

    /// An address of the server in the second of its prefixes ([`Family::far_prefix`]).
    #[must_use]
    pub fn far(self) -> IpAddr {
        self.choose([198, 51, 100, 9], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 9])
    }

    /// The prefix of [`Family::near`]. The server answers at each address of it.
    #[must_use]
    pub fn near_prefix(self) -> &'static str {
        match self {
            Self::V4 => "192.0.2.0/24",
            Self::V6 => "2001:db8:1::/48",
        }
    }

    /// The prefix of [`Family::far`]. The server answers at each address of it.
    #[must_use]
    pub fn far_prefix(self) -> &'static str {
        match self {
            Self::V4 => "198.51.100.0/24",
            Self::V6 => "2001:db8:2::/48",
        }
    }

    /// The address of the loopback interface.
    #[must_use]
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The wildcard address, for binding.
    #[must_use]
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    fn choose(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(v4).into(),
            Self::V6 => Ipv6Addr::from(v6).into(),
        }
    }
}

/// IPv4 as IPv4, also when a dual-stack socket has it as a mapped address.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The address as a dual-stack socket has it: IPv4 as v4-mapped IPv6 (RFC 4291, section 2.5.5.2).
#[must_use]
pub fn mapped(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddr::new(ip.into(), address.port())
}
