//! Which source the kernel gives a socket of this host that connects to a destination, for IPv6.
//!
//! A route to `lo` without a source lets the kernel choose among the addresses of all interfaces,
//! where it would have preferred those of the one that the real route leads to. Its choice has many
//! rules (RFC 6724), so that it is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv6Net};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};

use super::{
    Error, Netlink, Refusal,
    object::{Family, LIMIT, table_of_route},
};

/// The two halves of everything: what the first holds is in use on the Internet, most of the second
/// is private.
const FIRST_HALF: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 1);
const SECOND_HALF: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0), 1);

impl Netlink {
    /// The source for each prefix that this host has a route for in any table but `table`;
    /// unspecified where the kernel shall choose for each destination.
    pub(super) async fn sources_v6(&self, table: u32) -> Result<BTreeMap<IpNet, IpAddr>, Error> {
        let unicast = self.routes_of_type(Family::V6, RouteType::Unicast).await?;
        let others = unicast
            .iter()
            .filter(|route| table_of_route(route) != table);
        let prefixes: BTreeSet<Ipv6Net> = others.filter_map(destination).collect();
        let mut by_length: Vec<Ipv6Net> = prefixes.into_iter().collect();
        by_length.sort_by_key(Ipv6Net::prefix_len);
        let mut sources = BTreeMap::new();
        for prefix in by_length.iter().take(LIMIT) {
            let default = prefix.prefix_len() == 0;
            let asked = if default { FIRST_HALF } else { *prefix };
            // The last address: the first one of a subnet is that of any of its routers.
            let Some(source) = self.source_towards(asked.broadcast()).await? else {
                continue;
            };
            sources.insert(asked.into(), source.into());
            if default {
                // Private destinations have private sources, if there are any.
                sources.insert(SECOND_HALF.into(), Ipv6Addr::UNSPECIFIED.into());
            }
        }
        if by_length.len() > LIMIT {
            for half in [FIRST_HALF, SECOND_HALF] {
                let source = sources.entry(half.into());
                source.or_insert(Ipv6Addr::UNSPECIFIED.into());
            }
        }
        Ok(sources)
    }

    /// The source for a destination; none where there is no route.
    async fn source_towards(&self, destination: Ipv6Addr) -> Result<Option<Ipv6Addr>, Error> {
        let mut question = RouteMessage::default();
        question.header.address_family = Family::V6.number();
        question.header.destination_prefix_length = 128;
        question.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet6(
            destination,
        ))];
        let route = match self.ask(RouteNetlinkMessage::GetRoute(question)).await {
            Ok(RouteNetlinkMessage::NewRoute(route)) => route,
            Ok(_) | Err(Refusal::Kernel(_)) => return Ok(None),
            Err(refusal) => {
                return Err(Error::Read {
                    what: "routes",
                    refusal,
                });
            }
        };
        let source = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => Some(*address),
                _ => None,
            });
        Ok(source.filter(|_| route.header.kind == RouteType::Unicast))
    }
}

/// None for link-local and multicast destinations, which are reached on a certain interface only.
fn destination(route: &RouteMessage) -> Option<Ipv6Net> {
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(*address),
            _ => None,
        });
    let address = address.unwrap_or(Ipv6Addr::UNSPECIFIED);
    let on_a_link = address.is_unicast_link_local() || address.is_multicast();
    let prefix = Ipv6Net::new(address, route.header.destination_prefix_length);
    prefix.ok().filter(|_| !on_a_link)
}
