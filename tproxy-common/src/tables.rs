//! The compiled form of a rule set: one arena of equal blocks, read by the kernel programs through
//! a map and by the agent through the same memory.
//!
//! Each thing a rule can ask about (a *dimension*) has a search tree over 64-bit keys, whose leaves
//! name a *class*: a bitmap with a bit for each rule that is satisfied by keys of that leaf. A rule
//! matches when its bit is set in the class of every dimension; the lowest such bit wins.
//!
//! | block | holds |
//! | --- | --- |
//! | 0 | the number of the [`Header`] block in force, in its first word |
//! | header | the root of each dimension, the number of rules, where the rule entries begin |
//! | node | 15 ascending boundaries and 16 children |
//! | class | a bitmap of [`crate::limits::RULES`] bits |
//! | entries | 16 [`RuleEntry`]s |
//!
//! A new rule set is built in blocks that no reader can reach and takes effect with one write: of
//! the inner map for a whole generation, of block 0 for a change within one. The header is always
//! the last block: a change within a generation writes new blocks behind it, a new header behind
//! those, and no block that was in force is ever written again.

use crate::{
    address::{Address, Family},
    flow::ORIGINS,
    handover::Taken,
    limits::{CIDRS, INTERFACES, OWNERS, RULES},
};

/// 64-bit words of a block.
pub const BLOCK_WORDS: usize = 24;

/// Boundaries of a node.
pub const NODE_KEYS: usize = 15;

/// Children of a node.
pub const NODE_CHILDREN: usize = 16;

/// Words of a class bitmap.
pub const CLASS_WORDS: usize = RULES / 64;

/// Entries of a block: a power of two, by which the verifier sees that a place is in bounds.
pub const BLOCK_ENTRIES: usize = 16;

/// The unit of the arena.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The words; their meaning depends on what refers to the block.
    pub words: [u64; BLOCK_WORDS],
}

const _: () = assert!(size_of::<Block>() == 192);
const _: () = assert!(NODE_KEYS * 8 + NODE_CHILDREN * 4 <= size_of::<Block>());
const _: () = assert!(CLASS_WORDS <= BLOCK_WORDS);

impl Block {
    /// A block of zeroes.
    pub const ZERO: Self = Self {
        words: [0; BLOCK_WORDS],
    };

    /// Reads words as a block.
    #[must_use]
    #[inline(always)]
    pub const fn from_words(words: &[u64; BLOCK_WORDS]) -> &Self {
        // SAFETY: transparent.
        unsafe { &*core::ptr::from_ref(words).cast::<Self>() }
    }

    /// Which child of this node holds `key`: the number of boundaries that are not above it.
    ///
    /// A binary search. It is written without branches, but the compiler makes one of each comparison, of
    /// which the verifier follows both ways: sixteen through a node, where these lead to numbers that it
    /// knows. With a `zero` that it does not know in the middle it goes on from there once. What is
    /// searched in one of few levels does without, since it costs a packet something.
    #[inline(always)]
    fn position(&self, key: u64, zero: usize) -> usize {
        let keys = &self.words;
        let mut position = at_least(key, keys[7]) << 3;
        position |= at_least(key, keys[(position + 3) & 15]) << 2;
        position = (position + zero) & 15;
        position |= at_least(key, keys[(position + 1) & 15]) << 1;
        position | at_least(key, keys[position & 15])
    }

    /// The child at `position` of this node.
    #[inline(always)]
    fn child(&self, position: usize) -> Child {
        let word = self.words[NODE_KEYS + ((position >> 1) & 7)];
        Child((word >> ((position & 1) * 32)) as u32)
    }

