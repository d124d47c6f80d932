//! What an agent is started with.

use std::time::Duration;

use crate::rule::RuleSpec;

/// Options of `tproxy run`, valid but for what only the kernel can say.
#[derive(Clone, Debug)]
pub struct Options {
    /// Interfaces to attach to.
    pub interfaces: Vec<String>,
    /// Rules to start with.
    pub rules: Vec<RuleSpec>,
    /// Steering mark; chosen when left out.
    pub mark: Option<u32>,
    /// Routing table; chosen when left out.
    pub table: Option<u32>,
    /// Whether to attach in a clsact qdisc even where the kernel has tcx.
    pub clsact: bool,
    /// Port of the listeners; 0 lets the kernel choose.
    pub port: u16,
    /// Workers; one for each CPU when left out.
    pub workers: Option<u32>,
    /// How long an upstream connection may take.
    pub connect_timeout: Duration,
    /// How long running flows may take when the agent stops.
    pub drain: Duration,
    /// Whether programs, maps and rules stay when the agent stops.
    pub pin: bool,
}
