//! Restoring rules and routes of ours that something else removes.

use std::time::Duration;

use rtnetlink::{
    MulticastGroup,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAttribute, RouteType},
    },
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    Delivery, Error,
    host_routes::HostRoutes,
    netlink::{Notification, Notifications},
    object::{Family, LOOPBACK_INDEX, Object, rule_of_ours, table_of_route},
    precedence::{precedes_ours, warn_of_rule_before_ours},
    repairs::{REPAIR_INTERVAL, Repairs},
    transaction::{Difference, Transaction},
};

/// The time between a removal and its repair, in which other changes of the same hand arrive.
pub(super) const SETTLE: Duration = Duration::from_millis(20);

/// Restores what something else removes, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Delivery {
    /// Begins to restore the rules and routes of the last [`Delivery::apply`] whenever something
    /// else removes them, with a warning in the log that names them; also IPv6's when it is enabled
    /// later on. Between repairs it sets `lo` up again when something has set it down. While local
    /// flows are delivered, the sources follow the routes and addresses of this host.
    ///
    /// The calling thread, and those that drive its tokio runtime, have to be in the network
    /// namespace of this delivery.
    /// The thread that drives the runtime needs `CAP_NET_ADMIN` for as long as it shall restore
    /// anything.
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub fn watch(&self) -> Result<Watch, Error> {
        let notifications = Notifications::subscribe(&[
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Link,
        ])?;
        let task = tokio::spawn(watch(self.clone(), notifications));
        Ok(Watch { task })
    }

    /// Adds what is missing of the last [`Delivery::apply`], as much of it as can be added, and makes
    /// the routes with a source those of the host's routes. Says whether anything was missing.
    async fn restore(&self) -> Result<bool, Error> {
        let delivered = self.delivered.lock().await;
        let Some(delivered) = delivered.as_ref() else {
            return Ok(false);
        };
        let objects = self.objects(delivered).await?;
        let mut transaction = Transaction::new(&self.netlink, self.assignment);
        let mut outcome = transaction.set_loopback_up().await;
        let Difference {
            missing,
            mut needless,
        } = transaction.difference(&objects).await?;
        for object in missing {
            outcome = outcome.and(transaction.put(object, &mut needless).await);
        }
        for object in needless {
            if matches!(object, Object::SourceRoute(_)) {
                outcome = outcome.and(transaction.remove(object).await);
            }
        }
        let mut restored = transaction.set_up_loopback();
        for object in transaction.added() {
            let words = object.describe(self.assignment);
            if matches!(object, Object::SourceRoute(_)) {
                log::debug!("added the {words}");
            } else {
                log::warn!("restored the {words}, which was missing");
                restored = true;
            }
        }
        outcome.map(|()| restored)
    }

    async fn delivers_local_flows(&self) -> bool {
        let delivered = self.delivered.lock().await;
        delivered.as_ref().is_some_and(|delivered| delivered.local)
    }

    /// Whether a change may have removed something of ours, or made it possible to add it.
    async fn concerns_us(&self, change: &RouteNetlinkMessage) -> bool {
        match change {
            RouteNetlinkMessage::DelRule(rule) => Family::BOTH
                .into_iter()
                .any(|family| rule_of_ours(rule, family, self.assignment).is_some()),
            RouteNetlinkMessage::NewRule(rule) => {
                if let Some(delivered) = self.delivered.lock().await.as_ref()
                    && precedes_ours(rule, self.assignment, delivered)
                {
                    warn_of_rule_before_ours(rule);
                }
                false
            }
            // A route that replaces ours is told of as a new one.
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                let ipv6_on_loopback = route.header.address_family == AddressFamily::Inet6
                    && route.header.kind == RouteType::Local
                    && route
                        .attributes
                        .contains(&RouteAttribute::Oif(LOOPBACK_INDEX));
                table_of_route(route) == self.assignment.table || ipv6_on_loopback
            }
            RouteNetlinkMessage::NewLink(link) => link.header.index == LOOPBACK_INDEX,
            _ => false,
        }
    }
}

async fn watch(delivery: Delivery, mut notifications: Notifications) {
    let mut routes = HostRoutes::default();
    let mut repairs = Repairs::allowed_at(Instant::now());
    let mut last_failure = None;
    // What was removed before the subscription was told to nobody.
    let mut due = Some(Instant::now());
    loop {
        let notification = tokio::select! {
            notification = notifications.next() => notification,
            changed = routes.changed() => {
                due = Some(due.map_or(changed, |due| due.min(changed)));
                continue;
            }
            () = delivery.local_changed.notified() => {
                if routes.follow_if(delivery.delivers_local_flows().await) {
                    due = Some(Instant::now());
                }
                continue;
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let begun = Instant::now();
                due = repair(&delivery, &mut repairs, &mut last_failure).await;
                routes.read_in(begun.elapsed());
                continue;
            }
        };
        let concerns_us = match notification {
            Ok(Notification::Change(change)) => delivery.concerns_us(&change).await,
            // Whatever was lost may have concerned us: the repair looks at everything.
            Ok(Notification::Overrun) => true,
            Err(refusal) => {
                log::error!("rules and routes that are removed stay so: {refusal}");
                return;
            }
        };
        if concerns_us && due.is_none() {
            let now = Instant::now();
            due = Some(repairs.next_allowed().max(now + SETTLE));
        }
    }
}

/// Restores, and says when to try again if something could not be.
async fn repair(
    delivery: &Delivery,
    repairs: &mut Repairs,
    last_failure: &mut Option<String>,
) -> Option<Instant> {
    let outcome = delivery.restore().await;
    let now = Instant::now();
    match outcome {
        Ok(restored) => {
            *last_failure = None;
            if restored {
                repairs.count(now);
            }
            None
        }
        Err(error) => {
            let failure = error.to_string();
            if last_failure.as_ref() != Some(&failure) {
                log::error!("{failure}; trying again every {REPAIR_INTERVAL:?}");
                *last_failure = Some(failure);
            }
            repairs.count(now);
            Some(repairs.next_allowed().max(now + REPAIR_INTERVAL))
        }
    }
}
