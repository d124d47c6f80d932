//! Fixtures for the integration tests: network namespaces, the agent, clients and servers.
//!
//! A test builds a [`Lab`] (three fresh namespaces, `client - gateway - server`), starts the real binary in its
//! gateway ([`Lab::agent`]), lets a client talk to a server ([`Lab::ask`], or a [`peer`] of its own), and checks what
//! both ends saw. Every fixture undoes itself when it goes out of scope, also when the test panics.
//!
//! Three rules keep tests independent of one another, so that they run side by side:
//!
//! - a namespace belongs to a thread: closures enter it on a thread of their own ([`Namespace::enter`]), programs enter
//!   it between fork and exec ([`Namespace::command`]);
//! - every agent has an instance name of its own;
//! - nothing sleeps to let something happen: tests wait for an event or poll a condition with a deadline ([`wait`]).

#![expect(
    clippy::missing_panics_doc,
    reason = "fixtures report failure by panicking, as assertions do"
)]

pub mod address;
pub mod agent;
pub mod blast;
pub mod bpf;
pub mod cli;
pub mod control_group;
pub mod crafted;
pub mod datagrams;
pub mod exchange;
pub mod flow;
pub mod interruption;
pub mod lab;
pub mod namespace;
pub mod pattern;
pub mod peer;
pub mod private_host;
pub mod process;
pub mod shell;
pub mod snapshot;
mod sys;
pub mod tun;
pub mod wait;
pub mod wire;

pub use address::Family;
pub use agent::Agent;
pub use cli::Cli;
pub use control_group::ControlGroup;
pub use datagrams::DatagramClient;
pub use exchange::Exchange;
pub use flow::FlowLine;
pub use lab::Lab;
pub use namespace::Namespace;
pub use shell::Shell;
pub use snapshot::Snapshot;
