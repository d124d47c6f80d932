//! Sizes that the kernel programs and the agent agree on.

/// Most rules of one instance.
pub const RULES: usize = 1024;

/// Most CIDRs of one instance, over all rules, sets and both families. A set counts once, whatever
/// the number of rules that name it.
pub const CIDRS: usize = 1_000_000;

/// Most users, ranges of users and control groups of one instance, over all rules.
pub const OWNERS: usize = 16_384;

/// Most sets of one instance, files that rules name among them.
pub const SETS: usize = 1024;

/// Most blocks of the tables of one instance: 768 MiB.
pub const BLOCKS: usize = 1 << 22;

/// Most workers of one agent.
pub const WORKERS: u32 = 64;

/// Most interfaces that one instance can be attached to.
pub const INTERFACES: usize = 256;

/// Most prefixes that count as this host's own.
pub const LOCAL_PREFIXES: usize = 65_536;

/// Counter slots: twice the rules, so that a reload which renames every rule still finds free ones.
pub const COUNTER_SLOTS: usize = 2 * RULES;

/// IPv6 extension headers that are walked before a packet is passed on unread.
pub const EXTENSION_HEADERS: usize = 8;

/// Words of the table by which flows are handed over with their rule; a power of two.
pub const HANDOVERS: usize = 65_536;

/// Slots of the filter of flows, a byte each; a power of two. With as many flows as a tenth of them,
/// one segment in ten of other people's flows still pays for a lookup.
pub const FLOW_SLOTS: usize = 1 << 20;

/// Datagrams in fragments whose way is remembered at once.
pub const FRAGMENTED: usize = 8192;

/// Control groups above that of a process, and its own, that rules are looked for: deeper ones are
/// not seen.
pub const CGROUP_LEVELS: u32 = 12;

/// The counter slot of flows whose rule is not known any more; no rule gets it.
pub const UNATTRIBUTED_SLOT: u32 = COUNTER_SLOTS as u32 - 1;
