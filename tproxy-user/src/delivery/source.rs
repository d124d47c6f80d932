//! Which source the kernel gives a socket of this host that connects to a destination, for IPv4.
//!
//! A flow that is delivered to the agent gets its source from our table, in which every route leads
//! to `lo`. So that the source is the one that the flow would have had, our table says for each
//! prefix of the host's routes which one that is.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::{
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags},
};

use super::object::{SourceRoute, table_of_route};

/// The table `main` (`RT_TABLE_MAIN`, `<linux/rtnetlink.h>`).
const MAIN_TABLE: u32 = 254;

/// The scope of what is directly attached (`RT_SCOPE_LINK`, `<linux/rtnetlink.h>`).
const LINK_SCOPE: u8 = 253;

/// The source for each prefix that this host has a route for. `unicast` are the unicast routes of
/// IPv4 of all tables but our own, in the kernel's order, `addresses` the addresses of IPv4.
pub(super) fn sources_v4(
    unicast: &[RouteMessage],
    addresses: &[AddressMessage],
) -> BTreeMap<IpNet, IpAddr> {
    let addresses = Addresses::of(addresses);
    let (main, others): (Vec<&RouteMessage>, Vec<&RouteMessage>) = unicast
        .iter()
        .partition(|route| table_of_route(route) == MAIN_TABLE);
    let mut by_prefix = sources(main, &addresses);
    // A host whose default route is in a table of its own has one all the same.
    let others = others
        .into_iter()
        .filter(|route| route.header.destination_prefix_length == 0);
    let default = by_prefix
        .remove(&Ipv4Net::default())
        .or_else(|| sources(others, &addresses).remove(&Ipv4Net::default()));
    if let Some(default) = default {
        // Two halves rather than a default route: that of our table, which forwarded packets need,
        // stays as it is whatever happens to the routes of this host.
        for half in halves() {
            by_prefix.entry(half).or_insert(default);
        }
    }
    let general = |(prefix, source): (Ipv4Net, Ipv4Addr)| (prefix.into(), source.into());
    by_prefix.into_iter().map(general).collect()
}

fn halves() -> [Ipv4Net; 2] {
    [0, 128].map(|first| Ipv4Net::new_assert(Ipv4Addr::new(first, 0, 0, 0), 1))
}

/// The source for each prefix, by the route that the kernel would take.
fn sources<'a>(
    routes: impl IntoIterator<Item = &'a RouteMessage>,
    addresses: &Addresses,
) -> BTreeMap<Ipv4Net, Ipv4Addr> {
    let mut sources = BTreeMap::new();
    for route in routes {
        // A route for a type of service only is not what an ordinary flow takes.
        if route.header.tos != 0 {
            continue;
        }
        let Some((prefix, source)) = destination(route).zip(source_of(route, addresses)) else {
            continue;
        };
        // The kernel lists those of a prefix in the order of their metrics.
        sources.entry(prefix).or_insert(source);
    }
    sources
}

/// The shortest prefixes first, without those that say the same as a shorter one.
pub(super) fn without_repetitions(sources: BTreeMap<IpNet, IpAddr>) -> Vec<SourceRoute> {
    let mut by_length: Vec<(IpNet, IpAddr)> = sources.into_iter().collect();
    by_length.sort_by_key(|(prefix, _)| prefix.prefix_len());
    let mut kept: HashMap<IpNet, IpAddr> = HashMap::new();
    let mut routes = Vec::new();
    for (prefix, source) in by_length {
        let mut shorter = std::iter::successors(prefix.supernet(), IpNet::supernet);
        if shorter.find_map(|one| kept.get(&one)) != Some(&source) {
            kept.insert(prefix, source);
            routes.push(SourceRoute { prefix, source });
        }
    }
    routes
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
    let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    Ipv4Net::new(address, route.header.destination_prefix_length).ok()
}

/// What `fib_result_prefsrc` (`net/ipv4/fib_semantics.c`) says; none for a route that is not used.
fn source_of(route: &RouteMessage, addresses: &Addresses) -> Option<Ipv4Addr> {
    let hop = NextHop::of(route)?;
    let preferred = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
    preferred.or_else(|| addresses.select(hop, route.header.scope.into()))
}

#[derive(Clone, Copy)]
struct NextHop {
    interface: u32,
    gateway: Option<Ipv4Addr>,
}

impl NextHop {
    /// The first one that is alive.
    fn of(route: &RouteMessage) -> Option<Self> {
        let hops = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::MultiPath(hops) => Some(hops),
                _ => None,
            });
        if let Some(hops) = hops {
            let alive = hops
                .iter()
                .find(|hop| !hop.flags.contains(RouteNextHopFlags::Dead))?;
            return Some(Self {
                interface: alive.interface_index,
                gateway: gateway(&alive.attributes),
            });
        }
        let interface = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
        let alive = !route.header.flags.contains(RouteFlags::Dead);
        interface.filter(|_| alive).map(|interface| Self {
            interface,
            gateway: gateway(&route.attributes),
        })
    }
}

/// None for a gateway of IPv6, too.
fn gateway(attributes: &[RouteAttribute]) -> Option<Ipv4Addr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

/// The primary addresses, in the kernel's order.
struct Addresses(Vec<Address>);

struct Address {
    interface: u32,
    local: Ipv4Addr,
    /// With the peer's address on a point-to-point interface.
    prefix: Ipv4Net,
    /// From 0 (everywhere) to 255 (nowhere).
    scope: u8,
}

impl Addresses {
    fn of(messages: &[AddressMessage]) -> Self {
        Self(messages.iter().filter_map(Address::of).collect())
    }

    /// As `inet_select_addr` (`net/ipv4/devinet.c`) does.
    fn select(&self, hop: NextHop, scope: u8) -> Option<Ipv4Addr> {
        let mut suitable = self
            .0
            .iter()
            .filter(|address| address.interface == hop.interface && address.scope <= scope)
            .peekable();
        let first = suitable.peek().map(|address| address.local);
        let near = hop.gateway.and_then(|gateway| {
            let near = suitable.find(|address| address.prefix.contains(&gateway));
            near.map(|address| address.local)
        });
        near.or(first).or_else(|| {
            // An interface without an address borrows one.
            let of_others = self
                .0
                .iter()
                .find(|address| address.scope <= scope && address.scope != LINK_SCOPE);
            of_others.map(|address| address.local)
        })
    }
}

impl Address {
    fn of(message: &AddressMessage) -> Option<Self> {
        let header = &message.header;
        if header.flags.contains(AddressHeaderFlags::Secondary) {
            return None;
        }
        let (mut local, mut peer) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => local = Some(*address),
                AddressAttribute::Address(IpAddr::V4(address)) => peer = Some(*address),
                _ => {}
            }
        }
        let local = local?;
        Some(Self {
            interface: header.index,
            local,
            prefix: Ipv4Net::new(peer.unwrap_or(local), header.prefix_len).ok()?,
            scope: header.scope.into(),
        })
    }
}
