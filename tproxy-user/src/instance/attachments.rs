//! Programs on interfaces: put on, and taken off wherever nobody should have them any more.
//!
//! Whatever is attached can be found without the state, so that what a killed command left is
//! found as well: a tcx link by its pin, a filter by a note that is written before it is made.
//!
//! | file | says |
//! | --- | --- |
//! | `link-INDEX` among the pins | the interface has, or had, a tcx link |
//! | `clsact-INDEX` in the run directory | the interface may have a filter |

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Error, Instance, State};
use crate::{
    delivery::{
        Link, Netlink, has_clsact, has_filter, list_links, remove_filters, remove_unused_clsact,
    },
    kernel::{
        Settings, attach_filter, attach_link, detach_link, link_is_attached, load_program_for,
        pinned_links, program_id,
    },
};

const NOTE_PREFIX: &str = "clsact-";

/// What is attached for one instance.
pub(super) struct Attachments {
    pins: PathBuf,
    run: PathBuf,
}

/// What is known of a filter in a clsact qdisc.
#[derive(Serialize, Deserialize)]
struct Note {
    /// The kernel's number of its program.
    program: u32,
    /// Whether the qdisc was not there before.
    made_qdisc: bool,
}

impl Attachments {
    pub(super) fn new(instance: &Instance, pins: &Path) -> Self {
        Self {
            pins: pins.into(),
            run: instance.run_directory().into(),
        }
    }

    /// Makes sure that the program for an interface of the caller's network namespace is there.
    pub(super) fn load_program_for(&self, link: &Link, state: &State) -> Result<(), Error> {
        let settings = Settings::of_this_namespace(state.assignment()).map_err(Error::Entering)?;
        load_program_for(&self.pins, link, &settings, &state.loaded)?;
        Ok(())
    }

    /// Attaches an interface of the caller's network namespace, by a tcx link or in a clsact qdisc.
    /// What is there after a failure is found by [`Attachments::links`] and
    /// [`Attachments::filters`].
    pub(super) async fn attach(
        &self,
        netlink: &Netlink,
        link: &Link,
        tcx: bool,
    ) -> Result<(), Error> {
        if tcx {
            return Ok(attach_link(&self.pins, link)?);
        }
        let note = Note {
            program: program_id(&self.pins, link)?,
            made_qdisc: !has_clsact(netlink, link.index).await?,
        };
        self.write_note(link.index, &note)?;
        Ok(attach_filter(&self.pins, link)?)
    }

    /// Whether an interface of the caller's network namespace is attached indeed: what the state
    /// says may have been undone by others, or with the interface.
    pub(super) async fn holds(&self, netlink: &Netlink, index: u32) -> Result<bool, Error> {
        if link_is_attached(&self.pins, index)? {
            return Ok(true);
        }
        match self.read_note(index) {
            Some(note) => Ok(has_filter(netlink, index, note.program).await?),
            None => Ok(false),
        }
    }

    /// The interfaces that have a tcx link, in whichever network namespace.
    pub(super) fn links(&self) -> Result<Vec<u32>, Error> {
        Ok(pinned_links(&self.pins)?)
    }

    /// Takes the tcx link off an interface.
    pub(super) fn detach_link(&self, index: u32) -> Result<(), Error> {
        Ok(detach_link(&self.pins, index)?)
    }

    /// The interfaces that may have a filter.
    pub(super) fn filters(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.run).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name();
                name.to_str()?.strip_prefix(NOTE_PREFIX)?.parse().ok()
            })
            .collect()
    }

    /// Takes the filter off an interface of the instance's network namespace, which the caller and
    /// `netlink` are in, and the qdisc that was made for it.
    pub(super) async fn detach_filter(&self, netlink: &Netlink, index: u32) -> Result<(), Error> {
        // A note that cannot be read was not written to its end: there is no filter yet.
        if let Some(note) = self.read_note(index) {
            remove_filters(netlink, index, note.program).await?;
            if note.made_qdisc {
                remove_unused_clsact(netlink, index).await?;
            }
        }
        let path = self.note(index);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { path, cause })
            }
            _ => Ok(()),
        }
    }

    /// Takes the filters with programs of this instance off all interfaces of its network namespace,
    /// noted or not. Qdiscs that were made for them stay: only the notes say which these are.
    pub(super) async fn detach_unnoted_filters(&self, netlink: &Netlink) -> Result<(), Error> {
        for link in list_links(netlink).await? {
            if let Ok(program) = program_id(&self.pins, &link) {
                remove_filters(netlink, link.index, program).await?;
            }
        }
        Ok(())
    }

    fn read_note(&self, index: u32) -> Option<Note> {
        serde_json::from_slice(&fs::read(self.note(index)).ok()?).ok()
    }

    fn write_note(&self, index: u32, note: &Note) -> Result<(), Error> {
        let path = self.note(index);
        let write = || fs::write(&path, serde_json::to_vec(note)?);
        write().map_err(|cause| Error::File { path, cause })
    }

    fn note(&self, index: u32) -> PathBuf {
        self.run.join(format!("{NOTE_PREFIX}{index}"))
    }
}
