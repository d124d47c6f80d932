//! The embedded object: loads it and pins what came of it.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{SchedClassifier, SkLookup},
};

use super::{
    Error,
    links::{ETHER_PROGRAM, IP_PROGRAM, LOOKUP_PROGRAM},
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tproxy-ebpf.o"));

/// What is fixed when the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Mark, and mask, of packets that are delivered to this host.
    pub mark: u32,
    /// Mark of the agent's own connections.
    pub upstream_mark: u32,
}

/// Loads programs and maps and pins them in `directory`, which exists and is empty. Nothing is
/// attached.
///
/// # Errors
///
/// When the kernel refuses a part; what was pinned before stays for the caller to remove.
pub fn load(settings: Settings, directory: &Path) -> Result<(), Error> {
    let mut object = EbpfLoader::new()
        .override_global("MARK", &settings.mark, true)
        .override_global("UPSTREAM_MARK", &settings.upstream_mark, true)
        .load(OBJECT)
        .map_err(|cause| Error::Object { cause })?;
    for name in [ETHER_PROGRAM, IP_PROGRAM] {
        let program: &mut SchedClassifier = program(&mut object, name)?;
        program.load().map_err(|cause| Error::Program {
            program: name,
            cause,
        })?;
        pin(&directory.join(name), |path| program.pin(path))?;
    }
    let lookup: &mut SkLookup = program(&mut object, LOOKUP_PROGRAM)?;
    lookup.load().map_err(|cause| Error::Program {
        program: LOOKUP_PROGRAM,
        cause,
    })?;
    pin(&directory.join(LOOKUP_PROGRAM), |path| lookup.pin(path))?;
    for (name, map) in object.maps() {
        // Read-only globals belong to the programs alone.
        if !name.starts_with('.') {
            pin(&directory.join(name), |path| map.pin(path))?;
        }
    }
    Ok(())
}

fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    use aya::programs::ProgramError;
    let missing = || ProgramError::IOError(std::io::Error::other("not in the embedded object"));
    object
        .program_mut(name)
        .ok_or_else(missing)
        .and_then(TryInto::try_into)
        .map_err(|cause| Error::Program {
            program: name,
            cause,
        })
}

fn pin(
    path: &Path,
    pin: impl FnOnce(&Path) -> Result<(), aya::pin::PinError>,
) -> Result<(), Error> {
    pin(path).map_err(|cause| Error::Pin {
        path: path.into(),
        cause,
    })
}
