//! Generations of compiled rules: each an array map of its own, mapped into memory to be filled
//! and read, and put in force with one write. A change of a few CIDRs is a generation as well, in the
//! same map: blocks behind those in force, put in force by one write of block 0.

use std::{io::ErrorKind, sync::atomic::Ordering};

use aya::maps::{ArrayOfMaps, MapData, MapError};
use aya_obj::generated::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, bpf_map_type};
use tproxy_common::tables::{Block, Tables};

use super::{Error, Maps, maps::failed};
use crate::sys::SharedArray;

const OUTER: &str = "GENERATION";

type Outer = ArrayOfMaps<MapData, MapData>;

/// The tables of one generation, in the kernel's own memory, as they were when they were opened: a
/// change within them does not show.
pub struct Generation {
    blocks: SharedArray<Block>,
    head: u32,
}

impl Generation {
    /// Puts `blocks` in force. Until this returns, and if it fails, the old generation is.
    ///
    /// # Errors
    ///
    /// When there is not enough memory or the maps cannot be written.
    pub fn install(maps: &Maps, blocks: &[Block]) -> Result<(), Error> {
        Self::install_with_room(maps, blocks, 0)
    }

    /// Puts `blocks` in force, with room for so many more to come by [`Generation::extend`].
    ///
    /// # Errors
    ///
    /// Like [`Generation::install`].
    pub fn install_with_room(maps: &Maps, blocks: &[Block], room: usize) -> Result<(), Error> {
        let mut outer: Outer = maps.open(OUTER, TryInto::try_into)?;
        let size = blocks.len() + room;
        let inner = create_arena(size)?;
        SharedArray::map(inner.fd(), size)
            .map_err(Error::Memory)?
            .fill(blocks);
        outer.set(0, &inner, 0).map_err(failed(OUTER))
    }

    /// The generation in force, `None` before the first.
    ///
    /// # Errors
    ///
    /// When the maps cannot be read.
    pub fn in_force(maps: &Maps) -> Result<Option<Self>, Error> {
        let outer: Outer = maps.open(OUTER, TryInto::try_into)?;
        let inner = loop {
            match outer.get(&0, 0) {
                Ok(inner) => break inner,
                Err(MapError::KeyNotFound) => return Ok(None),
                // Replaced, and gone, after it was looked up and before it was opened: another is in force.
                Err(MapError::SyscallError(error))
                    if error.io_error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed(OUTER)(error)),
            }
        };
        let count = inner.info().map_err(failed(OUTER))?.max_entries();
        let blocks = SharedArray::map(inner.fd(), count as usize).map_err(Error::Memory)?;
        // What the new head leads to was written before it.
        let word = blocks.words()[HEAD_WORD].load(Ordering::Acquire);
        let head = u32::try_from(word).unwrap_or(u32::MAX);
        Ok(Some(Self { blocks, head }))
    }

    /// Adds blocks behind those that are there, the last of which is the new header, and puts them in
    /// force with one write. The caller is the only one who changes the instance, and has made the
    /// blocks from these very tables.
    ///
    /// # Errors
    ///
    /// When they do not fit; then nothing has changed.
    pub fn extend(mut self, blocks: &[Block]) -> Result<(), Error> {
        if blocks.len() > self.room() {
            return Err(Error::NoRoom);
        }
        let head = self.used() + blocks.len() - 1;
        self.blocks.fill_from(self.used(), blocks);
        self.blocks.words()[HEAD_WORD].store(head as u64, Ordering::Release);
        Ok(())
    }

    /// How many blocks can be added.
    #[must_use]
    pub fn room(&self) -> usize {
        self.blocks.len().saturating_sub(self.used())
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.header().map_or(0, |header| header.generation())
    }

    /// Bytes that it occupies, those for changes to come among them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.len() * size_of::<Block>()
    }

    /// Blocks up to the header, which is the last.
    const fn used(&self) -> usize {
        self.head as usize + 1
    }
}

/// The word of block 0 that names the header in force.
const HEAD_WORD: usize = 0;

impl Tables for Generation {
    fn block(&self, index: u32) -> Option<&Block> {
        // Block 0 may be written at any time, and what is behind the head may be as well.
        let fixed = 1..=self.head;
        let blocks = fixed
            .contains(&index)
            .then(|| self.blocks.get(index as usize));
        blocks.flatten()
    }

    fn head(&self) -> Option<u32> {
        Some(self.head)
    }
}

/// A map like the template in the kernel programs, but with room for `blocks`.
fn create_arena(blocks: usize) -> Result<MapData, Error> {
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let map = aya_obj::Map::new_from_params(
        bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        size(size_of::<u32>()),
        size(size_of::<Block>()),
        size(blocks),
        BPF_F_MMAPABLE | BPF_F_INNER_MAP,
    );
    MapData::create(map, "tproxy_rules", None).map_err(failed(OUTER))
}
