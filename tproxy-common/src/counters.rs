//! Counters per rule.

/// What the kernel counts for one rule on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounter {
    /// New flows: for TCP the SYNs, for UDP the datagrams that the classifier saw.
    pub flows: u64,
    /// Packets dropped.
    pub packets: u64,
    /// Bytes dropped, from the network header on.
    pub bytes: u64,
}

const _: () = assert!(size_of::<RuleCounter>() == 24);

/// What the agent counts for one rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayCounter {
    /// Bytes relayed from clients to servers.
    pub to_upstream: u64,
    /// Bytes relayed from servers to clients.
    pub to_client: u64,
    /// Flows being relayed now.
    pub live: u64,
}

const _: () = assert!(size_of::<RelayCounter>() == 24);

/// What the agent counts of flows that it could not take at once, or not as it was told to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntakeCounter {
    /// Connections that were accepted and then reset, because descriptors or memory had run out.
    pub shed: u64,
    /// How often a worker stopped accepting, because no descriptor or no place was free.
    pub pauses: u64,
    /// Flows that were to reach their server from the client's address, and did from this host's.
    pub fallbacks: u64,
    /// Connections that were accepted and then reset, because their client had as many flows as it may
    /// have.
    pub over_limit: u64,
}

const _: () = assert!(size_of::<IntakeCounter>() == 32);

/// What a worker of the agent serves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerCounter {
    /// TCP flows, now.
    pub flows: u64,
    /// UDP sessions, now.
    pub sessions: u64,
    /// Datagrams that it has dropped, because a socket or a limit was full.
    pub dropped: u64,
}

const _: () = assert!(size_of::<WorkerCounter>() == 24);

/// What became of the listeners of other programs that a rule hands its flows to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerCounter {
    /// Sockets that are there now.
    pub present: u64,
    /// Sockets that were found.
    pub found: u64,
    /// Sockets that were found and are gone.
    pub lost: u64,
}

const _: () = assert!(size_of::<ListenerCounter>() == 24);

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above) and every bit pattern is valid.
unsafe impl aya::Pod for WorkerCounter {}

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above) and every bit pattern is valid.
unsafe impl aya::Pod for ListenerCounter {}

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above) and every bit pattern is valid.
unsafe impl aya::Pod for RuleCounter {}

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above) and every bit pattern is valid.
unsafe impl aya::Pod for RelayCounter {}

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above) and every bit pattern is valid.
unsafe impl aya::Pod for IntakeCounter {}
