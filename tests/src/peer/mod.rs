//! Servers for the agent to relay to.

mod nginx;
mod server;
mod witness;

pub use nginx::Nginx;
pub use server::Server;
pub use witness::Witness;