    /// A node with ascending boundaries; child `i` holds the keys from boundary `i - 1` up to
    /// boundary `i`. Unused places repeat the last child.
    ///
    /// # Panics
    ///
    /// When there is not exactly one child more than boundaries, or more than fit.
    #[must_use]
    pub fn node(boundaries: &[u64], children: &[Child]) -> Self {
        assert!(children.len() == boundaries.len() + 1 && children.len() <= NODE_CHILDREN);
        let mut block = Self::ZERO;
        for place in 0..NODE_KEYS {
            block.words[place] = boundaries.get(place).copied().unwrap_or(u64::MAX);
        }
        for place in 0..NODE_CHILDREN {
            let child = children[place.min(children.len() - 1)];
            block.words[NODE_KEYS + place / 2] |= u64::from(child.0) << ((place % 2) * 32);
        }
        block
    }

    /// The children of this node, each with the first key that leads to it; what a node asks of keys
    /// is only at least that of the child before, so the first child has 0. Unused places are left
    /// out.
    pub fn children(&self) -> impl Iterator<Item = (u64, Child)> + '_ {
        let later = (1..NODE_CHILDREN).filter_map(|place| {
            let (first, child) = (self.words[place - 1], self.child(place));
            let unused = first == u64::MAX && child == self.child(place - 1);
            (!unused).then_some((first, child))
        });
        core::iter::once((0, self.child(0))).chain(later)
    }

    /// The bitmap of this class.
    #[must_use]
    pub fn bitmap(&self) -> &[u64; CLASS_WORDS] {
        let (bitmap, _) = self
            .words
            .split_first_chunk()
            .unwrap_or((&[0; CLASS_WORDS], &[]));
        bitmap
    }
}

/// 1 when `one` is at least `other`, and 0 when it is below: whether their subtraction borrows, which
/// BPF has no instruction for (H. S. Warren, Hacker's Delight, 2nd edition, 2-13).
#[inline(always)]
const fn at_least(one: u64, other: u64) -> usize {
    let borrow = (!one & other) | ((!one | other) & one.wrapping_sub(other));
    (borrow >> 63 ^ 1) as usize
}

/// What a tree leads to: a further node, a node over the lower half of the address, or a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Child(u32);

impl Child {
    const TAG: u32 = 3 << 30;
    const NODE: u32 = 1 << 30;
    const LOW_NODE: u32 = 2 << 30;

    /// Blocks that can be referred to.
    pub const MAX_BLOCKS: u32 = 1 << 30;

    /// A leaf: keys here belong to the class in this block.
    #[must_use]
    pub const fn class(block: u32) -> Self {
        Self(block)
    }

    /// A node that is searched with the same key.
    #[must_use]
    pub const fn node(block: u32) -> Self {
        Self(block | Self::NODE)
    }

    /// The same node, to be searched with the lower 64 bits of the address. A class stays one.
    #[must_use]
    pub const fn over_low_half(self) -> Self {
        if self.is_class() {
            self
        } else {
            Self(self.block() | Self::LOW_NODE)
        }
    }

    /// The block, and how its words are to be read.
    #[must_use]
    pub const fn leads_to(self) -> Target {
        if self.is_class() {
            Target::Class(self.block())
        } else if self.is_low() {
            Target::LowNode(self.block())
        } else {
            Target::Node(self.block())
        }
    }

    #[inline(always)]
    const fn block(self) -> u32 {
        self.0 & !Self::TAG
    }

    /// Whether this is a leaf.
    #[must_use]
    #[inline(always)]
    pub const fn is_class(self) -> bool {
        self.0 & Self::TAG == 0
    }

    #[inline(always)]
    const fn is_low(self) -> bool {
        self.0 & Self::LOW_NODE != 0
    }
}

/// The block that a [`Child`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A class.
    Class(u32),
    /// A node to be searched with the same key.
    Node(u32),
    /// A node to be searched with the lower half of the address.
    LowNode(u32),
}

/// The things that rules ask about, each with a tree of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// Scope and protocol, see [`crate::flow::origin`].
    Origin,
    /// Interface index.
    Interface,
    /// IPv4 source address.
    SourceV4,
    /// IPv6 source address.
    SourceV6,
    /// IPv4 destination address.
    DestinationV4,
    /// IPv6 destination address.
    DestinationV6,
    /// Source port.
    SourcePort,
    /// Destination port.
    DestinationPort,
    /// User id of the process that opened the flow. Asked for local flows only, as is the next.
    User,
    /// Control group of that process.
    Cgroup,
}

