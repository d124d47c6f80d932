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
    classifier::{classify, may_match},
    flow::{Flow, Protocol, Scope, worker_of},
    flow_filter::slot_of,
    fragment::{Fragment, FragmentedPacket, Way, parse_fragment},
    handover::{Ends, Place},
    icmp::quoted_flow,
    outcome::Outcome,
    packet::{Headers, Unreadable, parse},
    tables::{Action, Block, OnMissing, RuleEntry},
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
    /// Whether somebody is there to take flows of this protocol and family that the rule with this
    /// counter slot redirects.
    pub(crate) is_listened_to: fn(Protocol, Family, u32) -> bool,
    /// What was decided about earlier frames of all cases.
    pub(crate) memory: Rc<RefCell<Memory>>,
    /// The ways of fragments. The kernel is to have forgotten those of other cases.
    pub(crate) fates: RefCell<HashMap<FragmentedPacket, Way>>,
    /// The ends of the packets that a connected socket of this host awaits.
    pub(crate) awaited: HashSet<ComparableEnds>,
}

/// What the programs remember of flows.
#[derive(Default)]
pub(crate) struct Memory {
    /// The flow that was taken at a place; `None` when the last one there was let go.
    handovers: HashMap<u32, Option<Place>>,
    /// The slots of flows that sockets here may have.
    stamped: HashSet<usize>,
}

