//! Writing and removing the policy rules and local routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ipnet::IpNet;
use rtnetlink::packet_route::route::RouteType;
use tokio::sync::{Mutex, Notify};

use super::{
    Assignment, Error, Netlink,
    links::valid_interface_name,
    object::{Family, LIMIT, LOOPBACK, Object, SourceRoute, table_of_route},
    precedence::warn_of_rules_before_ours,
    source::{sources_v4, without_repetitions},
    transaction::{Transaction, delete, objects_in_force},
};

/// The policy rules and local routes of one instance.
///
/// Clones stand for the same rules and routes, and their calls wait for each other. Nothing is
/// removed on drop: call [`Delivery::remove`].
#[derive(Clone, Debug)]
pub struct Delivery {
    pub(super) netlink: Netlink,
    pub(super) assignment: Assignment,
    /// None before the first [`Delivery::apply`] and after [`Delivery::remove`], when nothing of
    /// ours should be there.
    pub(super) delivered: Arc<Mutex<Option<Delivered>>>,
    /// Tells the watch that local flows are delivered from now on, or no more.
    pub(super) local_changed: Arc<Notify>,
    warned_of_limit: Arc<AtomicBool>,
}

/// The flows that are delivered.
#[derive(Clone, Copy, Debug)]
pub struct Flows<'a, S> {
    /// Those that arrive on these interfaces with our mark.
    pub interfaces: &'a [S],
    /// Those that processes of this host open, with our mark or from one of our stand-ins.
    pub local: bool,
}

impl<'a, S> Flows<'a, S> {
    /// Those that arrive on these interfaces, and none of this host's own.
    #[must_use]
    pub const fn forwarded(interfaces: &'a [S]) -> Self {
        Self {
            interfaces,
            local: false,
        }
    }
}

/// The flows of the last [`Delivery::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delivered {
    interfaces: BTreeSet<String>,
    pub(super) local: bool,
}

impl Delivered {
    fn of<S: AsRef<str>>(flows: &Flows<'_, S>) -> Result<Self, Error> {
        let names = flows.interfaces.iter();
        let names = names.map(|name| interface_name(name.as_ref()));
        Ok(Self {
            interfaces: names.collect::<Result<BTreeSet<String>, Error>>()?,
            local: flows.local,
        })
    }

    /// Whether marked packets are delivered that policy rules see come in on this interface.
    pub(super) fn takes_from(&self, interface: &str) -> bool {
        self.interfaces.contains(interface) || self.local && interface == LOOPBACK
    }
}

impl Delivery {
    /// Delivery with the mark and the table of `assignment`. Changes nothing yet.
    #[must_use]
    pub fn new(netlink: Netlink, assignment: Assignment) -> Self {
        Self {
            netlink,
            assignment,
            delivered: Arc::default(),
            local_changed: Arc::default(),
            warned_of_limit: Arc::default(),
        }
    }

    /// The mark and the table.
    #[must_use]
    pub fn assignment(&self) -> Assignment {
        self.assignment
    }

    /// Makes `flows` the ones that are delivered: adds the rules and routes that are missing, then
    /// removes those of ours for other flows. So one call also follows a change of an interface's
    /// name, with no moment in between without a rule.
    ///
    /// An interface need not exist: the kernel keeps the rule and puts it into force when an
    /// interface takes the name, and again when one is deleted and made again. After a change of
    /// name the rule still waits for the old one.
    ///
    /// `lo` is set up if it is down. Where the kernel or `lo` does without IPv6, so does delivery.
    ///
    /// # Errors
    ///
    /// [`Error::Change`] names the rule or route and why it was refused, [`Error::InPlace`] what is
    /// in its place; everything that the call had done is undone then.
    pub async fn apply<S: AsRef<str>>(&self, flows: &Flows<'_, S>) -> Result<(), Error> {
        let wanted = Delivered::of(flows)?;
        let mut delivered = self.delivered.lock().await;

        let objects = self.objects(&wanted).await?;
        let mut transaction = Transaction::new(&self.netlink, self.assignment);
        if let Err(error) = transaction.establish(&objects).await {
            transaction.undo().await;
            return Err(error);
        }
        // Said once for the same interfaces, however often they are applied.
        if delivered.as_ref() != Some(&wanted) {
            warn_of_rules_before_ours(&self.netlink, self.assignment, &wanted).await;
        }
        *delivered = Some(wanted);
        self.local_changed.notify_one();
        Ok(())
    }

