//! The mark and the table of one instance, and what follows from them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

use super::object::Family;

/// The mark and the routing table of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// The bits that the kernel programs set in the mark of a packet or a socket. The policy rules
    /// test exactly these bits (`MARK/MARK`), so that other programs may use the others.
    pub mark: u32,
    /// The routing table with the local routes.
    pub table: u32,
}

impl Assignment {
    /// The mark of the agent's upstream connections. Where the steering mark has several bits it
    /// lacks the lowest, where that has one it is a neighbouring bit: either way `MARK/MARK` does
    /// not select it.
    #[must_use]
    pub const fn upstream_mark(&self) -> u32 {
        upstream_mark(self.mark)
    }

    /// The source that brings an unconnected IPv4 datagram of this host to the agent, whatever its
    /// destination and without a mark: 127.116.X.Y, X.Y being the low 16 bits of the table. Like all
    /// of 127.0.0.0/8 it is local, so that what is sent to it arrives on this host.
    #[must_use]
    pub const fn stand_in_v4(&self) -> Ipv4Addr {
        let [_, _, high, low] = self.table.to_be_bytes();
        Ipv4Addr::new(127, 116, high, low)
    }

    /// The same for IPv6: `fd74:7072:6f78:79::N`, N being the table. A policy rule makes it local
    /// for what this host sends, and nothing from outside arrives at it.
    #[must_use]
    pub const fn stand_in_v6(&self) -> Ipv6Addr {
        let [a, b, c, d] = self.table.to_be_bytes();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Ipv6Addr::new(0xfd74, 0x7072, 0x6f78, 0x79, 0, 0, high, low)
    }

    pub(super) fn stand_in(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.stand_in_v4().into(),
            Family::V6 => self.stand_in_v6().into(),
        }
    }

    /// The stand-ins for IPv6 of all instances. No route makes them local, for nobody else is to see
    /// them.
    pub const STAND_INS_V6: Ipv6Net =
        Ipv6Net::new_assert(Ipv6Addr::new(0xfd74, 0x7072, 0x6f78, 0x79, 0, 0, 0, 0), 64);
}

/// See [`Assignment::upstream_mark`].
pub(super) const fn upstream_mark(mark: u32) -> u32 {
    match mark & mark.wrapping_sub(1) {
        0 => mark.rotate_left(1),
        without_lowest => without_lowest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upstream_mark_is_not_selected_by_the_steering_mark() {
        for mark in [0x7470_0000, 1, 2, 0x8000_0000, 0xffff_ffff, 3] {
            let upstream = upstream_mark(mark);
            assert_ne!(upstream, 0);
            assert_ne!(upstream & mark, mark, "{mark:#x}");
        }
    }

    #[test]
    fn the_stand_ins_carry_the_table() {
        for (table, v4, v6) in [
            (7470, "127.116.29.46", "fd74:7072:6f78:79::1d2e"),
            (0x0102_0304, "127.116.3.4", "fd74:7072:6f78:79::102:304"),
        ] {
            let assignment = Assignment { mark: 1, table };
            assert_eq!(assignment.stand_in_v4().to_string(), v4);
            assert_eq!(assignment.stand_in_v6().to_string(), v6);
        }
    }
}
