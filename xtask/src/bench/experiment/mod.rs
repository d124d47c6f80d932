//! What is done with each peer, and which numbers come out of it.

mod bulk;
mod cidrs;
mod echo;
mod idle;
mod local;
mod rest;
mod short;
mod stalled;
mod udp;

use std::collections::BTreeMap;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::{
    peer::{Peer, Source},
    quantity::Quantity,
    setting::Setting,
};

/// The numbers of one experiment with one peer in one round.
pub(crate) type Values = BTreeMap<Quantity, f64>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Experiment {
    /// iperf3, one stream
    #[value(name = "bulk1")]
    Bulk1,
    /// iperf3, four streams
    #[value(name = "bulk4")]
    Bulk4,
    /// Short connections, one after the other
    #[value(name = "short1")]
    Short1,
    /// Short connections, 32 at once
    #[value(name = "short32")]
    Short32,
    /// Echoes on a connection that stands
    Echo,
    /// 9,000 flows that do nothing
    Idle,
    /// A receiver that stops reading
    Stalled,
    /// New flows with 1 and with 1,000,000 CIDRs in force
    Cidrs,
    /// Start, memory at rest, size of the program
    Rest,
    /// Datagrams of 64 bytes
    #[value(name = "udp64")]
    Udp64,
    /// Datagrams of 1,400 bytes
    #[value(name = "udp1400")]
    Udp1400,
    /// What this host's own connections pay that no rule matches
    Local,
}

impl Experiment {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Bulk1 => "bulk, 1 stream",
            Self::Bulk4 => "bulk, 4 streams",
            Self::Short1 => "short connections, 1 at a time",
            Self::Short32 => "short connections, 32 at once",
            Self::Echo => "echo of 64 bytes on a connection that stands",
            Self::Idle => "9,000 idle flows, and one that is not",
            Self::Stalled => "a receiver that does not read",
            Self::Cidrs => "short connections, 32 at once, of certain CIDRs",
            Self::Rest => "at rest",
            Self::Udp64 => "datagrams of 64 bytes, to and fro",
            Self::Udp1400 => "datagrams of 1,400 bytes, to and fro",
            Self::Local => "this host's own connections that no rule matches",
        }
    }

    /// What the others are compared with, beside plain routing.
    pub(crate) fn baseline(self) -> Peer {
        match self {
            Self::Udp64 | Self::Udp1400 => Peer::Socat,
            Self::Local => Peer::Direct,
            _ => Peer::Haproxy,
        }
    }

    /// Whether it makes sense so.
    pub(crate) fn can_be_measured(self, setting: &Setting) -> bool {
        // Neither datagrams nor local flows have another source to keep.
        let is_about_source = !matches!(self, Self::Udp64 | Self::Udp1400 | Self::Local);
        setting.source == Source::Agent || is_about_source
    }

    /// How often it is done with each peer.
    pub(crate) fn rounds(self, quick: bool) -> usize {
        match (self, quick) {
            (Self::Bulk1 | Self::Bulk4 | Self::Short32, false) => 7,
            (Self::Short1 | Self::Echo, false) => 5,
            (Self::Bulk1 | Self::Bulk4 | Self::Short32, true) | (_, false) => 3,
            (_, true) => 1,
        }
    }

    /// Those that it makes sense for.
    pub(crate) fn peers(self, setting: &Setting) -> Vec<Peer> {
        let all: &[Peer] = match self {
            // Steering makes no difference to established connections.
            Self::Bulk1 | Self::Bulk4 | Self::Short1 | Self::Echo => {
                &[Peer::Direct, Peer::Haproxy, Peer::Nginx, Peer::Tproxy]
            }
            Self::Short32 => &[
                Peer::Direct,
                Peer::Haproxy,
                Peer::HaproxyTextbook,
                Peer::Nginx,
                Peer::NginxTextbook,
                Peer::NftRelay,
                Peer::Redirect,
                Peer::Tproxy,
            ],
            Self::Idle | Self::Stalled | Self::Rest => &[Peer::Haproxy, Peer::Nginx, Peer::Tproxy],
            // nft takes most of half a minute for a million.
            Self::Cidrs if setting.quick => &[Peer::Tproxy],
            Self::Cidrs => &[Peer::Haproxy, Peer::Tproxy],
            Self::Udp64 | Self::Udp1400 => &[Peer::Direct, Peer::Socat, Peer::Tproxy],
            Self::Local => &[Peer::Direct, Peer::Tproxy],
        };
        all.iter()
            .copied()
            .filter(|peer| peer.can_be_measured(setting))
            .collect()
    }

    /// Does it once, in namespaces of its own.
    ///
    /// # Errors
    ///
    /// When something cannot be started, or does not do what is to be measured.
    pub(crate) fn run(self, setting: &Setting, peer: Peer) -> Result<Values> {
        match self {
            Self::Bulk1 => bulk::measure(setting, peer, 1),
            Self::Bulk4 => bulk::measure(setting, peer, 4),
            Self::Short1 => short::measure(setting, peer, 1),
            Self::Short32 => short::measure(setting, peer, 32),
            Self::Echo => echo::measure(setting, peer),
            Self::Idle => idle::measure(setting, peer),
            Self::Stalled => stalled::measure(setting, peer),
            Self::Cidrs => cidrs::measure(setting, peer),
            Self::Rest => rest::measure(setting, peer),
            Self::Udp64 => udp::measure(setting, peer, 64),
            Self::Udp1400 => udp::measure(setting, peer, 1400),
            Self::Local => local::measure(setting, peer),
        }
    }

    /// The number that says most about it.
    pub(crate) fn headline(self) -> Quantity {
        match self {
            Self::Bulk1 | Self::Bulk4 | Self::Udp1400 => Quantity::Throughput,
            Self::Short1 => Quantity::FirstByteP50,
            Self::Short32 => Quantity::Connections,
            Self::Echo => Quantity::EchoP50,
            Self::Idle => Quantity::MemoryPerFlow,
            Self::Stalled => Quantity::TakenFromSender,
            Self::Cidrs => Quantity::ConnectionsMillionCidrs,
            Self::Rest => Quantity::Resident,
            Self::Udp64 => Quantity::Datagrams,
            Self::Local => Quantity::ConnectP50,
        }
    }
}
