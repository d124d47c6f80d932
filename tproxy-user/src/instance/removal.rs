//! Takes an instance out of the kernel, whatever is left of it.

use std::{fs, io, path::Path};

use tproxy_common::agent::AgentState;

use super::{ChangeLock, Error, Instance, Origin, State, attachments::Attachments};
use crate::{
    delivery::{Netlink, destroy_lingering, local_addresses, remove_leftovers},
    kernel::{self, Maps},
};

/// Removes an instance altogether. The caller is in its network namespace, or `netlink` is `None`
/// because that is gone. Says whether anything was there.
///
/// # Errors
///
/// The first failure; what can be removed is removed all the same.
pub async fn remove(instance: &Instance, netlink: Option<&Netlink>) -> Result<bool, Error> {
    let directory = instance.run_directory();
    let lock = match ChangeLock::wait(instance) {
        Ok(lock) => Some(lock),
        // Pins without a state: there is nobody to wait for.
        Err(Error::NotThere(_)) => None,
        Err(error) => return Err(error),
    };
    let found = clear(instance, netlink, lock.as_ref()).await? || directory.exists();
    remove_tree(directory)?;
    let _ = directory.parent().map(fs::remove_dir);
    Ok(found)
}

/// Removes programs, maps, links, rules, routes and the files of the state; what says that an agent
/// lives stays. The caller holds the lock of changes. Otherwise like [`remove`].
///
/// # Errors
///
/// The first failure; what can be removed is removed all the same, but the state stays to tell the
/// next attempt what there is to remove.
pub async fn clear(
    instance: &Instance,
    netlink: Option<&Netlink>,
    _lock: Option<&ChangeLock>,
) -> Result<bool, Error> {
    let mut outcome = Ok(());
    let directory = instance.run_directory();
    let origin = instance.origin();
    let pins = instance.pins().filter(|pins| pins.exists());
    let unfinished = instance.unfinished_pins().filter(|pins| pins.exists());
    let found = pins.is_some() || unfinished.is_some() || origin.is_some();
    let attachments = Attachments::new(instance, pins.as_deref().unwrap_or(directory));
    let local = match (netlink, &origin) {
        (Some(netlink), Some(origin)) => {
            // Without them nothing tells which sockets are in the way.
            let table = origin.assignment().table;
            local_addresses(netlink, table).await.ok()
        }
        _ => None,
    };
    // Most of them while the programs are there, so that few are left to be in the way for a moment.
    if let Some(local) = &local {
        destroy_lingering(local);
    }
    for index in attachments.links().unwrap_or_default() {
        outcome = outcome.and(attachments.detach_link(index));
    }
    if let Some(pins) = &pins {
        let detached = kernel::detach_process_hooks(pins);
        outcome = outcome.and(detached.map_err(Error::from));
    }
    if let Some(netlink) = netlink {
        for index in attachments.filters() {
            outcome = outcome.and(attachments.detach_filter(netlink, index).await);
        }
        if pins.is_some() && State::newest(directory).is_none() {
            // The notes may be gone with it.
            outcome = outcome.and(attachments.detach_unnoted_filters(netlink).await);
        }
        if let Some(local) = &local {
            destroy_lingering(local);
        }
        if let Some(origin) = origin {
            let delivered = remove_leftovers(netlink, origin.assignment()).await;
            outcome = outcome.and(delivered.map_err(Error::from));
        }
    }
    if let Some(pins) = &pins {
        // Should a program outlive its pins for whatever reason, it leaves new flows alone.
        let _ = Maps::new(pins).set_agent(AgentState::default());
    }
    for pins in pins.iter().chain(&unfinished) {
        outcome = outcome.and(remove_tree(pins));
        // Shared by all instances: stays while another one has pins.
        let _ = pins.parent().map(fs::remove_dir);
    }
    outcome?;
    State::remove_all(directory);
    Origin::remove(directory);
    Ok(found)
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::File {
            path: path.into(),
            cause,
        }),
        _ => Ok(()),
    }
}
