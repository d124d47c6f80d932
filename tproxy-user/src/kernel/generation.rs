//! Generations of compiled rules: each an array map of its own, mapped into memory to be filled
//! and read, and put in force with one write.

use aya::maps::{ArrayOfMaps, MapData, MapError};
use aya_obj::generated::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, bpf_map_type};
use tproxy_common::tables::{Block, Tables};

use super::{Error, Maps, maps::failed};
use crate::sys::SharedArray;

const OUTER: &str = "GENERATION";

type Outer = ArrayOfMaps<MapData, MapData>;

/// The tables of one generation, in the kernel's own memory.
pub struct Generation {
    blocks: SharedArray<Block>,
}

impl Generation {
    /// Puts `blocks` in force. Until this returns, and if it fails, the old generation is.
    ///
    /// # Errors
    ///
    /// When there is not enough memory or the maps cannot be written.
    pub fn install(maps: &Maps, blocks: &[Block]) -> Result<(), Error> {
        let mut outer: Outer = maps.open(OUTER, TryInto::try_into)?;
        let inner = create_arena(blocks.len())?;
        SharedArray::map(inner.fd(), blocks.len())
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
        let inner = match outer.get(&0, 0) {
            Ok(inner) => inner,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(failed(OUTER)(error)),
        };
        let count = inner.info().map_err(failed(OUTER))?.max_entries();
        let blocks = SharedArray::map(inner.fd(), count as usize).map_err(Error::Memory)?;
        Ok(Some(Self { blocks }))
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.header().map_or(0, |header| header.generation())
    }

    /// Bytes that it occupies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.blocks.as_slice())
    }
}

impl Tables for Generation {
    fn block(&self, index: u32) -> Option<&Block> {
        self.blocks.as_slice().get(index as usize)
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
