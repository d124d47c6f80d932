//! The interfaces that lead to servers, on which the answers to upstream connections arrive that have
//! the addresses of clients.

use std::{collections::BTreeSet, future::pending, time::Duration};

use rtnetlink::{
    MulticastGroup,
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Error, Framing, Link, Netlink, list_links,
    netlink::{Notification, Notifications},
    object::{Family, LOOPBACK_INDEX, table_of_route},
    watch::SETTLE,
};

/// include/uapi/linux/rtnetlink.h
const RT_TABLE_MAIN: u32 = 254;

/// Of the time, one part in this many goes into reading the routes of a host whose routes change all
/// the time.
const SHARE: u32 = 20;

/// The time between two attempts to follow the routes.
const RETRY: Duration = Duration::from_secs(10);

/// The interfaces that unicast routes of the table `main` lead to, and default routes of any other,
/// but for `lo` and for routes that do not lead beyond a link.
///
/// # Errors
///
/// [`Error::Read`] when the kernel does not give its routes.
pub async fn ways_out(netlink: &Netlink) -> Result<Vec<Link>, Error> {
    let mut indexes = BTreeSet::new();
    for family in Family::BOTH {
        let routes = netlink.routes_of_type(family, RouteType::Unicast).await?;
        indexes.extend(
            routes
                .iter()
                .filter(|route| leads_out(route))
                .flat_map(ways),
        );
    }
    let mut links = list_links(netlink).await?;
    links
        .retain(|link| indexes.contains(&link.index) && !matches!(link.framing, Framing::Other(_)));
    Ok(links)
}

/// Tells when the interfaces of [`ways_out`] may be others.
pub struct WaysOut {
    netlink: Netlink,
    /// Whether anybody wants to know.
    wanted: watch::Receiver<bool>,
    notifications: Option<Notifications>,
    /// Those of the last time they were read.
    known: BTreeSet<u32>,
    /// When to read them again.
    due: Option<Instant>,
    /// How long it took.
    reading: Duration,
    /// When to try again to follow the routes.
    not_before: Instant,
}

impl WaysOut {
    /// Follows the routes of the network namespace of `netlink`, which the calling thread is in,
    /// while that is wanted.
    #[must_use]
    pub fn new(netlink: &Netlink, wanted: watch::Receiver<bool>) -> Self {
        Self {
            netlink: netlink.clone(),
            wanted,
            notifications: None,
            known: BTreeSet::new(),
            due: None,
            reading: Duration::ZERO,
            not_before: Instant::now(),
        }
    }

    /// Waits until there may be more of them, or until somebody begins to want to know, and gives
    /// all. Cancelling loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] and [`Error::Read`]. The next call tries again after a while.
    pub async fn changed(&mut self) -> Result<Vec<Link>, Error> {
        let changed = self.next().await;
        if changed.is_err() {
            self.notifications = None;
            self.due = None;
            self.not_before = Instant::now() + RETRY;
        }
        changed
    }

    async fn next(&mut self) -> Result<Vec<Link>, Error> {
        loop {
            let Some(notifications) = &mut self.notifications else {
                self.begin().await?;
                continue;
            };
            tokio::select! {
                notification = notifications.next() => {
                    let notification = notification.map_err(|refusal| Error::Read {
                        what: "routes",
                        refusal,
                    })?;
                    let due = Instant::now() + SETTLE.max(self.reading * SHARE);
                    if may_add(&mut self.known, &notification) {
                        self.due.get_or_insert(due);
                    }
                }
                wanted = self.wanted.wait_for(|wanted| !wanted) => {
                    if wanted.is_err() {
                        return pending().await;
                    }
                    drop(wanted);
                    self.notifications = None;
                    self.due = None;
                }
                () = sleep_until(self.due.unwrap_or_else(Instant::now)), if self.due.is_some() => {
                    let begun = Instant::now();
                    let links = ways_out(&self.netlink).await?;
                    self.reading = begun.elapsed();
                    self.known = links.iter().map(|link| link.index).collect();
                    self.due = None;
                    return Ok(links);
                }
            }
        }
    }

    /// Subscribes as soon as somebody wants to know. What changed before was told to nobody.
    async fn begin(&mut self) -> Result<(), Error> {
        if self.wanted.wait_for(|wanted| *wanted).await.is_err() {
            return pending().await;
        }
        sleep_until(self.not_before).await;
        self.notifications = Some(Notifications::subscribe_to_all(&[
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Link,
        ])?);
        self.due = Some(Instant::now());
        Ok(())
    }
}

/// Whether an interface may lead to servers now that did not.
fn may_add(known: &mut BTreeSet<u32>, notification: &Notification) -> bool {
    let Notification::Change(change) = notification else {
        return true;
    };
    match &**change {
        RouteNetlinkMessage::NewRoute(route) if leads_out(route) => {
            let mut ways = ways(route).peekable();
            // A route that says nothing of its interfaces has a nexthop object.
            ways.peek().is_none() || ways.any(|index| !known.contains(&index))
        }
        // Another interface may get its index.
        RouteNetlinkMessage::DelLink(link) => {
            known.remove(&link.header.index);
            false
        }
        _ => false,
    }
}

fn leads_out(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Unicast
        && (table_of_route(route) == RT_TABLE_MAIN || route.header.destination_prefix_length == 0)
        && !route.attributes.iter().any(|attribute| {
            matches!(attribute, RouteAttribute::Destination(RouteAddress::Inet6(address))
                if address.is_unicast_link_local())
        })
}

/// The interfaces that a route leads to.
fn ways(route: &RouteMessage) -> impl Iterator<Item = u32> {
    let of_attribute = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    let indexes = route.attributes.iter().flat_map(of_attribute);
    indexes.filter(|index| *index != LOOPBACK_INDEX)
}
