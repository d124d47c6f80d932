//! Blocks as they are laid out, and classes that are written once however often they are named.

use std::collections::HashMap;

use tproxy_common::{
    limits::{BLOCKS, RULES},
    tables::{Block, CLASS_WORDS, Child},
};

use super::{CompileError, count};

/// A set of rules.
pub(super) type Bitmap = [u64; CLASS_WORDS];

const _: () = assert!(CLASS_WORDS * 64 == RULES);

/// Blocks under construction, which are to lie behind those that are there already.
pub(super) struct Arena {
    first: u32,
    most: usize,
    blocks: Vec<Block>,
    classes: HashMap<Bitmap, Child>,
}

impl Arena {
    /// An arena of at most so many blocks. It begins with block 0, which is left for
    /// [`Arena::finish`].
    pub(super) fn new(most: usize) -> Self {
        let mut arena = Self {
            most,
            ..Self::behind(0)
        };
        arena.append(&[Block::ZERO]);
        arena
    }

    /// More blocks, from the one with this number on.
    pub(super) fn behind(first: u32) -> Self {
        Self {
            first,
            most: BLOCKS,
            blocks: Vec::new(),
            classes: HashMap::new(),
        }
    }

    /// The leaf for this set of rules.
    pub(super) fn class(&mut self, bitmap: &Bitmap) -> Child {
        if let Some(class) = self.classes.get(bitmap) {
            return *class;
        }
        let mut block = Block::ZERO;
        block.words[..CLASS_WORDS].copy_from_slice(bitmap);
        let class = Child::class(self.append(&[block]));
        self.classes.insert(*bitmap, class);
        class
    }

    /// Tells of a class that is there already.
    pub(super) fn know_class(&mut self, bitmap: &Bitmap, class: Child) {
        self.classes.entry(*bitmap).or_insert(class);
    }

    /// How many different classes there are.
    pub(super) fn classes(&self) -> usize {
        self.classes.len()
    }

    /// Adds blocks and says where they begin.
    pub(super) fn append(&mut self, blocks: &[Block]) -> u32 {
        let first = self.first + count(self.blocks.len());
        self.blocks.extend_from_slice(blocks);
        first
    }

    /// One of the blocks that were added here.
    pub(super) fn block(&self, number: u32) -> Option<&Block> {
        self.blocks.get(number.checked_sub(self.first)? as usize)
    }

    /// How many blocks were added here.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Refuses to grow without bounds.
    pub(super) fn check_size(&self) -> Result<(), CompileError> {
        if self.blocks.len() > self.most {
            return Err(CompileError::TooManyBlocks {
                most: self.most,
                classes: self.classes.len(),
            });
        }
        Ok(())
    }

    /// The blocks that were added here.
    pub(super) fn into_blocks(self) -> Vec<Block> {
        self.blocks
    }

    /// Adds the header and points block 0 to it.
    pub(super) fn finish(mut self, header: Block) -> Vec<Block> {
        let head = self.append(&[header]);
        self.blocks[0].words[0] = u64::from(head);
        self.blocks
    }
}
