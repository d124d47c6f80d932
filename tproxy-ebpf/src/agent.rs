//! The agent as the programs see it.
//!
//! Written by the agent when it starts and when it drains, read for every new flow. A reader that
//! sees the old state for one more packet does what it would have done a moment earlier.

use aya_ebpf::{Global, btf_maps::Array, macros::btf_map};
use tproxy_common::agent::AgentState;

#[btf_map]
static AGENT: Array<AgentState, 1> = Array::new();

/// Mark, and mask, of packets that are delivered to this host. Set at load.
#[unsafe(no_mangle)]
static MARK: Global<u32> = Global::new(0);

/// Mark of the agent's own upstream connections. Set at load.
#[unsafe(no_mangle)]
static UPSTREAM_MARK: Global<u32> = Global::new(0);

/// Cookie of the network namespace that this instance lives in. Set at load.
#[unsafe(no_mangle)]
static NETWORK_NAMESPACE: Global<u64> = Global::new(0);

/// Stand-ins for the source addresses of datagrams that processes of this host send, as contexts have
/// addresses: words in network byte order. Set at load.
#[unsafe(no_mangle)]
static STAND_IN_V4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static STAND_IN_V6: Global<[u32; 4]> = Global::new([0; 4]);

/// The agent's state.
#[inline(always)]
pub fn state() -> AgentState {
    AGENT.get(0).copied().unwrap_or_default()
}

/// The steering mark.
#[inline(always)]
pub fn mark() -> u32 {
    MARK.load()
}

/// The mark of the agent's own connections.
#[inline(always)]
pub fn upstream_mark() -> u32 {
    UPSTREAM_MARK.load()
}

/// The cookie of the instance's network namespace.
#[inline(always)]
pub fn network_namespace() -> u64 {
    NETWORK_NAMESPACE.load()
}

/// The stand-in for IPv4 source addresses.
#[inline(always)]
pub fn stand_in_v4() -> u32 {
    STAND_IN_V4.load()
}

/// The stand-in for IPv6 source addresses.
#[inline(always)]
pub fn stand_in_v6() -> [u32; 4] {
    STAND_IN_V6.load()
}
