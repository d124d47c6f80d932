//! When the routes that say which source a socket gets may have changed.

use std::{future::pending, time::Duration};

use rtnetlink::{
    MulticastGroup,
    packet_route::{RouteNetlinkMessage, route::RouteType},
};
use tokio::time::Instant;

use super::{
    netlink::{Notification, Notifications},
    watch::SETTLE,
};

/// Of the time, one part in this many goes into reading the routes of a host whose routes change
/// all the time.
const SHARE: u32 = 20;

/// The changes of the host's routes and addresses, while somebody asks for them.
#[derive(Default)]
pub(super) struct HostRoutes {
    notifications: Option<Notifications>,
    /// How long it took to read them.
    reading: Duration,
}

impl HostRoutes {
    /// Begins to follow, or ends. Says whether it has begun: what changed before it was told to
    /// nobody.
    pub(super) fn follow_if(&mut self, wanted: bool) -> bool {
        if !wanted {
            self.notifications = None;
        }
        if !wanted || self.notifications.is_some() {
            return false;
        }
        match Notifications::subscribe_to_all(&[
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Link,
        ]) {
            Ok(notifications) => {
                self.notifications = Some(notifications);
                true
            }
            Err(error) => {
                log::error!("local flows do not follow changes of routes: {error}");
                false
            }
        }
    }

    /// Waits for the next change, and says when to read the routes. Cancelling loses nothing.
    pub(super) async fn changed(&mut self) -> Instant {
        loop {
            let Some(notifications) = &mut self.notifications else {
                return pending().await;
            };
            match notifications.next().await {
                Ok(Notification::Change(change)) if !concerns_sources(&change) => {}
                Ok(_) => return Instant::now() + SETTLE.max(self.reading * SHARE),
                Err(refusal) => {
                    log::error!("local flows do not follow changes of routes: {refusal}");
                    self.notifications = None;
                }
            }
        }
    }

    /// The routes have been read, in this time.
    pub(super) fn read_in(&mut self, reading: Duration) {
        self.reading = reading;
    }
}

fn concerns_sources(change: &RouteNetlinkMessage) -> bool {
    match change {
        // A route of another type may have replaced one of these.
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route.header.kind != RouteType::Local
        }
        // The kernel says nothing of the routes that go with an interface or an address.
        RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_)
        | RouteNetlinkMessage::NewLink(_)
        | RouteNetlinkMessage::DelLink(_) => true,
        _ => false,
    }
}
