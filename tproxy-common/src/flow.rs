//! The key that rules are matched against.

use crate::{address::Address, bit::one_bit, handover::Ends, packet::Headers};

/// Where a flow is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Routed through this host, arriving on an attached interface.
    Forward,
    /// Addressed to this host.
    Inbound,
    /// Opened by a process of this host.
    Local,
}

/// Transport protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
}

one_bit!(Protocol::{Tcp, Udp});

/// Number of values of [`origin`].
pub const ORIGINS: u64 = 6;

/// Scope and protocol as one small number, the key of the origin dimension.
#[must_use]
#[inline(always)]
pub const fn origin(scope: Scope, protocol: Protocol) -> u64 {
    let scope = match scope {
        Scope::Forward => 0,
        Scope::Inbound => 1,
        Scope::Local => 2,
    };
    let protocol = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
    };
    scope * 2 + protocol
}

/// A new flow, as every hook presents it to the classifier. Ports in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Where it is caught.
    pub scope: Scope,
    /// Its protocol.
    pub protocol: Protocol,
    /// Index of the interface it arrives on.
    pub interface: u32,
    /// The client's address.
    pub source: Address,
    /// The client's port.
    pub source_port: u16,
    /// Where the client wants to go.
    pub destination: Address,
    /// The port there.
    pub destination_port: u16,
}

impl Flow {
    /// The flow that a packet begins or belongs to.
    #[must_use]
    #[inline(always)]
    pub const fn of(headers: &Headers, scope: Scope, interface: u32) -> Self {
        Self::between(&headers.ends(), scope, interface)
    }

    /// The flow between these ends.
    #[must_use]
    #[inline(always)]
    pub const fn between(ends: &Ends, scope: Scope, interface: u32) -> Self {
        Self {
            scope,
            protocol: ends.protocol,
            interface,
            source: ends.source,
            source_port: ends.source_port,
            destination: ends.destination,
            destination_port: ends.destination_port,
        }
    }
}

/// The worker, of `workers`, that serves the UDP flow between these ends.
///
/// It is the same for every datagram: more of them may come before the worker has made a session.
#[must_use]
#[inline(always)]
pub const fn worker_of(client: &Address, client_port: u16, workers: u32) -> u32 {
    if workers <= 1 {
        return 0;
    }
    // Fibonacci hashing (Knuth, The Art of Computer Programming, vol. 3, 6.4): the upper bits of the product are well mixed.
    let key = client.high() ^ client.low() ^ client_port as u64;
    let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (hash % workers as u64) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use core::net::IpAddr;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn origins_are_distinct_and_within_their_bound() {
        let mut seen = HashSet::new();
        for scope in [Scope::Forward, Scope::Inbound, Scope::Local] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let origin = origin(scope, protocol);
                assert!(origin < ORIGINS);
                assert!(seen.insert(origin), "{scope:?} {protocol:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_worker_is_one_of_those_there_are(client: IpAddr, port: u16, workers in 0_u32..=64) {
            let worker = worker_of(&client.into(), port, workers);
            prop_assert!(worker < workers.max(1));
        }
    }

    type Clients<'a> = &'a dyn Fn(u32) -> (Address, u16);

    /// What a busy client, a row of hosts, and a row of hosts behind one IPv6 prefix look like.
    #[test]
    fn flows_that_differ_in_one_thing_spread_evenly_over_workers() {
        const FLOWS: u32 = 16_000;
        let by_port = |flow: u32| (Address::v4([10, 0, 0, 1]), 1024 + flow as u16);
        let by_host = |flow: u32| (Address::v4((0x0a00_0000 + flow).to_be_bytes()), 40_000);
        let by_v6_host = |flow: u32| {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
            octets[12..].copy_from_slice(&flow.to_be_bytes());
            (Address::v6(octets), 40_000)
        };
        let by_v6_prefix = |flow: u32| {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
            octets[4..8].copy_from_slice(&flow.to_be_bytes());
            octets[15] = 1;
            (Address::v6(octets), 40_000)
        };
        let clients: [(&str, Clients<'_>); 4] = [
            ("ports", &by_port),
            ("IPv4 hosts", &by_host),
            ("IPv6 hosts", &by_v6_host),
            ("IPv6 prefixes", &by_v6_prefix),
        ];
        for (name, client) in clients {
            for workers in [2, 3, 4, 7, 8, 16, 64] {
                let mut loads = vec![0_u32; workers as usize];
                for flow in 0..FLOWS {
                    let (address, port) = client(flow);
                    loads[worker_of(&address, port, workers) as usize] += 1;
                }
                let fair = FLOWS / workers;
                let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
                assert!(
                    *least > fair / 2 && *most < fair * 2,
                    "{name}, {workers} workers: {least} to {most}, fair is {fair}"
                );
            }
        }
    }
}
