//! What is measured side by side: plain routing, HAProxy and nginx fed by nft, and tproxy.

mod haproxy;
mod nft_steering;
mod nginx;
mod socat;
mod tproxy;

use std::{
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;

use crate::{agent::Agent, bench::setting::Setting, command, topology::Topology};

use self::nft_steering::RuleOrder;

/// The ports of short connections, of iperf3 and of datagrams.
pub(crate) const SHORT_PORT: &str = "80";
pub(crate) const BULK_PORT: &str = "5201";
pub(crate) const UDP_PORT: &str = "5300";

/// A way from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// Routed by the kernel.
    Direct,
    /// nft TPROXY that looks at SYNs first, HAProxy with splice.
    Haproxy,
    /// nft TPROXY in the order that the guides have, HAProxy with splice.
    HaproxyTextbook,
    /// nft TPROXY that looks at SYNs first, nginx's stream module.
    Nginx,
    /// nft TPROXY in the order that the guides have, nginx's stream module.
    NginxTextbook,
    /// nft TPROXY that looks at SYNs first, our relay: the difference to tproxy is the steering.
    NftRelay,
    /// Our steering, HAProxy with splice: the difference to HAProxy behind nft is the steering.
    Redirect,
    /// No transparent proxy: socat forwards the gateway's own port.
    Socat,
    /// Our steering, our relay.
    Tproxy,
}

/// Whose address the server sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// The gateway's
    #[default]
    Agent,
    /// The client's
    Client,
}

/// Which flows a peer is to take.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Capture<'a> {
    /// TCP to the measured ports.
    Tcp,
    /// The same, to the CIDRs in this file only.
    TcpTo(&'a Path),
    /// Datagrams.
    Udp,
    /// What processes of the gateway send to a port that nothing here uses.
    OtherLocalFlows,
}

impl Peer {
    /// The head of its column.
    pub(crate) fn head(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "HAProxy",
            Self::HaproxyTextbook => "HAProxy-tb",
            Self::Nginx => "nginx",
            Self::NginxTextbook => "nginx-tb",
            Self::NftRelay => "nft+relay",
            Self::Redirect => "redirect",
            Self::Socat => "socat",
            Self::Tproxy => "tproxy",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "routed by the kernel",
            Self::Haproxy => "nft TPROXY (SYN first) + HAProxy with splice",
            Self::HaproxyTextbook => "nft TPROXY (the guides' order) + HAProxy with splice",
            Self::Nginx => "nft TPROXY (SYN first) + nginx stream",
            Self::NginxTextbook => "nft TPROXY (the guides' order) + nginx stream",
            Self::NftRelay => "nft TPROXY (SYN first) + tproxy's relay",
            Self::Redirect => "tproxy's action redirect + HAProxy with splice",
            Self::Socat => "socat forwarding a port of the gateway",
            Self::Tproxy => "tproxy",
        }
    }

    /// Whether it can be measured so.
    pub(crate) fn can_be_measured(self, setting: &Setting) -> bool {
        let keeps_the_source = match self {
            Self::Direct
            | Self::Haproxy
            | Self::HaproxyTextbook
            | Self::Nginx
            | Self::NginxTextbook
            | Self::Tproxy => true,
            Self::NftRelay | Self::Redirect | Self::Socat => false,
        };
        setting.source == Source::Agent || keeps_the_source
    }

    /// The program file, where there is one.
    pub(crate) fn program(self, setting: &Setting) -> Option<PathBuf> {
        match self {
            Self::Direct => None,
            Self::Haproxy | Self::HaproxyTextbook | Self::Redirect => {
                command::find_program("haproxy")
            }
            Self::Nginx | Self::NginxTextbook => command::find_program("nginx"),
            Self::Socat => command::find_program("socat"),
            Self::NftRelay | Self::Tproxy => Some(setting.binary.clone()),
        }
    }

    /// Puts this into the gateway of a fresh topology. For a proxy the forward chain drops all: one that
    /// is not in the path makes the measurement fail, in place of being measured as plain routing.
    pub(crate) fn start(
        self,
        topology: &Topology,
        setting: &Setting,
        capture: Capture,
    ) -> Result<Running> {
        let running = self
            .start_proxy(topology, setting, capture)
            .with_context(|| format!("cannot start {}", self.name()))?;
        if self == Self::Direct || setting.source == Source::Client {
            topology.route_server_to_client()?;
        }
        if self != Self::Direct && !matches!(capture, Capture::OtherLocalFlows) {
            topology.forbid_forwarding()?;
        }
        Ok(running)
    }

    fn start_proxy(
        self,
        topology: &Topology,
        setting: &Setting,
        capture: Capture,
    ) -> Result<Running> {
        let source = setting.source;
        let steer = |order, port| nft_steering::install(topology, order, port, capture);
        match self {
            Self::Direct => Ok(Running::default()),
            Self::Haproxy | Self::HaproxyTextbook => {
                let loaded_in = steer(self.order(), haproxy::PORT)?;
                Ok(Running {
                    loaded_in,
                    ..haproxy::start(topology, source)?
                })
            }
            Self::Nginx | Self::NginxTextbook => {
                let loaded_in = steer(self.order(), nginx::PORT)?;
                Ok(Running {
                    loaded_in,
                    ..nginx::start(topology, source)?
                })
            }
            Self::NftRelay => {
                let running = tproxy::start_relay_only(topology, setting)?;
                steer(self.order(), tproxy::RELAY_PORT)?;
                Ok(running)
            }
            Self::Redirect => {
                haproxy::start(topology, source)?;
                tproxy::start_redirect(topology, setting, haproxy::PORT)
            }
            Self::Socat => socat::start(topology),
            Self::Tproxy => tproxy::start(topology, setting, capture),
        }
    }

    fn order(self) -> RuleOrder {
        match self {
            Self::HaproxyTextbook | Self::NginxTextbook => RuleOrder::Textbook,
            _ => RuleOrder::SynFirst,
        }
    }
}

/// A peer at work. Processes that it does not hold end with the namespace.
#[derive(Debug, Default)]
pub(crate) struct Running {
    pub(crate) agent: Option<Agent>,
    /// Kept so that its end is not waited for before the namespace's.
    _child: Option<Child>,
    /// From the start of the process until it takes flows.
    pub(crate) ready_after: Option<Duration>,
    /// How long it took to put the CIDRs of [`Capture::TcpTo`] in force.
    pub(crate) loaded_in: Option<Duration>,
}

/// Runs `start`, and says how long it took.
fn timed<T>(start: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let started = Instant::now();
    let result = start()?;
    Ok((result, started.elapsed()))
}
