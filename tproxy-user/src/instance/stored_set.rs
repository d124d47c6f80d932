//! Sets as the state names them: a file with a list, and what was added and taken out since.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Error, State};
use crate::set::{CidrList, Set, SetName};

/// A set of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSet {
    /// What it is called.
    pub name: SetName,
    /// How many CIDRs it has.
    pub cidrs: usize,
    /// The number of the file that its list is in.
    file: u64,
    /// What was added to the list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    added: Vec<IpNet>,
    /// What was taken out of the list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    removed: Vec<IpNet>,
}

impl StoredSet {
    /// A set that is written to a file of its own.
    pub(super) fn write(
        name: &SetName,
        set: &Set,
        file: u64,
        directory: &Path,
    ) -> Result<Self, Error> {
        let path = path_of(directory, file);
        set.write(&path)
            .map_err(|cause| Error::File { path, cause })?;
        Ok(Self {
            name: name.clone(),
            cidrs: set.len(),
            file,
            added: Vec::new(),
            removed: Vec::new(),
        })
    }

    /// Takes up what was added to the list and taken out of it.
    pub(super) fn take_up(&mut self, set: &Set) {
        self.cidrs = set.len();
        self.added = set.added();
        self.removed = set.removed();
    }

    /// What it holds.
    pub(super) fn open(&self, directory: &Path) -> Result<Set, Error> {
        let path = path_of(directory, self.file);
        match CidrList::open(&path) {
            Ok(list) => Ok(Set::with_overlay(list, &self.added, &self.removed)),
            Err(cause) if cause.kind() == io::ErrorKind::InvalidData => Err(Error::Damaged {
                path,
                problem: cause.to_string(),
            }),
            Err(cause) => Err(Error::File { path, cause }),
        }
    }
}

/// Removes the files of sets that the state does not name. One that stays is not read by anybody, and
/// the next change tries again.
pub(super) fn remove_unnamed(state: &State, directory: &Path) {
    let named: BTreeSet<PathBuf> = state
        .sets
        .iter()
        .map(|set| path_of(directory, set.file))
        .collect();
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let is_set = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with("set-"));
        if is_set && !named.contains(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn path_of(directory: &Path, file: u64) -> PathBuf {
    directory.join(format!("set-{file}"))
}
