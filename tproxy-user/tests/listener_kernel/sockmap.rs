//! A place in a sockmap does not keep a listener alive.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::libc;
use tproxy_common::flow::Protocol;
use tproxy_user::listener::find;

use crate::{
    holder::{Holder, PLAIN, address, datagrams, listener},
    namespace::in_namespace,
};

/// The commands of bpf(2), and the type of map, in `linux/bpf.h`.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const SOCKMAP: u32 = 15;

/// A sockmap with room for one socket.
fn sockmap() -> OwnedFd {
    // Type, size of a key, of a value, entries, flags.
    let mut attributes = [SOCKMAP, 4, 8, 1, 0];
    // SAFETY: the attributes are plain numbers, and live throughout the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_CREATE,
            attributes.as_mut_ptr(),
            size_of_val(&attributes),
        )
    };
    let descriptor = i32::try_from(answer).unwrap();
    assert!(descriptor >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel made this descriptor for this call.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Calls bpf(2) for the one element of the map.
fn element(command: libc::c_int, map: &OwnedFd, value: &mut u64) -> io::Result<()> {
    let key = 0_u32;
    let map = u64::from(map.as_raw_fd().cast_unsigned());
    // The map, the key, the value, flags.
    let mut attributes = [map, &raw const key as u64, &raw mut *value as u64, 0];
    // SAFETY: the key and the value have the sizes that the map was made with, and they and the
    // attributes live throughout the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(&attributes),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[test]
fn a_port_is_free_when_its_program_has_ended_although_a_map_has_its_socket() {
    in_namespace(|| {
        for (protocol, make) in [
            (Protocol::Tcp, listener as fn(_, _) -> _),
            (Protocol::Udp, datagrams),
        ] {
            let map = sockmap();
            let holder = Holder::of(make("127.0.0.1:80", PLAIN));
            let found = find(protocol, address("127.0.0.1:80")).unwrap();
            let mut descriptor = u64::from(found[0].socket.as_raw_fd().cast_unsigned());
            element(MAP_UPDATE_ELEM, &map, &mut descriptor).unwrap();
            drop(found);
            element(MAP_LOOKUP_ELEM, &map, &mut 0).expect("the map has the socket");
            holder.end();
            let _same = make("127.0.0.1:80", PLAIN);
            let error = element(MAP_LOOKUP_ELEM, &map, &mut 0).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        }
    });
}
