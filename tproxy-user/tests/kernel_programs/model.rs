//! What the tc program decides, in user space: the parser and the classifier are the programs' own,
//! the order of the checks and the state of the kernel are written down a second time.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    net::SocketAddr,
    rc::Rc,
};

use ipnet::IpNet;
use tproxy_common::{
    address::{Address, Family},
    agent::AgentState,
    classifier::classify,
    flow::{Flow, Protocol, Scope, worker_of},
    handover::Place,
    icmp::quoted_flow,
    outcome::Outcome,
    packet::{Headers, Unreadable, parse},
    tables::{Action, Block, OnMissing},
};

use crate::{
    frame::ETHERNET_HEADER,
    sandbox::{MARK, Metadata, UPSTREAM_MARK},
};

/// Everything that a decision depends on beside the frame.
pub(crate) struct Model {
    /// The compiled rules.
    pub(crate) blocks: Vec<Block>,
    /// Prefixes of this host.
    pub(crate) local: Vec<IpNet>,
    /// What the agent told.
    pub(crate) agent: AgentState,
    /// Workers that have a listener: the first ones.
    pub(crate) listeners: u32,
    /// What was decided about the last flow at each place.
    pub(crate) handovers: Rc<RefCell<Handovers>>,
    /// Source and destination of the segments that a connected socket of this host awaits.
    pub(crate) awaited: HashSet<(Address, u16, Address, u16)>,
}

/// The flow that was taken at a place; `None` when the last one there was let go.
pub(crate) type Handovers = HashMap<u32, Option<Place>>;

/// The interface that a frame arrives on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interface {
    /// Its index.
    pub(crate) index: u32,
    /// Its hardware address.
    pub(crate) address: [u8; 6],
}

impl Model {
    /// The outcome for a frame of at least an Ethernet header.
    pub(crate) fn decide(&self, frame: &[u8], interface: Interface, metadata: Metadata) -> Outcome {
        let family = match u16::from_be_bytes([frame[12], frame[13]]) {
            0x0800 => Family::V4,
            0x86dd => Family::V6,
            _ => return Outcome::NotIp,
        };
        if frame[..6] != interface.address {
            return Outcome::NotForThisHost;
        }
        let headers = match parse(frame, family, ETHERNET_HEADER) {
            Ok(headers) => headers,
            Err(Unreadable::Malformed) => return Outcome::Malformed,
            Err(Unreadable::Fragment) => return Outcome::Fragment,
            Err(Unreadable::OtherProtocol) => return self.decide_other(frame, family),
            Err(Unreadable::TooManyExtensions) => return Outcome::TooManyExtensions,
        };
        if metadata.mark & (MARK | UPSTREAM_MARK) == UPSTREAM_MARK {
            return Outcome::OwnUpstream;
        }
        if headers.protocol == Protocol::Tcp && !headers.flags.opens() {
            let place = Place::of(&headers.ends());
            return if self.awaited.contains(&ends(&headers)) {
                Outcome::Established
            } else if self.handovers.borrow().get(&place.index) == Some(&Some(place)) {
                Outcome::Orphaned
            } else {
                Outcome::Foreign
            };
        }
        let outcome = self.decide_new(&headers, interface);
        self.remember(&headers, outcome);
        outcome
    }

    fn remember(&self, headers: &Headers, outcome: Outcome) {
        let place = Place::of(&headers.ends());
        let mut handovers = self.handovers.borrow_mut();
        match outcome {
            Outcome::Taken => {
                handovers.insert(place.index, Some(place));
            }
            Outcome::NoRule
            | Outcome::Passed
            | Outcome::PassedMissing
            | Outcome::PassedDraining
                if headers.protocol == Protocol::Tcp =>
            {
                handovers.insert(place.index, None);
            }
            _ => {}
        }
    }

    fn decide_other(&self, frame: &[u8], family: Family) -> Outcome {
        match quoted_flow(frame, family, ETHERNET_HEADER) {
            Some(flow) if self.awaited.contains(&ends(&flow)) => Outcome::IcmpError,
            _ => Outcome::OtherProtocol,
        }
    }

    fn decide_new(&self, headers: &Headers, interface: Interface) -> Outcome {
        let flow = Flow {
            scope: Scope::Forward,
            protocol: headers.protocol,
            interface: interface.index,
            source: headers.source,
            source_port: headers.source_port,
            destination: headers.destination,
            destination_port: headers.destination_port,
        };
        let Some(found) = classify(self.blocks.as_slice(), &flow) else {
            return Outcome::NoRule;
        };
        let own = |address: &Address| self.is_own(address);
        if !flow.destination.is_forwardable() || own(&flow.destination) || own(&flow.source) {
            return Outcome::NotForwarded;
        }
        let worker = worker_of(&flow.source, flow.source_port, self.agent.workers());
        let present = worker < self.listeners;
        let answerable = flow.source.is_forwardable();
        match (found.entry.action(), found.entry.on_missing()) {
            (Action::Pass | Action::Redirect, _) => Outcome::Passed,
            (Action::Drop, _) => Outcome::Dropped,
            // The answer to a datagram depends on how many there were before: no case has one.
            (Action::Reject, _) if answerable => Outcome::Rejected,
            (Action::Reject, _) => Outcome::RejectedUnanswered,
            (Action::Relay, _) if !self.agent.is_accepting() => Outcome::PassedDraining,
            (Action::Relay, _) if present => Outcome::Taken,
            (Action::Relay, OnMissing::Pass) => Outcome::PassedMissing,
            (Action::Relay, OnMissing::Drop) => match flow.protocol {
                Protocol::Tcp if answerable => Outcome::RefusedMissing,
                Protocol::Tcp | Protocol::Udp => Outcome::DroppedMissing,
            },
        }
    }

    /// IPv4 prefixes hold for v4-mapped IPv6 addresses too, and IPv6 ones for IPv4 addresses as
    /// they are when mapped.
    fn is_own(&self, address: &Address) -> bool {
        let mapped = u128::from_be_bytes(address.mapped_octets());
        self.local.iter().any(|prefix| {
            let network = u128::from_be_bytes(Address::from(prefix.network()).mapped_octets());
            let length = match prefix {
                IpNet::V4(v4) => 96 + u32::from(v4.prefix_len()),
                IpNet::V6(v6) => u32::from(v6.prefix_len()),
            };
            let differing = (mapped ^ network).leading_zeros();
            differing >= length
        })
    }
}

/// The ends of a segment, as [`Model::awaited`] holds them.
fn ends(headers: &Headers) -> (Address, u16, Address, u16) {
    (
        headers.source,
        headers.source_port,
        headers.destination,
        headers.destination_port,
    )
}

/// Both directions of a connection between two addresses of this host.
pub(crate) fn directions(one: SocketAddr, other: SocketAddr) -> [(Address, u16, Address, u16); 2] {
    let ends = |source: SocketAddr, destination: SocketAddr| {
        (
            source.ip().into(),
            source.port(),
            destination.ip().into(),
            destination.port(),
        )
    };
    [ends(one, other), ends(other, one)]
}