impl Dimension {
    /// All of them, in the order of the header.
    pub const ALL: [Self; 10] = [
        Self::Origin,
        Self::Interface,
        Self::SourceV4,
        Self::SourceV6,
        Self::DestinationV4,
        Self::DestinationV6,
        Self::SourcePort,
        Self::DestinationPort,
        Self::User,
        Self::Cgroup,
    ];

    /// Levels that a lookup descends at most. Every level that is allowed costs the verifier another
    /// walk, so no dimension has more than the most intervals that it can be cut into need.
    #[inline(always)]
    const fn depth(self) -> usize {
        match self {
            Self::Origin => ORIGIN_DEPTH,
            Self::Interface => INTERFACE_DEPTH,
            Self::SourcePort | Self::DestinationPort => PORT_DEPTH,
            Self::User | Self::Cgroup => OWNER_DEPTH,
            Self::SourceV4 | Self::SourceV6 | Self::DestinationV4 | Self::DestinationV6 => {
                2 * ADDRESS_HALF_DEPTH
            }
        }
    }
}

/// The end of a flow whose address is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it wants to go.
    Destination,
}

impl End {
    /// Its dimension for IPv4, which is in the same word of the header as the one for IPv6.
    #[inline(always)]
    const fn v4(self) -> Dimension {
        match self {
            Self::Source => Dimension::SourceV4,
            Self::Destination => Dimension::DestinationV4,
        }
    }
}

const _: () = {
    assert!((Dimension::SourceV4 as usize).is_multiple_of(2));
    assert!((Dimension::DestinationV4 as usize).is_multiple_of(2));
    assert!(Dimension::SourceV6 as usize == Dimension::SourceV4 as usize + 1);
    assert!(Dimension::DestinationV6 as usize == Dimension::DestinationV4 as usize + 1);
};

const ORIGIN_DEPTH: usize = 1;
const INTERFACE_DEPTH: usize = 3;
const PORT_DEPTH: usize = 5;
const OWNER_DEPTH: usize = 4;
/// Levels of one tree over the upper half of an address and, for IPv6, of one over the lower half.
pub const ADDRESS_HALF_DEPTH: usize = 6;

// A tree of full nodes has this many leaves. A range of keys begins and ends an interval.
const _: () = assert!(NODE_CHILDREN.pow(ORIGIN_DEPTH as u32) > ORIGINS as usize);
const _: () = assert!(NODE_CHILDREN.pow(INTERFACE_DEPTH as u32) > 2 * INTERFACES);
const _: () = assert!(NODE_CHILDREN.pow(PORT_DEPTH as u32) > u16::MAX as usize + 1);
const _: () = assert!(NODE_CHILDREN.pow(OWNER_DEPTH as u32) > 2 * OWNERS);
// The tree over the upper halves has one leaf more for each lower tree.
const _: () = assert!(NODE_CHILDREN.pow(ADDRESS_HALF_DEPTH as u32) > 2 * (2 * CIDRS + 1));

/// View of a header block.
///
/// Word 0 holds the number of rules (lower half) and the first entry block (upper half); the roots
/// follow, two to a word. Word 23 holds the generation.
#[derive(Clone, Copy)]
pub struct Header<'a>(&'a Block);

const ROOT_WORDS: usize = 1;
const ZERO_WORD: usize = ROOT_WORDS + Dimension::ALL.len().div_ceil(2);
const GENERATION_WORD: usize = BLOCK_WORDS - 1;
const _: () = assert!(ZERO_WORD < GENERATION_WORD);

impl<'a> Header<'a> {
    /// Reads `block` as a header.
    #[must_use]
    #[inline(always)]
    pub const fn new(block: &'a Block) -> Self {
        Self(block)
    }

