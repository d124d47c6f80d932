//! Servers for the agent to relay to, proxies for it to hand flows to, and clients: programs of others, each in a
//! directory of its own.

mod certificate;
mod curl;
mod datagram_witness;
mod dnsmasq;
mod envoy;
mod envoy_datagrams;
mod git;
mod haproxy;
mod iperf;
mod nginx;
mod nginx_stream;
mod proxy;
mod python;
mod quic;
mod server;
mod squid;
mod stream_echo;
mod witness;

pub use certificate::Certificate;
pub use curl::Fetched;
pub use datagram_witness::{DatagramWitness, Received};
pub use dnsmasq::{Answer, Dnsmasq, LONG_NAME, NAME, dig};
pub use envoy_datagrams::EnvoyDatagrams;
pub use git::Repository;
pub use iperf::{Iperf, UdpReport, send_datagrams, sender};
pub use nginx::Nginx;
pub use proxy::{Handed, Product, Proxy, Sockets, Source};
pub use python::{WITHOUT_PROXIES, python};
pub use quic::QuicServer;
pub use server::{Server, listen, listen_prepared};
pub use stream_echo::StreamEcho;
pub use witness::Witness;
