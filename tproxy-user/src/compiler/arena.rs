//! Blocks as they are laid out, and classes that are written once however often they are named.

use std::collections::HashMap;

use tproxy_common::tables::{Block, CLASS_WORDS, Child};

use super::count;

/// A set of rules.
pub(super) type Bitmap = [u64; CLASS_WORDS];

/// The arena under construction. Block 0 is left for [`Arena::finish`].
pub(super) struct Arena {
    blocks: Vec<Block>,
    classes: HashMap<Bitmap, Child>,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self {
            blocks: vec![Block::ZERO],
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

    /// Adds blocks and says where they begin.
    pub(super) fn append(&mut self, blocks: &[Block]) -> u32 {
        let first = count(self.blocks.len());
        self.blocks.extend_from_slice(blocks);
        first
    }

    /// Adds the header and points block 0 to it.
    pub(super) fn finish(mut self, header: Block) -> Vec<Block> {
        let head = self.append(&[header]);
        self.blocks[0].words[0] = u64::from(head);
        self.blocks
    }
}