    /// Writes a header.
    #[must_use]
    pub fn encode(
        rules: u32,
        entries: u32,
        roots: [Child; Dimension::ALL.len()],
        generation: u64,
    ) -> Block {
        let mut block = Block::ZERO;
        block.words[0] = u64::from(rules) | u64::from(entries) << 32;
        for (place, root) in roots.iter().enumerate() {
            block.words[ROOT_WORDS + place / 2] |= u64::from(root.0) << ((place % 2) * 32);
        }
        block.words[GENERATION_WORD] = generation;
        block
    }

    /// Number of rules.
    #[must_use]
    #[inline(always)]
    pub const fn rules(&self) -> u32 {
        self.0.words[0] as u32
    }

    /// The generation that these tables were built for.
    #[must_use]
    #[inline(always)]
    pub const fn generation(&self) -> u64 {
        self.0.words[GENERATION_WORD]
    }

    /// The header of the same rules after a change within the arena.
    #[must_use]
    pub fn successor(self, roots: [Child; Dimension::ALL.len()], generation: u64) -> Block {
        let entries = (self.0.words[0] >> 32) as u32;
        Self::encode(self.rules(), entries, roots, generation)
    }

    /// Zero, which neither the compiler nor the verifier can know.
    #[inline(always)]
    const fn zero(self) -> usize {
        self.0.words[ZERO_WORD] as usize
    }

    /// Where the tree of a dimension begins.
    #[must_use]
    #[inline(always)]
    pub const fn root(self, dimension: Dimension) -> Child {
        let place = dimension as usize;
        Child((self.0.words[ROOT_WORDS + place / 2] >> ((place % 2) * 32)) as u32)
    }

    /// Where the tree of the addresses of a family at one end of a flow begins. No branch: the verifier
    /// would follow all that comes after it once for each family.
    #[must_use]
    #[inline(always)]
    pub const fn address_root(self, end: End, family: Family) -> Child {
        let word = self.0.words[ROOT_WORDS + end.v4() as usize / 2];
        Child((word >> (family.bit() as u32 * 32)) as u32)
    }

    /// Block and word of a rule's entry.
    #[inline(always)]
    const fn entry(self, rule: u32) -> (u32, usize) {
        let entries = (self.0.words[0] >> 32) as u32;
        (
            entries + rule / BLOCK_ENTRIES as u32,
            rule as usize % BLOCK_ENTRIES,
        )
    }
}

/// What is done with the flows of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The agent relays.
    Relay,
    /// Left alone.
    Pass,
    /// Discarded.
    Drop,
    /// Refused: RST for TCP, ICMP port unreachable for UDP.
    Reject,
    /// Given to a listener on this host that is not the agent's.
    Redirect,
}

/// What happens to a flow that nobody is there to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnMissing {
    /// Left alone.
    Pass,
    /// Refused: RST for TCP.
    Drop,
}

/// What the tables hold about one rule, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleEntry(u64);

impl RuleEntry {
    const NAMES_LINK_LOCAL: u64 = 1 << 16;

    /// An entry; `slot` is the rule's counter slot.
    #[must_use]
    pub fn new(action: Action, on_missing: OnMissing, slot: u32) -> Self {
        let action = match action {
            Action::Relay => 0,
            Action::Pass => 1,
            Action::Drop => 2,
            Action::Reject => 3,
            Action::Redirect => 4,
        };
        let on_missing = match on_missing {
            OnMissing::Pass => 1,
            OnMissing::Drop => 0,
        };
        Self(u64::from(slot) << 32 | on_missing << 8 | action)
    }

    /// The same entry of a rule that names IPv4 link-local destinations, which others leave alone.
    #[must_use]
    pub const fn naming_link_local(self, names: bool) -> Self {
        if names {
            Self(self.0 | Self::NAMES_LINK_LOCAL)
        } else {
            self
        }
    }

    /// The word that an entry block holds.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// The entry in such a word.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// What to do with the flow.
    #[must_use]
    #[inline(always)]
    pub const fn action(self) -> Action {
        match self.0 as u8 {
            0 => Action::Relay,
            2 => Action::Drop,
            3 => Action::Reject,
            4 => Action::Redirect,
            _ => Action::Pass,
        }
    }

