//! Servers for the agent to relay to.

mod datagram_witness;
mod nginx;
mod server;
mod witness;

pub use datagram_witness::{DatagramWitness, Received};
pub use nginx::Nginx;
pub use server::{Server, listen, listen_prepared};
pub use witness::Witness;
