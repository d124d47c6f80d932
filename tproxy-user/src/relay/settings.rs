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
    /// How long a UDP session is kept in which nothing passes in either direction. RFC 4787
    /// (REQ-5) asks for two minutes at least.
    ///
    /// A datagram of upstream keeps it as one of the client does, which REQ-6 leaves open: the
    /// upstream socket is connected, so that nobody but the destination itself can do so.
    pub udp_idle: Duration,
    /// The same for sessions to port 53, where one answer is all that is expected.
    pub udp_idle_dns: Duration,
    /// The most UDP sessions at once over all workers, if that is to be other than half of what
    /// the descriptors allow.
    pub udp_sessions: Option<usize>,
    /// The most TCP flows that one address has at once, over all workers; any number when left out.
    /// A connection beyond that is reset.
    pub flows_per_source: Option<usize>,
    /// The most UDP sessions that one address has at once. One more takes the place of the one that
    /// is idle for the longest, or is not opened if all of them are in use. Each worker sees to its
    /// share, so with several an address may meet the limit somewhat earlier.
    pub udp_sessions_per_source: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mark: None,
            connect_timeout: Duration::from_secs(10),
            max_flows: None,
            max_pipes: None,
            pipe_capacity: 256 * 1024,
            udp_idle: Duration::from_mins(2),
            udp_idle_dns: Duration::from_secs(20),
            udp_sessions: None,
            flows_per_source: None,
            udp_sessions_per_source: 1024,
        }
    }
}
