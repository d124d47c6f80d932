//! Which socket takes a flow that is delivered to this host.

use aya_ebpf::programs::SkLookupContext;
use tproxy_common::{address::Address, flow::worker_of, outcome::Outcome};

use crate::{agent, established, interfaces, local_prefixes, sockets};

/// Decides about one lookup.
#[inline(always)]
pub fn choose(ctx: &SkLookupContext) -> Outcome {
    // include/uapi/linux/in.h
    const IPPROTO_TCP: u32 = 6;

    // 1. The tc program asked for established sockets, and there is none.
    if established::is_probing() {
        return Outcome::Probe;
    }
    // SAFETY: the context is valid while the program runs.
    let lookup = unsafe { &*ctx.lookup };
    let Some((client, destination)) = addresses(ctx) else {
        return Outcome::NotOurs;
    };
    if lookup.protocol != IPPROTO_TCP {
        return Outcome::NotOurs;
    }

    // 2. Nobody talks to the agent's listeners directly: it would relay to itself.
    let state = agent::state();
    if lookup.local_port == u32::from(state.port())
        && sockets::with_listener(0, |_| ()).is_some()
        && local_prefixes::contains(&destination)
    {
        return Outcome::DirectRefused;
    }

    // 3. What arrives on an attached interface for an address that is not this host's own was
    //    brought here by the tc program: it is ours even if the rules changed a moment ago.
    if !interfaces::is_attached(lookup.ingress_ifindex) || local_prefixes::contains(&destination) {
        return Outcome::NotOurs;
    }
    let worker = worker_of(&client, u16::from_be(lookup.remote_port), state.workers());
    if sockets::assign(ctx, worker) {
        Outcome::Assigned
    } else {
        Outcome::Missing
    }
}

/// Client and destination, `None` for an address family that is not IP.
#[inline(always)]
fn addresses(ctx: &SkLookupContext) -> Option<(Address, Address)> {
    // include/linux/socket.h
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;
    // SAFETY: the context is valid while the program runs.
    let lookup = unsafe { &*ctx.lookup };
    match lookup.family {
        AF_INET => Some((
            Address::v4(lookup.remote_ip4.to_ne_bytes()),
            Address::v4(lookup.local_ip4.to_ne_bytes()),
        )),
        AF_INET6 => Some((v6(&lookup.remote_ip6), v6(&lookup.local_ip6))),
        _ => None,
    }
}

#[inline(always)]
fn v6(words: &[u32; 4]) -> Address {
    let mut octets = [0; 16];
    let mut word = 0;
    while word < 4 {
        let [a, b, c, d] = words[word].to_ne_bytes();
        octets[word * 4] = a;
        octets[word * 4 + 1] = b;
        octets[word * 4 + 2] = c;
        octets[word * 4 + 3] = d;
        word += 1;
    }
    Address::v6(octets)
}
