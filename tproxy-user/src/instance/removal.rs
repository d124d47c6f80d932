//! Takes an instance out of the kernel, whatever is left of it.

use std::{fs, io, path::Path};

use super::{Error, Instance, State};
use crate::{
    delivery::{Netlink, remove_leftovers},
    kernel::{Attachment, detach_interface},
};

/// Removes programs, maps, links, rules, routes and files, and goes on past what fails. The caller
/// is in the instance's network namespace, or `netlink` is `None` because that is gone. Says
/// whether anything was there.
///
/// # Errors
///
/// The first failure.
pub async fn remove(instance: &Instance, netlink: Option<&Netlink>) -> Result<bool, Error> {
    let mut outcome = Ok(());
    let directory = instance.run_directory();
    let state = instance.state().ok().or_else(|| State::newest(directory));
    let pins = instance.pins().filter(|pins| pins.exists());
    let found = pins.is_some() || state.is_some();
    if let (Some(state), Some(netlink)) = (&state, netlink) {
        for interface in &state.interfaces {
            // Pinned links go with their pins, below.
            if let Some((index, attachment @ Attachment::Clsact { .. })) = interface.attached {
                let pins = pins.as_deref().unwrap_or(directory);
                let detached = detach_interface(pins, &interface.name, index, attachment);
                outcome = outcome.and(detached.map_err(Error::from));
            }
        }
        let delivered = remove_leftovers(netlink, state.assignment()).await;
        outcome = outcome.and(delivered.map_err(Error::from));
    }
    for pins in pins.iter().chain(&instance.unfinished_pins()) {
        outcome = outcome.and(remove_tree(pins));
        // Shared by all instances: stays while another one has pins.
        let _ = pins.parent().map(fs::remove_dir);
    }
    if outcome.is_ok() {
        outcome = remove_tree(directory);
        let _ = directory.parent().map(fs::remove_dir);
    }
    outcome.map(|()| found)
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File {
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}
