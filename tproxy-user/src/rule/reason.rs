//! Why a rule takes a flow, or does not.

use std::{
    collections::BTreeSet,
    fmt::Display,
    io,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use nix::unistd::getuid;
use tproxy_common::flow::{Protocol, Scope};

use super::{AddressMatch, Cgroup, PortRange, Rule, UidRange, scope_name};
use crate::set::{SetName, Sets};

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

impl Owner {
    /// The process that asks. Its control group is unknown where it is in the root group, or there
    /// is no unified hierarchy.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self {
            uid: getuid().as_raw(),
            cgroup: Cgroup::of_this_process(),
        }
    }

    /// The numbers of the control groups that it is in, from the one below the root on. One that is
    /// not there has the number of none.
    ///
    /// # Errors
    ///
    /// When the hierarchy of groups cannot be read.
    pub fn groups(&self) -> io::Result<Vec<u64>> {
        let groups = self.cgroup.iter().flat_map(Cgroup::path_from_root);
        groups.map(|group| Ok(group.id()?.unwrap_or(0))).collect()
    }
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
    /// Holds the flow against each condition that the rule has, in the order of its keys. `sets` are
    /// those that the rule names, at least.
    #[must_use]
    pub fn conditions(&self, flow: &NamedFlow, sets: &Sets) -> Vec<Condition> {
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
        let source = address("src", &self.source, sets, flow.source);
        let destination = address("dst", &self.destination, sets, flow.destination);
        let source_port = port("sport", &self.source_ports, flow.source.port());
        let destination_port = self.destination_port(flow.destination.port());
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

impl Rule {
    fn destination_port(&self, destination: u16) -> Option<Condition> {
        let named = port("dport", &self.destination_ports, destination);
        let is_spared = named.as_ref().is_none_or(|named| named.met)
            && !holds(&self.reached_ports(), destination);
        if is_spared {
            return Some(Condition {
                key: "dport",
                met: false,
                text: format!(
                    "{destination} of this host is left out unless it is named by itself"
                ),
            });
        }
        named
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
        met: group.is_some_and(|group| wanted.iter().any(|wanted| wanted.holds(group))),
        text: match group {
            Some(group) => against(group, wanted),
            None => against(&"no known control group", wanted),
        },
    })
}

fn address(
    key: &'static str,
    wanted: &AddressMatch,
    sets: &Sets,
    end: SocketAddr,
) -> Option<Condition> {
    if wanted.is_any() {
        return None;
    }
    let address = end.ip();
    let excluded = holder(&wanted.exclude, &wanted.exclude_sets, sets, address);
    let included = holder(&wanted.include, &wanted.include_sets, sets, address);
    let text = match (&excluded, &included) {
        (Some(by), _) => format!("{address} is excluded by !{by}"),
        (None, Some(by)) => format!("{address} is in {by}"),
        (None, None) if wanted.includes_all() => format!("{address} is not excluded"),
        (None, None) => {
            let prefixes = wanted.include.iter().map(ToString::to_string);
            let named = wanted.include_sets.iter().map(SetName::to_word);
            let words: Vec<String> = prefixes.chain(named).collect();
            format!("{address} is not in {}", list(&words))
        }
    };
    Some(Condition {
        key,
        met: excluded.is_none() && (included.is_some() || wanted.includes_all()),
        text,
    })
}

/// The most specific prefix that holds an address, and the set that it is from.
fn holder(
    prefixes: &[IpNet],
    named: &BTreeSet<SetName>,
    sets: &Sets,
    address: IpAddr,
) -> Option<String> {
    let own = prefixes.iter().filter(|prefix| prefix.contains(&address));
    let own = own.max_by_key(|prefix| prefix.prefix_len());
    let of_sets = named
        .iter()
        .filter_map(|name| Some((sets.get(name)?.find(address)?, name)))
        .max_by_key(|(prefix, _)| prefix.prefix_len());
    match (own, of_sets) {
        (Some(own), Some((prefix, _))) if own.prefix_len() >= prefix.prefix_len() => {
            Some(own.to_string())
        }
        (_, Some((prefix, name))) => Some(format!("{} by {prefix}", name.to_word())),
        (own, None) => own.map(ToString::to_string),
    }
}

fn port(key: &'static str, wanted: &[PortRange], port: u16) -> Option<Condition> {
    if wanted.is_empty() {
        return None;
    }
    Some(Condition {
        key,
        met: holds(wanted, port),
        text: against(&port, wanted),
    })
}

