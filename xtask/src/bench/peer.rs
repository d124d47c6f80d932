//! What is measured side by side: plain routing, HAProxy fed by nft in two ways, and tproxy.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    agent::{Agent, Settings},
    bench::accounting,
    command,
    topology::{CLIENT_SIDE, Topology},
};

/// The ports of short connections and of iperf3.
pub(crate) const SHORT_PORT: &str = "80";
pub(crate) const BULK_PORT: &str = "5201";
const HAPROXY_PORT: &str = "3129";

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
    Tproxy,
}

impl Peer {
    pub(crate) const ALL: [Self; 4] = [
        Self::Direct,
        Self::NftHaproxy,
        Self::NftTextbookHaproxy,
        Self::Tproxy,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct route",
            Self::NftHaproxy => "nft (SYN first) + HAProxy splice",
            Self::NftTextbookHaproxy => "nft (textbook) + HAProxy splice",
            Self::Tproxy => "tproxy",
        }
    }

    /// Puts this into the gateway of a fresh topology. For a proxy the forward chain drops all: one that
    /// is not in the path makes the measurement fail, in place of being measured as plain routing.
    pub(crate) fn start(self, topology: &Topology, binary: &Path) -> Result<Running> {
        match self {
            Self::Direct => {
                topology.route_server_to_client()?;
                return Ok(Running::Kernel);
            }
            Self::NftHaproxy => start_haproxy(topology, SYN_FIRST),
            Self::NftTextbookHaproxy => start_haproxy(topology, ""),
            Self::Tproxy => start_tproxy(topology, binary),
        }
        .and_then(|running| topology.forbid_forwarding().map(|()| running))
        .with_context(|| format!("cannot start {}", self.name()))
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

fn start_tproxy(topology: &Topology, binary: &Path) -> Result<Running> {
    let ports = format!("{SHORT_PORT},{BULK_PORT}");
    let settings = Settings {
        binary,
        instance: "bench",
        interface: CLIENT_SIDE,
        ports: &ports,
        // HAProxy logs no connections here either.
        log: "warn",
    };
    Agent::start(&topology.gateway, &settings).map(Running::Tproxy)
}

/// The rule that makes the better order: new connections do not look for a socket first, and so are not
/// given to one that is in TIME_WAIT.
const SYN_FIRST: &str = "iifname lan0 tcp dport { 80, 5201 } tcp flags & (fin|syn|rst|ack) == syn \
     tproxy to :3129 meta mark set 1 accept;";

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

fn start_haproxy(topology: &Topology, syn_first: &str) -> Result<Running> {
    let gateway = &topology.gateway;
    gateway.nft(&format!(
        "table ip steering {{ chain pre {{ type filter hook prerouting priority mangle; policy accept; {syn_first} \
         meta l4proto tcp socket transparent 1 meta mark set 1 accept; \
         iifname {CLIENT_SIDE} tcp dport {{ {SHORT_PORT}, {BULK_PORT} }} tproxy to :{HAPROXY_PORT} meta mark set 1 accept; }}; }}"
    ))?;
    gateway.ip(&[
        "rule add fwmark 1 lookup 100",
        "route add local default dev lo table 100",
    ])?;
    let configuration = topology.directory.join("haproxy.cfg");
    let directory = topology.directory.display().to_string();
    let text = HAPROXY
        .replace("DIRECTORY", &directory)
        .replace("PORT", HAPROXY_PORT);
    fs::write(&configuration, text).context("cannot write haproxy.cfg")?;
    // As a daemon it returns when it listens.
    command::quietly(
        gateway
            .command("haproxy")
            .args(["-D", "-q", "-f"])
            .arg(configuration),
    )?;
    let process = fs::read_to_string(topology.directory.join("haproxy.pid"))
        .context("HAProxy wrote no process number")?;
    Ok(Running::Haproxy(
        process
            .trim()
            .parse()
            .context("haproxy.pid is not a number")?,
    ))
}
