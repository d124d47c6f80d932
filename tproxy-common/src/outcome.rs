//! Why a hook let a packet go the way it went: one name and one per-CPU counter each.

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What a hook decided, and why.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Outcome {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Outcome {
            /// Every outcome with the name of its counter, in the order of the counter map.
            pub const ALL: &[(Self, &str)] = &[$((Self::$variant, $name),)+];

            /// The outcome with this number, if there is one.
            #[must_use]
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                $(if number == Self::$variant as u32 {
                    return Some(Self::$variant);
                })+
                None
            }
        }
    };
}

outcomes! {
    /// tc: the frame is not IP.
    NotIp = "not_ip",
    /// tc: the frame carries a VLAN tag, so it belongs to an interface that is not attached.
    Vlan = "vlan",
    /// tc: the frame is for another host, or broadcast or multicast.
    NotForThisHost = "not_for_this_host",
    /// tc: the headers end before they are complete, or contradict themselves.
    Malformed = "malformed",
    /// tc: a fragment of a packet that goes its own way.
    Fragment = "fragment",
    /// tc: a fragment of a packet that was taken, or can be one: it is put together here.
    FragmentTaken = "fragment_taken",
    /// tc: a fragment of a packet that was discarded.
    FragmentDropped = "fragment_dropped",
    /// tc: neither TCP nor UDP.
    OtherProtocol = "other_protocol",
    /// tc: more IPv6 extension headers than are walked.
    TooManyExtensions = "too_many_extensions",
    /// tc: a packet of an upstream connection of the agent that passes here again.
    OwnUpstream = "own_upstream",
    /// tc: from or to this host, or to no single host.
    NotForwarded = "not_forwarded",
    /// tc: a new flow that no rule matches.
    NoRule = "no_rule",
    /// tc: a new flow that a rule leaves alone.
    Passed = "passed",
    /// tc: a new flow left alone because nobody is there to take it.
    PassedMissing = "passed_missing",
    /// tc: a new flow left alone because the agent is draining.
    PassedDraining = "passed_draining",
    /// tc: a new flow refused with RST, because nobody is there to take it.
    RefusedMissing = "refused_missing",
    /// tc: the same, but the RST could not be made.
    DroppedMissing = "dropped_missing",
    /// tc: discarded by a rule.
    Dropped = "dropped",
    /// tc: refused by a rule, with RST or an ICMP error.
    Rejected = "rejected",
    /// tc: the same, but the answer could not be made, or there were too many.
    RejectedUnanswered = "rejected_unanswered",
    /// tc: a new flow on an interface where only answers to upstream connections are looked for.
    AnswersOnly = "answers_only",
    /// tc: a new flow that was taken.
    Taken = "taken",
    /// tc: a packet of a flow that a socket of this host has.
    Established = "established",
    /// tc: the last ACK of a handshake by SYN cookie.
    SynCookie = "syn_cookie",
    /// tc: a datagram of a flow that a socket of this host has.
    EstablishedUdp = "established_udp",
    /// tc: an ICMP error about a flow that a socket of this host has.
    IcmpError = "icmp_error",
    /// tc: a packet of a flow that was taken and has no socket any more. It is delivered here all the
    /// same, where it is refused: the server must not see it.
    Orphaned = "orphaned",
    /// tc: a packet of a flow that no socket of this host has.
    Foreign = "foreign",
    /// sk_lookup: not for this instance; the kernel looks up as usual.
    NotOurs = "lookup_not_ours",
    /// sk_lookup: a flow that was taken, given to who gets it.
    Assigned = "lookup_assigned",
    /// sk_lookup: a flow that was taken, but nobody is there.
    Missing = "lookup_missing",
    /// sk_lookup: a direct connection to the agent's own port.
    DirectRefused = "direct_refused",
    /// sk_lookup: the tc program asked for established sockets only.
    Probe = "lookup_probe",
    /// sk_lookup: a flow to this host that was taken.
    InboundTaken = "inbound_taken",
    /// sk_lookup: a flow to this host that a rule leaves alone.
    InboundPassed = "inbound_passed",
    /// sk_lookup: a flow to this host left alone because nobody is there to take it.
    InboundPassedMissing = "inbound_passed_missing",
    /// sk_lookup: a flow to this host that is discarded by a rule.
    InboundDropped = "inbound_dropped",
    /// sk_lookup: a flow to this host that is refused by a rule.
    InboundRejected = "inbound_rejected",
    /// sk_lookup: a flow to this host that is refused because nobody is there to take it.
    InboundRefusedMissing = "inbound_refused_missing",
    /// connect, sendmsg: the socket has a mark already: the agent's own, or one of another program.
    LocalMarked = "local_marked",
    /// connect, sendmsg: the socket is bound to a device, on which its flow is to go.
    LocalToDevice = "local_to_device",
    /// connect, sendmsg: to this host, or to no single host.
    LocalNotForwarded = "local_not_forwarded",
    /// connect, sendmsg: a flow that no rule matches.
    LocalNoRule = "local_no_rule",
    /// connect, sendmsg: a flow that a rule leaves alone.
    LocalPassed = "local_passed",
    /// connect, sendmsg: a flow left alone because nobody is there to take it, or the agent drains.
    LocalPassedMissing = "local_passed_missing",
    /// connect, sendmsg: refused by a rule without a word (EPERM).
    LocalDropped = "local_dropped",
    /// connect, sendmsg: refused by a rule (ECONNREFUSED).
    LocalRejected = "local_rejected",
    /// connect, sendmsg: refused because nobody is there to take it (ECONNREFUSED).
    LocalRefusedMissing = "local_refused_missing",
    /// connect, sendmsg: a flow that was taken.
    LocalTaken = "local_taken",
}

/// Number of outcomes.
pub const OUTCOMES: usize = Outcome::ALL.len();