impl Memory {
    /// Notes that a socket is known to have the flow.
    pub(crate) fn stamp(&mut self, ends: &Ends) {
        self.stamped.insert(slot_of(ends));
    }
}

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
        let is_own = metadata.mark & (MARK | UPSTREAM_MARK) == UPSTREAM_MARK;
        let headers = match parse(frame, family, ETHERNET_HEADER) {
            Ok(_) | Err(Unreadable::Fragment) if is_own => return Outcome::OwnUpstream,
            Ok(headers) => headers,
            Err(Unreadable::Malformed) => return Outcome::Malformed,
            Err(Unreadable::Fragment) => return self.decide_later(frame, family, interface),
            Err(Unreadable::OtherProtocol) => return self.decide_other(frame, family),
            Err(Unreadable::TooManyExtensions) => return Outcome::TooManyExtensions,
        };
        let outcome = self.decide_with_ports(&headers, interface);
        let is_answered = headers.source.is_forwardable() && !headers.more_fragments.is_set();
        let outcome = match outcome {
            // The answer to a datagram depends on how many there were before: no case has one.
            Outcome::Rejected if !is_answered => Outcome::RejectedUnanswered,
            Outcome::RefusedMissing if !is_answered => Outcome::DroppedMissing,
            outcome => outcome,
        };
        if headers.more_fragments.is_set() {
            self.decide_first(frame, family, outcome)
        } else {
            outcome
        }
    }

    fn decide_with_ports(&self, headers: &Headers, interface: Interface) -> Outcome {
        let outcome = match headers.protocol {
            Protocol::Tcp if !headers.flags.opens() => self.decide_in_flow(headers),
            Protocol::Udp if self.has_socket(headers) => Outcome::EstablishedUdp,
            _ => self.decide_new(headers, interface),
        };
        self.remember(headers, outcome);
        outcome
    }

    fn decide_in_flow(&self, headers: &Headers) -> Outcome {
        let place = Place::of(&headers.ends());
        if self.has_socket(headers) {
            Outcome::Established
        } else if self.memory.borrow().handovers.get(&place.index) == Some(&Some(place)) {
            Outcome::Orphaned
        } else {
            Outcome::Foreign
        }
    }

    /// Whether a connected socket has the flow, and its stamp says so.
    fn has_socket(&self, headers: &Headers) -> bool {
        let stamped = &self.memory.borrow().stamped;
        // What may answer a SYN is looked up whatever the stamp.
        let is_looked_up =
            headers.flags.answers_opening() || stamped.contains(&slot_of(&headers.ends()));
        is_looked_up && self.awaited.contains(&ComparableEnds::of(headers))
    }

    fn remember(&self, headers: &Headers, outcome: Outcome) {
        let ends = headers.ends();
        let place = Place::of(&ends);
        let mut memory = self.memory.borrow_mut();
        match outcome {
            Outcome::Taken => {
                memory.handovers.insert(place.index, Some(place));
                memory.stamp(&ends);
            }
            Outcome::Established | Outcome::EstablishedUdp => memory.stamp(&ends),
            Outcome::NoRule
            | Outcome::Passed
            | Outcome::PassedMissing
            | Outcome::PassedDraining
                if headers.protocol == Protocol::Tcp =>
            {
                memory.handovers.insert(place.index, None);
            }
            _ => {}
        }
    }

    fn decide_other(&self, frame: &[u8], family: Family) -> Outcome {
        match quoted_flow(frame, family, ETHERNET_HEADER) {
            Some(flow) if self.awaited.contains(&ComparableEnds::of(&flow)) => Outcome::IcmpError,
            _ => Outcome::OtherProtocol,
        }
    }

    /// The first fragment has ports; the others go its way, unless they have gone before it.
    fn decide_first(&self, frame: &[u8], family: Family, outcome: Outcome) -> Outcome {
        let own = match outcome {
            Outcome::Taken | Outcome::Established | Outcome::EstablishedUdp => Way::Here,
            Outcome::Dropped | Outcome::DroppedMissing | Outcome::RejectedUnanswered => {
                Way::Nowhere
            }
            _ => Way::Own,
        };
        let Some(fragment) = parse_fragment(frame, family, ETHERNET_HEADER) else {
            return outcome;
        };
        let mut fates = self.fates.borrow_mut();
        if own == Way::Own && fates.get(&fragment.packet) == Some(&Way::Here) {
            return Outcome::FragmentTaken;
        }
        fates.insert(fragment.packet, own);
        outcome
    }

    fn decide_later(&self, frame: &[u8], family: Family, interface: Interface) -> Outcome {
        let Some(fragment) = parse_fragment(frame, family, ETHERNET_HEADER) else {
            return Outcome::Fragment;
        };
        let mut fates = self.fates.borrow_mut();
        let known = fates.get(&fragment.packet).copied();
        let way = match known {
            Some(way) => way,
            None if self.may_be_taken(&fragment, interface) => {
                fates.insert(fragment.packet, Way::Here);
                Way::Here
            }
            None => Way::Own,
        };
        match way {
            Way::Own => Outcome::Fragment,
            Way::Here => Outcome::FragmentTaken,
            Way::Nowhere => Outcome::FragmentDropped,
        }
    }

    /// Only of datagrams: TCP sends again. Not to link-local addresses, which most rules shun.
    fn may_be_taken(&self, fragment: &Fragment, interface: Interface) -> bool {
        let (source, destination) = (&fragment.source(), &fragment.destination());
        let flow = Flow {
            scope: Scope::Forward,
            protocol: fragment.protocol,
            interface: interface.index,
            source: *source,
            source_port: 0,
            destination: *destination,
            destination_port: 0,
        };
        let found = may_match(self.blocks.as_slice(), &flow);
        fragment.protocol == Protocol::Udp
            && found == Some(true)
            && self.is_forwarded(source, destination)
            && !destination.is_v4_link_local()
    }

    fn decide_new(&self, headers: &Headers, interface: Interface) -> Outcome {
        let flow = Flow::of(headers, Scope::Forward, interface.index);
        let Some(found) = classify(self.blocks.as_slice(), &flow) else {
            return Outcome::NoRule;
        };
        let shuns = matches!(found.entry.action(), Action::Relay | Action::Redirect)
            && !found.entry.names_link_local();
        if !self.is_forwarded(&flow.source, &flow.destination)
            || (shuns && flow.destination.is_v4_link_local())
        {
            return Outcome::NotForwarded;
        }
        match found.entry.action() {
            Action::Pass => Outcome::Passed,
            Action::Drop => Outcome::Dropped,
            Action::Reject => Outcome::Rejected,
            Action::Relay | Action::Redirect => self.hand_over(&flow, found.entry),
        }
    }

    fn hand_over(&self, flow: &Flow, rule: RuleEntry) -> Outcome {
        if !self.agent.is_accepting() {
            return Outcome::PassedDraining;
        }
        let is_there = if rule.action() == Action::Redirect {
            (self.is_listened_to)(flow.protocol, flow.source.family(), rule.slot())
        } else {
            let worker = worker_of(&flow.source, flow.source_port, self.agent.workers());
            worker < self.listeners
        };
        match (rule.on_missing(), flow.protocol) {
            _ if is_there => Outcome::Taken,
            (OnMissing::Pass, _) => Outcome::PassedMissing,
            (OnMissing::Drop, Protocol::Tcp) => Outcome::RefusedMissing,
            (OnMissing::Drop, Protocol::Udp) => Outcome::DroppedMissing,
        }
    }

    fn is_forwarded(&self, source: &Address, destination: &Address) -> bool {
        destination.is_forwardable() && !self.is_own(destination) && !self.is_own(source)
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

/// The ends of a packet, as [`Model::awaited`] holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ComparableEnds {
    protocol: Protocol,
    source: (Address, u16),
    destination: (Address, u16),
}

impl ComparableEnds {
    fn of(headers: &Headers) -> Self {
        Self {
            protocol: headers.protocol,
            source: (headers.source, headers.source_port),
            destination: (headers.destination, headers.destination_port),
        }
    }

    /// The same as the programs have them.
    pub(crate) fn ends(&self) -> Ends {
        Ends {
            protocol: self.protocol,
            source: self.source.0,
            source_port: self.source.1,
            destination: self.destination.0,
            destination_port: self.destination.1,
        }
    }
}

/// Both directions of a flow between two addresses of this host.
pub(crate) fn directions(
    protocol: Protocol,
    one: SocketAddr,
    other: SocketAddr,
) -> [ComparableEnds; 2] {
    let end = |address: SocketAddr| (address.ip().into(), address.port());
    let ends = |source, destination| ComparableEnds {
        protocol,
        source: end(source),
        destination: end(destination),
    };
    [ends(one, other), ends(other, one)]
}
