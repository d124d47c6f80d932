//! The ends of a flow in the form in which one kernel program function hands them to another that the
//! verifier walks by itself: it asks for memory in which every byte is written.

use crate::{
    address::{Address, Family},
    flow::Protocol,
    handover::Ends,
};

/// The two ends of a flow, both of one family, without padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedEnds {
    /// Halves in host byte order, most significant first.
    source: [u64; 2],
    destination: [u64; 2],
    source_port: u16,
    destination_port: u16,
    /// As [`Family::bit`] numbers them.
    family: u16,
    /// As [`Protocol::bit`] numbers them.
    protocol: u16,
}

const _: () = assert!(size_of::<PackedEnds>() == 40);

impl PackedEnds {
    /// Packs these ends.
    #[must_use]
    #[inline(always)]
    pub const fn new(ends: &Ends) -> Self {
        Self {
            source: [ends.source.high(), ends.source.low()],
            destination: [ends.destination.high(), ends.destination.low()],
            source_port: ends.source_port,
            destination_port: ends.destination_port,
            family: ends.destination.family().bit() as u16,
            protocol: ends.protocol.bit() as u16,
        }
    }

    /// The ends that were packed.
    #[must_use]
    #[inline(always)]
    pub const fn ends(&self) -> Ends {
        let family = Family::from_bit(self.family as u8);
        Ends {
            protocol: Protocol::from_bit(self.protocol as u8),
            source: Address::from_halves(family, self.source),
            source_port: self.source_port,
            destination: Address::from_halves(family, self.destination),
            destination_port: self.destination_port,
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(
            v4: ([u8; 4], [u8; 4]),
            v6: ([u8; 16], [u8; 16]),
            ports: (u16, u16),
        ) {
            let of_v4 = (IpAddr::from(v4.0), IpAddr::from(v4.1));
            let of_v6 = (IpAddr::from(v6.0), IpAddr::from(v6.1));
            for (source, destination) in [of_v4, of_v6] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let ends = Ends {
                        protocol,
                        source: source.into(),
                        source_port: ports.0,
                        destination: destination.into(),
                        destination_port: ports.1,
                    };
                    prop_assert_eq!(PackedEnds::new(&ends).ends(), ends);
                }
            }
        }
    }
}
