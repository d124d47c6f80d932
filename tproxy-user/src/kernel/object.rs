//! The embedded object: loads it and pins what came of it.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    thread,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{Program, ProgramError},
};

use serde::{Deserialize, Serialize};

use super::{Error, IntakeCounters, RelayCounters, links::LOOKUP_LINK};

/// The program that only explains: loaded by who asks, so that a start does not wait for it.
pub(super) const EXPLAIN_PROGRAM: &str = "tproxy_explain";

pub(super) static OBJECT: &[u8] =
    include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tproxy-ebpf.o"));

/// What is fixed when the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Mark, and mask, of packets that are delivered to this host.
    pub mark: u32,
    /// Mark of the agent's own connections.
    pub upstream_mark: u32,
    /// Cookie of the network namespace whose processes the hooks of scope local concern
    /// (`SO_NETNS_COOKIE`).
    pub namespace_cookie: u64,
    /// Stand-ins for the source addresses of datagrams that processes of this host send.
    pub stand_ins: (Ipv4Addr, Ipv6Addr),
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

    /// Whether `directory` has all of it, loaded by a program of this very build and in force.
    #[must_use]
    pub fn is_whole_and_current(&self, directory: &Path) -> bool {
        let pinned = |name: &String| directory.join(name).exists();
        self.object == fingerprint() && self.pins.iter().all(pinned)
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
    let (v4, v6) = settings.stand_ins;
    // As the contexts of programs have addresses: words in network byte order.
    let v4 = u32::from_ne_bytes(v4.octets());
    let mut words = [0; 4];
    for (word, octets) in words.iter_mut().zip(v6.octets().chunks_exact(4)) {
        *word = u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]);
    }
    let mut object = EbpfLoader::new()
        .override_global("MARK", &settings.mark, true)
        .override_global("UPSTREAM_MARK", &settings.upstream_mark, true)
        .override_global("NETWORK_NAMESPACE", &settings.namespace_cookie, true)
        .override_global("STAND_IN_V4", &v4, true)
        .override_global("STAND_IN_V6", &words, true)
        .load(OBJECT)
        .map_err(|cause| Error::Object { cause })?;
    load_programs(&mut object, directory)?;
    for (name, map) in object.maps() {
        // Read-only globals belong to the programs alone.
        if !name.starts_with('.') {
            pin(&directory.join(name), |path| map.pin(path))?;
        }
    }
    RelayCounters::create(directory)?;
    IntakeCounters::create(directory)?;
    Loaded::new(directory).map_err(|cause| Error::Path {
        path: directory.into(),
        cause,
    })
}

/// The verifier takes most of the time of a start, so each program has a thread of its own.
fn load_programs(object: &mut Ebpf, directory: &Path) -> Result<(), Error> {
    thread::scope(|scope| {
        let loading: Vec<_> = object
            .programs_mut()
            .filter(|(name, _)| *name != EXPLAIN_PROGRAM)
            .map(|(name, program)| {
                let name = name.to_owned();
                scope.spawn(move || load_program(&name, program, &directory.join(&name)))
            })
            .collect();
        loading.into_iter().try_for_each(|thread| {
            let died = |_| Error::LoaderDied;
            thread.join().map_err(died)?
        })
    })
}

fn load_program(name: &str, program: &mut Program, path: &Path) -> Result<(), Error> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType {}),
    };
    loaded.map_err(|cause| Error::Program {
        program: name.to_owned(),
        cause,
    })?;
    pin(path, |path| program.pin(path))
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
