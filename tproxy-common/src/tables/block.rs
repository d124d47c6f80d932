//! The blocks of the arena, and the nodes and classes that trees are made of.

use crate::limits::RULES;

/// 64-bit words of a block.
pub const BLOCK_WORDS: usize = 24;

/// Boundaries of a node.
pub const NODE_KEYS: usize = 15;

/// Children of a node.
pub const NODE_CHILDREN: usize = 16;

/// Words of a class bitmap.
pub const CLASS_WORDS: usize = RULES / 64;

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
    pub(super) fn position(&self, key: u64, zero: usize) -> usize {
        let keys = &self.words;
        let mut position = at_least(key, keys[7]) << 3;
        position |= at_least(key, keys[(position + 3) & 15]) << 2;
        position = (position + zero) & 15;
        position |= at_least(key, keys[(position + 1) & 15]) << 1;
        position | at_least(key, keys[position & 15])
    }

    /// The child at `position` of this node.
    #[inline(always)]
    pub(super) fn child(&self, position: usize) -> Child {
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
pub struct Child(pub(super) u32);

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
    pub(super) const fn block(self) -> u32 {
        self.0 & !Self::TAG
    }

    /// Whether this is a leaf.
    #[must_use]
    #[inline(always)]
    pub const fn is_class(self) -> bool {
        self.0 & Self::TAG == 0
    }

    #[inline(always)]
    pub(super) const fn is_low(self) -> bool {
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

#[cfg(feature = "user")]
// SAFETY: repr(C) array of u64: no padding, every bit pattern is valid.
unsafe impl aya::Pod for Block {}
