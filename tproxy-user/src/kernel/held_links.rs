//! Links that are held open beside their pins. The kernel takes a program off when nothing refers to its
//! link any more, so that whoever removes the pins of a living agent would let flows pass by its rules.

use std::{collections::HashMap, os::fd::OwnedFd, path::Path};

use super::{
    links::{LOOKUP_LINK, link_pin},
    process_hooks,
};
use crate::sys::open_pin;

/// The links that are held, by the names of their pins.
#[derive(Debug, Default)]
pub struct HeldLinks(HashMap<String, OwnedFd>);

impl HeldLinks {
    /// Holds the links of these interfaces, of the sk_lookup program and of the process hooks, and no
    /// others. One whose pin is gone is held on to, unless it is of a process hook: these come and go
    /// with the rules.
    pub fn follow(&mut self, directory: &Path, interfaces: impl Iterator<Item = u32>) {
        let mut before = std::mem::take(&mut self.0);
        let lasting = interfaces.map(link_pin).chain([LOOKUP_LINK.to_owned()]);
        for pin in lasting {
            let link = open_pin(&directory.join(&pin)).ok();
            if let Some(link) = link.or_else(|| before.remove(&pin)) {
                self.0.insert(pin, link);
            }
        }
        for pin in process_hooks::link_pins() {
            if let Ok(link) = open_pin(&directory.join(&pin)) {
                self.0.insert(pin, link);
            }
        }
    }
}