    /// The rules and routes that should be in force for these flows.
    pub(super) async fn objects(&self, wanted: &Delivered) -> Result<BTreeSet<Object>, Error> {
        let mut objects: BTreeSet<Object> = Family::BOTH.map(Object::Route).into();
        for name in &wanted.interfaces {
            objects.extend(Family::BOTH.map(|family| Object::Rule(family, name.clone())));
        }
        if wanted.local {
            objects.insert(Object::Rule(Family::V4, LOOPBACK.to_owned()));
            // What arrives on `lo` with our mark needs the default route.
            if !wanted.interfaces.contains(LOOPBACK) {
                objects.extend([Object::LocalTcpRule, Object::LocalUdpRule]);
            }
            objects.extend(Family::BOTH.map(Object::FromStandIn));
            objects.insert(Object::ToStandIn);
            objects.extend(self.source_routes().await?);
        }
        Ok(objects)
    }

    async fn source_routes(&self) -> Result<impl Iterator<Item = Object>, Error> {
        let addresses = self.netlink.addresses_v4().await?;
        let unicast = self.netlink.routes_of_type(Family::V4, RouteType::Unicast);
        let mut unicast = unicast.await?;
        unicast.retain(|route| table_of_route(route) != self.assignment.table);
        let v4 = self.limited(sources_v4(&unicast, &addresses));
        let v6 = self.limited(self.netlink.sources_v6(self.assignment.table).await?);
        Ok(v4.into_iter().chain(v6).map(Object::SourceRoute))
    }

    fn limited(&self, sources: BTreeMap<IpNet, IpAddr>) -> Vec<SourceRoute> {
        let mut routes = without_repetitions(sources);
        let beyond = routes.len().saturating_sub(LIMIT);
        routes.truncate(LIMIT);
        if beyond > 0 && !self.warned_of_limit.swap(true, Ordering::Relaxed) {
            log::warn!(
                "this host has routes with {} different sources, of which the {} with the shortest \
                 prefixes are followed: the others' connected UDP sockets get another source",
                routes.len() + beyond,
                routes.len()
            );
        }
        routes
    }

    /// Removes every rule of ours and the local routes. What is not there any more is no error.
    /// `lo` stays up.
    ///
    /// # Errors
    ///
    /// [`Error::Change`] with the first rule or route that could not be removed; the others are
    /// removed all the same.
    pub async fn remove(&self) -> Result<(), Error> {
        let mut delivered = self.delivered.lock().await;
        *delivered = None;
        self.local_changed.notify_one();
        remove_leftovers(&self.netlink, self.assignment).await
    }
}

/// Removes every rule with exactly this mark and table that an agent of ours would have written,
/// whatever the interface, and its local routes. Nothing being there is no error.
///
/// # Errors
///
/// [`Error::Change`] with the first rule or route that could not be removed; the others are removed
/// all the same.
pub async fn remove_leftovers(netlink: &Netlink, assignment: Assignment) -> Result<(), Error> {
    let objects = objects_in_force(netlink, assignment).await?;
    let mut outcome = Ok(());
    // The rules first, so that none ever looks up an empty table.
    for object in objects.iter().rev() {
        let removed = delete(netlink, assignment, object).await;
        outcome = outcome.and(removed);
    }
    outcome
}

fn interface_name(name: &str) -> Result<String, Error> {
    if valid_interface_name(name) {
        Ok(name.to_owned())
    } else {
        Err(Error::InvalidInterface(name.to_owned()))
    }
}
