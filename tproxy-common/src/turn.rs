//! Turns, in which workers get connections.
//!
//! A worker that has its turn gets the next connections, so that those that a client opens at once reach
//! their server in the order in which they were opened. It may prolong its turn when it has accepted them.

/// Connections that a worker gets in a turn that it does not prolong.
pub const CONNECTIONS: u32 = 16;
