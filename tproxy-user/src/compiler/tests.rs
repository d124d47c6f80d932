use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use proptest::prelude::*;
use tproxy_common::{
    address::Address,
    classifier::{Match, classify, classify_local, group_class, may_match},
    flow::{Flow, Protocol, Scope},
    limits::CGROUP_LEVELS,
    tables::{Action, OnMissing, Tables as _},
};

use super::*;
use crate::{
    rule::{AddressMatch, Cgroup, UidRange},
    set::{CidrList, Set},
};

const INTERFACES: [(&str, u32); 3] = [("eth0", 2), ("eth1", 3), ("wg0", 17)];
const CGROUPS: [(&str, u64); 2] = [("system.slice", 1 << 40), ("user.slice/x", u64::MAX)];

/// Who opens a flow: the groups are those from the one below the root on.
#[derive(Clone, Debug)]
struct Owner {
    uid: u32,
    groups: Vec<u64>,
}

impl Owner {
    /// A user, in the root of the groups.
    const fn user(uid: u32) -> Self {
        Self {
            uid,
            groups: Vec::new(),
        }
    }
}

/// A packet as the tests make it; addresses of one family.
#[derive(Clone, Debug)]
struct Probe {
    scope: Scope,
    owner: Owner,
    protocol: Protocol,
    interface: u32,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
}

impl Probe {
    fn flow(&self) -> Flow {
        Flow {
            scope: self.scope,
            protocol: self.protocol,
            interface: self.interface,
            source: self.source.0.into(),
            source_port: self.source.1,
            destination: self.destination.0.into(),
            destination_port: self.destination.1,
        }
    }
}

/// First match by the plain reading of the rules.
fn oracle(rules: &[Rule], sets: &Sets, probe: &Probe) -> Option<usize> {
    let port = |wanted: &[PortRange], port: u16| {
        wanted.is_empty()
            || wanted
                .iter()
                .any(|range| (range.first()..=range.last()).contains(&port))
    };
    // To this host's own SSH only by rules that say so.
    let spared = |rule: &Rule| {
        let ssh: PortRange = "22".parse().unwrap();
        rule.scope == Scope::Inbound
            && probe.destination.1 == 22
            && !rule.destination_ports.contains(&ssh)
    };
    let user = |wanted: &[UidRange]| {
        let holds = |range: &UidRange| (range.first..=range.last).contains(&probe.owner.uid);
        wanted.is_empty() || wanted.iter().any(holds)
    };
    let seen = &probe.owner.groups[..probe.owner.groups.len().min(CGROUP_LEVELS as usize)];
    let cgroup = |wanted: &[Cgroup]| {
        let holds = |(name, id): &(&str, u64)| {
            seen.contains(id) && wanted.iter().any(|group| group.to_string() == *name)
        };
        wanted.is_empty() || CGROUPS.iter().any(holds)
    };
    rules.iter().position(|rule| {
        (rule.scope != Scope::Local || (user(&rule.users) && cgroup(&rule.cgroups)))
            && is_between(rule, sets, probe)
            && port(&rule.source_ports, probe.source.1)
            && port(&rule.destination_ports, probe.destination.1)
            && !spared(rule)
    })
}

/// Whether the rule may hold for the flow, whoever opens it and whatever its ports are.
fn is_between(rule: &Rule, sets: &Sets, probe: &Probe) -> bool {
    let address = |wanted: &AddressMatch, address: IpAddr| {
        let any = |prefixes: &[IpNet], named: &BTreeSet<SetName>| {
            let of_sets = named.iter().flat_map(|name| sets[name].iter());
            let mut all = prefixes.iter().copied().chain(of_sets);
            all.any(|prefix| prefix.contains(&address))
        };
        let AddressMatch {
            include,
            exclude,
            include_sets,
            exclude_sets,
        } = wanted;
        (wanted.includes_all() || any(include, include_sets)) && !any(exclude, exclude_sets)
    };
    let interface = |wanted: &[String]| {
        wanted.is_empty()
            || INTERFACES.iter().any(|(name, index)| {
                *index == probe.interface && wanted.iter().any(|wanted| wanted == name)
            })
    };
    rule.scope == probe.scope
        && rule.protocols.contains(&probe.protocol)
        && interface(&rule.interfaces)
        && address(&rule.source, probe.source.0)
        && address(&rule.destination, probe.destination.0)
}

