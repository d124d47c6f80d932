//! What the embedder decides about flows, and what it learns about them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tproxy_common::flow::Protocol;

use super::FlowRecord;

/// The embedder's side of the relay. The agent implements it with the rules in force; tests bring
/// their own.
///
/// Every method is called on a worker's thread, between two reads of other flows: none may block.
pub trait Policy: Send + Sync + 'static {
    /// Says which rule took the flow from `client` to `destination`, and where to connect it.
    /// `None` refuses the flow: the client gets a RST, a datagram is dropped, and the refusal is
    /// counted. So does a flow whose upstream would be a listener of this very relay, whatever the
    /// policy says. Asked about each datagram without a session.
    fn admit(
        &self,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Option<Admission>;

    /// Whether `address` is one of this host's own. Asked only about flows to a port that the relay
    /// listens on, and those to addresses of this host are refused: the relay would connect to
    /// itself.
    fn is_own(&self, address: IpAddr) -> bool;

    /// An admitted flow begins. Called once for each, before its upstream connection is made, and
    /// always followed by one [`ended`](Self::ended).
    fn opened(&self, rule: &RuleTag);

    /// Bytes moved since the last report of this flow. Reports come about once a second while bytes
    /// move and once before [`ended`](Self::ended), so that none is lost and none is counted twice.
    fn moved(&self, rule: &RuleTag, to_upstream: u64, to_client: u64);

    /// A flow is over.
    fn ended(&self, flow: &FlowRecord<'_>);

    /// A connection was accepted and reset, or a UDP session was not opened, because descriptors or
    /// memory had run out.
    fn shed(&self) {}

    /// A connection was accepted and reset, because its client had as many flows as it may have.
    fn over_limit(&self) {}

    /// A worker stopped accepting, because no descriptor or no place was free.
    fn paused(&self) {}

    /// A flow that was to come from the client's address comes from this host's.
    fn fell_back(&self) {}

    /// A socket with the address `own`, which is a client's, is about to send to `server` for the
    /// first time: the answers have to be delivered here. Called for UDP; the answer to a SYN has
    /// to be recognised without it.
    fn awaits_answers(&self, protocol: Protocol, own: SocketAddr, server: SocketAddr) {
        let _ = (protocol, own, server);
    }

    /// A worker has accepted all connections that waited, of which there was more than one, and it is
    /// better if the next ones come to it too than if others are woken for them.
    fn wants_more(&self, _worker: usize) {}

    /// What a worker serves has changed.
    fn serving(&self, _worker: usize, _load: Load) {}
}

/// What a worker serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// TCP flows, now.
    pub flows: u64,
    /// UDP sessions, now.
    pub sessions: u64,
    /// Datagrams that it has dropped.
    pub dropped: u64,
}

/// A flow's way: the rule that took it and the address that the relay connects to.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The rule that took the flow.
    pub rule: RuleTag,
    /// Where the relay connects to.
    pub upstream: SocketAddr,
    /// The address to connect from, a client's; `None` for one of this host.
    pub source: Option<IpAddr>,
    /// Where replies of a UDP session go to. If that is not where its datagrams come from, those keep
    /// coming to the worker's socket, and the session is still known by the address that they come
    /// from. Not used for TCP, whose replies go where the connection came from.
    pub client: SocketAddr,
}

impl Admission {
    /// The flow goes where the client wanted it to go.
    #[must_use]
    pub fn direct(rule: RuleTag, client: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            rule,
            upstream: destination,
            source: None,
            client,
        }
    }
}

/// A rule as a flow carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleTag {
    /// The rule's name, shared by all its flows.
    pub name: Arc<str>,
    /// The embedder's own index, such as the rule's place in a table of counters. The relay does
    /// not read it.
    pub slot: u32,
}