/// Whether a port is one of these; no ranges stand for all.
fn holds(ranges: &[PortRange], port: u16) -> bool {
    let holds = |range: &PortRange| (range.first()..=range.last()).contains(&port);
    ranges.is_empty() || ranges.iter().any(holds)
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
    use crate::{
        rule::RuleSpec,
        set::{CidrList, Set},
    };

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
        let conditions = rule(spec).conditions(&flow(), &Sets::new());
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
            let conditions = rule(spec(edit)).conditions(flow, &Sets::new()).into_iter();
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

    #[test]
    fn a_group_below_one_that_is_named_is_in_it() {
        let opened_in = |group: Option<&str>, named: &str| {
            let spec = RuleSpec {
                scope: Some("local".into()),
                cgroup: vec![named.into()],
                ..RuleSpec::default()
            };
            let flow = NamedFlow {
                scope: Scope::Local,
                owner: Some(Owner {
                    uid: 1000,
                    cgroup: group.map(|group| group.parse().unwrap()),
                }),
                ..flow()
            };
            let conditions = rule(spec).conditions(&flow, &Sets::new());
            let asked = conditions.into_iter().find(|asked| asked.key == "cgroup");
            asked.map(|asked| (asked.met, asked.text)).unwrap()
        };
        let session = "user.slice/user-1000.slice/session-1.scope";
        for named in ["user.slice", "user.slice/user-1000.slice", session] {
            let text = format!("{session} against {named}");
            assert_eq!(opened_in(Some(session), named), (true, text));
        }
        for named in ["user.slice/user-100.slice", "system.slice"] {
            let text = format!("{session} against {named}");
            assert_eq!(opened_in(Some(session), named), (false, text));
        }
        assert_eq!(
            opened_in(None, "user.slice"),
            (false, "no known control group against user.slice".into())
        );
    }

    #[test]
    fn the_port_of_ssh_of_this_host_is_named_by_itself() {
        let asked = |scope: &str, dport: &[&str], port: u16| {
            let spec = RuleSpec {
                scope: Some(scope.into()),
                dport: dport.iter().map(ToString::to_string).collect(),
                ..RuleSpec::default()
            };
            let rule = rule(spec);
            let flow = NamedFlow {
                scope: rule.scope,
                destination: SocketAddr::new([192, 0, 2, 9].into(), port),
                ..flow()
            };
            let conditions = rule.conditions(&flow, &Sets::new());
            let asked = conditions.into_iter().find(|asked| asked.key == "dport");
            asked.map(|asked| (asked.met, asked.text))
        };
        let spared = Some((
            false,
            "22 of this host is left out unless it is named by itself".to_owned(),
        ));
        for dport in [&[][..], &["1-65535"], &["22-23"]] {
            assert_eq!(asked("inbound", dport, 22), spared, "{dport:?}");
        }
        assert_eq!(asked("inbound", &[], 23), None);
        assert_eq!(
            asked("inbound", &["22"], 22),
            Some((true, "22 against 22".into()))
        );
        assert_eq!(
            asked("inbound", &["80"], 22),
            Some((false, "22 against 80".into()))
        );
        for scope in ["forward", "local"] {
            assert_eq!(asked(scope, &[], 22), None);
            assert_eq!(
                asked(scope, &["1-65535"], 22),
                Some((true, "22 against 1-65535".into()))
            );
        }
    }

    #[test]
    fn names_the_set_and_the_prefix_in_it() {
        let set = |name: &str, nets: &[&str]| {
            let nets = nets.iter().map(|net| net.parse().unwrap());
            (SetName::new(name).unwrap(), Set::new(CidrList::new(nets)))
        };
        let sets = Sets::from([
            set("near", &["192.0.2.0/24", "192.0.2.0/28"]),
            set("far", &["198.51.100.0/24"]),
        ]);
        let said = |dst: &[&str]| {
            let words = dst.iter().map(ToString::to_string).collect();
            let asked = rule(RuleSpec {
                dst: words,
                ..RuleSpec::default()
            });
            let conditions = asked.conditions(&flow(), &sets);
            let asked = conditions.into_iter().find(|asked| asked.key == "dst");
            asked.map(|asked| (asked.met, asked.text)).unwrap()
        };
        for (dst, met, text) in [
            (
                &["set:near"][..],
                true,
                "192.0.2.9 is in set:near by 192.0.2.0/28",
            ),
            (
                &["set:far", "10.0.0.0/8"],
                false,
                "192.0.2.9 is not in 10.0.0.0/8,set:far",
            ),
            (
                &["set:near", "192.0.2.9"],
                true,
                "192.0.2.9 is in 192.0.2.9/32",
            ),
            (
                &["0.0.0.0/0", "!set:near"],
                false,
                "192.0.2.9 is excluded by !set:near by 192.0.2.0/28",
            ),
            (&["!set:far"], true, "192.0.2.9 is not excluded"),
        ] {
            assert_eq!(said(dst), (met, text.to_owned()));
        }
    }
}