/// What the hook of the probe's scope finds.
fn classified(tables: &[Block], probe: &Probe) -> Option<Match> {
    match probe.scope {
        Scope::Local => {
            let Owner { uid, groups } = &probe.owner;
            classify_local(tables, &probe.flow(), *uid, |header, level| {
                let group = groups.get(level as usize - 1)?;
                group_class(tables, header, *group)
            })
        }
        Scope::Forward | Scope::Inbound => classify(tables, &probe.flow()),
    }
}

fn sources(rules: &[Rule]) -> Vec<Source<'_>> {
    let numbered = rules.iter().zip(100..);
    numbered
        .map(|(rule, slot)| Source {
            rule,
            slot,
            interfaces: INTERFACES
                .iter()
                .filter(|(name, _)| rule.interfaces.iter().any(|wanted| wanted == name))
                .map(|(_, index)| *index)
                .collect(),
            cgroups: CGROUPS
                .iter()
                .filter(|(name, _)| rule.cgroups.iter().any(|group| group.to_string() == *name))
                .map(|(_, id)| *id)
                .collect(),
        })
        .collect()
}

fn compiled(rules: &[Rule], sets: &Sets) -> Vec<Block> {
    compile(&sources(rules), sets, 7).unwrap().blocks
}

fn rule(index: usize) -> Rule {
    Rule {
        name: format!("rule-{index}"),
        protocols: vec![Protocol::Tcp],
        source: AddressMatch::default(),
        destination: AddressMatch::default(),
        source_ports: Vec::new(),
        destination_ports: Vec::new(),
        interfaces: Vec::new(),
        scope: Scope::Forward,
        users: Vec::new(),
        cgroups: Vec::new(),
        action: Action::Relay,
        listener: None,
        life: None,
        from_client: false,
        on_missing: OnMissing::Drop,
    }
}

/// Addresses from a small world, so that prefixes nest, touch and repeat; both ends of the address
/// space and both sides of /64 are in it.
fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u8..4, 0_u8..4, any::<bool>()).prop_map(|(a, b, far)| {
            IpAddr::V4(Ipv4Addr::new(
                if far { 255 } else { 10 },
                a | if far { 252 } else { 0 },
                b,
                255 * (a & 1),
            ))
        }),
        (0_u16..3, 0_u16..3, any::<bool>(), 0_u16..3).prop_map(|(a, b, far, low)| {
            let edge = if far { 0xffff } else { 0x2001 };
            let low = if low == 2 { 0xffff } else { low };
            let fill = if far { 0xffff } else { 0 };
            IpAddr::V6(Ipv6Addr::new(
                edge,
                fill,
                a | (fill & 0xfffc),
                b | (fill & 0xfffc),
                low,
                low,
                low,
                low,
            ))
        }),
    ]
}

fn any_prefix() -> impl Strategy<Value = IpNet> {
    (any_address(), 0_u8..=128).prop_map(|(address, length)| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, length % (longest + 1)).unwrap().trunc()
    })
}

fn any_match() -> impl Strategy<Value = AddressMatch> {
    (
        prop::collection::vec(any_prefix(), 0..4),
        prop::collection::vec(any_prefix(), 0..2),
        prop::collection::btree_set(any_set_name(), 0..2),
        prop::collection::btree_set(any_set_name(), 0..2),
    )
        .prop_map(
            |(include, exclude, include_sets, exclude_sets)| AddressMatch {
                include,
                exclude,
                include_sets,
                exclude_sets,
            },
        )
}

const SETS_OF_TESTS: [&str; 3] = ["a", "b", "c"];

fn any_set_name() -> impl Strategy<Value = SetName> {
    prop::sample::select(&SETS_OF_TESTS[..]).prop_map(|name| SetName::new(name).unwrap())
}

fn any_sets() -> impl Strategy<Value = Sets> {
    prop::array::uniform3(prop::collection::vec(any_prefix(), 0..12)).prop_map(|lists| {
        let names = SETS_OF_TESTS.map(|name| SetName::new(name).unwrap());
        let sets = lists.map(|nets| Set::new(CidrList::new(nets)));
        names.into_iter().zip(sets).collect()
    })
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![1_u16..6, Just(22), Just(65534), Just(65535)]
}

fn any_ports() -> impl Strategy<Value = Vec<PortRange>> {
    let range = (any_port(), any_port())
        .prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b)).parse().unwrap());
    let ssh = Just("22".parse().unwrap());
    prop::collection::vec(prop_oneof![6 => range, 1 => ssh], 0..3)
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

