//! Attaches the programs, by what is pinned alone, so that the agent and the command line do it
//! with the same code.
//!
//! From Linux 6.6 a tcx link is pinned beside the programs. Older kernels get a filter in a clsact
//! qdisc, which needs no pin to stay.

use std::{fs, path::Path};

use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, SkLookup, TcAttachType,
        links::FdLink,
        tc::{
            NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
        },
    },
    util::KernelVersion,
};
use serde::{Deserialize, Serialize};

use super::Error;
use crate::delivery::{Framing, Link};

pub(super) const ETHER_PROGRAM: &str = "tproxy_ether";
pub(super) const IP_PROGRAM: &str = "tproxy_ip";
pub(super) const LOOKUP_PROGRAM: &str = "tproxy_lookup";
const LINK_PREFIX: &str = "link-";
const LOOKUP_LINK: &str = "link-lookup";

/// How a program holds on to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attachment {
    /// By a pinned tcx link.
    Tcx,
    /// By a filter in the clsact qdisc.
    Clsact {
        /// Preference of the filter.
        priority: u16,
        /// Its handle.
        handle: u32,
        /// Whether the qdisc was not there before.
        made_qdisc: bool,
    },
}

/// Attaches the pinned program for this framing to an interface of the caller's network namespace,
/// by a tcx link or in a clsact qdisc.
///
/// # Errors
///
/// When the kernel refuses; nothing stays attached then.
pub fn attach_interface(directory: &Path, link: &Link, tcx: bool) -> Result<Attachment, Error> {
    let Link { name, index, .. } = link;
    let failed = |cause| Error::Attach {
        object: name.clone(),
        cause,
    };
    let program = match link.framing {
        Framing::Ip => IP_PROGRAM,
        Framing::Ethernet | Framing::Other(_) => ETHER_PROGRAM,
    };
    let mut program = SchedClassifier::from_pin(directory.join(program)).map_err(failed)?;
    if !tcx {
        return attach_clsact(&mut program, name);
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program
        .attach_with_options(name, TcAttachType::Ingress, options)
        .map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|cause| Error::Link {
        object: name.clone(),
        cause,
    })?;
    let path = directory.join(link_pin(*index));
    link.pin(&path)
        .map_err(|cause| Error::Pin { path, cause })?;
    Ok(Attachment::Tcx)
}

fn attach_clsact(program: &mut SchedClassifier, name: &str) -> Result<Attachment, Error> {
    let failed = |cause| Error::Attach {
        object: name.to_owned(),
        cause,
    };
    let made_qdisc = match qdisc_add_clsact(name) {
        Ok(()) => true,
        Err(TcError::AlreadyAttached) => false,
        // The kernel's word for it arrives as a netlink error.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => false,
        Err(cause) => {
            return Err(Error::Qdisc {
                interface: name.to_owned(),
                cause,
            });
        }
    };
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let id = program
        .attach_with_options(name, TcAttachType::Ingress, options)
        .map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let attachment = Attachment::Clsact {
        priority: link.priority().map_err(failed)?,
        handle: link.handle().map_err(failed)?.into(),
        made_qdisc,
    };
    // The filter is to stay, and dropping the link would take it off.
    std::mem::forget(link);
    Ok(attachment)
}

/// Takes the program off an interface. One that is gone already is no error.
///
/// # Errors
///
/// When the kernel refuses.
pub fn detach_interface(
    directory: &Path,
    name: &str,
    index: u32,
    attachment: Attachment,
) -> Result<(), Error> {
    match attachment {
        Attachment::Tcx => {
            let path = directory.join(link_pin(index));
            match fs::remove_file(&path) {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::Path { path, cause })
                }
                _ => Ok(()),
            }
        }
        Attachment::Clsact {
            priority, handle, ..
        } => {
            let handle = TcHandle::from(handle);
            let link =
                SchedClassifierLink::attached(name, TcAttachType::Ingress, priority, handle, None);
            match link {
                // Dropping it detaches; an interface that is gone took its filters along.
                Ok(link) => drop(link),
                Err(_) if !Path::new("/sys/class/net").join(name).exists() => {}
                Err(cause) => {
                    let cause = ProgramError::IOError(cause);
                    return Err(Error::Attach {
                        object: name.to_owned(),
                        cause,
                    });
                }
            }
            Ok(())
        }
    }
}

/// Attaches the sk_lookup program to the caller's network namespace.
///
/// # Errors
///
/// When the kernel refuses.
pub fn attach_lookup(directory: &Path) -> Result<(), Error> {
    let failed = |cause| Error::AttachLookup { cause };
    let namespace = fs::File::open("/proc/thread-self/ns/net")
        .map_err(|error| failed(ProgramError::IOError(error)))?;
    let pin = directory.join(LOOKUP_PROGRAM);
    let mut program = lookup_from_pin(&pin).map_err(failed)?;
    let id = program.attach(&namespace).map_err(failed)?;
    let link: FdLink = program.take_link(id).map_err(failed)?.into();
    let path = directory.join(LOOKUP_LINK);
    link.pin(&path)
        .map_err(|cause| Error::Pin { path, cause })?;
    Ok(())
}

fn lookup_from_pin(path: &Path) -> Result<SkLookup, ProgramError> {
    SkLookup::from_pin(path)
}

/// Whether this kernel has tcx, which came with Linux 6.6.
#[must_use]
pub fn kernel_has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// The indexes of the interfaces that have a pinned link.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn pinned_links(directory: &Path) -> Result<Vec<u32>, Error> {
    let entries = fs::read_dir(directory).map_err(|cause| Error::Path {
        path: directory.into(),
        cause,
    })?;
    let indexes = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.strip_prefix(LINK_PREFIX)?.parse().ok()
    });
    Ok(indexes.collect())
}

fn link_pin(index: u32) -> String {
    format!("{LINK_PREFIX}{index}")
}
