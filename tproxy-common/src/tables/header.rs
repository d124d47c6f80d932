//! Where the trees and the rule entries of a rule set begin.

use super::{
    block::{BLOCK_WORDS, Block, Child},
    dimension::{Dimension, End},
};
use crate::address::Family;

/// Entries of a block: a power of two, by which the verifier sees that a place is in bounds.
pub const BLOCK_ENTRIES: usize = 16;

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
    pub(super) const fn zero(self) -> usize {
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
    pub(super) const fn entry(self, rule: u32) -> (u32, usize) {
        let entries = (self.0.words[0] >> 32) as u32;
        (
            entries + rule / BLOCK_ENTRIES as u32,
            rule as usize % BLOCK_ENTRIES,
        )
    }
}
