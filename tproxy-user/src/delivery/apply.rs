//! Writing and removing the policy rules and local routes.

use std::{collections::BTreeSet, sync::Arc};

use nix::errno::Errno;
use tokio::sync::Mutex;

use super::{
    Assignment, Error, Netlink, Refusal,
    describe::{RuleSelectors, describe_route, describe_rule},
    links::{link_names, list_links, set_up},
    object::{
        Family, LOOPBACK_INDEX, Object, PRIORITY, route_of_ours, rule_of_ours, table_of_rule,
    },
    policy::family_is_missing,
    precedence::warn_of_rules_before_ours,
};

/// The policy rules and local routes of one instance.
///
/// Clones stand for the same rules and routes, and their calls wait for each other. Nothing is
/// removed on drop: call [`Delivery::remove`].
#[derive(Clone, Debug)]
pub struct Delivery {
    pub(super) netlink: Netlink,
    pub(super) assignment: Assignment,
    pub(super) interfaces: Arc<Mutex<Interfaces>>,
}

/// The interfaces that packets are delivered from; `None` before the first
/// [`Delivery::apply`] and after [`Delivery::remove`], when nothing of ours should be there.
pub(super) type Interfaces = Option<BTreeSet<String>>;

impl Delivery {
    /// Delivery with the mark and the table of `assignment`. Changes nothing yet.
    #[must_use]
    pub fn new(netlink: Netlink, assignment: Assignment) -> Self {
        Self {
            netlink,
            assignment,
            interfaces: Arc::default(),
        }
    }

    /// The mark and the table.
    #[must_use]
    pub fn assignment(&self) -> Assignment {
        self.assignment
    }

    /// Makes `interfaces` the ones that marked packets are delivered from: adds the rules and
    /// routes that are missing, then removes the rules of ours for other interfaces. So one call
    /// also follows a change of an interface's name, with no moment in between without a rule.
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
    pub async fn apply<S: AsRef<str>>(&self, interfaces: &[S]) -> Result<(), Error> {
        let wanted = interfaces.iter().map(|name| interface_name(name.as_ref()));
        let wanted = wanted.collect::<Result<BTreeSet<String>, Error>>()?;
        let mut interfaces = self.interfaces.lock().await;

        let mut transaction = Transaction::new(&self.netlink, self.assignment);
        if let Err(error) = transaction.establish(&wanted).await {
            transaction.undo().await;
            return Err(error);
        }
        warn_of_rules_before_ours(&self.netlink, self.assignment, &wanted).await;
        *interfaces = Some(wanted);
        Ok(())
    }

    /// Removes every rule of ours and the local routes. What is not there any more is no error.
    /// `lo` stays up.
    ///
    /// # Errors
    ///
    /// [`Error::Change`] with the first rule or route that could not be removed; the others are
    /// removed all the same.
    pub async fn remove(&self) -> Result<(), Error> {
        let mut interfaces = self.interfaces.lock().await;
        *interfaces = None;
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
    // The rules first: a packet that meets a rule without a route goes on to the next rule, but
    // nothing is gained by letting it.
    for object in objects.iter().rev() {
        let removed = delete(netlink, assignment, object).await;
        outcome = outcome.and(removed);
    }
    outcome
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

/// Our rules and routes as they should be: first the routes, then the rules.
pub(super) fn objects_wanted(interfaces: &BTreeSet<String>) -> BTreeSet<Object> {
    let routes = Family::BOTH.map(Object::Route);
    let rules = interfaces
        .iter()
        .flat_map(|name| Family::BOTH.map(|family| Object::Rule(family, name.clone())));
    routes.into_iter().chain(rules).collect()
}

/// Changes that are undone together.
pub(super) struct Transaction<'a> {
    netlink: &'a Netlink,
    assignment: Assignment,
    /// In the order in which they were made.
    done: Vec<Done>,
    without_ipv6: bool,
}

/// A change that was made.
pub(super) enum Done {
    SetLoopbackUp,
    Added(Object),
    Removed(Object),
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

    async fn establish(&mut self, interfaces: &BTreeSet<String>) -> Result<(), Error> {
        self.add_missing(interfaces).await?;
        let wanted = objects_wanted(interfaces);
        for object in objects_in_force(self.netlink, self.assignment).await? {
            if !wanted.contains(&object) {
                delete(self.netlink, self.assignment, &object).await?;
                self.done.push(Done::Removed(object));
            }
        }
        Ok(())
    }

    async fn add_missing(&mut self, interfaces: &BTreeSet<String>) -> Result<(), Error> {
        self.set_loopback_up().await?;
        for object in self.missing(interfaces).await? {
            self.add(object).await?;
        }
        Ok(())
    }

    /// What should be in force and is not.
    pub(super) async fn missing(
        &self,
        interfaces: &BTreeSet<String>,
    ) -> Result<BTreeSet<Object>, Error> {
        let in_force = objects_in_force(self.netlink, self.assignment).await?;
        Ok(&objects_wanted(interfaces) - &in_force)
    }

    /// Adds one object. Those of a family begin with its route: when that shows that the host does
    /// without IPv6, so does what follows.
    pub(super) async fn add(&mut self, object: Object) -> Result<(), Error> {
        if self.without_ipv6 && object.family() == Family::V6 {
            return Ok(());
        }
        match self.netlink.create(object.creation(self.assignment)).await {
            Ok(()) => self.done.push(Done::Added(object)),
            Err(refusal) if object == Object::Route(Family::V6) && is_disabled(refusal) => {
                log::debug!("IPv6 is disabled on lo: no delivery for it");
                self.without_ipv6 = true;
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

    /// The kernel takes a rule like ours with an address (`from`, `to`) besides for ours.
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
                && (rule.header.src_len, rule.header.dst_len) != (0, 0)
        });
        Ok(rule.map(|rule| format!("the policy rule \"{}\"", describe_rule(rule))))
    }

    /// The rules and routes that were added.
    pub(super) fn added(&self) -> impl Iterator<Item = &Object> {
        self.done.iter().filter_map(|done| match done {
            Done::Added(object) => Some(object),
            _ => None,
        })
    }

    /// Takes back all changes, the last first. One that cannot be taken back is logged.
    async fn undo(self) {
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

/// Deletes an object; it is fine if it is gone already.
async fn delete(netlink: &Netlink, assignment: Assignment, object: &Object) -> Result<(), Error> {
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

/// What the kernel takes for the name of an interface (`dev_valid_name`, `net/core/dev.c`).
fn interface_name(name: &str) -> Result<String, Error> {
    let valid = !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.contains(|character: char| {
            character == '/' || character == ':' || character.is_ascii_whitespace()
        });
    if valid {
        Ok(name.to_owned())
    } else {
        Err(Error::InvalidInterface(name.to_owned()))
    }
}
