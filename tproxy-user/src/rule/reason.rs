//! Why a rule takes a flow, or does not.

use std::{fmt::Display, net::SocketAddr};

use ipnet::IpNet;
use tproxy_common::flow::{Protocol, Scope};

use super::{AddressMatch, Cgroup, PortRange, Rule, UidRange, scope_name};

/// A flow as an operator names it.
#[derive(Clone, Debug)]
pub struct NamedFlow {
    /// Where it is caught.
    pub scope: Scope,
    /// Whose process opened it; known of local flows.
    pub owner: Option<Owner>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The interface that it arrives on.
    pub interface: String,
    /// The client; port 0 when it does not matter.
    pub source: SocketAddr,
    /// Where the client wants to go.
    pub destination: SocketAddr,
}

/// The process that opened a flow.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its user.
    pub uid: u32,
    /// Its control group, where that is known.
    pub cgroup: Option<Cgroup>,
}

/// One condition of a rule, and whether the flow meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key of the rule.
    pub key: &'static str,
    /// Whether the flow meets it.
    pub met: bool,
    /// The flow's value and what it was held against.
    pub text: String,
}

impl Rule {
    /// Holds the flow against each condition that the rule has, in the order of its keys.
    #[must_use]
    pub fn conditions(&self, flow: &NamedFlow) -> Vec<Condition> {
        let unusual = self.scope != Scope::Forward || flow.scope != self.scope;
        let scope = unusual.then(|| Condition {
            key: "scope",
            met: self.scope == flow.scope,
            text: against(&scope_name(flow.scope), &[scope_name(self.scope)]),
        });
        let protocol = Condition {
            key: "proto",
            met: self.protocols.contains(&flow.protocol),
            text: match flow.protocol {
                Protocol::Tcp => "tcp".to_owned(),
                Protocol::Udp => "udp".to_owned(),
            },
        };
        let interface = (!self.interfaces.is_empty()).then(|| Condition {
            key: "iface",
            met: self.interfaces.contains(&flow.interface),
            text: against(&flow.interface, &self.interfaces),
        });
        let source = address("src", &self.source, flow.source);
        let destination = address("dst", &self.destination, flow.destination);
        let source_port = port("sport", &self.source_ports, flow.source.port());
        let destination_port = port("dport", &self.destination_ports, flow.destination.port());
        let owner = flow.owner.as_ref();
        [
            scope,
            Some(protocol),
            interface,
            user(&self.users, owner),
            cgroup(&self.cgroups, owner),
            source,
            destination,
            source_port,
            destination_port,
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn user(wanted: &[UidRange], owner: Option<&Owner>) -> Option<Condition> {
    if wanted.is_empty() {
        return None;
    }
    let holds = |owner: &Owner| {
        wanted
            .iter()
            .any(|range| (range.first..=range.last).contains(&owner.uid))
    };
    Some(Condition {
        key: "uid",
        met: owner.is_some_and(holds),
        text: match owner {
            Some(owner) => against(&owner.uid, wanted),
            None => against(&"no known user", wanted),
        },
    })
}

fn cgroup(wanted: &[Cgroup], owner: Option<&Owner>) -> Option<Condition> {
    if wanted.is_empty() {
        return None;
    }
    let group = owner.and_then(|owner| owner.cgroup.as_ref());
    Some(Condition {
        key: "cgroup",
        met: group.is_some_and(|group| wanted.contains(group)),
        text: match group {
            Some(group) => against(group, wanted),
            None => against(&"no known control group", wanted),
        },
    })
}

fn address(key: &'static str, wanted: &AddressMatch, end: SocketAddr) -> Option<Condition> {
    if wanted.is_any() {
        return None;
    }
    let address = end.ip();
    let longest = |prefixes: &[IpNet]| {
        let holding = prefixes.iter().filter(|prefix| prefix.contains(&address));
        holding.max_by_key(|prefix| prefix.prefix_len()).copied()
    };
    let excluded = longest(&wanted.exclude);
    let included = longest(&wanted.include);
    let text = match (excluded, included) {
        (Some(prefix), _) => format!("{address} is excluded by !{prefix}"),
        (None, Some(prefix)) => format!("{address} is in {prefix}"),
        (None, None) if wanted.include.is_empty() => format!("{address} is not excluded"),
        (None, None) => format!("{address} is not in {}", list(&wanted.include)),
    };
    Some(Condition {
        key,
        met: excluded.is_none() && (included.is_some() || wanted.include.is_empty()),
        text,
    })
}

fn port(key: &'static str, wanted: &[PortRange], port: u16) -> Option<Condition> {
    if wanted.is_empty() {
        return None;
    }
    Some(Condition {
        key,
        met: wanted
            .iter()
            .any(|range| (range.first()..=range.last()).contains(&port)),
        text: against(&port, wanted),
    })
}

fn against(value: &impl Display, wanted: &[impl Display]) -> String {
    format!("{value} against {}", list(wanted))
}

/// A list that fits a line.
fn list(words: &[impl Display]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = words.iter().take(SHOWN).map(ToString::to_string).collect();
    match words.len().checked_sub(SHOWN) {
        None | Some(0) => shown.join(","),
        Some(more) => format!("{} and {more} more", shown.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::RuleSpec;

    fn rule(spec: RuleSpec) -> Rule {
        RuleSpec {
            name: Some("rule".into()),
            ..spec
        }
        .validate()
        .unwrap()
    }

    fn flow() -> NamedFlow {
        NamedFlow {
            scope: Scope::Forward,
            owner: None,
            protocol: Protocol::Tcp,
            interface: "eth1".into(),
            source: "10.1.0.2:50000".parse().unwrap(),
            destination: "192.0.2.9:443".parse().unwrap(),
        }
    }

    fn first_unmet(spec: RuleSpec) -> Option<(&'static str, String)> {
        let conditions = rule(spec).conditions(&flow());
        let unmet = conditions.into_iter().find(|condition| !condition.met)?;
        Some((unmet.key, unmet.text))
    }

    #[test]
    fn names_what_does_not_fit() {
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(first_unmet(RuleSpec::default()), None);
        let dport = RuleSpec {
            dport: words(&["80", "8000-8999"]),
            ..RuleSpec::default()
        };
        assert_eq!(
            first_unmet(dport),
            Some(("dport", "443 against 80,8000-8999".into()))
        );
        let excluded = RuleSpec {
            dst: words(&["192.0.2.0/24", "!192.0.2.9"]),
            ..RuleSpec::default()
        };
        assert_eq!(
            first_unmet(excluded),
            Some(("dst", "192.0.2.9 is excluded by !192.0.2.9/32".into()))
        );
        let elsewhere = RuleSpec {
            src: words(&["10.2.0.0/16"]),
            ..RuleSpec::default()
        };
        assert_eq!(
            first_unmet(elsewhere),
            Some(("src", "10.1.0.2 is not in 10.2.0.0/16".into()))
        );
        let interface = RuleSpec {
            iface: words(&["eth2"]),
            ..RuleSpec::default()
        };
        assert_eq!(
            first_unmet(interface),
            Some(("iface", "eth1 against eth2".into()))
        );
        let only_exclusions = RuleSpec {
            dst: words(&["!10.0.0.0/8"]),
            ..RuleSpec::default()
        };
        assert_eq!(first_unmet(only_exclusions), None);
    }

    #[test]
    fn a_local_flow_is_held_against_its_process() {
        let spec = |edit: fn(&mut RuleSpec)| {
            let mut spec = RuleSpec {
                scope: Some("local".into()),
                ..RuleSpec::default()
            };
            edit(&mut spec);
            spec
        };
        let local = NamedFlow {
            scope: Scope::Local,
            owner: Some(Owner {
                uid: 1000,
                cgroup: Some("user.slice".parse().unwrap()),
            }),
            ..flow()
        };
        let unmet = |edit: fn(&mut RuleSpec), flow: &NamedFlow| {
            let conditions = rule(spec(edit)).conditions(flow).into_iter();
            conditions
                .filter(|condition| !condition.met)
                .map(|condition| (condition.key, condition.text))
                .collect::<Vec<_>>()
        };
        let users: fn(&mut RuleSpec) = |spec| spec.uid = vec!["0".into(), "900-1000".into()];
        let others: fn(&mut RuleSpec) = |spec| spec.uid = vec!["0-999".into()];
        let groups: fn(&mut RuleSpec) = |spec| spec.cgroup = vec!["user.slice".into()];
        let services: fn(&mut RuleSpec) = |spec| spec.cgroup = vec!["system.slice".into()];
        assert_eq!(unmet(users, &local), []);
        assert_eq!(unmet(groups, &local), []);
        assert_eq!(
            unmet(others, &local),
            [("uid", "1000 against 0-999".into())]
        );
        assert_eq!(
            unmet(services, &local),
            [("cgroup", "user.slice against system.slice".into())]
        );
        assert_eq!(
            unmet(users, &flow()),
            [
                ("scope", "forward against local".into()),
                ("uid", "no known user against 0,900-1000".into())
            ]
        );
    }
}
