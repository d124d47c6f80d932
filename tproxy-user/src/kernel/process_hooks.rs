//! The programs that see what processes of this host connect to: attached to the root of the control
//! groups while a rule has the scope local, so that nobody else pays for them.

use std::{fs, io, path::Path};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, Program, ProgramError, links::FdLink},
};

use super::{
    Error,
    object::{Settings, load_programs, over_pinned_maps},
};
use crate::sys::{self, open_pin};

/// The programs, in the order in which they are attached: the first marks what the others take.
const PROGRAMS: [&str; 5] = [
    "tproxy_opening",
    "tproxy_connect4",
    "tproxy_connect6",
    "tproxy_sendmsg4",
    "tproxy_sendmsg6",
];

/// The names of the pins of their links.
pub(super) fn link_pins() -> impl Iterator<Item = String> {
    PROGRAMS.into_iter().map(link_pin)
}

fn link_pin(program: &str) -> String {
    program.replacen("tproxy_", "link-", 1)
}

/// Loads the programs over the maps that are pinned in `directory`, and attaches them to the control
/// group whose directory `group` is. What is attached already stays.
///
/// # Errors
///
/// When the kernel refuses; nothing stays attached then that was not before.
pub fn attach_process_hooks(
    directory: &Path,
    group: &Path,
    settings: &Settings,
) -> Result<(), Error> {
    if process_hooks_are_attached(directory) {
        return Ok(());
    }
    // Some may be: of a command that was killed.
    detach_process_hooks(directory)?;
    let mut object = over_pinned_maps(Some(settings), directory)?;
    load_programs(&mut object, &PROGRAMS)?;
    let attached = PROGRAMS
        .iter()
        .try_for_each(|name| attach(&mut object, name, directory, group));
    if attached.is_err() {
        let _ = detach_process_hooks(directory);
    }
    attached
}

fn attach(object: &mut Ebpf, name: &str, directory: &Path, group: &Path) -> Result<(), Error> {
    let unusable = || format!("the control group {}", group.display());
    let refused = |cause| Error::Attach {
        object: unusable(),
        cause,
    };
    let group = fs::File::open(group).map_err(|cause| Error::Path {
        path: group.into(),
        cause,
    })?;
    // Links allow others beside them, and take no word for it (`cgroup_bpf_link_attach`).
    let mode = CgroupAttachMode::Single;
    let link: Result<FdLink, _> = match object.program_mut(name) {
        Some(Program::CgroupSockAddr(program)) => {
            let link = program.attach(&group, mode).map_err(refused)?;
            program.take_link(link).map_err(refused)?.try_into()
        }
        Some(Program::SockOps(program)) => {
            let link = program.attach(&group, mode).map_err(refused)?;
            program.take_link(link).map_err(refused)?.try_into()
        }
        _ => return Err(refused(ProgramError::UnexpectedProgramType {})),
    };
    let link = link.map_err(|cause| Error::Link {
        object: unusable(),
        cause,
    })?;
    let path = directory.join(link_pin(name));
    link.pin(&path)
        .map_err(|cause| Error::Pin { path, cause })?;
    Ok(())
}

/// Whether all of them have links.
#[must_use]
pub fn process_hooks_are_attached(directory: &Path) -> bool {
    let attached = |program: &str| directory.join(link_pin(program)).exists();
    PROGRAMS.iter().all(|program| attached(program))
}

/// Takes the programs off again. Those that are not attached are no error.
///
/// # Errors
///
/// When the kernel refuses; the others are taken off all the same.
pub fn detach_process_hooks(directory: &Path) -> Result<(), Error> {
    let mut outcome = Ok(());
    for program in PROGRAMS.iter().rev() {
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
