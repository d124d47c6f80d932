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

mod block;
mod dimension;
mod header;
mod rule_entry;

pub use block::{BLOCK_WORDS, Block, CLASS_WORDS, Child, NODE_CHILDREN, NODE_KEYS, Target};
pub use dimension::{ADDRESS_HALF_DEPTH, Dimension, End};
pub use header::{BLOCK_ENTRIES, Header};
pub use rule_entry::{Action, OnMissing, RuleEntry};

use crate::address::Address;

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
        Some(RuleEntry::from_word(self.block(block)?.words[word]))
    }
}

impl Tables for [Block] {
    fn block(&self, index: u32) -> Option<&Block> {
        self.get(index as usize)
    }
}

#[cfg(test)]
mod tests;
