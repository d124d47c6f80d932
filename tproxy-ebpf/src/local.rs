//! What is done with a flow that a process of this host opens.

use aya_ebpf::{bindings::bpf_sock, helpers::bpf_get_netns_cookie, programs::SockAddrContext};
use tproxy_common::{
    address::Address,
    explanation::Presence,
    flow::Protocol,
    handover::Ends,
    outcome::Outcome,
    tables::{Action, OnMissing, RuleEntry},
};

use crate::{agent, counters, local_prefixes, lookup::octets, presence, rules};

/// What the hooks at connect and sendmsg have of a flow.
#[derive(Clone, Copy)]
pub struct Opening {
    /// Its protocol.
    pub protocol: Protocol,
    /// The address that the socket is bound to; unspecified when it is bound to none.
    pub bound: Address,
    /// The port that it has; zero when it has none yet.
    pub port: u16,
    /// Where the process wants to go.
    pub destination: Address,
    /// The port there.
    pub destination_port: u16,
    /// The mark of the socket.
    pub mark: u32,
    /// The device that it is bound to, by index (`SO_BINDTODEVICE`, socket(7)); zero for none.
    pub device: u32,
}

/// What was decided.
#[derive(Clone, Copy)]
pub enum Decision {
    /// The flow is taken by a rule.
    Take(RuleEntry),
    /// Something else.
    Leave(Outcome),
}

impl Decision {
    /// No slot is that large.
    const LEFT: u64 = 1 << 63;

    /// The decision as one word.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        match self {
            Self::Take(rule) => rule.to_word(),
            Self::Leave(outcome) => Self::LEFT | outcome as u64,
        }
    }

    /// The decision in such a word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        if word & Self::LEFT == 0 {
            return Self::Take(RuleEntry::from_word(word));
        }
        match Outcome::from_number(word as u32) {
            Some(outcome) => Self::Leave(outcome),
            None => Self::Leave(Outcome::LocalNoRule),
        }
    }
}

impl Opening {
    /// What a socket does that the context is about. `bound` is the address that its packets are to
    /// come from, unspecified when the kernel is to choose.
    #[inline(always)]
    pub fn of(
        ctx: &SockAddrContext,
        socket: *mut bpf_sock,
        protocol: Protocol,
        bound: Address,
        destination: Address,
    ) -> Self {
        // SAFETY: the context is valid while the program runs, and it gave the socket.
        unsafe {
            Self {
                protocol,
                bound,
                port: (*socket).src_port as u16,
                destination,
                destination_port: u16::from_be((*ctx.sock_addr).user_port as u16),
                mark: (*socket).mark,
                device: (*socket).bound_dev_if,
            }
        }
    }

    /// Its ends as far as they are known.
    #[inline(always)]
    pub const fn ends(&self) -> Ends {
        Ends {
            protocol: self.protocol,
            source: Address::unspecified(self.destination.family()),
            source_port: self.port,
            destination: self.destination,
            destination_port: self.destination_port,
        }
    }
}

/// Whether the process is in the network namespace of this instance: the hooks see those of all.
#[inline(always)]
pub fn is_here(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    cookie == agent::network_namespace()
}

/// The socket, and its protocol, if that is TCP or UDP.
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> Option<(*mut bpf_sock, Protocol)> {
    // include/uapi/linux/in.h
    const IPPROTO_TCP: u32 = 6;
    const IPPROTO_UDP: u32 = 17;
    // SAFETY: the context is valid while the program runs.
    let (socket, protocol) = unsafe {
        (
            (*ctx.sock_addr).__bindgen_anon_1.sk,
            (*ctx.sock_addr).protocol,
        )
    };
    let protocol = match protocol {
        IPPROTO_TCP => Protocol::Tcp,
        IPPROTO_UDP => Protocol::Udp,
        _ => return None,
    };
    if socket.is_null() {
        return None;
    }
    Some((socket, protocol))
}

/// Where the process wants to go, over IPv4.
#[inline(always)]
pub fn destination_v4(ctx: &SockAddrContext) -> Address {
    // SAFETY: the context is valid while the program runs.
    Address::v4(unsafe { (*ctx.sock_addr).user_ip4 }.to_ne_bytes())
}

/// The same over IPv6.
#[inline(always)]
pub fn destination_v6(ctx: &SockAddrContext) -> [u8; 16] {
    // SAFETY: the context is valid while the program runs. It is read by words.
    let words = unsafe {
        let context = ctx.sock_addr;
        [
            (*context).user_ip6[0],
            (*context).user_ip6[1],
            (*context).user_ip6[2],
            (*context).user_ip6[3],
        ]
    };
    octets(&words)
}

/// Decides about a flow.
#[inline(always)]
pub fn decide(opening: &Opening) -> Decision {
    // 1. Who marks a socket has plans for it. The agent does, too.
    if opening.mark != 0 && opening.mark != agent::mark() {
        return Decision::Leave(Outcome::LocalMarked);
    }
    if opening.device != 0 {
        return Decision::Leave(Outcome::LocalToDevice);
    }

    // 2. The rules decide.
    let ends = Ends {
        protocol: opening.protocol,
        source: opening.bound,
        source_port: opening.port,
        destination: opening.destination,
        destination_port: opening.destination_port,
    };
    let Some(rule) = rules::find_local(&ends) else {
        return Decision::Leave(Outcome::LocalNoRule);
    };

    // 3. This host's own services, its links, and groups of hosts are left alone.
    if !ends.destination.is_forwardable()
        || local_prefixes::contains(&ends.destination)
        || rule.shuns(&ends.destination)
    {
        return Decision::Leave(Outcome::LocalNotForwarded);
    }
    let outcome = match rule.action() {
        Action::Pass => Outcome::LocalPassed,
        Action::Drop => Outcome::LocalDropped,
        Action::Reject => Outcome::LocalRejected,
        Action::Relay | Action::Redirect => match lacking(&ends, rule) {
            None => return Decision::Take(rule),
            Some(outcome) => outcome,
        },
    };
    counters::count_flow(rule);
    Decision::Leave(outcome)
}

/// What becomes of a flow that nobody is there to take; `None` when somebody is.
#[inline(always)]
fn lacking(ends: &Ends, rule: RuleEntry) -> Option<Outcome> {
    match (presence::of(ends, rule.taken()), rule.on_missing()) {
        (Presence::There, _) => None,
        (Presence::LeftAlone, _) | (Presence::Missing, OnMissing::Pass) => {
            Some(Outcome::LocalPassedMissing)
        }
        (Presence::Missing, OnMissing::Drop) => Some(Outcome::LocalRefusedMissing),
    }
}

/// The address that a socket is bound to, for an IPv4 destination; IPv6 sockets have one for those, too.
#[inline(always)]
pub fn bound_v4(socket: *mut bpf_sock) -> Address {
    // SAFETY: the context gave this socket.
    Address::v4(unsafe { (*socket).src_ip4 }.to_ne_bytes())
}

/// The same for an IPv6 destination.
#[inline(always)]
pub fn bound_v6(socket: *mut bpf_sock) -> Address {
    // SAFETY: the context gave this socket.
    let words = unsafe {
        [
            (*socket).src_ip6[0],
            (*socket).src_ip6[1],
            (*socket).src_ip6[2],
            (*socket).src_ip6[3],
        ]
    };
    Address::v6(octets(&words))
}
