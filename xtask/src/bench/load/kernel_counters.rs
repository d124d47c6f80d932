//! The kernel's counters of this network namespace.

use std::{collections::HashMap, fs};

use anyhow::{Context as _, Result};

pub(super) struct KernelCounters {
    /// `TCPSynRetrans`.
    pub(super) syn_retransmits: u64,
    /// `RetransSegs`.
    pub(super) retransmits: u64,
}

impl KernelCounters {
    pub(super) fn read() -> Result<Self> {
        let extended = pairs("/proc/self/net/netstat", "TcpExt:")?;
        let basic = pairs("/proc/self/net/snmp", "Tcp:")?;
        let of = |pairs: &HashMap<String, u64>, name: &str| {
            pairs
                .get(name)
                .copied()
                .with_context(|| format!("the kernel does not count {name}"))
        };
        Ok(Self {
            syn_retransmits: of(&extended, "TCPSynRetrans")?,
            retransmits: of(&basic, "RetransSegs")?,
        })
    }
}

/// Both files have a line of names and a line of numbers for each protocol.
fn pairs(path: &str, protocol: &str) -> Result<HashMap<String, u64>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else {
        anyhow::bail!("{path} has no {protocol}")
    };
    let numbers = numbers
        .split_whitespace()
        .map(|number| number.parse().unwrap_or(0));
    Ok(names
        .split_whitespace()
        .map(str::to_owned)
        .zip(numbers)
        .collect())
}
