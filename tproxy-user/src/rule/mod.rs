//! Rules: as they were typed, and as they were found valid.

mod address;
mod port;
mod reason;
mod spec;

pub use address::AddressMatch;
pub use port::PortRange;
pub use reason::{Condition, NamedFlow};
pub use spec::{RuleSpec, SpecError, valid_name};

use crate::set::SetName;
use tproxy_common::{
    flow::Protocol,
    tables::{Action, OnMissing},
};

/// A valid rule. Empty lists match everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique within the instance.
    pub name: String,
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
    /// Interfaces that flows arrive on.
    pub interfaces: Vec<String>,
    /// What is done with them.
    pub action: Action,
    /// What is done when nobody is there to take them.
    pub on_missing: OnMissing,
}

impl Rule {
    /// The sets that it names, some perhaps twice.
    pub fn sets(&self) -> impl Iterator<Item = &SetName> {
        self.source.sets().chain(self.destination.sets())
    }
}
