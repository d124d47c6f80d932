//! What an agent is started with.

use std::{path::PathBuf, time::Duration};

use crate::{relay, rule::RuleSpec};

/// How long the agent waits where nobody said how long.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// How long a UDP session is kept in which nothing passes.
    pub udp_idle: Duration,
    /// The same for port 53.
    pub dns_idle: Duration,
    /// The most TCP flows of one client's address at once; any number when left out.
    pub flows_per_source: Option<usize>,
    /// The most UDP sessions at once; half of what descriptors allow when left out.
    pub udp_sessions: Option<usize>,
    /// The most UDP sessions of one client's address at one worker.
    pub udp_sessions_per_source: usize,
    /// The network namespace that was asked for by this path; the agent ends with it.
    pub namespace: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let relay = relay::Settings::default();
        Self {
            interfaces: Vec::new(),
            rules: Vec::new(),
            mark: None,
            table: None,
            clsact: false,
            port: 0,
            workers: None,
            connect_timeout: PATIENCE,
            drain: PATIENCE,
            pin: false,
            udp_idle: relay.udp_idle,
            dns_idle: relay.udp_idle_dns,
            flows_per_source: relay.flows_per_source,
            udp_sessions: relay.udp_sessions,
            udp_sessions_per_source: relay.udp_sessions_per_source,
            namespace: None,
        }
    }
}
