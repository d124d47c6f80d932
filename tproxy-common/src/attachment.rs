//! What the programs do for an interface: the values of the map of attached interfaces.

/// Flows that arrive are held against the rules.
pub const FULL: u32 = 0;

/// Only what answers a flow of a socket of this host is delivered: upstream connections from the
/// addresses of clients have their way back there. New flows are left alone.
pub const ANSWERS_ONLY: u32 = 1;
