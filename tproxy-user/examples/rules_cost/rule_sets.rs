//! Rule sets of a given size.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tproxy_user::rule::Rule;

use crate::sandbox::{rule, words};

/// Rules with so many random CIDRs, half of each family; one CIDR is one of each.
pub(crate) fn rule_set(rules: u32, cidrs: u32) -> Vec<Rule> {
    // The last rule has two of its own.
    let others = random_prefixes().take(cidrs.saturating_sub(2) as usize);
    rules_with(rules, others)
}

/// Rules that have these CIDRs in turn. The last rule relays port 443 to [`HIT`] and [`HIT_V6`], beside
/// its share of them. Each of the others has a port of its own.
pub(crate) fn rules_with(rules: u32, prefixes: impl Iterator<Item = IpNet>) -> Vec<Rule> {
    let mut made: Vec<Rule> = (1..rules).map(port_rule).collect();
    made.push(rule(|spec| {
        spec.dport = words(&["443"]);
        spec.dst = words(&[HIT, HIT_V6]);
    }));
    for (prefix, place) in prefixes.zip((0..made.len()).cycle()) {
        made[place].destination.include.push(prefix);
    }
    made
}

/// What the last rule takes.
const HIT: &str = "192.0.2.0/24";
const HIT_V6: &str = "2001:db8::/32";

fn port_rule(number: u32) -> Rule {
    rule(|spec| {
        spec.action = Some("pass".into());
        spec.dport = vec![(10_000 + number).to_string()];
    })
}

/// Distinct networks of both families in turn, in no order: /24 and /48.
pub(crate) fn random_prefixes() -> impl Iterator<Item = IpNet> {
    // Multiplication by an odd number permutes the numbers of a width.
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    (1_u64..).flat_map(|number| {
        let mixed = number.wrapping_mul(ODD);
        let [.., a, b, c] = mixed.to_be_bytes();
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), 24);
        let network = 0x2000_u128 << 112 | u128::from(mixed & 0x1fff_ffff_ffff) << 80;
        let v6 = Ipv6Net::new_assert(Ipv6Addr::from(network), 48);
        [IpNet::from(v4), IpNet::from(v6)]
    })
}
