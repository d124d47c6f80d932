//! The objects that delivery writes, policy rules and routes: how they are asked for, recognised and
//! named.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::Assignment;

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

/// The interface that policy rules see what this host sends come in on.
pub(super) const LOOPBACK: &str = "lo";

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

/// One rule or route of ours. Their order is that in which they are added: routes first, so that no
/// rule ever looks up an empty table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    /// `local default dev lo table TABLE`
    Route(Family),
    /// `local PREFIX dev lo src SOURCE table TABLE`
    SourceRoute(SourceRoute),
    /// `iif INTERFACE fwmark MARK/MARK lookup TABLE`
    Rule(Family, String),
    /// `iif lo ipproto tcp fwmark MARK/MARK lookup TABLE`, for IPv6: TCP sockets are marked when they
    /// have a source.
    LocalTcpRule,
    /// `iif lo ipproto udp fwmark MARK/MARK lookup TABLE suppress_prefixlength 0`, for IPv6
    LocalUdpRule,
    /// `from STAND_IN iif lo lookup TABLE`
    FromStandIn(Family),
    /// `to STAND_IN iif lo lookup TABLE`, for IPv6: that of IPv4 is local anyway.
    ToStandIn,
}

/// A route that says which source a socket of this host gets when it connects to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SourceRoute {
    pub(super) prefix: IpNet,
    /// Unspecified where the kernel shall choose, for IPv6.
    pub(super) source: IpAddr,
}

/// How many routes with a source are written at most for a family. Those with the longest prefixes
/// are left out: their flows get the source of a shorter one.
pub(super) const LIMIT: usize = 1024;

impl Object {
    pub(super) fn family(&self) -> Family {
        match self {
            Self::Route(family) | Self::Rule(family, _) | Self::FromStandIn(family) => *family,
            Self::SourceRoute(of) => of.family(),
            Self::LocalTcpRule | Self::LocalUdpRule | Self::ToStandIn => Family::V6,
        }
    }

    /// Whether this takes the place of another one, which the kernel does in one step.
    pub(super) fn succeeds(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::SourceRoute(of), Self::SourceRoute(other)) => of.prefix == other.prefix,
            _ => false,
        }
    }

    pub(super) fn creation(&self, assignment: Assignment) -> RouteNetlinkMessage {
        match self.message(assignment) {
            Message::Route(route) => RouteNetlinkMessage::NewRoute(route),
            Message::Rule(rule) => RouteNetlinkMessage::NewRule(rule),
        }
    }

    pub(super) fn deletion(&self, assignment: Assignment) -> RouteNetlinkMessage {
        match self.message(assignment) {
            Message::Route(route) => RouteNetlinkMessage::DelRoute(route),
            Message::Rule(rule) => RouteNetlinkMessage::DelRule(rule),
        }
    }

    fn message(&self, assignment: Assignment) -> Message {
        match self {
            Self::Route(family) => Message::Route(route(*family, assignment)),
            Self::SourceRoute(of) => Message::Route(source_route(*of, assignment)),
            Self::Rule(family, interface) => {
                Message::Rule(marked_rule(*family, interface, assignment))
            }
            Self::LocalTcpRule => {
                let mut rule = marked_rule(Family::V6, LOOPBACK, assignment);
                rule.attributes
                    .push(RuleAttribute::IpProtocol(IpProtocol::Tcp));
                Message::Rule(rule)
            }
            Self::LocalUdpRule => {
                let mut rule = marked_rule(Family::V6, LOOPBACK, assignment);
                rule.attributes.extend([
                    RuleAttribute::IpProtocol(IpProtocol::Udp),
                    RuleAttribute::SuppressPrefixLen(0),
                ]);
                Message::Rule(rule)
            }
            Self::FromStandIn(family) => {
                let mut rule = rule(*family, LOOPBACK, assignment);
                let source = assignment.stand_in(*family);
                rule.header.src_len = full_length(source);
                rule.attributes.push(RuleAttribute::Source(source));
                Message::Rule(rule)
            }
            Self::ToStandIn => {
                let mut rule = rule(Family::V6, LOOPBACK, assignment);
                let destination = assignment.stand_in(Family::V6);
                rule.header.dst_len = full_length(destination);
                rule.attributes
                    .push(RuleAttribute::Destination(destination));
                Message::Rule(rule)
            }
        }
    }

    /// The object as `ip` writes it, with its kind and its family.
    pub(super) fn describe(&self, assignment: Assignment) -> String {
        let Assignment { mark, table } = assignment;
        let family = self.family();
        match self {
            Self::Route(_) => format!("route \"local default dev lo table {table}\" ({family})"),
            Self::SourceRoute(SourceRoute { prefix, source }) if source.is_unspecified() => {
                format!("route \"local {prefix} dev lo table {table}\" ({family})")
            }
            Self::SourceRoute(SourceRoute { prefix, source }) => {
                format!("route \"local {prefix} dev lo src {source} table {table}\" ({family})")
            }
            Self::Rule(_, interface) => format!(
                "policy rule \"iif {interface} fwmark {mark:#x}/{mark:#x} lookup {table}\" ({family})"
            ),
            Self::LocalTcpRule => format!(
                "policy rule \"iif lo ipproto tcp fwmark {mark:#x}/{mark:#x} lookup {table}\" \
                 ({family})"
            ),
            Self::LocalUdpRule => format!(
                "policy rule \"iif lo ipproto udp fwmark {mark:#x}/{mark:#x} lookup {table} \
                 suppress_prefixlength 0\" ({family})"
            ),
            Self::FromStandIn(_) => format!(
                "policy rule \"from {} iif lo lookup {table}\" ({family})",
                assignment.stand_in(family)
            ),
            Self::ToStandIn => format!(
                "policy rule \"to {} iif lo lookup {table}\" ({family})",
                assignment.stand_in(family)
            ),
        }
    }
}

