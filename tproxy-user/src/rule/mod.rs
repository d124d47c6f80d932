//! Rules: as they were typed, and as they were found valid.

mod address;
mod error;
mod lifetime;
mod name;
mod owner;
mod port;
mod reach;
mod reason;
mod spec;
mod validate;

pub use address::AddressMatch;
pub use error::{SpecError, SpecErrors};
pub use lifetime::Deadline;
pub use name::valid_name;
pub use owner::{Cgroup, UidRange};
pub use port::PortRange;
pub use reason::{Condition, NamedFlow, Owner};
pub use spec::{Masked, RuleSpec};

use std::{
    borrow::Cow,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};

use crate::set::{SetName, Sets};
use tproxy_common::{
    flow::{Protocol, Scope},
    tables::{Action, OnMissing},
};

/// A valid rule. Empty lists match everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique within the instance.
    pub name: String,
    /// Where flows are caught.
    pub scope: Scope,
    /// Protocols that it holds for.
    pub protocols: Vec<Protocol>,
    /// Where flows come from.
    pub source: AddressMatch,
    /// Where flows go.
    pub destination: AddressMatch,
    /// Ports that flows come from.
    pub source_ports: Vec<PortRange>,
    /// Ports that flows go to.
    pub destination_ports: Vec<PortRange>,
    /// Interfaces that flows arrive on; with the scopes forward and inbound.
    pub interfaces: Vec<String>,
    /// Users whose processes open flows; with the scope local.
    pub users: Vec<UidRange>,
    /// Control groups whose processes open flows; with the scope local.
    pub cgroups: Vec<Cgroup>,
    /// What is done with them.
    pub action: Action,
    /// The listener on this host that gets them; with [`Action::Redirect`], and only then.
    pub listener: Option<SocketAddr>,
    /// Whether the relay connects from the client's address rather than from one of this host.
    pub from_client: bool,
    /// What is done when nobody is there to take them.
    pub on_missing: OnMissing,
    /// How long it is there, from when it was added.
    pub life: Option<Duration>,
}

impl Rule {
    /// The destination ports of the flows that it takes; empty for all. With the scope inbound the
    /// port of SSH is none of them unless it is named by itself: who administers a host by SSH is not
    /// to be locked out by a rule for all ports.
    #[must_use]
    pub fn reached_ports(&self) -> Cow<'_, [PortRange]> {
        let named = |range: &PortRange| range.is_just(PortRange::SSH);
        if self.scope != Scope::Inbound || self.destination_ports.iter().any(named) {
            return Cow::Borrowed(&self.destination_ports);
        }
        let all = [PortRange::all()];
        let ports = match self.destination_ports.as_slice() {
            [] => all.as_slice(),
            ports => ports,
        };
        let ports = ports.iter().flat_map(|range| range.without(PortRange::SSH));
        Cow::Owned(ports.collect())
    }

    /// Whether a listener that gets its flows has to answer for addresses that are not of this host.
    #[must_use]
    pub fn needs_transparent_listener(&self) -> bool {
        self.scope != Scope::Inbound
    }

    /// Whether it takes the datagrams that answer this host's own programs as well: those come to any
    /// port, and only a connected socket keeps them from the rules.
    #[must_use]
    pub fn takes_answers(&self) -> bool {
        self.scope == Scope::Inbound
            && self.protocols.contains(&Protocol::Udp)
            && self.destination_ports.is_empty()
            && self.action != Action::Pass
    }

    /// Whether it names IPv4 link-local destinations (RFC 3927), by itself or in one of its sets. Rules
    /// for whole networks leave them alone.
    #[must_use]
    pub fn names_link_local(&self, sets: &Sets) -> bool {
        let AddressMatch {
            include,
            include_sets,
            ..
        } = &self.destination;
        let named = |name| {
            sets.get(name)
                .is_some_and(|set| set.has_within(&LINK_LOCAL))
        };
        include.iter().any(|net| LINK_LOCAL.contains(net)) || include_sets.iter().any(named)
    }
}

/// RFC 3927, 2.1.
pub(crate) const LINK_LOCAL: IpNet =
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16));

/// A scope as it is typed.
#[must_use]
pub const fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Forward => "forward",
        Scope::Inbound => "inbound",
        Scope::Local => "local",
    }
}

impl Rule {
    /// The sets that it names, some perhaps twice.
    pub fn sets(&self) -> impl Iterator<Item = &SetName> {
        self.source.sets().chain(self.destination.sets())
    }
}
