//! Writing and removing the policy rules and local routes.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::Mutex;

use super::{
    Assignment, Error, Netlink,
    links::valid_interface_name,
    precedence::warn_of_rules_before_ours,
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
        // Said once for the same interfaces, however often they are applied.
        if interfaces.as_ref() != Some(&wanted) {
            warn_of_rules_before_ours(&self.netlink, self.assignment, &wanted).await;
        }
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
