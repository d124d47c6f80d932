//! What all measurements of one run share.

use std::path::PathBuf;

use crate::topology::Lock;

use super::peer::Source;

/// How it is measured.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) lock: Lock,
    /// tproxy.
    pub(crate) binary: PathBuf,
    pub(crate) source: Source,
    pub(crate) quick: bool,
}

impl Setting {
    /// How long a load runs that needs `quick` or `full` seconds.
    pub(crate) fn seconds(&self, quick: f64, full: f64) -> f64 {
        if self.quick { quick } else { full }
    }
}
