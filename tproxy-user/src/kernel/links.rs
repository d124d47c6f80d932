//! Attaches the programs, by what is pinned alone, so that the agent and the command line do it
//! with the same code.
//!
//! From Linux 6.6 a tcx link is pinned beside the programs. Older kernels get a filter in a clsact
//! qdisc, which needs no pin to stay.

use std::{fs, io, os::fd::AsRawFd as _, path::Path};

use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, SkLookup, TcAttachType,
        links::FdLink,
        tc::{NlOptions, TcAttachOptions, TcError, qdisc_add_clsact},
    },
    util::KernelVersion,
};

use super::{
    Error,
    object::{Loaded, Settings, load_also},
};
use crate::{
    delivery::{Framing, Link},
    sys::{self, open_pin},
};

pub(super) const ETHER_PROGRAM: &str = "tproxy_ether";
pub(super) const IP_PROGRAM: &str = "tproxy_ip";
pub(super) const LOOKUP_PROGRAM: &str = "tproxy_lookup";
const LINK_PREFIX: &str = "link-";
pub(super) const LOOKUP_LINK: &str = "link-lookup";

/// Attaches the pinned program for this framing to an interface of the caller's network namespace,
/// by a tcx link that is pinned.
///
/// # Errors
///
/// When the kernel refuses; nothing stays attached then.
pub fn attach_link(directory: &Path, link: &Link) -> Result<(), Error> {
    let Link { name, index, .. } = link;
    let failed = |cause| Error::Attach {
        object: name.clone(),
        cause,
    };
    let mut program = program_for(directory, link)?;
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
    Ok(())
}

/// Attaches the pinned program for this framing to an interface of the caller's network namespace,
/// as a filter in its clsact qdisc, which is added when it is not there.
///
/// # Errors
///
/// When the kernel refuses. The qdisc may have been added.
pub fn attach_filter(directory: &Path, link: &Link) -> Result<(), Error> {
    let name = &link.name;
    let failed = |cause| Error::Attach {
        object: name.clone(),
        cause,
    };
    match qdisc_add_clsact(name) {
        Ok(()) | Err(TcError::AlreadyAttached) => {}
        // The kernel's word for it arrives as a netlink error.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(cause) => {
            return Err(Error::Qdisc {
                interface: name.clone(),
                cause,
            });
        }
    }
    let mut program = program_for(directory, link)?;
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let id = program
        .attach_with_options(name, TcAttachType::Ingress, options)
        .map_err(failed)?;
    // The filter is to stay, and dropping the link would take it off.
    std::mem::forget(program.take_link(id).map_err(failed)?);
    Ok(())
}

/// Loads and pins the program for interfaces of this framing, if none was there before this one.
///
/// # Errors
///
/// When the kernel refuses, or the instance is one of another build.
pub fn load_program_for(
    directory: &Path,
    link: &Link,
    settings: &Settings,
    loaded: &Loaded,
) -> Result<(), Error> {
    let program = program_name(link);
    if directory.join(program).exists() {
        return Ok(());
    }
    load_also(program, settings, loaded, directory)
}

const fn program_name(link: &Link) -> &'static str {
    match link.framing {
        Framing::Ip => IP_PROGRAM,
        Framing::Ethernet | Framing::Other(_) => ETHER_PROGRAM,
    }
}

fn program_for(directory: &Path, link: &Link) -> Result<SchedClassifier, Error> {
    let pin = directory.join(program_name(link));
    SchedClassifier::from_pin(pin).map_err(|cause| Error::Attach {
        object: link.name.clone(),
        cause,
    })
}

/// The kernel's number of the program that an interface of this framing gets.
///
/// # Errors
///
/// When it is not pinned.
pub fn program_id(directory: &Path, link: &Link) -> Result<u32, Error> {
    let info = program_for(directory, link)?.info();
    let info = info.map_err(|cause| Error::Attach {
        object: link.name.clone(),
        cause,
    })?;
    Ok(info.id())
}

/// Whether the pinned link of an interface is attached to it still. The kernel takes links off
/// interfaces that are deleted, and `bpftool` off others; their pins stay.
///
/// # Errors
///
/// When the kernel does not say.
pub fn link_is_attached(directory: &Path, index: u32) -> Result<bool, Error> {
    let found = number_of_link(&directory.join(link_pin(index)), "ifindex")?;
    Ok(found == Some(index.into()))
}

/// Whether the pinned link of the sk_lookup program is attached to the network namespace with this
/// inode still.
///
/// # Errors
///
/// When the kernel does not say.
pub fn lookup_is_attached(directory: &Path, namespace: u64) -> Result<bool, Error> {
    let found = number_of_link(&directory.join(LOOKUP_LINK), "netns_ino")?;
    Ok(found == Some(namespace))
}

/// What the kernel says about a pinned link (`/proc/PID/fdinfo/FD`); `None` when there is no such
/// pin.
fn number_of_link(pin: &Path, key: &str) -> Result<Option<u64>, Error> {
    let failed = |cause| Error::Path {
        path: pin.into(),
        cause,
    };
    let link = match open_pin(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        link => link.map_err(failed)?,
    };
    let lines = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()));
    let lines = lines.map_err(failed)?;
    let mut values = lines
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(values
        .next_back()
        .and_then(|value| value.trim().parse().ok()))
}

/// Takes the tcx link off an interface. One that is gone already is no error.
///
/// # Errors
///
/// When the pin cannot be removed.
pub fn detach_link(directory: &Path, index: u32) -> Result<(), Error> {
    let path = directory.join(link_pin(index));
    let detach = || {
        // Before the pin goes: without it nobody would find a link that cannot be detached.
        sys::detach_link(&open_pin(&path)?)?;
        fs::remove_file(&path)
    };
    match detach() {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::Path { path, cause }),
        _ => Ok(()),
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
    let mut program = SkLookup::from_pin(&pin).map_err(failed)?;
    let id = program.attach(&namespace).map_err(failed)?;
    let link: FdLink = program.take_link(id).map_err(failed)?.into();
    let path = directory.join(LOOKUP_LINK);
    link.pin(&path)
        .map_err(|cause| Error::Pin { path, cause })?;
    Ok(())
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

pub(super) fn link_pin(index: u32) -> String {
    format!("{LINK_PREFIX}{index}")
}
