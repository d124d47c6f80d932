//! Changes to our rules and routes that are made, and undone, together.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::{
    Assignment, Error, Netlink, PRIORITY, Refusal,
    describe::{RuleSelectors, describe_route, describe_rule},
    links::{link_names, list_links, set_up},
    object::{
        Family, LOOPBACK, LOOPBACK_INDEX, Object, route_of_ours, rule_of_ours, table_of_rule,
    },
    policy::family_is_missing,
};

/// Changes that are undone together.
pub(super) struct Transaction<'a> {
    netlink: &'a Netlink,
    assignment: Assignment,
    /// In the order in which they were made.
    done: Vec<Done>,
    without_ipv6: bool,
}

/// A change that was made.
enum Done {
    SetLoopbackUp,
    Added(Object),
    Replaced { before: Object, after: Object },
    Removed(Object),
}

/// How what is in force differs from what should be.
pub(super) struct Difference {
    /// What should be in force and is not.
    pub(super) missing: BTreeSet<Object>,
    /// What is ours and should not be in force.
    pub(super) needless: BTreeSet<Object>,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(netlink: &'a Netlink, assignment: Assignment) -> Self {
        Self {
            netlink,
            assignment,
            done: Vec::new(),
            without_ipv6: false,
        }
    }

    /// Adds what is missing of `wanted`, then removes what else is ours.
    pub(super) async fn establish(&mut self, wanted: &BTreeSet<Object>) -> Result<(), Error> {
        self.set_loopback_up().await?;
        let Difference {
            missing,
            mut needless,
        } = self.difference(wanted).await?;
        for object in missing {
            self.put(object, &mut needless).await?;
        }
        for object in needless {
            self.remove(object).await?;
        }
        Ok(())
    }

    pub(super) async fn difference(&self, wanted: &BTreeSet<Object>) -> Result<Difference, Error> {
        let in_force = objects_in_force(self.netlink, self.assignment).await?;
        Ok(Difference {
            missing: wanted - &in_force,
            needless: &in_force - wanted,
        })
    }

    /// Adds one object, in the place of the one of `needless` that it succeeds, if there is one.
    pub(super) async fn put(
        &mut self,
        object: Object,
        needless: &mut BTreeSet<Object>,
    ) -> Result<(), Error> {
        let before = needless.iter().find(|one| object.succeeds(one)).cloned();
        match before {
            Some(before) => {
                needless.remove(&before);
                self.replace(before, object).await
            }
            None => self.add(object).await,
        }
    }

    pub(super) async fn remove(&mut self, object: Object) -> Result<(), Error> {
        delete(self.netlink, self.assignment, &object).await?;
        self.done.push(Done::Removed(object));
        Ok(())
    }

    async fn replace(&mut self, before: Object, after: Object) -> Result<(), Error> {
        replace(self.netlink, self.assignment, &after).await?;
        self.done.push(Done::Replaced { before, after });
        Ok(())
    }

    /// Adds one object. Those of a family begin with its route: when that shows that the host does
    /// without IPv6, so does what follows.
    async fn add(&mut self, object: Object) -> Result<(), Error> {
        if self.without_ipv6 && object.family() == Family::V6 {
            return Ok(());
        }
        match self.netlink.create(object.creation(self.assignment)).await {
            Ok(()) => self.done.push(Done::Added(object)),
            Err(refusal) if object == Object::Route(Family::V6) && is_disabled(refusal) => {
                log::debug!("IPv6 is disabled on lo: no delivery for it");
                self.without_ipv6 = true;
            }
            // The source may be gone again, or somebody else's route in its place: without ours, a
            // shorter one or none gives the source.
            Err(refusal)
                if matches!(object, Object::SourceRoute(_))
                    && (refusal.is(Errno::EINVAL) || refusal.is(Errno::EEXIST)) =>
            {
                log::debug!(
                    "did not add the {}: {refusal}",
                    object.describe(self.assignment)
                );
            }
            Err(refusal) if refusal.is(Errno::EEXIST) => self.expect_ours(&object).await?,
            Err(refusal) => return Err(change_error("add", self.assignment, &object, refusal)),
        }
        Ok(())
    }

    /// Local routes of IPv6 can only be added while `lo` is up, and are lost when it goes down.
    pub(super) async fn set_loopback_up(&mut self) -> Result<(), Error> {
        let links = list_links(self.netlink).await?;
        if links
            .iter()
            .any(|link| link.index == LOOPBACK_INDEX && link.up)
        {
            return Ok(());
        }
        log::warn!("lo is down: setting it up, since local routes need it");
        set_up(self.netlink, LOOPBACK_INDEX, true)
            .await
            .map_err(|refusal| Error::Change {
                action: "set up",
                object: "interface lo".into(),
                refusal,
            })?;
        self.done.push(Done::SetLoopbackUp);
        Ok(())
    }

