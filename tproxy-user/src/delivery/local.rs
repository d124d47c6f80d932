//! The prefixes that are this host's own.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;
use rtnetlink::{
    MulticastGroup,
    packet_route::{
        RouteNetlinkMessage,
        link::LinkFlags,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::time::{Instant, sleep_until};

use super::{
    Error, Netlink,
    netlink::{Notification, Notifications},
    object::{Family, table_of_route},
};

/// The types of route whose destinations this host takes for itself.
const LOCAL_TYPES: [RouteType; 4] = [
    RouteType::Local,
    RouteType::Broadcast,
    RouteType::Anycast,
    RouteType::Multicast,
];

/// The time between a change and reading the prefixes again, in which further changes arrive: an
/// interface that is set up makes several.
const SETTLE: Duration = Duration::from_millis(20);

/// The prefixes that are this host's own: the destinations of every local, broadcast, anycast and
/// multicast route of both families in every table but `table`, in order. A local route for a whole
/// prefix (`AnyIP`) counts. A table with one for everything (`local default`) does not, since only one
/// that is looked up for marked packets, such as another instance's, can have it.
///
/// # Errors
///
/// [`Error::Read`] when the kernel does not give its routes.
pub async fn local_addresses(netlink: &Netlink, table: u32) -> Result<Vec<IpNet>, Error> {
    let mut prefixes = BTreeSet::new();
    for family in Family::BOTH {
        let mut routes = Vec::new();
        for kind in LOCAL_TYPES {
            routes.extend(netlink.routes_of_type(family, kind).await?);
        }
        let everything = routes
            .iter()
            .filter(|route| route.header.destination_prefix_length == 0);
        let mut marked: BTreeSet<u32> = everything.map(table_of_route).collect();
        marked.insert(table);
        let others = routes
            .iter()
            .filter(|route| !marked.contains(&table_of_route(route)));
        prefixes.extend(others.filter_map(destination));
    }
    Ok(prefixes.into_iter().collect())
}

/// The prefixes of [`local_addresses`], kept current.
pub struct LocalAddresses {
    netlink: Netlink,
    notifications: Notifications,
    table: u32,
    prefixes: Vec<IpNet>,
    /// When to read the prefixes again.
    due: Option<Instant>,
}

impl LocalAddresses {
    /// Reads the prefixes and begins to watch them. `table` is our own table, which does not count.
    /// The calling thread has to be in the network namespace of `netlink`.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] and [`Error::Read`].
    pub async fn open(netlink: &Netlink, table: u32) -> Result<Self, Error> {
        let notifications = Notifications::subscribe(&[
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Link,
        ])?;
        let prefixes = local_addresses(netlink, table).await?;
        Ok(Self {
            netlink: netlink.clone(),
            notifications,
            table,
            prefixes,
            due: None,
        })
    }

    /// The prefixes as of the last change, in order, none twice.
    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    /// Waits until the prefixes are others, and returns them. Cancelling loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] when the netlink connection has ended.
    pub async fn changed(&mut self) -> Result<&[IpNet], Error> {
        loop {
            self.wait_until_due().await?;
            let prefixes = local_addresses(&self.netlink, self.table).await?;
            self.due = None;
            if prefixes != self.prefixes {
                self.prefixes = prefixes;
                return Ok(&self.prefixes);
            }
        }
    }

    async fn wait_until_due(&mut self) -> Result<(), Error> {
        loop {
            let notification = tokio::select! {
                notification = self.notifications.next() => notification,
                () = sleep_until(self.due.unwrap_or_else(Instant::now)), if self.due.is_some() => {
                    return Ok(());
                }
            };
            let stale = match notification.map_err(|refusal| Error::Read {
                what: "routes",
                refusal,
            })? {
                Notification::Change(change) => self.may_change_prefixes(&change),
                Notification::Overrun => true,
            };
            if stale {
                self.due.get_or_insert_with(|| Instant::now() + SETTLE);
            }
        }
    }

    fn may_change_prefixes(&self, change: &RouteNetlinkMessage) -> bool {
        match change {
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                LOCAL_TYPES.contains(&route.header.kind) && table_of_route(route) != self.table
            }
            // The kernel says nothing of the IPv4 routes that go with an interface, nor of the
            // broadcast routes that go while it is down.
            RouteNetlinkMessage::DelLink(_) => true,
            RouteNetlinkMessage::NewLink(link) => !link.header.flags.contains(LinkFlags::Up),
            _ => false,
        }
    }
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some((*address).into()),
            _ => None,
        })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}
