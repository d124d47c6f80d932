//! The steering that everybody uses today: nft TPROXY and a policy route.

use anyhow::Result;

use crate::{
    bench::peer::{BULK_PORT, SHORT_PORT},
    topology::{CLIENT_SIDE, Namespace},
};

/// The order of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleOrder {
    /// A SYN looks for no socket first, and so is not given to one that is in TIME_WAIT.
    SynFirst,
    /// As the TPROXY guides have it.
    Textbook,
}

/// Gives the measured ports to the listener on `port`.
///
/// # Errors
///
/// What nft or ip said.
pub(crate) fn install(gateway: &Namespace, order: RuleOrder, port: &str) -> Result<()> {
    let ours = format!("iifname {CLIENT_SIDE} tcp dport {{ {SHORT_PORT}, {BULK_PORT} }}");
    let take = format!("tproxy to :{port} meta mark set 1 accept;");
    let syn_first = match order {
        RuleOrder::SynFirst => format!("{ours} tcp flags & (fin|syn|rst|ack) == syn {take}"),
        RuleOrder::Textbook => String::new(),
    };
    gateway.nft(&format!(
        "table ip steering {{ chain pre {{ type filter hook prerouting priority mangle; policy accept; \
         {syn_first} meta l4proto tcp socket transparent 1 meta mark set 1 accept; {ours} {take} }}; }}"
    ))?;
    gateway.ip(&[
        "rule add fwmark 1 lookup 100",
        "route add local default dev lo table 100",
    ])
}