impl SourceRoute {
    fn family(&self) -> Family {
        match self.prefix {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }
}

enum Message {
    Route(RouteMessage),
    Rule(RuleMessage),
}

fn marked_rule(family: Family, interface: &str, assignment: Assignment) -> RuleMessage {
    let mut rule = rule(family, interface, assignment);
    rule.attributes.extend([
        RuleAttribute::FwMark(assignment.mark),
        RuleAttribute::FwMask(assignment.mark),
    ]);
    rule
}

/// Rules and routes both carry `protocol kernel`: systemd-networkd removes those of any other
/// protocol that it did not make itself.
fn rule(family: Family, interface: &str, Assignment { table, .. }: Assignment) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.number();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Iifname(interface.to_owned()),
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

fn source_route(of: SourceRoute, assignment: Assignment) -> RouteMessage {
    let mut route = route(of.family(), assignment);
    route.header.destination_prefix_length = of.prefix.prefix_len();
    let destination = route_address(of.prefix.network());
    route
        .attributes
        .push(RouteAttribute::Destination(destination));
    if !of.source.is_unspecified() {
        let source = route_address(of.source);
        route.attributes.push(RouteAttribute::PrefSource(source));
    }
    route
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
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
        && header.tos == 0
        && !header.flags.contains(RuleFlags::Invert);
    if !plain {
        return None;
    }
    let mut interface = None;
    let (mut source, mut destination) = (None, None);
    let mut fwmark = (0, 0);
    let (mut priority, mut protocol) = (0, RouteProtocol::Unspec);
    let (mut ip_protocol, mut suppresses_default) = (None, false);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Iifname(name) => interface = Some(name),
            RuleAttribute::Source(address) => source = Some((*address, header.src_len)),
            RuleAttribute::Destination(address) => destination = Some((*address, header.dst_len)),
            RuleAttribute::FwMark(value) => fwmark.0 = *value,
            RuleAttribute::FwMask(mask) => fwmark.1 = *mask,
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Protocol(value) => protocol = *value,
            RuleAttribute::IpProtocol(value) => ip_protocol = Some(*value),
            RuleAttribute::SuppressPrefixLen(0) => suppresses_default = true,
            // The kernel always writes these two; all ones mean that nothing is suppressed.
            RuleAttribute::Table(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            _ => return None,
        }
    }
    let ours = table_of_rule(rule) == assignment.table
        && priority == PRIORITY
        && protocol == RouteProtocol::Kernel;
    let interface = interface.filter(|_| ours)?;
    let stand_in = assignment.stand_in(family);
    let stand_in = Some((stand_in, full_length(stand_in)));
    let marked = fwmark == (assignment.mark, assignment.mark);
    let unmarked = fwmark == (0, 0) && interface == LOOPBACK;
    if ip_protocol.is_some() || suppresses_default {
        let ours = marked && interface == LOOPBACK && family == Family::V6;
        let plain = (source, destination) == (None, None);
        return match ip_protocol.filter(|_| ours && plain)? {
            IpProtocol::Tcp if !suppresses_default => Some(Object::LocalTcpRule),
            IpProtocol::Udp if suppresses_default => Some(Object::LocalUdpRule),
            _ => None,
        };
    }
    match (source, destination) {
        (None, None) if marked => Some(Object::Rule(family, interface.clone())),
        (source, None) if unmarked && source == stand_in => Some(Object::FromStandIn(family)),
        (None, destination) if unmarked && destination == stand_in && family == Family::V6 => {
            Some(Object::ToStandIn)
        }
        _ => None,
    }
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
        && (header.source_prefix_length, header.tos) == (0, 0)
        && table_of_route(route) == assignment.table
        && route
            .attributes
            .contains(&RouteAttribute::Oif(LOOPBACK_INDEX));
    if !ours {
        return None;
    }
    let length = header.destination_prefix_length;
    if length == 0 {
        return Some(Object::Route(family));
    }
    let (mut destination, mut source) = (None, None);
    let mut metric = 0;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_address(address),
            RouteAttribute::PrefSource(address) => source = ip_address(address),
            RouteAttribute::Priority(value) => metric = *value,
            _ => {}
        }
    }
    let (own_metric, source) = match family {
        Family::V4 => (0, source?),
        // The kernel takes the source out of the routes when the address goes.
        Family::V6 => (IPV6_METRIC, source.unwrap_or(Ipv6Addr::UNSPECIFIED.into())),
    };
    let prefix = IpNet::new(destination?, length).ok()?;
    (metric == own_metric).then_some(Object::SourceRoute(SourceRoute { prefix, source }))
}

/// The metric that IPv6 gives a route without one (`IP6_RT_PRIO_USER`, `<net/ip6_route.h>`).
const IPV6_METRIC: u32 = 1024;

fn ip_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
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