    /// Something is where the object belongs: fine if somebody has just put it there.
    async fn expect_ours(&self, object: &Object) -> Result<(), Error> {
        if objects_in_force(self.netlink, self.assignment)
            .await?
            .contains(object)
        {
            return Ok(());
        }
        let holder = match object {
            Object::Route(family) => self.route_in_place(*family).await?,
            Object::Rule(family, interface) => self.rule_in_place(*family, interface).await?,
            Object::FromStandIn(family) => self.rule_in_place(*family, LOOPBACK).await?,
            Object::LocalTcpRule | Object::LocalUdpRule | Object::ToStandIn => {
                self.rule_in_place(Family::V6, LOOPBACK).await?
            }
            Object::SourceRoute(_) => None,
        };
        let holder = holder.unwrap_or_else(|| "something else".into());
        Err(Error::InPlace {
            object: object.describe(self.assignment),
            holder,
        })
    }

    /// For IPv6, any route with the same destination and metric; for IPv4, the type counts as well.
    async fn route_in_place(&self, family: Family) -> Result<Option<String>, Error> {
        let routes = self
            .netlink
            .routes_of_table(family, self.assignment.table)
            .await?;
        let links = link_names(self.netlink).await?;
        let route = routes
            .iter()
            .find(|route| route.header.destination_prefix_length == 0);
        Ok(route.map(|route| format!("the route \"{}\"", describe_route(route, &links))))
    }

    /// The kernel takes a rule like ours with one more selector, such as an address, for ours.
    async fn rule_in_place(
        &self,
        family: Family,
        interface: &str,
    ) -> Result<Option<String>, Error> {
        let rules = self.netlink.rules(family).await?;
        let rule = rules.iter().find(|rule| {
            let selectors = RuleSelectors::of(rule);
            table_of_rule(rule) == self.assignment.table
                && selectors.priority == PRIORITY
                && selectors.iif == Some(interface)
                && rule_of_ours(rule, family, self.assignment).is_none()
        });
        Ok(rule.map(|rule| format!("the policy rule \"{}\"", describe_rule(rule))))
    }

    /// The rules and routes that were added.
    pub(super) fn added(&self) -> impl Iterator<Item = &Object> {
        self.done.iter().filter_map(|done| match done {
            Done::Added(object) => Some(object),
            Done::Replaced { after, .. } => Some(after),
            _ => None,
        })
    }

    pub(super) fn set_up_loopback(&self) -> bool {
        self.done
            .iter()
            .any(|done| matches!(done, Done::SetLoopbackUp))
    }

    /// Takes back all changes, the last first. One that cannot be taken back is logged.
    pub(super) async fn undo(self) {
        for done in self.done.into_iter().rev() {
            let undone =
                match &done {
                    Done::SetLoopbackUp => set_up(self.netlink, LOOPBACK_INDEX, false)
                        .await
                        .map_err(|refusal| Error::Change {
                            action: "set down",
                            object: "interface lo".into(),
                            refusal,
                        }),
                    Done::Added(object) => delete(self.netlink, self.assignment, object).await,
                    Done::Replaced { before, .. } => {
                        replace(self.netlink, self.assignment, before).await
                    }
                    Done::Removed(object) => create(self.netlink, self.assignment, object).await,
                };
            if let Err(error) = undone {
                log::error!("cannot undo a change: {error}");
            }
        }
    }
}

async fn create(netlink: &Netlink, assignment: Assignment, object: &Object) -> Result<(), Error> {
    let created = netlink.create(object.creation(assignment)).await;
    created.map_err(|refusal| change_error("add", assignment, object, refusal))
}

async fn replace(netlink: &Netlink, assignment: Assignment, object: &Object) -> Result<(), Error> {
    let replaced = netlink.replace(object.creation(assignment)).await;
    replaced.map_err(|refusal| change_error("add", assignment, object, refusal))
}

/// Deletes an object; it is fine if it is gone already.
pub(super) async fn delete(
    netlink: &Netlink,
    assignment: Assignment,
    object: &Object,
) -> Result<(), Error> {
    match netlink.change(object.deletion(assignment)).await {
        // A rule that is not there is ENOENT, a route ESRCH.
        Err(refusal) if refusal.is(Errno::ENOENT) || refusal.is(Errno::ESRCH) => Ok(()),
        deleted => deleted.map_err(|refusal| change_error("remove", assignment, object, refusal)),
    }
}

fn change_error(
    action: &'static str,
    assignment: Assignment,
    object: &Object,
    refusal: Refusal,
) -> Error {
    Error::Change {
        action,
        object: object.describe(assignment),
        refusal,
    }
}

/// Whether IPv6 is disabled, on `lo` (`disable_ipv6`: `EACCES`) or altogether.
fn is_disabled(refusal: Refusal) -> bool {
    refusal.is(Errno::EACCES) || family_is_missing(refusal)
}

/// Our rules and routes that are in force: first the routes, then the rules.
pub(super) async fn objects_in_force(
    netlink: &Netlink,
    assignment: Assignment,
) -> Result<BTreeSet<Object>, Error> {
    let mut objects = BTreeSet::new();
    for family in Family::BOTH {
        let routes = netlink.routes_of_table(family, assignment.table).await?;
        objects.extend(
            routes
                .iter()
                .filter_map(|route| route_of_ours(route, family, assignment)),
        );
        let rules = netlink.rules(family).await?;
        objects.extend(
            rules
                .iter()
                .filter_map(|rule| rule_of_ours(rule, family, assignment)),
        );
    }
    Ok(objects)
}
