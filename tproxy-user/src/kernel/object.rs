//! The embedded object: loads it and pins what came of it.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::Path,
    thread,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{Program, ProgramError},
};

use serde::{Deserialize, Serialize};

use super::{
    Error, IntakeCounters, ListenerCounters, RelayCounters, WorkerCounters,
    links::{LOOKUP_LINK, LOOKUP_PROGRAM},
};
use crate::{delivery::Assignment, sys::namespace_cookie};

/// The program that only explains: loaded by who asks, so that a start does not wait for it.
pub(super) const EXPLAIN_PROGRAM: &str = "tproxy_explain";

/// Programs that every instance has. The others are loaded when they are needed: the verifier takes
/// long, most of all for those of interfaces.
const PROGRAMS: [&str; 1] = [LOOKUP_PROGRAM];

pub(super) static OBJECT: &[u8] =
    include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tproxy-ebpf.o"));

/// What is fixed when the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    mark: u32,
    upstream_mark: u32,
    /// Whose processes the hooks of scope local concern (`SO_NETNS_COOKIE`).
    namespace_cookie: u64,
    /// Stand-ins for source addresses, as the contexts of programs have addresses: words in network
    /// byte order.
    stand_in_v4: u32,
    stand_in_v6: [u32; 4],
}

impl Settings {
    /// Those of an instance in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When the kernel does not say which one that is.
    pub fn of_this_namespace(assignment: Assignment) -> io::Result<Self> {
        let v6 = assignment.stand_in_v6().octets();
        let mut words = [0; 4];
        for (word, octets) in words.iter_mut().zip(v6.chunks_exact(4)) {
            *word = u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]);
        }
        Ok(Self {
            mark: assignment.mark,
            upstream_mark: assignment.upstream_mark(),
            namespace_cookie: namespace_cookie()?,
            stand_in_v4: u32::from_ne_bytes(assignment.stand_in_v4().octets()),
            stand_in_v6: words,
        })
    }

    fn loader(&self) -> EbpfLoader<'_> {
        let mut loader = EbpfLoader::new();
        loader
            .override_global("MARK", &self.mark, true)
            .override_global("UPSTREAM_MARK", &self.upstream_mark, true)
            .override_global("NETWORK_NAMESPACE", &self.namespace_cookie, true)
            .override_global("STAND_IN_V4", &self.stand_in_v4, true)
            .override_global("STAND_IN_V6", &self.stand_in_v6, true);
        loader
    }
}

/// What was loaded, for whoever finds it pinned later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Tells the object of one build from that of another.
    object: u64,
    /// Names of the pins that belong together.
    pins: Vec<String>,
}

impl Loaded {
    fn new(directory: &Path) -> io::Result<Self> {
        let mut pins = vec![LOOKUP_LINK.to_owned()];
        for entry in fs::read_dir(directory)? {
            pins.extend(entry?.file_name().into_string());
        }
        pins.sort_unstable();
        Ok(Self {
            object: fingerprint(),
            pins,
        })
    }

    /// Whether it was loaded by a program of this very build.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.object == fingerprint()
    }

    /// Whether `directory` has all of it, loaded by a program of this very build and in force.
    #[must_use]
    pub fn is_whole_and_current(&self, directory: &Path) -> bool {
        let pinned = |name: &String| directory.join(name).exists();
        self.is_current() && self.pins.iter().all(pinned)
    }
}

fn fingerprint() -> u64 {
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    hasher.finish()
}

/// Loads programs and maps and pins them in `directory`, which exists and is empty. Nothing is
/// attached.
///
/// # Errors
///
/// When the kernel refuses a part; what was pinned before stays for the caller to remove.
pub fn load(settings: Settings, directory: &Path) -> Result<Loaded, Error> {
    let mut object = settings
        .loader()
        .load(OBJECT)
        .map_err(|cause| Error::Object { cause })?;
    load_programs(&mut object, &PROGRAMS)?;
    pin_programs(&mut object, &PROGRAMS, directory)?;
    for (name, map) in object.maps() {
        // Read-only globals belong to the programs alone.
        if !name.starts_with('.') {
            pin(&directory.join(name), |path| map.pin(path))?;
        }
    }
    RelayCounters::create(directory)?;
    IntakeCounters::create(directory)?;
    WorkerCounters::create(directory)?;
    ListenerCounters::create(directory)?;
    Loaded::new(directory).map_err(|cause| Error::Path {
        path: directory.into(),
        cause,
    })
}

