//! What is measured side by side: plain routing, HAProxy fed by nft, and tproxy.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    agent::{Agent, Settings},
    bench::{
        accounting,
        nft_steering::{self, RuleOrder},
    },
    command,
    topology::{CLIENT_SIDE, Topology},
};

/// The ports of short connections and of iperf3.
pub(crate) const SHORT_PORT: &str = "80";
pub(crate) const BULK_PORT: &str = "5201";

const INSTANCE: &str = "bench";
const HAPROXY_PORT: &str = "3129";
const RELAY_PORT: &str = "3130";

/// A way from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// Routed by the kernel.
    Direct,
    /// nft TPROXY that looks at SYNs first, HAProxy with splice.
    NftHaproxy,
    /// nft TPROXY in the order that the guides have, HAProxy with splice.
    NftTextbookHaproxy,
    /// nft TPROXY that looks at SYNs first, our relay: the difference to [`Peer::Tproxy`] is the steering.
    NftRelay,
    Tproxy,
}

impl Peer {
    pub(crate) const ALL: [Self; 5] = [
        Self::Direct,
        Self::NftHaproxy,
        Self::NftTextbookHaproxy,
        Self::NftRelay,
        Self::Tproxy,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct route",
            Self::NftHaproxy => "nft (SYN first) + HAProxy splice",
            Self::NftTextbookHaproxy => "nft (textbook) + HAProxy splice",
            Self::NftRelay => "nft (SYN first) + tproxy's relay",
            Self::Tproxy => "tproxy",
        }
    }

    /// Whether it differs from another one only in how new flows are steered.
    pub(crate) fn is_about_steering_alone(self) -> bool {
        matches!(self, Self::NftTextbookHaproxy | Self::NftRelay)
    }

    /// Puts this into the gateway of a fresh topology. For a proxy the forward chain drops all: one that
    /// is not in the path makes the measurement fail, in place of being measured as plain routing.
    pub(crate) fn start(self, topology: &Topology, binary: &Path) -> Result<Running> {
        let ports = format!("{SHORT_PORT},{BULK_PORT}");
        let running = match self {
            Self::Direct => topology.route_server_to_client().map(|()| Running::Kernel),
            Self::NftHaproxy => start_haproxy(topology, RuleOrder::SynFirst).map(Running::Haproxy),
            Self::NftTextbookHaproxy => {
                start_haproxy(topology, RuleOrder::Textbook).map(Running::Haproxy)
            }
            Self::NftRelay => start_relay_only(topology, binary).map(Running::Tproxy),
            Self::Tproxy => {
                let flags = ["--iface", CLIENT_SIDE, "--dport", &ports];
                start_tproxy(topology, binary, &flags).map(Running::Tproxy)
            }
        }
        .with_context(|| format!("cannot start {}", self.name()))?;
        if self != Self::Direct {
            topology.forbid_forwarding()?;
        }
        Ok(running)
    }
}

/// A peer at work.
#[derive(Debug)]
pub(crate) enum Running {
    Kernel,
    /// Its process; it ends with the namespace.
    Haproxy(u32),
    Tproxy(Agent),
}

impl Running {
    /// The process whose CPU time is the proxy's.
    pub(crate) fn process(&self) -> Option<u32> {
        match self {
            Self::Kernel => None,
            Self::Haproxy(process) => Some(*process),
            Self::Tproxy(agent) => Some(agent.process_id()),
        }
    }

    /// Memory before the first flow, in megabytes.
    pub(crate) fn memory_at_rest(&self) -> Result<Option<f64>> {
        self.process()
            .map(accounting::resident_megabytes)
            .transpose()
    }

    /// From the start of the process until it says that it is ready, where it says so.
    pub(crate) fn ready_after(&self) -> Option<Duration> {
        match self {
            Self::Tproxy(agent) => Some(agent.ready_after),
            Self::Kernel | Self::Haproxy(_) => None,
        }
    }
}

fn start_tproxy(topology: &Topology, binary: &Path, flags: &[&str]) -> Result<Agent> {
    let settings = Settings {
        binary,
        instance: INSTANCE,
        flags,
        // HAProxy logs no connections here either.
        log: "warn",
    };
    Agent::start(&topology.gateway, &settings)
}

/// The same relay without our steering: the agent attaches to nothing, and its sk_lookup program, which
/// refuses what comes to the agent's own port, is detached.
fn start_relay_only(topology: &Topology, binary: &Path) -> Result<Agent> {
    let agent = start_tproxy(topology, binary, &["--port", RELAY_PORT])?;
    let link = format!("/sys/fs/bpf/tproxy/{INSTANCE}/link-lookup");
    command::quietly(Command::new("bpftool").args(["link", "detach", "pinned", &link]))?;
    nft_steering::install(&topology.gateway, RuleOrder::SynFirst, RELAY_PORT)?;
    Ok(agent)
}

const HAPROXY: &str = "
global
  maxconn 9800
  nbthread 2
  maxpipes 128
  pidfile DIRECTORY/haproxy.pid
defaults
  mode tcp
  timeout connect 5s
  timeout client 120s
  timeout server 120s
  option splice-auto
  option splice-request
  option splice-response
listen tp
  bind 0.0.0.0:PORT transparent
  server orig 0.0.0.0:0
";

/// Returns its process.
fn start_haproxy(topology: &Topology, order: RuleOrder) -> Result<u32> {
    nft_steering::install(&topology.gateway, order, HAPROXY_PORT)?;
    let configuration = topology.directory.join("haproxy.cfg");
    let directory = topology.directory.display().to_string();
    let text = HAPROXY
        .replace("DIRECTORY", &directory)
        .replace("PORT", HAPROXY_PORT);
    fs::write(&configuration, text).context("cannot write haproxy.cfg")?;
    // As a daemon it returns when it listens.
    let mut haproxy = topology.gateway.command("haproxy");
    command::quietly(haproxy.args(["-D", "-q", "-f"]).arg(configuration))?;
    let process = fs::read_to_string(topology.directory.join("haproxy.pid"))
        .context("HAProxy wrote no process number")?;
    let process = process.trim().parse();
    process.context("haproxy.pid is not a number")
}
