//! An instance: one named set of programs, maps and rules, and where its state is.
//!
//! | place | holds | written by |
//! | --- | --- | --- |
//! | `/sys/fs/bpf/tproxy/NAME/` | pins of programs, maps and links, 0600 in 0700 | `run`, `attach` |
//! | `/run/tproxy/NAME/state-N.json` | rules and interfaces of generation N as they were typed | every change |
//! | `/run/tproxy/NAME/origin.json` | network namespace, mark and table | `run` |
//! | `/run/tproxy/NAME/clsact-INDEX` | that a clsact qdisc may hold a filter of ours | `run`, `attach` |
//! | `/run/tproxy/NAME/set-ID` | the list of a set | every change that makes one or folds its edits |
//! | `/run/tproxy/NAME/lock` | the lock of changes | every change |
//! | `/run/tproxy/NAME/agent.lock` | who the agent is; locked while it lives | `run` |
//!
//! The generation that the kernel has in force says which state file counts, so that one write, of
//! the map of generations, commits both.

mod agent_lock;
mod answering;
mod attachments;
mod change;
mod change_lock;
mod commit;
mod error;
mod interface_changes;
mod named_groups;
mod namespace;
mod namespace_watch;
mod origin;
mod pins_lock;
mod removal;
mod replacement;
mod scopes;
mod set_changes;
mod shadows;
mod state;
mod stored_set;

pub use agent_lock::{AGENT_LOCK_FILE, AgentLock, AgentRecord};
pub use change::{Change, RuleNotFound};
pub use change_lock::{ChangeLock, LOCK_FILE};
pub use error::Error;
pub use interface_changes::{check_attachable, warn_of_port};
pub use named_groups::NamedGroups;
pub use namespace::{NamespaceId, enter as enter_namespace};
pub use namespace_watch::NamespaceWatch;
pub use origin::Origin;
pub use pins_lock::PinsLock;
pub use removal::{clear, remove};
pub use set_changes::Added;
pub use shadows::{shadows, want_of_interfaces};
pub use state::{Built, Interface, State, StoredRule};
pub use stored_set::StoredSet;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use attachments::Attachments;

use crate::{
    kernel::{self, Generation, Maps, bpffs},
    rule::valid_name,
    set::Sets,
};

const RUN: &str = "/run/tproxy";

/// The places of one instance.
#[derive(Clone, Debug)]
pub struct Instance {
    name: String,
    run: PathBuf,
}

impl Instance {
    /// The instance of this name, whether it is there or not.
    ///
    /// # Errors
    ///
    /// When the name is none.
    pub fn new(name: &str) -> Result<Self, Error> {
        // bpffs keeps names with a dot for itself (kernel/bpf/inode.c).
        if !valid_name(name) || name.contains('.') {
            return Err(Error::Name(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            run: Path::new(RUN).join(name),
        })
    }

    /// Every instance that has a state directory.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir(RUN) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| Self::new(entry.ok()?.file_name().to_str()?).ok())
            .collect()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of its state files.
    #[must_use]
    pub fn run_directory(&self) -> &Path {
        &self.run
    }

    /// The directory of its pins, if there is a BPF file system.
    #[must_use]
    pub fn pins(&self) -> Option<PathBuf> {
        let own = |root: PathBuf| root.join("tproxy").join(&self.name);
        let pins = bpffs::find().map(own);
        if pins.as_ref().is_some_and(|pins| pins.exists()) {
            return pins;
        }
        let agent = AgentLock::holder(self).and_then(|agent| agent.process());
        let of_agent = agent.map(|process| own(bpffs::of_process(process)));
        of_agent.filter(|pins| pins.exists()).or(pins)
    }

    /// The directory of its pins by the name that it has for most, whichever way leads there from here.
    #[must_use]
    pub fn usual_pins(&self) -> PathBuf {
        Path::new(bpffs::MOUNT_POINT)
            .join("tproxy")
            .join(&self.name)
    }

    /// Whether its files were removed and its pins were not. Whatever makes pins has made the directory
    /// of the files before, and whatever removes that has removed the pins.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        !self.run.exists() && self.pins().is_some_and(|pins| pins.exists())
    }

    /// What may be left of an instance whose files were removed.
    #[must_use]
    pub fn forgotten(&self) -> Error {
        Error::Forgotten {
            name: self.name.clone(),
            files: self.run.clone(),
        }
    }

