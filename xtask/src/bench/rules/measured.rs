//! What was measured, as the measuring program says it and as it is kept.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::live::Live;
use crate::bench::machine::Machine;

/// Everything, with where it was measured.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    #[serde(flatten)]
    pub(super) machine: Machine,
    #[serde(flatten)]
    pub(super) costs: Costs,
    pub(super) live: Live,
}

/// What the program prints.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Costs {
    pub(super) program: Program,
    pub(super) packets: Vec<Packet>,
    pub(super) loads: Vec<Load>,
    pub(super) forwarding: Vec<Forwarding>,
}

/// The tc program as the verifier saw it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Program {
    pub(super) instructions: u32,
    pub(super) verified: u32,
    /// All programs, in milliseconds.
    pub(super) loaded_in: f64,
}

/// One packet in the tc program, with rules of one size.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Packet {
    pub(super) name: String,
    pub(super) outcome: String,
    pub(super) cidrs: u32,
    pub(super) rules: u32,
    /// IPv4, IPv6.
    pub(super) ns: [f64; 2],
    /// To one rule and one CIDR.
    pub(super) ratio: [f64; 2],
}

/// One rule set on its way into the kernel.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) prefixes: String,
    pub(super) cidrs: u32,
    pub(super) rules: u32,
    /// Milliseconds.
    pub(super) compiled_in: f64,
    /// Milliseconds.
    pub(super) installed_in: f64,
    /// Memory of the kernel.
    pub(super) bytes: u64,
}

/// A segment of another flow on its whole way through a gateway.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Forwarding {
    pub(super) name: String,
    /// IPv4, IPv6.
    pub(super) ns: [f64; 2],
    /// To routing alone.
    pub(super) added: [f64; 2],
}

impl Measured {
    /// # Errors
    ///
    /// When `printed` is not what the program prints.
    pub(super) fn new(load_before: f64, printed: &str, live: Live) -> Result<Self> {
        Ok(Self {
            machine: Machine::here(load_before),
            costs: serde_json::from_str(printed)
                .context("the measuring program printed nonsense")?,
            live,
        })
    }
}
