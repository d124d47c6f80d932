//! Programs on interfaces: put on, and taken off wherever nobody should have them any more.
//!
//! Whatever is attached can be found without the state, so that what a killed command left is
//! found as well: a tcx link by its pin, a filter by a note that is written before it is made.
//!
//! | file | says |
//! | --- | --- |
//! | `link-INDEX` among the pins | the interface has a tcx link |
//! | `clsact-INDEX` in the run directory | the interface may have a filter, and the qdisc was `made` for it or `found` |

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Error, Instance};
use crate::{
    delivery::{Link, Netlink, has_clsact, remove_unused_clsact},
    kernel::{attach_filter, attach_link, detach_filters, detach_link, pinned_links},
};

const NOTE_PREFIX: &str = "clsact-";
const MADE: &str = "made";
const FOUND: &str = "found";

/// What is attached for one instance.
pub(super) struct Attachments {
    pins: PathBuf,
    run: PathBuf,
}

impl Attachments {
    pub(super) fn new(instance: &Instance, pins: &Path) -> Self {
        Self {
            pins: pins.into(),
            run: instance.run_directory().into(),
        }
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
        let note = self.note(link.index);
        let qdisc = if has_clsact(netlink, link.index).await? {
            FOUND
        } else {
            MADE
        };
        fs::write(&note, qdisc).map_err(|cause| Error::File { path: note, cause })?;
        Ok(attach_filter(&self.pins, link)?)
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
        detach_filters(index)?;
        let note = self.note(index);
        if fs::read_to_string(&note).is_ok_and(|qdisc| qdisc == MADE) {
            remove_unused_clsact(netlink, index).await?;
        }
        match fs::remove_file(&note) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { path: note, cause })
            }
            _ => Ok(()),
        }
    }

    fn note(&self, index: u32) -> PathBuf {
        self.run.join(format!("{NOTE_PREFIX}{index}"))
    }
}
