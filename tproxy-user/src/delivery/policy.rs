//! Reading the policy rules and routing tables that are in force.

use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
    rule::RuleMessage,
};

use super::{Error, Netlink, Refusal, object::Family};

impl Netlink {
    /// The policy rules of one family in order of their priority; none where the kernel does not
    /// have the family.
    pub(super) async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, Error> {
        let mut filter = RuleMessage::default();
        filter.header.family = family.number();
        let answers = match self.dump(RouteNetlinkMessage::GetRule(filter)).await {
            Err(refusal) if family_is_missing(refusal) => return Ok(Vec::new()),
            answers => answers.map_err(|refusal| Error::Read {
                what: "policy rules",
                refusal,
            })?,
        };
        let rules = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        });
        Ok(rules
            .filter(|rule| rule.header.family == family.number())
            .collect())
    }

    /// The routes of one family in a table.
    pub(super) async fn routes_of_table(
        &self,
        family: Family,
        table: u32,
    ) -> Result<Vec<RouteMessage>, Error> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family.number();
        filter.attributes.push(RouteAttribute::Table(table));
        self.routes(family, filter).await
    }

    /// The routes of one family and one type in all tables.
    pub(super) async fn routes_of_type(
        &self,
        family: Family,
        kind: RouteType,
    ) -> Result<Vec<RouteMessage>, Error> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family.number();
        filter.header.kind = kind;
        self.routes(family, filter).await
    }

    /// The addresses of IPv4 of all interfaces, in the kernel's order.
    pub(super) async fn addresses_v4(&self) -> Result<Vec<AddressMessage>, Error> {
        let mut filter = AddressMessage::default();
        filter.header.family = Family::V4.number();
        let answers = self.dump(RouteNetlinkMessage::GetAddress(filter)).await;
        let answers = answers.map_err(|refusal| Error::Read {
            what: "addresses",
            refusal,
        })?;
        let addresses = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        });
        Ok(addresses.collect())
    }

    async fn routes(
        &self,
        family: Family,
        filter: RouteMessage,
    ) -> Result<Vec<RouteMessage>, Error> {
        let answers = match self.dump(RouteNetlinkMessage::GetRoute(filter)).await {
            // A table comes into being with its first route.
            Err(Refusal::Kernel(Errno::ENOENT)) => return Ok(Vec::new()),
            Err(refusal) if family_is_missing(refusal) => return Ok(Vec::new()),
            answers => answers.map_err(|refusal| Error::Read {
                what: "routes",
                refusal,
            })?,
        };
        let routes = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        // A kernel without IPv6 answers for all the families that it has.
        Ok(routes
            .filter(|route| route.header.address_family == family.number())
            .collect())
    }
}

/// Whether the kernel runs without the family (`ipv6.disable=1`).
pub(super) fn family_is_missing(refusal: Refusal) -> bool {
    refusal.is(Errno::EAFNOSUPPORT) || refusal.is(Errno::EOPNOTSUPP)
}
