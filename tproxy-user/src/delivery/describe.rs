//! Policy rules and routes of others as `ip rule` and `ip route` write them, for messages.

use std::{collections::HashMap, fmt::Write as _, net::IpAddr};

use rtnetlink::packet_route::{
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::object::table_of_rule;

/// A rule as in `32765: from all fwmark 0x1/0xff lookup 100`.
pub(super) fn describe_rule(rule: &RuleMessage) -> String {
    let mut selectors = RuleSelectors::of(rule);
    let mut text = format!("{}: ", selectors.priority);
    if rule.header.flags.contains(RuleFlags::Invert) {
        text.push_str("not ");
    }
    let source = prefix(selectors.source.take(), rule.header.src_len);
    let _ = write!(text, "from {}", source.as_deref().unwrap_or("all"));
    if let Some(destination) = prefix(selectors.destination.take(), rule.header.dst_len) {
        let _ = write!(text, " to {destination}");
    }
    match selectors.fwmark {
        None => {}
        Some(Fwmark {
            value,
            mask: u32::MAX,
        }) => {
            let _ = write!(text, " fwmark {value:#x}");
        }
        Some(Fwmark { value, mask }) => {
            let _ = write!(text, " fwmark {value:#x}/{mask:#x}");
        }
    }
    if let Some(interface) = selectors.iif {
        let _ = write!(text, " iif {interface}");
    }
    if let Some(interface) = selectors.oif {
        let _ = write!(text, " oif {interface}");
    }
    let _ = match rule.header.action {
        RuleAction::ToTable => write!(text, " lookup {}", table_name(table_of_rule(rule))),
        RuleAction::Goto => write!(text, " goto {}", selectors.goto),
        RuleAction::Nop => write!(text, " nop"),
        RuleAction::Blackhole => write!(text, " blackhole"),
        RuleAction::Unreachable => write!(text, " unreachable"),
        RuleAction::Prohibit => write!(text, " prohibit"),
        other => write!(text, " action {}", u8::from(other)),
    };
    if !matches!(
        selectors.protocol,
        RouteProtocol::Unspec | RouteProtocol::Kernel
    ) {
        let _ = write!(text, " proto {}", selectors.protocol);
    }
    text
}

/// What the attributes of a rule say, as far as messages and decisions need it.
#[derive(Default)]
pub(super) struct RuleSelectors<'a> {
    pub(super) priority: u32,
    pub(super) fwmark: Option<Fwmark>,
    pub(super) iif: Option<&'a str>,
    pub(super) oif: Option<&'a str>,
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    goto: u32,
    protocol: RouteProtocol,
}

/// The marks that a rule selects: those whose bits under the mask are these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fwmark {
    pub(super) value: u32,
    pub(super) mask: u32,
}

impl<'a> RuleSelectors<'a> {
    pub(super) fn of(rule: &'a RuleMessage) -> Self {
        let mut selectors = Self::default();
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => selectors.priority = *priority,
                // The kernel leaves out a value of zero, and writes a mask for every rule on marks.
                RuleAttribute::FwMark(value) => {
                    selectors
                        .fwmark
                        .get_or_insert(Fwmark {
                            value: 0,
                            mask: u32::MAX,
                        })
                        .value = *value;
                }
                RuleAttribute::FwMask(mask) => {
                    selectors
                        .fwmark
                        .get_or_insert(Fwmark { value: 0, mask: 0 })
                        .mask = *mask;
                }
                RuleAttribute::Iifname(name) => selectors.iif = Some(name),
                RuleAttribute::Oifname(name) => selectors.oif = Some(name),
                RuleAttribute::Source(address) => selectors.source = Some(*address),
                RuleAttribute::Destination(address) => selectors.destination = Some(*address),
                RuleAttribute::Goto(priority) => selectors.goto = *priority,
                RuleAttribute::Protocol(protocol) => selectors.protocol = *protocol,
                _ => {}
            }
        }
        selectors
    }

    /// Whether this is the rule's source or destination.
    pub(super) fn names(&self, address: IpAddr) -> bool {
        [self.source, self.destination].contains(&Some(address))
    }
}

/// A route, without its table, as in `default via 10.0.0.1 dev eth0`. `links` has the name of each interface index.
pub(super) fn describe_route(route: &RouteMessage, links: &HashMap<u32, String>) -> String {
    let destination = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
    let destination = prefix(destination, route.header.destination_prefix_length);
    let mut text = String::from(type_name(route.header.kind));
    text.push_str(destination.as_deref().unwrap_or("default"));
    for attribute in &route.attributes {
        let _ = match attribute {
            RouteAttribute::Gateway(address) => match ip(address) {
                Some(address) => write!(text, " via {address}"),
                None => Ok(()),
            },
            RouteAttribute::Oif(index) => match links.get(index) {
                Some(name) => write!(text, " dev {name}"),
                None => write!(text, " dev if{index}"),
            },
            _ => Ok(()),
        };
    }
    text
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// An address of full length stands without its length, as `ip` writes it.
fn prefix(address: Option<IpAddr>, length: u8) -> Option<String> {
    let address = address?;
    let full = if address.is_ipv4() { 32 } else { 128 };
    Some(if length == full {
        address.to_string()
    } else {
        format!("{address}/{length}")
    })
}

/// The word before the destination; a unicast route has none.
fn type_name(kind: RouteType) -> &'static str {
    match kind {
        RouteType::Local => "local ",
        RouteType::Broadcast => "broadcast ",
        RouteType::Anycast => "anycast ",
        RouteType::Multicast => "multicast ",
        RouteType::BlackHole => "blackhole ",
        RouteType::Unreachable => "unreachable ",
        RouteType::Prohibit => "prohibit ",
        RouteType::Throw => "throw ",
        _ => "",
    }
}

/// The names that `ip` knows without configuration (`<linux/rtnetlink.h>`, `rt_class_t`).
fn table_name(table: u32) -> String {
    match table {
        253 => "default".into(),
        254 => "main".into(),
        255 => "local".into(),
        other => other.to_string(),
    }
}
