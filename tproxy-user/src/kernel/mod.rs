//! What this program keeps in the kernel: programs, maps, links and their pins.

pub mod bpffs;
mod counters;
mod explanation;
mod flow_filter;
mod generation;
mod handover;
mod held_links;
mod links;
mod local_udp;
mod maps;
mod object;
mod process_hooks;
mod turns;

pub use counters::{
    Counters, IntakeCounters, ListenerCounters, RelayCounters, RuleTotals, WorkerCounters,
};
pub use explanation::{ask, ask_presence};
pub use flow_filter::FlowFilter;
pub use generation::Generation;
pub use handover::Handover;
pub use held_links::HeldLinks;
pub use links::{
    attach_filter, attach_link, attach_lookup, detach_link, kernel_has_tcx, link_is_attached,
    load_program_for, lookup_is_attached, pinned_links, program_id,
};
pub use local_udp::LocalUdp;
pub use maps::Maps;
pub use object::{Loaded, Settings, load};
pub use process_hooks::{attach_process_hooks, detach_process_hooks, process_hooks_are_attached};
pub use turns::Turns;

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError, tc::TcError},
};
use tproxy_common::limits::INTERFACES;

/// A call to the kernel that failed, and what it was for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object could not be loaded as a whole.
    #[error("cannot load the kernel programs: {}{}", reasons(.cause), lacking(.cause))]
    Object {
        /// The refusal.
        cause: EbpfError,
    },
    /// A program was refused.
    #[error("cannot load the kernel program {program}: {}", explain_program(.cause))]
    Program {
        /// Its name.
        program: String,
        /// The refusal.
        cause: ProgramError,
    },
    /// A program would have to be loaded beside those of another build.
    #[error(
        "this instance was made by another build of tproxy, and lacks the program for such an interface: restart its agent with this build"
    )]
    OtherBuild,
    /// The program that explains answers something that nobody knows.
    #[error("the kernel program that explains answers {code:#x}, which means nothing")]
    Explanation {
        /// What it returned.
        code: u32,
    },
    /// A thread that loads programs ended without an answer.
    #[error("a thread that loads kernel programs died; its message is on standard error")]
    LoaderDied,
    /// A program cannot be attached.
    #[error("cannot attach to {object}: {}", explain_program(.cause))]
    Attach {
        /// The interface or namespace.
        object: String,
        /// The refusal.
        cause: ProgramError,
    },
    /// The `sk_lookup` program cannot be attached.
    #[error(
        "cannot attach the sk_lookup program to the network namespace: {}; the kernel needs BPF links for sk_lookup (Linux 5.9)",
        explain_program(.cause)
    )]
    AttachLookup {
        /// The refusal.
        cause: ProgramError,
    },
    /// The clsact qdisc cannot be added.
    #[error("cannot add a clsact qdisc to {interface}: {}", reasons(.cause))]
    Qdisc {
        /// The interface.
        interface: String,
        /// The refusal.
        cause: TcError,
    },
    /// No room in the map of interfaces.
    #[error(
        "an instance has at most {INTERFACES} interfaces: detach one, or use another --instance"
    )]
    TooManyInterfaces,
    /// A link is not what it should be.
    #[error("the link {object} is unusable: {}", reasons(.cause))]
    Link {
        /// What it attaches to.
        object: String,
        /// The refusal.
        cause: LinkError,
    },
    /// A map operation failed.
    #[error("the map {map} cannot be used: {}", reasons(.cause))]
    Map {
        /// Its name.
        map: &'static str,
        /// The failure.
        cause: MapError,
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
    /// The tables in force are full.
    #[error("the tables of the rules have no room for this change")]
    NoRoom,
    /// A pin cannot be made.
    #[error("cannot pin {path}: {}", reasons(.cause))]
    Pin {
        /// Where.
        path: PathBuf,
        /// The failure.
        cause: PinError,
    },
    /// A file or directory on bpffs cannot be changed.
    #[error("{path}: {cause}")]
    Path {
        /// Which.
        path: PathBuf,
        /// The failure.
        cause: io::Error,
    },
    /// There is no BPF file system.
    #[error("{0}")]
    Bpffs(#[from] bpffs::Error),
}

impl Error {
    /// A pin that is a map of another kind.
    fn not_an_array(map: &'static str) -> Self {
        Self::MapShape {
            map,
            found: "of another type".to_owned(),
            expected: "an array".to_owned(),
        }
    }
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
        other => reasons(other),
    }
}

/// What a kernel lacks that knows nothing of a system call.
fn lacking(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let unknown = causes.any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|cause| cause.raw_os_error() == Some(libc::ENOSYS))
    });
    if unknown {
        "; this kernel lacks bpf(2) (CONFIG_BPF_SYSCALL)"
    } else {
        ""
    }
}

/// An error and what caused it, down to the errno, each said once.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
