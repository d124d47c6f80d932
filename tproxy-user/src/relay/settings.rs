//! How a relay behaves, whatever its rules are.

use std::time::Duration;

/// Settings of a [`Relay`](super::Relay).
#[derive(Debug, Clone)]
pub struct Settings {
    /// The `SO_MARK` of upstream sockets (socket(7)); needs `CAP_NET_RAW` or `CAP_NET_ADMIN`.
    /// `None` leaves them unmarked.
    pub mark: Option<u32>,
    /// How long an upstream connection may take before the client is told that it failed.
    pub connect_timeout: Duration,
    /// The most flows at once over all workers, if that is to be fewer than the descriptors allow.
    pub max_flows: Option<usize>,
    /// The most pipes at once over all workers, if that is to be fewer than the descriptors allow.
    /// Flows that find no pipe copy.
    pub max_pipes: Option<usize>,
    /// The capacity of a pipe in bytes, which bounds what one direction of a flow holds outside of
    /// its sockets.
    pub pipe_capacity: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mark: None,
            connect_timeout: Duration::from_secs(10),
            max_flows: None,
            max_pipes: None,
            pipe_capacity: 256 * 1024,
        }
    }
}
