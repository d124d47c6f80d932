//! Rules whose addresses no flow has that rules decide about.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tproxy_common::{flow::Scope, tables::Action};

use super::{AddressMatch, Rule};

/// What is left alone as a destination, whatever the rules say: all that
/// [`is_forwardable`](tproxy_common::address::Address::is_forwardable) refuses.
const NO_DESTINATIONS: [IpNet; 7] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    // Multicast, reserved and broadcast.
    v4([224, 0, 0, 0], 3),
    UNSPECIFIED_AND_LOOPBACK,
    v6(0xffff << 32, 96),
    V6_MULTICAST,
    V6_LINK_LOCAL,
];

/// Where no packet comes from that the kernel delivers or forwards (`ip_route_input_slow`,
/// `ip6_rcv_core`).
const NO_SOURCES: [IpNet; 6] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([224, 0, 0, 0], 4),
    v4([255, 255, 255, 255], 32),
    UNSPECIFIED_AND_LOOPBACK,
    V6_MULTICAST,
];

const UNSPECIFIED_AND_LOOPBACK: IpNet = v6(0, 127);
const V6_MULTICAST: IpNet = v6(0xff << 120, 8);
const V6_LINK_LOCAL: IpNet = v6(0xfe80 << 112, 10);

const fn v4(octets: [u8; 4], length: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(bits: u128, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length))
}

impl Rule {
    /// What is to be said of a rule, called `name`, that takes nothing because no flow has its
    /// addresses. Nothing is said of one that leaves flows alone, since that is what becomes of them
    /// anyway.
    #[must_use]
    pub fn want_of_flows(&self, name: &str) -> Option<String> {
        if self.action == Action::Pass {
            return None;
        }
        if is_within(&self.destination, &self.no_destinations()) {
            let nets = listed(&self.destination.include);
            return Some(format!(
                "rule {name} takes nothing: what goes to {nets} is left alone, whatever the rules say"
            ));
        }
        // What is discarded on arrival may have any source, and so may a socket of this host.
        let is_delivered = matches!(self.action, Action::Relay | Action::Redirect);
        if is_delivered && self.scope != Scope::Local && is_within(&self.source, &NO_SOURCES) {
            let nets = listed(&self.source.include);
            return Some(format!(
                "rule {name} takes nothing: no flow comes from {nets}"
            ));
        }
        None
    }

    fn no_destinations(&self) -> Vec<IpNet> {
        // A host has link-local addresses of its own.
        let is_possible = |net: &IpNet| self.scope == Scope::Inbound && *net == V6_LINK_LOCAL;
        let nets = NO_DESTINATIONS.into_iter();
        nets.filter(|net| !is_possible(net)).collect()
    }
}

/// Whether all that is asked for lies in one of these. What a set holds may be another thing tomorrow.
fn is_within(addresses: &AddressMatch, nets: &[IpNet]) -> bool {
    let lies_within = |net: &IpNet| nets.iter().any(|holder| holder.contains(net));
    !addresses.include.is_empty()
        && addresses.include_sets.is_empty()
        && addresses.include.iter().all(lies_within)
}

/// The first few, and how many more there are.
fn listed(nets: &[IpNet]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = nets.iter().take(SHOWN).map(ToString::to_string).collect();
    match nets.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tproxy_common::address::Address;

    use super::*;
    use crate::rule::RuleSpec;

    fn said(edit: impl FnOnce(&mut RuleSpec)) -> Option<String> {
        let mut spec = RuleSpec::default();
        edit(&mut spec);
        spec.check().unwrap().want_of_flows("web")
    }

    fn words(list: &str) -> Vec<String> {
        list.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn destinations_that_no_flow_has_are_spoken_of() {
        for list in [
            "224.0.0.0/4",
            "0.0.0.0",
            "255.255.255.255",
            "127.0.0.1,::1",
            "::",
            "ff02::fb",
            "fe80::/64",
        ] {
            let said = said(|spec| spec.dst = words(list)).expect(list);
            assert!(
                said.starts_with("rule web takes nothing: what goes to "),
                "{said}"
            );
            assert!(
                said.ends_with(" is left alone, whatever the rules say"),
                "{said}"
            );
        }
        let many = said(|spec| spec.dst = words("224.0.0.1,224.0.0.2,224.0.0.3,224.0.0.4,::"));
        assert!(many.unwrap().contains("224.0.0.4/32 and 1 more is left"));
    }

    #[test]
    fn sources_that_no_flow_has_are_spoken_of() {
        for list in ["255.255.255.255", "0.0.0.0/8", "224.0.0.1,ff00::/8", "::"] {
            let said = said(|spec| spec.src = words(list)).expect(list);
            assert!(
                said.starts_with("rule web takes nothing: no flow comes from "),
                "{said}"
            );
        }
    }

    #[test]
    fn nothing_is_said_where_a_flow_may_come() {
        let edits: [fn(&mut RuleSpec); 10] = [
            |_| {},
            |spec| spec.dst = words("0.0.0.0/0"),
            |spec| spec.dst = words("::/0,224.0.0.0/4"),
            |spec| spec.dst = words("224.0.0.0/4,set:some"),
            |spec| spec.dst = words("!224.0.0.0/4"),
            |spec| (spec.src, spec.dst) = (words("0.0.0.0/0"), words("192.0.0.0/2")),
            |spec| (spec.dst, spec.action) = (words("224.0.0.0/4"), Some("pass".into())),
            |spec| (spec.src, spec.action) = (words("0.0.0.0/8"), Some("drop".into())),
            |spec| (spec.src, spec.scope) = (words("0.0.0.0"), Some("local".into())),
            |spec| (spec.dst, spec.scope) = (words("fe80::1"), Some("inbound".into())),
        ];
        for edit in edits {
            assert_eq!(said(edit), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_no_destination_is_not_forwarded_to(address: std::net::IpAddr) {
            let is_none = NO_DESTINATIONS.iter().any(|net| net.contains(&address));
            prop_assert_eq!(is_none, !Address::from(address).is_forwardable());
        }
    }

    #[test]
    fn the_edges_of_what_is_no_destination_are_not_forwarded_to() {
        for net in NO_DESTINATIONS {
            for edge in [net.network(), net.broadcast()] {
                assert!(!Address::from(edge).is_forwardable(), "{edge}");
            }
        }
    }
}
