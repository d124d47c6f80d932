//! What stays the same for as long as an instance is in the kernel, kept apart from its state: it is
//! what `unload` needs to know, however damaged the state is.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{Error, NamespaceId, State};
use crate::delivery::Assignment;

const FILE: &str = "origin.json";

/// Where an instance is, and by which mark and table packets get to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its network namespace.
    pub namespace: NamespaceId,
    mark: u32,
    table: u32,
}

impl Origin {
    /// Mark and table.
    #[must_use]
    pub const fn assignment(&self) -> Assignment {
        Assignment {
            mark: self.mark,
            table: self.table,
        }
    }

    pub(super) fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()
    }

    pub(super) fn write(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(FILE);
        let write = || fs::write(&path, serde_json::to_vec(self)?);
        write().map_err(|cause| Error::File { path, cause })
    }

    pub(super) fn remove(directory: &Path) {
        // What stays is overwritten by the next start.
        let _ = fs::remove_file(directory.join(FILE));
    }
}

impl From<&State> for Origin {
    fn from(state: &State) -> Self {
        Self {
            namespace: state.namespace,
            mark: state.mark,
            table: state.table,
        }
    }
}
