//! What this program keeps in the kernel: programs, maps, links and their pins.

pub mod bpffs;
mod counters;
mod generation;
mod links;
mod maps;
mod object;

pub use counters::{Counters, RelayCounters, RuleTotals};
pub use generation::Generation;
pub use links::{Attachment, attach_interface, attach_lookup, detach_interface};
pub use maps::Maps;
pub use object::{Settings, load};

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError, tc::TcError},
};

/// A call to the kernel that failed, and what it was for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object could not be loaded as a whole.
    #[error("cannot load the kernel programs: {0}")]
    Object(#[from] EbpfError),
    /// A program was refused.
    #[error("cannot load the kernel program {program}: {}", explain_program(.source))]
    Program {
        /// Its name.
        program: &'static str,
        /// The refusal.
        source: ProgramError,
    },
    /// A program cannot be attached.
    #[error("cannot attach to {object}: {}", explain_program(.source))]
    Attach {
        /// The interface or namespace.
        object: String,
        /// The refusal.
        source: ProgramError,
    },
    /// The clsact qdisc cannot be added.
    #[error("cannot add a clsact qdisc to {interface}: {source}")]
    Qdisc {
        /// The interface.
        interface: String,
        /// The refusal.
        source: TcError,
    },
    /// A link is not what it should be.
    #[error("the link {object} is unusable: {source}")]
    Link {
        /// What it attaches to.
        object: String,
        /// The refusal.
        source: LinkError,
    },
    /// A map operation failed.
    #[error("the map {map} cannot be used: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The failure.
        source: MapError,
    },
    /// Another version of this program left a map of another shape.
    #[error(
        "the pinned map {map} is {found}, not {expected}: another version made it; `tproxy unload` removes it"
    )]
    MapShape {
        /// Its name.
        map: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A map cannot be read in place.
    #[error("the map of the rules cannot be mapped into memory: {0}")]
    Memory(io::Error),
    /// A pin cannot be made.
    #[error("cannot pin {path}: {source}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// The failure.
        source: PinError,
    },
    /// A file or directory on bpffs cannot be changed.
    #[error("{path}: {source}")]
    Path {
        /// Which.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// There is no BPF file system.
    #[error("{0}")]
    Bpffs(#[from] bpffs::Error),
}

/// The kernel's errno is what an operator can look up; the verifier's log is for `RUST_LOG=debug`.
fn explain_program(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            log::debug!("verifier log: {verifier_log}");
            format!("{io_error} (RUST_LOG=debug shows the verifier's log)")
        }
        ProgramError::SyscallError(error) => error.io_error.to_string(),
        other => other.to_string(),
    }
}
