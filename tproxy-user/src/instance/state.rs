//! Rules and interfaces of one generation, as a file.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Error, NamespaceId, StoredSet};
use crate::{
    delivery::{Assignment, Flows, Link},
    kernel::Loaded,
    rule::{Cgroup, Deadline, RuleSpec},
};

/// What an instance is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Number of the generation in the kernel that this belongs to.
    pub generation: u64,
    /// The network namespace that it lives in.
    pub namespace: NamespaceId,
    /// Mark of packets that are delivered here.
    pub mark: u32,
    /// Table with the local routes.
    pub table: u32,
    /// Whether the last agent was told to leave everything in place.
    pub pinned: bool,
    /// Whether flows of this host's own processes are, or have been, taken: their packets need policy
    /// rules and routes as long as the instance is there.
    #[serde(default)]
    pub local: bool,
    /// Programs and maps that it rests on.
    pub loaded: Loaded,
    /// Whether interfaces are attached by tcx links rather than in a clsact qdisc.
    pub tcx: bool,
    /// Attached interfaces, in the order they were named.
    pub interfaces: Vec<Interface>,
    /// Interfaces that lead to servers, on which only answers to upstream connections are looked for
    /// that have the addresses of clients. They stay as long as the instance is there: running flows
    /// need them.
    #[serde(default)]
    pub answering: Vec<Interface>,
    /// Rules in their order.
    pub rules: Vec<StoredRule>,
    /// The number of the next rule that has no name.
    pub next_rule: u64,
    /// The numbers by which the tables know control groups that rules name. Those that were not there
    /// when the rules were compiled are missing.
    #[serde(default)]
    pub cgroups: BTreeMap<Cgroup, u64>,
    /// Sets by name.
    #[serde(default)]
    pub sets: Vec<StoredSet>,
    /// The number of the file that was last made for a set.
    #[serde(default)]
    pub next_set: u64,
    /// What the rules were compiled to.
    #[serde(default)]
    pub built: Built,
}

/// What the compiler made of rules when all of them were last compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    /// CIDRs of all sets and rules, of now.
    pub cidrs: usize,
    /// Different sets of rules that keys of the tables satisfy.
    pub classes: usize,
    /// How long it took.
    pub milliseconds: u64,
}

/// An interface that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index once it is attached; `None` while it does not exist.
    pub attached: Option<u32>,
}

impl From<&Link> for Interface {
    /// One that is attached.
    fn from(link: &Link) -> Self {
        Self {
            name: link.name.clone(),
            attached: Some(link.index),
        }
    }
}

impl Interface {
    /// One that does not exist at the moment.
    #[must_use]
    pub const fn absent(name: String) -> Self {
        Self {
            name,
            attached: None,
        }
    }
}

/// A rule and its counter slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRule {
    /// Where it is counted.
    pub slot: u32,
    /// When it is gone, if it is to be some time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Deadline>,
    /// The rule, with a name.
    #[serde(flatten)]
    pub spec: RuleSpec,
}

impl StoredRule {
    /// Its name, which every stored rule has.
    #[must_use]
    pub fn name(&self) -> &str {
        self.spec.name.as_deref().unwrap_or_default()
    }

    /// What is left of its life; `None` when it has no end.
    ///
    /// # Errors
    ///
    /// When the clock cannot be read.
    pub fn left(&self) -> nix::Result<Option<Duration>> {
        self.deadline.map(Deadline::left).transpose()
    }

    /// Whether it is this rule, but for its name.
    pub(super) fn says(&self, unnamed: &RuleSpec) -> bool {
        let own = RuleSpec {
            name: None,
            ..self.spec.clone()
        };
        own == *unnamed
    }
}

impl State {
    /// Mark and table.
    #[must_use]
    pub const fn assignment(&self) -> Assignment {
        Assignment {
            mark: self.mark,
            table: self.table,
        }
    }

    /// Indexes of the interfaces that are attached.
    pub fn attached(&self) -> impl Iterator<Item = u32> {
        self.interfaces
            .iter()
            .filter_map(|interface| interface.attached)
    }

    /// Indexes of all interfaces that have a program: those that are attached, and those where only
    /// answers are looked for.
    pub fn carrying(&self) -> impl Iterator<Item = u32> {
        let all = self.interfaces.iter().chain(&self.answering);
        all.filter_map(|interface| interface.attached)
    }

    /// Names of the interfaces whose marked packets are delivered here.
    #[must_use]
    pub fn delivering(&self) -> Vec<String> {
        let all = self.interfaces.iter().chain(&self.answering);
        all.map(|interface| interface.name.clone()).collect()
    }

    /// Whether a rule has the relay connect from the addresses of clients.
    #[must_use]
    pub fn uses_client_addresses(&self) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.spec.uses_client_address())
    }

    /// When the next rule is gone.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.rules.iter().filter_map(|rule| rule.deadline).min()
    }

    /// The flows that policy rules and routes are to bring here. `interfaces` are those of
    /// [`State::delivering`].
    #[must_use]
    pub const fn flows<'a>(&self, interfaces: &'a [String]) -> Flows<'a, String> {
        Flows {
            interfaces,
            local: self.local,
        }
    }

    /// Names of the interfaces.
    #[must_use]
    pub fn interface_names(&self) -> Vec<String> {
        self.interfaces
            .iter()
            .map(|interface| interface.name.clone())
            .collect()
    }

    /// Reads the state of a generation.
    pub(super) fn read(directory: &Path, generation: u64) -> Result<Self, Error> {
        read_file(directory.join(file_name(generation)))
    }

    /// Reads the newest state there is, for clearing away what a damaged instance left.
    pub(super) fn newest(directory: &Path) -> Option<Self> {
        let mut files = files(directory);
        files.sort_unstable();
        files
            .into_iter()
            .rev()
            .find_map(|(_, path)| read_file(path).ok())
    }

    /// Writes this state beside the one in force, whole or not at all.
    pub(super) fn write(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(file_name(self.generation));
        let unfinished = directory.join("state.new");
        let write = || -> io::Result<()> {
            fs::write(&unfinished, serde_json::to_vec(self)?)?;
            fs::rename(&unfinished, &path)
        };
        write().map_err(|cause| Error::File {
            path: path.clone(),
            cause,
        })
    }

    /// Removes the files of all other generations. One that stays is not read by anybody, and the
    /// next change tries again.
    pub(super) fn remove_others(&self, directory: &Path) {
        for (generation, path) in files(directory) {
            if generation != self.generation {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Removes the file of a generation that did not come into force.
    pub(super) fn withdraw(&self, directory: &Path) {
        let _ = fs::remove_file(directory.join(file_name(self.generation)));
    }

    /// Removes the files of all generations, once the kernel has none of them.
    pub(super) fn remove_all(directory: &Path) {
        for (_, path) in files(directory) {
            let _ = fs::remove_file(path);
        }
    }
}

fn file_name(generation: u64) -> String {
    format!("state-{generation}.json")
}

fn files(directory: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let number = name
                .to_str()?
                .strip_prefix("state-")?
                .strip_suffix(".json")?;
            Some((number.parse().ok()?, entry.path()))
        })
        .collect()
}

fn read_file(path: PathBuf) -> Result<State, Error> {
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(cause) => return Err(Error::File { path, cause }),
    };
    serde_json::from_slice(&text).map_err(|error| Error::Damaged {
        path,
        problem: error.to_string(),
    })
}
