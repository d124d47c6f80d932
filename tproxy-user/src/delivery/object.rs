//! The two kinds of object that delivery writes: how they are asked for, recognised and named.

use std::fmt;

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

/// The priority of our policy rules.
///
/// It has to be after `local` (0), and before every rule that could send a marked packet elsewhere:
/// `main` (32766) above all, but also the rules of other programs, of which the usual ones begin at
/// 512 (AWS VPC CNI), 1000 (VRF), 5210 (Tailscale) and 32764 (wg-quick). It must not be next to 0
/// either: the kernel gives a rule without a priority the one before the first rule after `local`,
/// and has to find room there.
pub const PRIORITY: u32 = 74;

/// The index of `lo`, the same in every network namespace (`LOOPBACK_IFINDEX`, `<net/flow.h>`).
pub(super) const LOOPBACK_INDEX: u32 = 1;

/// The mark and the routing table of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// The bits that the tc program sets in the mark of a packet. The policy rules test exactly
    /// these bits (`MARK/MARK`), so that other programs may use the others.
    pub mark: u32,
    /// The routing table with the local route.
    pub table: u32,
}

impl Assignment {
    /// The mark of the agent's upstream connections. Where the steering mark has several bits it
    /// lacks the lowest, where that has one it is a neighbouring bit: either way `MARK/MARK` does
    /// not select it.
    #[must_use]
    pub const fn upstream_mark(&self) -> u32 {
        upstream_mark(self.mark)
    }
}

/// See [`Assignment::upstream_mark`].
pub(super) const fn upstream_mark(mark: u32) -> u32 {
    match mark & mark.wrapping_sub(1) {
        0 => mark.rotate_left(1),
        without_lowest => without_lowest,
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One rule or route of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    /// `local default dev lo table TABLE`
    Route(Family),
    /// `iif INTERFACE fwmark MARK/MARK lookup TABLE`
    Rule(Family, String),
}

impl Object {
    pub(super) fn family(&self) -> Family {
        match self {
            Self::Route(family) | Self::Rule(family, _) => *family,
        }
    }

    pub(super) fn creation(&self, assignment: Assignment) -> RouteNetlinkMessage {
        match self {
            Self::Route(family) => RouteNetlinkMessage::NewRoute(route(*family, assignment)),
            Self::Rule(family, interface) => {
                RouteNetlinkMessage::NewRule(rule(*family, interface, assignment))
            }
        }
    }

    pub(super) fn deletion(&self, assignment: Assignment) -> RouteNetlinkMessage {
        match self {
            Self::Route(family) => RouteNetlinkMessage::DelRoute(route(*family, assignment)),
            Self::Rule(family, interface) => {
                RouteNetlinkMessage::DelRule(rule(*family, interface, assignment))
            }
        }
    }

    /// The object as `ip` writes it, with its kind and its family.
    pub(super) fn describe(&self, Assignment { mark, table }: Assignment) -> String {
        match self {
            Self::Route(family) => {
                format!("route \"local default dev lo table {table}\" ({family})")
            }
            Self::Rule(family, interface) => format!(
                "policy rule \"iif {interface} fwmark {mark:#x}/{mark:#x} lookup {table}\" ({family})"
            ),
        }
    }
}

/// Rules and routes both carry `protocol kernel`: systemd-networkd removes those of any other
/// protocol that it did not make itself.
fn rule(family: Family, interface: &str, Assignment { mark, table }: Assignment) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.number();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Iifname(interface.to_owned()),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(mark),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
    ];
    rule
}

fn route(family: Family, Assignment { table, .. }: Assignment) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family.number();
    route.header.kind = RouteType::Local;
    route.header.protocol = RouteProtocol::Kernel;
    // IPv4 takes a local route in scope host only; IPv6 knows no scopes.
    route.header.scope = RouteScope::Host;
    route.attributes = vec![
        RouteAttribute::Table(table),
        RouteAttribute::Oif(LOOPBACK_INDEX),
    ];
    route
}

/// The object that a rule read from the kernel is, if it is exactly one that we would write.
pub(super) fn rule_of_ours(
    rule: &RuleMessage,
    family: Family,
    assignment: Assignment,
) -> Option<Object> {
    let header = &rule.header;
    let plain = header.family == family.number()
        && header.action == RuleAction::ToTable
        && (header.src_len, header.dst_len, header.tos) == (0, 0, 0)
        && !header.flags.contains(RuleFlags::Invert);
    if !plain {
        return None;
    }
    let mut interface = None;
    let mut fwmark = (0, 0);
    let (mut priority, mut protocol) = (0, RouteProtocol::Unspec);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Iifname(name) => interface = Some(name),
            RuleAttribute::FwMark(value) => fwmark.0 = *value,
            RuleAttribute::FwMask(mask) => fwmark.1 = *mask,
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Protocol(value) => protocol = *value,
            // The kernel always writes these two; all ones mean that nothing is suppressed.
            RuleAttribute::Table(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            _ => return None,
        }
    }
    let ours = fwmark == (assignment.mark, assignment.mark)
        && table_of_rule(rule) == assignment.table
        && priority == PRIORITY
        && protocol == RouteProtocol::Kernel;
    let interface = interface.filter(|_| ours)?;
    Some(Object::Rule(family, interface.clone()))
}

/// The object that a route read from the kernel is, if it is exactly one that we would write.
pub(super) fn route_of_ours(
    route: &RouteMessage,
    family: Family,
    assignment: Assignment,
) -> Option<Object> {
    let header = &route.header;
    let ours = header.address_family == family.number()
        && header.kind == RouteType::Local
        && header.protocol == RouteProtocol::Kernel
        && (
            header.destination_prefix_length,
            header.source_prefix_length,
            header.tos,
        ) == (0, 0, 0)
        && table_of_route(route) == assignment.table
        && route
            .attributes
            .contains(&RouteAttribute::Oif(LOOPBACK_INDEX));
    ours.then_some(Object::Route(family))
}

/// The table that a rule looks up; 0 for a rule that looks up none.
pub(super) fn table_of_rule(rule: &RuleMessage) -> u32 {
    let attribute = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        });
    attribute.unwrap_or_else(|| rule.header.table.into())
}

/// The table that a route is in.
pub(super) fn table_of_route(route: &RouteMessage) -> u32 {
    let attribute = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    attribute.unwrap_or_else(|| route.header.table.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upstream_mark_is_not_selected_by_the_steering_mark() {
        for mark in [0x7470_0000, 1, 2, 0x8000_0000, 0xffff_ffff, 3] {
            let upstream = upstream_mark(mark);
            assert_ne!(upstream, 0);
            assert_ne!(upstream & mark, mark, "{mark:#x}");
        }
    }
}
