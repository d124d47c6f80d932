//! The last flow of each UDP socket of this host that was taken, by the socket's port and the family; see
//! [`tproxy_common::local_udp`].
//!
//! Written here when such a socket is connected or sends, read here when its datagram is delivered,
//! and by the agent when it gets that. A socket that sends to several destinations from several
//! threads at once may find another's entry; its datagram is then relayed, whatever its rule says.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use tproxy_common::{
    address::Family,
    handover::{Ends, Taken},
    local_udp::{LocalUdp, PLACES, place_of},
};

#[btf_map]
static LOCAL_UDP: Array<LocalUdp, PLACES, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Which rule took the flow, and who gets it, if it is the last of its port.
#[inline(always)]
pub fn taken(ends: &Ends) -> Option<Taken> {
    let place = place_of(ends.destination.family(), ends.source_port);
    LOCAL_UDP.get(place)?.taken(ends)
}

/// Notes the flow of a socket with this port. False when it was noted already.
#[inline(always)]
pub fn note(family: Family, port: u16, entry: &LocalUdp) -> bool {
    let Some(place) = LOCAL_UDP.get_ptr_mut(place_of(family, port)) else {
        return false;
    };
    // SAFETY: an element of the map; readers check the word.
    unsafe {
        if *place == *entry {
            return false;
        }
        *place = *entry;
    }
    true
}
