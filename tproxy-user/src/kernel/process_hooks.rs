//! The programs that see what processes of this host connect to: attached to the root of the control
//! groups while a rule has the scope local, so that nobody else pays for them.

use std::{fs, io, path::Path};

use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, CgroupSockAddrAttachType, ProgramError, SockOps,
    links::{FdLink, LinkError},
};

use super::Error;
use crate::sys::{self, open_pin};

/// Each program with the place where it is attached.
const ADDRESS_HOOKS: [(&str, CgroupSockAddrAttachType); 4] = [
    ("tproxy_connect4", CgroupSockAddrAttachType::Connect4),
    ("tproxy_connect6", CgroupSockAddrAttachType::Connect6),
    ("tproxy_sendmsg4", CgroupSockAddrAttachType::UDPSendMsg4),
    ("tproxy_sendmsg6", CgroupSockAddrAttachType::UDPSendMsg6),
];
const OPENING_PROGRAM: &str = "tproxy_opening";

fn link_pin(program: &str) -> String {
    program.replacen("tproxy_", "link-", 1)
}

fn programs() -> impl Iterator<Item = &'static str> {
    let of_addresses = ADDRESS_HOOKS.iter().map(|(program, _)| *program);
    // Marks what the others take, so it comes first and goes last.
    std::iter::once(OPENING_PROGRAM).chain(of_addresses)
}

/// Attaches the pinned programs to the control group whose directory this is. What is attached
/// already stays.
///
/// # Errors
///
/// When the kernel refuses; nothing stays attached then that was not before.
pub fn attach_process_hooks(directory: &Path, group: &Path) -> Result<(), Error> {
    if process_hooks_are_attached(directory) {
        return Ok(());
    }
    let attached = attach_all(directory, group);
    if attached.is_err() {
        let _ = detach_process_hooks(directory);
    }
    attached
}

fn attach_all(directory: &Path, group: &Path) -> Result<(), Error> {
    let directory_of_group = fs::File::open(group).map_err(|cause| Error::Path {
        path: group.into(),
        cause,
    })?;
    let refused = |cause| Error::Attach {
        object: format!("the control group {}", group.display()),
        cause,
    };
    for program in programs() {
        let pin = directory.join(link_pin(program));
        if pin.exists() {
            continue;
        }
        let link = attach(directory, program, &directory_of_group).map_err(refused)?;
        let link = link.map_err(|cause| Error::Link {
            object: format!("the control group {}", group.display()),
            cause,
        })?;
        link.pin(&pin)
            .map_err(|cause| Error::Pin { path: pin, cause })?;
    }
    Ok(())
}

fn attach(
    directory: &Path,
    program: &str,
    group: &fs::File,
) -> Result<Result<FdLink, LinkError>, ProgramError> {
    let mode = CgroupAttachMode::AllowMultiple;
    let pin = directory.join(program);
    match ADDRESS_HOOKS.iter().find(|(name, _)| *name == program) {
        Some((_, place)) => {
            let mut program = CgroupSockAddr::from_pin(pin, *place)?;
            let link = program.attach(group, mode)?;
            Ok(program.take_link(link)?.try_into())
        }
        None => {
            let mut program = SockOps::from_pin(pin)?;
            let link = program.attach(group, mode)?;
            Ok(program.take_link(link)?.try_into())
        }
    }
}

/// Whether all of them have links.
#[must_use]
pub fn process_hooks_are_attached(directory: &Path) -> bool {
    programs().all(|program| directory.join(link_pin(program)).exists())
}

/// Takes the programs off again. Those that are not attached are no error.
///
/// # Errors
///
/// When the kernel refuses; the others are taken off all the same.
pub fn detach_process_hooks(directory: &Path) -> Result<(), Error> {
    let mut outcome = Ok(());
    for program in programs().collect::<Vec<_>>().into_iter().rev() {
        let path = directory.join(link_pin(program));
        let detach = || {
            sys::detach_link(&open_pin(&path)?)?;
            fs::remove_file(&path)
        };
        match detach() {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                outcome = outcome.and(Err(Error::Path { path, cause }));
            }
            _ => {}
        }
    }
    outcome
}