    /// What to do when nobody takes it.
    #[must_use]
    #[inline(always)]
    pub const fn on_missing(self) -> OnMissing {
        if (self.0 >> 8) as u8 == 1 {
            OnMissing::Pass
        } else {
            OnMissing::Drop
        }
    }

    /// Whether it names IPv4 link-local destinations.
    #[must_use]
    #[inline(always)]
    pub const fn names_link_local(self) -> bool {
        self.0 & Self::NAMES_LINK_LOCAL != 0
    }

    /// Whether it leaves flows to this destination alone that it matches. What answers at link-local
    /// addresses trusts those on its link, and means nobody beyond: such flows are taken only by rules
    /// that name these addresses.
    #[must_use]
    #[inline(always)]
    pub const fn shuns(self, destination: &Address) -> bool {
        matches!(self.action(), Action::Relay | Action::Redirect)
            && destination.is_v4_link_local()
            && !self.names_link_local()
    }

    /// The counter slot.
    #[must_use]
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// What hands its flows over.
    #[must_use]
    #[inline(always)]
    pub const fn taken(self) -> Taken {
        Taken {
            slot: self.slot(),
            redirected: matches!(self.action(), Action::Redirect),
        }
    }
}

/// Where the blocks are: a map for the kernel programs, plain memory for everybody else.
pub trait Tables {
    /// The block with this number; `None` when there is none, which only damaged tables cause.
    fn block(&self, index: u32) -> Option<&Block>;

    /// The number of the block that holds the header in force.
    #[inline(always)]
    fn head(&self) -> Option<u32> {
        Some(self.block(0)?.words[0] as u32)
    }

    /// The header in force.
    #[inline(always)]
    fn header(&self) -> Option<Header<'_>> {
        self.block(self.head()?).map(Header::new)
    }

    /// The class of a key in a dimension of single keys, that is any but those of addresses.
    #[inline(always)]
    fn class(&self, header: &Header<'_>, dimension: Dimension, key: u64) -> Option<&Block> {
        self.block(self.class_block(header, dimension, key)?)
    }

    /// The number of the block of that class.
    #[inline(always)]
    fn class_block(&self, header: &Header<'_>, dimension: Dimension, key: u64) -> Option<u32> {
        // Both halves are the same, so that none is to be chosen.
        self.descend(header.root(dimension), dimension.depth(), [key; 2], 0)
    }

    /// The class of the address at one end of a flow.
    #[inline(always)]
    fn address_class(&self, header: &Header<'_>, end: End, address: &Address) -> Option<&Block> {
        let root = header.address_root(end, address.family());
        let depth = end.v4().depth();
        self.block(self.descend(root, depth, [address.high(), address.low()], header.zero())?)
    }

    /// The number of the block of the class that a tree leads to. `key` is the upper and the lower half
    /// of an IPv6 address; `zero` is as for [`Block::position`].
    #[inline(always)]
    fn descend(&self, root: Child, depth: usize, key: [u64; 2], zero: usize) -> Option<u32> {
        let mut child = root;
        let [mut key, low] = key;
        for _ in 0..depth {
            if child.is_class() {
                break;
            }
            if child.is_low() {
                key = low;
            }
            let node = self.block(child.block())?;
            child = node.child(node.position(key, zero));
        }
        Some(child.block())
    }

    /// The entry of a rule.
    #[inline(always)]
    fn entry(&self, header: &Header<'_>, rule: u32) -> Option<RuleEntry> {
        let (block, word) = header.entry(rule);
        Some(RuleEntry(self.block(block)?.words[word]))
    }
}

impl Tables for [Block] {
    fn block(&self, index: u32) -> Option<&Block> {
        self.get(index as usize)
    }
}

#[cfg(feature = "user")]
// SAFETY: repr(C) array of u64: no padding, every bit pattern is valid.
unsafe impl aya::Pod for Block {}

#[cfg(test)]
mod tests;