fn any_scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        Just(Scope::Forward),
        Just(Scope::Inbound),
        Just(Scope::Local)
    ]
}

fn any_uid() -> impl Strategy<Value = u32> {
    prop_oneof![0_u32..4, Just(u32::MAX - 1)]
}

fn any_users() -> impl Strategy<Value = Vec<UidRange>> {
    let range = (any_uid(), any_uid()).prop_map(|(a, b)| UidRange {
        first: a.min(b),
        last: a.max(b),
    });
    prop::collection::vec(range, 0..3)
}

fn any_cgroups() -> impl Strategy<Value = Vec<Cgroup>> {
    let names = prop_oneof![
        Just("system.slice"),
        Just("user.slice/x"),
        Just("gone.slice")
    ];
    prop::collection::vec(names.prop_map(|name| name.parse().unwrap()), 0..2)
}

fn any_owner() -> impl Strategy<Value = Owner> {
    // Mostly groups that no rule names; a process is in one of each level, some deeper than is looked.
    let group = prop_oneof![8 => 2_u64..9, 1 => Just(1 << 40), 1 => Just(u64::MAX)];
    let groups = prop::collection::vec(group, 0..CGROUP_LEVELS as usize + 3);
    (any_uid(), groups).prop_map(|(uid, groups)| Owner { uid, groups })
}