    /// Makes the origin known again of an instance whose files were removed. Says whether they were.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn recall_origin(&self, state: &State) -> Result<bool, Error> {
        if self.origin().is_some() {
            return Ok(false);
        }
        private_directory(Path::new(RUN))?;
        private_directory(&self.run)?;
        Origin::from(state).write(&self.run)?;
        Ok(true)
    }

    /// The directory in which pins are made before all of them are moved to their place at once.
    #[must_use]
    pub fn unfinished_pins(&self) -> Option<PathBuf> {
        // No instance can have such a name.
        Some(
            bpffs::find()?
                .join("tproxy")
                .join(format!("{}+new", self.name)),
        )
    }

    /// Its maps.
    ///
    /// # Errors
    ///
    /// When nothing is pinned.
    pub fn maps(&self) -> Result<Maps, Error> {
        match self.pins() {
            Some(pins) if pins.is_dir() => Ok(Maps::new(&pins)),
            _ => Err(Error::NotThere(self.name.clone())),
        }
    }

    /// The state in force. Changes nothing.
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be read.
    pub fn state(&self) -> Result<State, Error> {
        Ok(self.in_force()?.0)
    }

    /// The state in force and the tables that were compiled from it. Changes nothing.
    ///
    /// # Errors
    ///
    /// When there are none, or they cannot be read.
    pub fn in_force(&self) -> Result<(State, Generation), Error> {
        let (state, tables, ()) = self.read_in_force(|_| Ok(()))?;
        Ok((state, tables))
    }

    /// The state in force, the tables that were compiled from it, and those of its sets that are
    /// wanted. Changes nothing.
    ///
    /// # Errors
    ///
    /// When there are none, or they cannot be read.
    pub fn in_force_with_sets(
        &self,
        wanted: impl Fn(&StoredSet) -> bool,
    ) -> Result<(State, Generation, Sets), Error> {
        self.read_in_force(|state| {
            let wanted = state.sets.iter().filter(|set| wanted(set));
            wanted
                .map(|set| Ok((set.name.clone(), set.open(&self.run)?)))
                .collect()
        })
    }

    /// The state in force with what `read` makes of it.
    fn read_in_force<T>(
        &self,
        read: impl Fn(&State) -> Result<T, Error>,
    ) -> Result<(State, Generation, T), Error> {
        let maps = self.maps()?;
        let tables = || {
            let tables = Generation::in_force(&maps)?;
            tables.ok_or_else(|| Error::NotThere(self.name.clone()))
        };
        loop {
            let found = tables()?;
            let state = State::read(&self.run, found.number());
            match state.and_then(|state| read(&state).map(|read| (state, read))) {
                Ok((state, read)) => return Ok((state, found, read)),
                // A change came in between: files of the generation before are gone.
                Err(Error::File { cause, .. })
                    if cause.kind() == io::ErrorKind::NotFound
                        && tables()?.number() != found.number() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether everything that the state in force rests on is in the kernel and at work, attached by
    /// links, as a program of this build would have put it there. Changes nothing.
    #[must_use]
    pub fn is_intact(&self, state: &State) -> bool {
        let (Ok(in_force), Some(pins)) = (self.state(), self.pins()) else {
            return false;
        };
        let holds = |index| kernel::link_is_attached(&pins, index).unwrap_or(false);
        in_force == *state
            && state.loaded.is_whole_and_current(&pins)
            && kernel::lookup_is_attached(&pins, state.namespace.inode()).unwrap_or(false)
            && state.carrying().all(holds)
    }

    /// Whether an interface of the state in force has its program, as far as that can be told from
    /// outside of its network namespace. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn is_attached(&self, state: &State, interface: &Interface) -> Result<bool, Error> {
        match (interface.attached, self.pins()) {
            (None, _) => Ok(false),
            (Some(index), Some(pins)) if state.tcx => Ok(kernel::link_is_attached(&pins, index)?),
            (Some(_), _) => Ok(true),
        }
    }

    /// Keeps a state of which nothing is in the kernel any more, for an agent that starts later.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn remember(&self, state: &State) -> Result<(), Error> {
        private_directory(&self.run)?;
        state.write(&self.run)
    }

    /// Whether a killed command left a program on an interface. Changes nothing, and may be wrong
    /// while another command attaches or detaches.
    #[must_use]
    pub fn has_strays(&self) -> bool {
        let (Ok(state), Some(pins)) = (self.state(), self.pins()) else {
            return false;
        };
        let attachments = Attachments::new(self, &pins);
        let links = attachments.links().unwrap_or_default();
        let mut carrying = links.into_iter().chain(attachments.filters());
        carrying.any(|index| state.carrying().all(|named| named != index))
    }

    /// Where the instance is, even if its state is damaged.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        let state = self.remembered_state();
        state
            .map(|state| Origin::from(&state))
            .or_else(|| Origin::read(&self.run))
    }

    /// The state in force or, of a damaged instance, the newest that was written.
    #[must_use]
    pub fn remembered_state(&self) -> Option<State> {
        self.state().ok().or_else(|| State::newest(&self.run))
    }
}

/// Makes a directory that only its owner may enter, and those above it; one that is there already is made
/// so.
pub(crate) fn private_directory(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    // Whoever removes what is beside it removes the directory above too, if that is empty then.
    const TRIES: usize = 1000;
    let attempt = || {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    };
    // It says that something is there when it was gone again before it was looked at.
    let is_gone = |result: &io::Result<()>| {
        let kind = result.as_ref().err().map(io::Error::kind);
        matches!(
            kind,
            Some(io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists)
        )
    };
    let mut result = attempt();
    for _ in 1..TRIES {
        if !is_gone(&result) {
            break;
        }
        result = attempt();
    }
    result.map_err(|cause| Error::File {
        path: path.into(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_directory_is_made_while_others_remove_the_one_above() {
        let above = tempfile::tempdir().unwrap();
        let above = above.path().join("above");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = fs::remove_dir(&above);
                }
            });
            let made: Result<(), Error> = (0..1_000).try_for_each(|_| {
                private_directory(&above)?;
                private_directory(&above.join("own"))?;
                fs::remove_dir(above.join("own")).expect("it is there");
                Ok(())
            });
            over.store(true, Ordering::Relaxed);
            made.unwrap();
        });
    }
}