/// Loads one more program over the maps that are pinned in `directory`, and pins it there.
///
/// # Errors
///
/// When the kernel refuses, or the maps are of another build, whose form this one does not know.
pub(super) fn load_also(
    name: &'static str,
    settings: &Settings,
    loaded: &Loaded,
    directory: &Path,
) -> Result<(), Error> {
    if !loaded.is_current() {
        return Err(Error::OtherBuild);
    }
    let mut object = over_pinned_maps(Some(settings), directory)?;
    load_programs(&mut object, &[name])?;
    pin_programs(&mut object, &[name], directory)
}

fn pin_programs(object: &mut Ebpf, names: &[&str], directory: &Path) -> Result<(), Error> {
    let wanted = object
        .programs_mut()
        .filter(|(name, _)| names.contains(name));
    for (name, program) in wanted {
        pin(&directory.join(name), |path| program.pin(path))?;
    }
    Ok(())
}

/// The object over the maps that are pinned in `directory`, with none of its programs loaded.
///
/// # Errors
///
/// When the directory cannot be read, or the kernel refuses.
pub(super) fn over_pinned_maps(
    settings: Option<&Settings>,
    directory: &Path,
) -> Result<Ebpf, Error> {
    let unreadable = |cause| Error::Path {
        path: directory.into(),
        cause,
    };
    let pins = fs::read_dir(directory)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(unreadable)?;
    let names: Vec<_> = pins.iter().map(fs::DirEntry::file_name).collect();
    let mut loader = settings.map_or_else(EbpfLoader::new, Settings::loader);
    for (name, pin) in names.iter().zip(&pins) {
        // What is no map of the object is passed over.
        if let Some(name) = name.to_str() {
            loader.map_pin_path(name, pin.path());
        }
    }
    loader.load(OBJECT).map_err(|cause| Error::Object { cause })
}

/// Loads the programs with these names. The verifier takes most of the time, so each program has a
/// thread of its own.
pub(super) fn load_programs(object: &mut Ebpf, names: &[&str]) -> Result<(), Error> {
    thread::scope(|scope| {
        let loading: Vec<_> = object
            .programs_mut()
            .filter(|(name, _)| names.contains(name))
            .map(|(name, program)| {
                let program_name = name.to_owned();
                scope.spawn(move || {
                    load_program(program).map_err(|cause| Error::Program {
                        program: program_name,
                        cause,
                    })
                })
            })
            .collect();
        loading.into_iter().try_for_each(|thread| {
            let died = |_| Error::LoaderDied;
            thread.join().map_err(died)?
        })
    })
}

/// Loads a program of this object.
pub(super) fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    until_verified(|| match program {
        Program::SchedClassifier(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType {}),
    })
}

/// Loads again what the verifier was interrupted at: it gives up (`EAGAIN`) when the process is stopped or gets a
/// signal.
fn until_verified(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const ATTEMPTS: usize = 10;
    let is_interrupted = |result: &Result<(), ProgramError>| {
        matches!(result, Err(ProgramError::LoadError { io_error, .. })
            if io_error.kind() == io::ErrorKind::WouldBlock)
    };
    for _ in 1..ATTEMPTS {
        let result = load();
        if !is_interrupted(&result) {
            return result;
        }
    }
    load()
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

#[cfg(test)]
mod tests {
    use aya_obj::VerifierLog;

    use super::*;

    /// Loads with these errors, one an attempt, and says how many attempts there were.
    fn attempts_of(errors: &[i32]) -> (usize, Result<(), ProgramError>) {
        let mut attempts = 0;
        let result = until_verified(|| {
            attempts += 1;
            errors.get(attempts - 1).map_or(Ok(()), |&errno| {
                Err(ProgramError::LoadError {
                    io_error: io::Error::from_raw_os_error(errno),
                    verifier_log: VerifierLog::new(String::new()),
                })
            })
        });
        (attempts, result)
    }

    #[test]
    fn an_interrupted_load_is_begun_again() {
        assert!(matches!(attempts_of(&[]), (1, Ok(()))));
        assert!(matches!(attempts_of(&[libc::EAGAIN; 3]), (4, Ok(()))));
    }

    #[test]
    fn it_is_given_up_in_the_end() {
        assert!(matches!(attempts_of(&[libc::EAGAIN; 100]), (10, Err(_))));
    }

    #[test]
    fn what_the_verifier_refuses_stays_refused() {
        assert!(matches!(attempts_of(&[libc::EACCES]), (1, Err(_))));
    }
}
