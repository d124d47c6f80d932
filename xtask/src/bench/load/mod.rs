//! The programs at both ends of a load. The bench starts them in namespaces, from its own executable.

mod connect_client;
mod datagrams;
mod deaf_server;
mod echo_client;
mod echo_server;
mod exchange;
mod flood_client;
mod idle_client;
mod kernel_counters;
mod latencies;
mod listener;
mod paced_client;
mod ports;
mod short_client;
mod short_server;
mod transparent_listener;
mod udp_echo_client;
mod udp_echo_server;
mod witness;

use anyhow::Result;

pub(crate) use self::{
    echo_client::Outcome as Echoes, flood_client::Outcome as Flooded,
    idle_client::Outcome as Holding, latencies::Summary as LatencySummary, paced_client::Second,
    short_client::Outcome as Shorts, udp_echo_client::Outcome as DatagramEchoes, witness::Seen,
};

/// Servers print "listening" when they are, and serve until they are killed. Clients print what they saw
/// as JSON.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Program {
    /// Reads a request, answers, closes first
    ShortServer(short_server::Options),
    /// Short connections, a fixed number at once
    ShortClient(short_client::Options),
    /// Short connections, a fixed number a second
    PacedClient(paced_client::Options),
    /// Sends back what comes
    EchoServer(echo_server::Options),
    /// Asks for one echo after the other on one connection
    EchoClient(echo_client::Options),
    /// Opens connections and keeps them
    IdleClient(idle_client::Options),
    /// Sends until nothing can be sent any more
    FloodClient(flood_client::Options),
    /// Accepts and never reads
    DeafServer(deaf_server::Options),
    /// Only connects, again and again
    ConnectClient(connect_client::Options),
    /// Sends back datagrams
    UdpEchoServer(udp_echo_server::Options),
    /// Keeps datagrams under way
    UdpEchoClient(udp_echo_client::Options),
    /// Tells each client whose address it sees
    Witness(witness::ServerOptions),
    /// Asks a witness
    AskWitness(witness::ClientOptions),
    /// Becomes a program that inherits a listener on foreign addresses
    TransparentListener(transparent_listener::Options),
}

/// # Errors
///
/// When a socket fails in a way that is not part of what is measured.
pub(crate) fn run(program: &Program) -> Result<()> {
    match program {
        Program::ShortServer(options) => short_server::serve(options),
        Program::ShortClient(options) => short_client::run(options),
        Program::PacedClient(options) => paced_client::run(options),
        Program::EchoServer(options) => echo_server::serve(options),
        Program::EchoClient(options) => echo_client::run(options),
        Program::IdleClient(options) => idle_client::run(options),
        Program::FloodClient(options) => flood_client::run(options),
        Program::DeafServer(options) => deaf_server::serve(options),
        Program::ConnectClient(options) => connect_client::run(options),
        Program::UdpEchoServer(options) => udp_echo_server::serve(options),
        Program::UdpEchoClient(options) => udp_echo_client::run(options),
        Program::Witness(options) => witness::serve(options),
        Program::AskWitness(options) => witness::ask(options),
        Program::TransparentListener(options) => transparent_listener::become_program(options),
    }
}