/// Owners are asked for with the scope local only, as the check of rules sees to.
fn any_caught() -> impl Strategy<Value = (Scope, Vec<UidRange>, Vec<Cgroup>)> {
    (any_scope(), any_users(), any_cgroups()).prop_map(|(scope, users, cgroups)| match scope {
        Scope::Local => (scope, users, cgroups),
        Scope::Forward | Scope::Inbound => (scope, Vec::new(), Vec::new()),
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    (
        any_caught(),
        prop::collection::vec(any_protocol(), 1..3),
        any_match(),
        any_match(),
        any_ports(),
        any_ports(),
        prop::collection::vec(prop_oneof![Just("eth0"), Just("wg0"), Just("gone")], 0..2),
    )
        .prop_map(
            |(
                (scope, users, cgroups),
                protocols,
                source,
                destination,
                source_ports,
                destination_ports,
                interfaces,
            )| Rule {
                scope,
                users,
                cgroups,
                protocols,
                source,
                destination,
                source_ports,
                destination_ports,
                interfaces: interfaces.into_iter().map(String::from).collect(),
                ..rule(0)
            },
        )
}

fn any_probe() -> impl Strategy<Value = Probe> {
    (
        any_scope(),
        any_owner(),
        any_protocol(),
        prop_oneof![Just(2_u32), Just(3), Just(17), Just(99)],
        (any_address(), any_port()),
        (any_address(), any_port()),
    )
        .prop_map(
            |(scope, owner, protocol, interface, source, destination)| Probe {
                scope,
                owner,
                protocol,
                interface,
                source,
                destination,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn classifier_agrees_with_a_plain_first_match(
        rules in prop::collection::vec(any_rule(), 0..100),
        sets in any_sets(),
        probes in prop::collection::vec(any_probe(), 256),
    ) {
        let tables = compiled(&rules, &sets);
        for probe in &probes {
            let found = classified(&tables, probe);
            prop_assert_eq!(
                found.map(|found| found.rule as usize),
                oracle(&rules, &sets, probe),
                "{:?}", probe
            );
            if let Some(found) = found {
                prop_assert_eq!(found.entry.slot(), 100 + found.rule);
            }
            // What is asked about a fragment without ports.
            prop_assert_eq!(
                may_match(tables.as_slice(), &probe.flow()),
                Some(rules.iter().any(|rule| is_between(rule, &sets, probe))),
                "{:?}", probe
            );
        }
    }
}

fn probe(destination: &str, port: u16) -> Probe {
    let destination: IpAddr = destination.parse().unwrap();
    let source = if destination.is_ipv4() {
        "192.0.2.1"
    } else {
        "2001:db8::1"
    };
    Probe {
        scope: Scope::Forward,
        owner: Owner::user(0),
        protocol: Protocol::Tcp,
        interface: 2,
        source: (source.parse().unwrap(), 50000),
        destination: (destination, port),
    }
}

fn found(rules: &[Rule], probe: &Probe) -> Option<u32> {
    classified(&compiled(rules, &Sets::new()), probe).map(|found| found.rule)
}

#[test]
fn users_and_control_groups_are_asked_of_local_flows() {
    let local = |users: &[&str], cgroups: &[&str]| Rule {
        scope: Scope::Local,
        users: users.iter().map(|word| word.parse().unwrap()).collect(),
        cgroups: cgroups.iter().map(|word| word.parse().unwrap()).collect(),
        action: Action::Redirect,
        listener: Some("127.0.0.1:8080".parse().unwrap()),
        ..rule(0)
    };
    let rules = [
        local(&["1000-1999"], &[]),
        local(&[], &["system.slice"]),
        local(&["0"], &["gone.slice"]),
        local(&["0"], &["user.slice/x"]),
    ];
    let opened_by = |uid, groups: &[u64]| {
        let probe = Probe {
            scope: Scope::Local,
            owner: Owner {
                uid,
                groups: groups.to_vec(),
            },
            ..probe("10.0.0.1", 80)
        };
        let found = classified(&compiled(&rules, &Sets::new()), &probe)?;
        assert_eq!(found.entry.action(), Action::Redirect);
        Some(found.rule)
    };
    let (system, user) = (1 << 40, u64::MAX);
    assert_eq!(opened_by(999, &[]), None);
    assert_eq!(opened_by(1000, &[]), Some(0));
    assert_eq!(opened_by(1999, &[system]), Some(0));
    assert_eq!(opened_by(2000, &[system]), Some(1));
    assert_eq!(opened_by(0, &[5, user]), Some(3));
    assert_eq!(opened_by(1, &[5, user]), None);
    assert_eq!(opened_by(1, &[5, 6]), None);
    // In a group below one that a rule names; of several, the first rule decides.
    assert_eq!(opened_by(1, &[system, 5, 6]), Some(1));
    assert_eq!(opened_by(0, &[user, system]), Some(1));
    // As deep as is looked, and no deeper.
    let deep = |levels: u32| [vec![5; levels as usize - 1], vec![system]].concat();
    assert_eq!(opened_by(1, &deep(CGROUP_LEVELS)), Some(1));
    assert_eq!(opened_by(1, &deep(CGROUP_LEVELS + 1)), None);
    assert_eq!(found(&rules, &probe("10.0.0.1", 80)), None, "forwarded");
}

/// The port of SSH of this host's own is for rules that name it by itself.
#[test]
fn who_administers_the_host_is_not_caught_by_the_way() {
    let of = |scope, ports: &[&str]| Rule {
        scope,
        destination_ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
        ..rule(0)
    };
    let to = |scope, port| Probe {
        scope,
        ..probe("10.0.0.1", port)
    };
    for ports in [
        &[][..],
        &["1-65535"],
        &["20-22"],
        &["22-23"],
        &["21-23", "80"],
    ] {
        let inbound = [of(Scope::Inbound, ports)];
        assert_eq!(found(&inbound, &to(Scope::Inbound, 22)), None, "{ports:?}");
        for port in [21, 23] {
            let is_wanted = ports.is_empty()
                || inbound[0]
                    .destination_ports
                    .iter()
                    .any(|range| range.first() <= port && port <= range.last());
            let expected = is_wanted.then_some(0);
            assert_eq!(found(&inbound, &to(Scope::Inbound, port)), expected);
        }
        for scope in [Scope::Forward, Scope::Local] {
            assert_eq!(found(&[of(scope, ports)], &to(scope, 22)), Some(0));
        }
    }
    for ports in [&["22"][..], &["22-22"], &["1-65535", "22"], &["80", "22"]] {
        let inbound = [of(Scope::Inbound, ports)];
        assert_eq!(
            found(&inbound, &to(Scope::Inbound, 22)),
            Some(0),
            "{ports:?}"
        );
    }
}

#[test]
fn rules_that_name_link_local_destinations_are_known_by_their_entries() {
    let naming = |action, nets: &[&str]| {
        let mut rule = Rule { action, ..rule(0) };
        rule.destination.include = nets.iter().map(|net| net.parse().unwrap()).collect();
        let found = classified(
            &compiled(&[rule], &Sets::new()),
            &probe("169.254.169.254", 80),
        );
        let shuns = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            found.unwrap().entry.shuns(&address.into())
        };
        assert!(!shuns("169.253.255.255") && !shuns("169.255.0.0") && !shuns("fe80::1"));
        shuns("169.254.169.254")
    };
    for action in [Action::Relay, Action::Redirect] {
        for nets in [
            &[][..],
            &["0.0.0.0/0"],
            &["169.254.0.0/15"],
            &["10.0.0.0/8", "128.0.0.0/1"],
        ] {
            assert!(naming(action, nets), "{action:?} {nets:?}");
        }
        for nets in [
            &["169.254.0.0/16"][..],
            &["169.254.169.254/32"],
            &["0.0.0.0/0", "169.254.169.0/24"],
        ] {
            assert!(!naming(action, nets), "{action:?} {nets:?}");
        }
        // What is excluded is not named.
        for (nets, is_included, is_shunned) in [
            (&["169.254.169.254/32", "10.0.0.0/8"][..], true, false),
            (&["169.254.0.0/16"], true, false),
            (&["128.0.0.0/1"], true, true),
            (&["169.254.1.0/24"], false, true),
        ] {
            let mut rule = Rule { action, ..rule(0) };
            let name = SetName::new("some").unwrap();
            let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
            let named = if is_included {
                &mut rule.destination.include_sets
            } else {
                &mut rule.destination.exclude_sets
            };
            named.insert(name.clone());
            let sets = Sets::from([(name, Set::new(CidrList::new(nets.clone())))]);
            let found = classified(&compiled(&[rule], &sets), &probe("169.254.169.254", 80));
            let shuns = found
                .unwrap()
                .entry
                .shuns(&Address::v4([169, 254, 169, 254]));
            assert_eq!(shuns, is_shunned, "{action:?} {nets:?}");
        }
    }
    for action in [Action::Pass, Action::Drop, Action::Reject] {
        assert!(!naming(action, &[]), "{action:?}");
    }
}

#[test]
fn more_owners_than_the_limit_are_refused_and_as_many_are_told_apart() {
    let users = |count: usize| Rule {
        scope: Scope::Local,
        users: (0..count)
            .map(|place| (place * 2).to_string().parse().unwrap())
            .collect(),
        ..rule(0)
    };
    let rules = [users(OWNERS)];
    let opened_by = |uid| Probe {
        scope: Scope::Local,
        owner: Owner::user(uid),
        ..probe("10.0.0.1", 80)
    };
    let tables = compiled(&rules, &Sets::new());
    for uid in (0..2 * count(OWNERS)).step_by(2) {
        assert!(classified(&tables, &opened_by(uid)).is_some(), "{uid}");
        assert!(classified(&tables, &opened_by(uid + 1)).is_none(), "{uid}");
    }
    let rules = [users(OWNERS), rule(1), users(1)];
    assert_eq!(
        compile(&sources(&rules), &Sets::new(), 1),
        Err(CompileError::TooManyOwners(16_385))
    );
}

#[test]
fn no_rules_match_nothing() {
    assert_eq!(found(&[], &probe("10.0.0.1", 80)), None);
    assert_eq!(found(&[], &probe("2001:db8::2", 80)), None);
}

#[test]
fn a_rule_without_addresses_holds_for_both_families() {
    let rules = [Rule {
        destination_ports: vec!["80".parse().unwrap()],
        ..rule(0)
    }];
    assert_eq!(found(&rules, &probe("10.0.0.1", 80)), Some(0));
    assert_eq!(found(&rules, &probe("2001:db8::2", 80)), Some(0));
    assert_eq!(found(&rules, &probe("10.0.0.1", 81)), None);
}

#[test]
fn the_last_of_1024_rules_is_reached_and_one_more_is_refused() {
    let mut rules: Vec<Rule> = (0..RULES)
        .map(|index| Rule {
            destination_ports: vec![format!("{}", index + 1).parse().unwrap()],
            ..rule(index)
        })
        .collect();
    assert_eq!(found(&rules, &probe("10.0.0.1", 1024)), Some(1023));
    assert_eq!(found(&rules, &probe("10.0.0.1", 1025)), None);
    rules.push(rule(RULES));
    let refused = compile(&sources(&rules), &Sets::new(), 1);
    assert_eq!(refused, Err(CompileError::TooManyRules(1025)));
}

/// A set counts once, however many rules name it.
#[test]
fn more_cidrs_than_the_limit_are_refused() {
    let name = SetName::new("all").unwrap();
    let host = |index: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(index)));
    let hosts = u32::try_from(CIDRS).unwrap() - 2;
    let list = CidrList::new((0..hosts).map(host));
    let sets = Sets::from([(name.clone(), Set::new(list))]);
    let mut rules = vec![
        Rule {
            destination: AddressMatch {
                include_sets: BTreeSet::from([name]),
                ..AddressMatch::default()
            },
            ..rule(0)
        };
        3
    ];
    rules[2].source.include = vec![host(1)];
    rules[2].source.exclude = vec![host(2)];
    assert!(compile(&sources(&rules), &sets, 1).is_ok());
    rules[1].source.exclude = vec![host(1)];
    assert_eq!(
        compile(&sources(&rules), &sets, 1),
        Err(CompileError::TooManyCidrs(1_000_001))
    );
}

#[test]
fn a_set_that_is_not_there_and_too_many_sets_are_refused() {
    let name = |index: usize| SetName::new(&format!("set-{index}")).unwrap();
    let rules = [Rule {
        destination: AddressMatch {
            exclude_sets: BTreeSet::from([name(0)]),
            ..AddressMatch::default()
        },
        ..rule(0)
    }];
    let refused = compile(&sources(&rules), &Sets::new(), 1);
    assert_eq!(refused, Err(CompileError::NoSuchSet(name(0))));
    let sets: Sets = (0..=SETS)
        .map(|index| (name(index), Set::default()))
        .collect();
    let refused = compile(&sources(&rules), &sets, 1);
    assert_eq!(refused, Err(CompileError::TooManySets(SETS + 1)));
}

#[test]
fn tables_that_grow_over_the_limit_are_refused() {
    let nested = |index: u8| Rule {
        source: AddressMatch {
            include: vec![IpNet::new(Ipv4Addr::new(10, 0, 0, 0).into(), index).unwrap()],
            ..AddressMatch::default()
        },
        ..rule(usize::from(index))
    };
    let rules: Vec<Rule> = (8..=32).map(nested).collect();
    let sources = sources(&rules);
    let whole = compile(&sources, &Sets::new(), 1).unwrap();
    assert!(whole.classes >= 25, "{}", whole.classes);
    let limited = |most| compile_within(most, &sources, &Sets::new(), 1);
    assert_eq!(limited(whole.blocks.len()), Ok(whole.clone()));
    for most in [1, 10, whole.blocks.len() / 2] {
        let refused = limited(most).unwrap_err();
        assert!(
            matches!(refused, CompileError::TooManyBlocks { .. }),
            "{refused}"
        );
        assert!(
            refused
                .to_string()
                .contains(&format!("limit of {most} blocks"))
        );
    }
}

/// A rule that names an empty set takes nothing, in either family; one that excludes it, everything.
#[test]
fn an_empty_set_holds_no_address() {
    let name = SetName::new("nothing").unwrap();
    let sets = Sets::from([(name.clone(), Set::default())]);
    let (mut wants, mut excludes) = (rule(0), rule(1));
    wants.destination.include_sets.insert(name.clone());
    excludes.destination.exclude_sets.insert(name);
    let tables = compiled(&[wants, excludes], &sets);
    for address in ["10.0.0.1", "2001:db8::2"] {
        let found = classify(tables.as_slice(), &probe(address, 80).flow());
        assert_eq!(found.map(|found| found.rule), Some(1));
    }
}

#[test]
fn the_header_carries_the_generation() {
    let tables = compiled(&[rule(0)], &Sets::new());
    let header = tables.as_slice().header().unwrap();
    assert_eq!((header.generation(), header.rules()), (7, 1));
}

#[test]
fn a_hundred_thousand_prefixes_are_each_found_and_their_neighbours_are_not() {
    let rules = [Rule {
        destination: AddressMatch {
            include: (0..100_000_u32)
                .map(|index| {
                    IpNet::new(Ipv4Addr::from(0x0b00_0000 + index * 512).into(), 24).unwrap()
                })
                .collect(),
            ..AddressMatch::default()
        },
        ..rule(0)
    }];
    let tables = compiled(&rules, &Sets::new());
    for index in (0..100_000_u32).step_by(97) {
        for (offset, expected) in [(0, Some(0)), (255, Some(0)), (256, None), (511, None)] {
            let address = Ipv4Addr::from(0x0b00_0000 + index * 512 + offset).to_string();
            let found = classify(tables.as_slice(), &probe(&address, 80).flow());
            assert_eq!(found.map(|found| found.rule), expected, "{address}");
        }
    }
}

mod edits;
