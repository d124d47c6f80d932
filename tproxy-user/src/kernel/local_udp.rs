//! The agent's side of [`tproxy_common::local_udp`].

use std::sync::atomic::Ordering;

use tproxy_common::{
    address::Family,
    local_udp::{LocalUdp as Element, PLACES, place_of},
};

use super::{Error, Maps};
use crate::sys::SharedArray;

const NAME: &str = "LOCAL_UDP";
const WORDS: usize = size_of::<Element>() / size_of::<u64>();

/// The table by which datagrams of this host's processes are handed over with their rule.
pub struct LocalUdp {
    memory: SharedArray<u64>,
}

impl LocalUdp {
    /// Maps the table into memory.
    ///
    /// # Errors
    ///
    /// When it is not there or not mappable.
    pub fn open(maps: &Maps) -> Result<Self, Error> {
        let memory = maps.share(NAME, PLACES * WORDS)?;
        Ok(Self { memory })
    }

    /// The last flow of this family that was taken of the socket with this port.
    #[must_use]
    pub fn of_port(&self, family: Family, port: u16) -> Element {
        let first = place_of(family, port) as usize * WORDS;
        let words = &self.memory.words()[first..first + WORDS];
        Element::from_words(std::array::from_fn(|word| {
            words[word].load(Ordering::Relaxed)
        }))
    }
}
