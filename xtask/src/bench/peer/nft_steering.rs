//! The steering that everybody uses today: nft TPROXY and a policy route.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    command,
    topology::{CLIENT_SIDE, Topology},
};

use super::{BULK_PORT, Capture, SHORT_PORT, timed};

/// The order of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RuleOrder {
    /// A SYN looks for no socket first, and so is not given to one that is in TIME_WAIT.
    SynFirst,
    /// As the TPROXY guides have it.
    Textbook,
}

/// Gives the flows to the listener on `port`. Returns how long it took to load the CIDRs that they are
/// restricted to, if they are.
///
/// # Errors
///
/// What nft or ip said.
pub(super) fn install(
    topology: &Topology,
    order: RuleOrder,
    port: &str,
    capture: Capture,
) -> Result<Option<Duration>> {
    let (loaded_in, to_these) = match capture {
        Capture::TcpTo(cidrs) => (
            Some(load_interval_set(topology, cidrs)?),
            "ip daddr @cidrs ",
        ),
        _ => (None, ""),
    };
    let ours = format!("iifname {CLIENT_SIDE} {to_these}tcp dport {{ {SHORT_PORT}, {BULK_PORT} }}");
    let take = format!("tproxy to :{port} meta mark set 1 accept;");
    let syn_first = match order {
        RuleOrder::SynFirst => format!("{ours} tcp flags & (fin|syn|rst|ack) == syn {take}"),
        RuleOrder::Textbook => String::new(),
    };
    topology.gateway.nft(&format!(
        "table ip steering {{ chain pre {{ type filter hook prerouting priority mangle; policy accept; \
         {syn_first} meta l4proto tcp socket transparent 1 meta mark set 1 accept; {ours} {take} }}; }}"
    ))?;
    topology.gateway.ip(&[
        "rule add fwmark 1 lookup 100",
        "route add local default dev lo table 100",
    ])?;
    Ok(loaded_in)
}

/// The set that nft has for many prefixes, of the IPv4 CIDRs in the file.
fn load_interval_set(topology: &Topology, cidrs: &Path) -> Result<Duration> {
    let list = fs::read_to_string(cidrs).context("cannot read the CIDRs")?;
    let mut ruleset = String::from(
        "table ip steering { set cidrs { type ipv4_addr; flags interval; auto-merge; elements = {\n",
    );
    for cidr in list.lines().filter(|cidr| !cidr.contains(':')) {
        let _ = writeln!(ruleset, "{cidr},");
    }
    ruleset += "}; }; }\n";
    let path = topology.directory.join("cidrs.nft");
    fs::write(&path, ruleset).context("cannot write the rules for nft")?;
    let mut nft = topology.gateway.command("nft");
    nft.arg("-f").arg(path);
    Ok(timed(|| command::quietly(&mut nft))?.1)
}
