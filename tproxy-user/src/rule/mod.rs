//! Rules: as they were typed, and as they were found valid.

mod address;
mod error;
mod lifetime;
mod name;
mod owner;
mod port;
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

use std::{net::SocketAddr, time::Duration};

use crate::set::SetName;
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
    /// What is done when nobody is there to take them.
    pub on_missing: OnMissing,
    /// How long it is there, from when it was added.
    pub life: Option<Duration>,
}

impl Rule {
    /// Why no flow is taken by this rule although it is compiled: the kernel programs know
    /// forwarded flows only, and no listeners but the agent's. `None` of a rule that they act on.
    #[must_use]
    pub fn without_effect(&self) -> Option<String> {
        let missing = match (self.scope, self.action) {
            (Scope::Forward, Action::Redirect) => "action redirect".to_owned(),
            (Scope::Forward, _) => return None,
            (scope, _) => format!("scope {}", scope_name(scope)),
        };
        Some(format!("takes nothing: {missing} is not there yet"))
    }
}

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
