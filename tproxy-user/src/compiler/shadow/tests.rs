use proptest::prelude::*;

use super::*;
use crate::{
    compiler::{Source, compile},
    rule::{Rule, RuleSpec},
    set::Sets,
};

const INTERFACES: [&str; 2] = ["eth0", "eth1"];

fn rule(edit: impl FnOnce(&mut RuleSpec)) -> Rule {
    let mut spec = RuleSpec {
        name: Some("rule".into()),
        proto: Some("any".into()),
        action: Some("pass".into()),
        ..RuleSpec::default()
    };
    edit(&mut spec);
    spec.validate().unwrap()
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn found(rules: &[Rule]) -> Vec<(usize, Vec<usize>)> {
    found_with(rules, |_| true)
}

fn found_with(rules: &[Rule], lasting: impl Fn(usize) -> bool) -> Vec<(usize, Vec<usize>)> {
    let sources: Vec<Source<'_>> = rules
        .iter()
        .map(|rule| Source {
            rule,
            slot: 0,
            interfaces: (1..)
                .zip(INTERFACES)
                .filter(|(_, name)| rule.interfaces.iter().any(|wanted| wanted == name))
                .map(|(index, _)| index)
                .collect(),
            cgroups: Vec::new(),
        })
        .collect();
    let tables = compile(&sources, &Sets::new(), 1).unwrap();
    let rules: Vec<&Rule> = rules.iter().collect();
    shadowed(tables.blocks.as_slice(), &rules, lasting)
        .into_iter()
        .map(|found| (found.rule, found.by))
        .collect()
}

#[test]
fn a_rule_behind_one_that_takes_everything_can_never_match() {
    let web = || rule(|spec| spec.dport = words(&["80"]));
    assert_eq!(found(&[rule(|_| ()), web()]), [(1, vec![0])]);
    assert_eq!(found(&[web(), rule(|_| ())]), []);
    assert_eq!(found(&[web(), web(), web()]), [(1, vec![0]), (2, vec![0])]);
    assert_eq!(found(&[]), []);
}

#[test]
fn a_rule_that_will_be_gone_hides_none() {
    let rules = [rule(|_| ()), rule(|_| ()), rule(|_| ())];
    let lasting = |place| place != 0;
    assert_eq!(found_with(&rules, lasting), [(2, vec![1])]);
}

#[test]
fn every_dimension_counts() {
    type Edit = fn(&mut RuleSpec);
    let cases: [(Edit, Edit); 8] = [
        (|_| (), |spec| spec.proto = Some("udp".into())),
        (|_| (), |spec| spec.iface = words(&["eth0"])),
        (
            |spec| spec.src = words(&["10.0.0.0/8", "!10.1.0.0/16"]),
            |spec| spec.src = words(&["10.2.0.0/16", "10.0.0.1"]),
        ),
        (
            |spec| spec.dst = words(&["2001:db8::/32"]),
            |spec| spec.dst = words(&["2001:db8::1", "2001:db8:1::/48"]),
        ),
        (
            |spec| spec.dst = words(&["!192.0.2.0/24"]),
            |spec| spec.dst = words(&["!192.0.0.0/16"]),
        ),
        (
            |spec| spec.sport = words(&["1000-1999", "2000-2999"]),
            |spec| spec.sport = words(&["1500-2500"]),
        ),
        (
            |spec| spec.scope = Some("local".into()),
            |spec| {
                spec.scope = Some("local".into());
                spec.uid = words(&["1000"]);
            },
        ),
        (
            |spec| {
                spec.scope = Some("local".into());
                spec.uid = words(&["0-4294967294"]);
            },
            |spec| spec.scope = Some("local".into()),
        ),
    ];
    for (place, (wide, narrow)) in cases.into_iter().enumerate() {
        let (wide, narrow) = (rule(wide), rule(narrow));
        assert_eq!(
            found(&[wide.clone(), narrow.clone()]),
            [(1, vec![0])],
            "case {place}"
        );
        let other_way = found(&[narrow, wide]);
        assert!(other_way.is_empty() || place == 7, "case {place}");
    }
}

#[test]
fn a_rule_for_one_family_does_not_hide_one_for_both() {
    let v4 = rule(|spec| spec.dst = words(&["0.0.0.0/0"]));
    let v6 = rule(|spec| spec.dst = words(&["::/0"]));
    let both = rule(|_| ());
    assert_eq!(found(&[v4.clone(), both.clone()]), []);
    assert_eq!(found(&[v4, v6, both]), [(2, vec![0, 1])]);
}

#[test]
fn rules_hide_one_between_them() {
    let ports = |range: &str| rule(|spec| spec.dport = words(&[range]));
    let rules = [ports("1-100"), ports("101-200"), ports("50-150")];
    assert_eq!(found(&rules), [(2, vec![0, 1])]);
    let rules = [ports("1-100"), ports("102-200"), ports("50-150")];
    assert_eq!(found(&rules), []);
    // The quarters of a square, and the square.
    let quarter = |src: &str, dst: &str| {
        rule(|spec| {
            spec.src = words(&[src]);
            spec.dst = words(&[dst]);
        })
    };
    let (low, high) = ("10.0.0.0/9", "10.128.0.0/9");
    let mut rules = vec![
        quarter(low, low),
        quarter(low, high),
        quarter(high, low),
        quarter(high, high),
        quarter("10.0.0.0/8", "10.0.0.0/8"),
    ];
    assert_eq!(found(&rules), [(4, vec![0, 1, 2, 3])]);
    rules.remove(2);
    assert_eq!(found(&rules), []);
}

#[test]
fn a_rule_that_matches_nothing_by_itself_is_not_hidden() {
    let absent = rule(|spec| spec.iface = words(&["gone"]));
    assert_eq!(found(&[rule(|_| ()), absent]), []);
}

#[test]
fn a_control_group_hides_those_below_it() {
    let of = |groups: &[&str]| {
        rule(|spec| {
            spec.scope = Some("local".into());
            spec.cgroup = words(groups);
        })
    };
    assert_eq!(found(&[of(&["a"]), of(&["a"])]), [(1, vec![0])]);
    assert_eq!(found(&[of(&["a"]), of(&["a/b"])]), [(1, vec![0])]);
    assert_eq!(found(&[of(&["a"]), of(&["a/b/c", "a/d"])]), [(1, vec![0])]);
    assert_eq!(found(&[of(&["a", "b"]), of(&["b/c"])]), [(1, vec![0])]);
    let between = [of(&["a"]), of(&["c"]), of(&["a/b", "c/d"])];
    assert_eq!(found(&between), [(2, vec![0, 1])]);
    // Others are in the group above, beside it, or in one whose name only begins alike.
    assert_eq!(found(&[of(&["a/b"]), of(&["a"])]), []);
    assert_eq!(found(&[of(&["a/b"]), of(&["a/c"]), of(&["a"])]), []);
    assert_eq!(found(&[of(&["a"]), of(&["ab", "b/a"])]), []);
    assert_eq!(found(&[of(&["a"]), of(&["a/b", "c"])]), []);
    assert_eq!(found(&[of(&["a"]), of(&["c"]), of(&[])]), []);
    // The other dimensions count beside it.
    let web = |group: &str| {
        let mut web = of(&[group]);
        web.destination_ports = rule(|spec| spec.dport = words(&["80"])).destination_ports;
        web
    };
    assert_eq!(found(&[web("a"), of(&["a/b"])]), []);
    assert_eq!(found(&[of(&["a"]), web("a/b")]), [(1, vec![0])]);
    assert_eq!(found(&[of(&[]), of(&["a/b"])]), [(1, vec![0])]);
}

/// All of this would take longer than anybody waits, and is given up instead.
#[test]
fn a_search_without_end_is_given_up() {
    let rules: Vec<Rule> = (0..1000)
        .map(|place: u32| {
            rule(|spec| {
                let word = |number: u32| format!("10.{}.0.0/16", number % 40);
                spec.src = (0..20).map(|step| word(place * 7 + step * 3)).collect();
                spec.dst = (0..20).map(|step| word(place * 11 + step * 7)).collect();
                spec.sport = vec![format!("{}-{}", place % 30 + 1, place % 30 + 20)];
                spec.dport = vec![format!("{}-{}", place % 31 + 1, place % 31 + 20)];
            })
        })
        .collect();
    let started = std::time::Instant::now();
    let _ = found(&rules);
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

/// A small world whose flows can be counted out.
fn any_rule() -> impl Strategy<Value = Rule> {
    let ports = || prop::collection::vec((1_u16..5, 0_u16..3), 0..2);
    let addresses = || prop::collection::vec((0_u8..4, 29_u8..33, any::<bool>()), 0..3);
    (
        prop_oneof![Just("tcp"), Just("udp"), Just("any")],
        addresses(),
        addresses(),
        ports(),
        ports(),
        prop::collection::vec(prop_oneof![Just("eth0"), Just("eth1")], 0..2),
    )
        .prop_map(|(proto, src, dst, sport, dport, iface)| {
            let ports = |ranges: Vec<(u16, u16)>| {
                let word = |(first, more)| format!("{first}-{}", first + more);
                ranges.into_iter().map(word).collect()
            };
            let addresses = |prefixes: Vec<(u8, u8, bool)>| {
                let word = |(host, length, excluded)| {
                    format!(
                        "{}10.0.0.{}/{length}",
                        if excluded { "!" } else { "" },
                        host * 3
                    )
                };
                prefixes.into_iter().map(word).collect()
            };
            rule(|spec| {
                spec.proto = Some(proto.into());
                spec.src = addresses(src);
                spec.dst = addresses(dst);
                spec.sport = ports(sport);
                spec.dport = ports(dport);
                spec.iface = words(&iface);
            })
        })
}

mod enumeration {
    //! First match by the plain reading of the rules, over every flow that rules can tell apart.

    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use tproxy_common::flow::Protocol;

    use super::Rule;

    /// For each rule, whether some flow that it matches is left to it.
    pub(super) fn can_match(rules: &[Rule]) -> Vec<(bool, bool)> {
        let mut found = vec![(false, false); rules.len()];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for interface in ["eth0", "eth1", "eth2"] {
                for (source, destination) in pairs() {
                    for source_port in 0..9 {
                        for destination_port in 0..9 {
                            let mut taken = false;
                            for (rule, found) in rules.iter().zip(&mut found) {
                                let matches = rule.protocols.contains(&protocol)
                                    && (rule.interfaces.is_empty()
                                        || rule.interfaces.iter().any(|name| name == interface))
                                    && port(&rule.source_ports, source_port)
                                    && port(&rule.destination_ports, destination_port)
                                    && address(&rule.source, source)
                                    && address(&rule.destination, destination);
                                found.0 |= matches;
                                found.1 |= matches && !taken;
                                taken |= matches;
                            }
                        }
                    }
                }
            }
        }
        found
    }

    /// Addresses on both sides of every boundary that rules of the test can have.
    fn pairs() -> Vec<(IpAddr, IpAddr)> {
        let hosts: Vec<IpAddr> = (0..17)
            .map(|host| Ipv4Addr::new(10, 0, 0, host).into())
            .collect();
        let mut pairs: Vec<(IpAddr, IpAddr)> = Vec::new();
        for source in &hosts {
            pairs.extend(hosts.iter().map(|destination| (*source, *destination)));
        }
        pairs.push((Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()));
        pairs
    }

    fn port(wanted: &[crate::rule::PortRange], port: u16) -> bool {
        let holds = |range: &crate::rule::PortRange| (range.first()..=range.last()).contains(&port);
        wanted.is_empty() || wanted.iter().any(holds)
    }

    fn address(wanted: &crate::rule::AddressMatch, address: IpAddr) -> bool {
        let any = |prefixes: &[ipnet::IpNet]| prefixes.iter().any(|net| net.contains(&address));
        (wanted.include.is_empty() || any(&wanted.include)) && !any(&wanted.exclude)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// In a world this small nothing is given up: what is found is exactly what can never match.
    #[test]
    fn what_is_found_is_what_no_flow_is_left_to(rules in prop::collection::vec(any_rule(), 1..7)) {
        let found: Vec<usize> = found(&rules).into_iter().map(|(rule, _)| rule).collect();
        let expected: Vec<usize> = enumeration::can_match(&rules)
            .into_iter()
            .enumerate()
            .filter(|(_, (matches, first))| *matches && !first)
            .map(|(place, _)| place)
            .collect();
        prop_assert_eq!(found, expected);
    }

    /// The rules that are named take everything, without the others.
    #[test]
    fn those_that_are_named_are_enough(rules in prop::collection::vec(any_rule(), 1..7)) {
        for (rule, by) in found(&rules) {
            let mut few: Vec<Rule> = by.iter().map(|place| rules[*place].clone()).collect();
            few.push(rules[rule].clone());
            let last = enumeration::can_match(&few).pop();
            prop_assert_eq!(last, Some((true, false)));
        }
    }
}
