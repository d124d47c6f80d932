//! The key that rules are matched against.

use crate::address::Address;

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
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

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

/// The worker, of `workers`, that serves the flow between these ends.
///
/// Every hook computes the same answer for every packet of a flow: the last ACK of a handshake
/// by SYN cookie must reach the listener that sent the cookie.
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
