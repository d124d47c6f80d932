//! Receiving and sending datagrams in batches, and two socket options.
//!
//! nix wraps recvmmsg(2) and sendmmsg(2) too. But its headers serve for one call only, since what
//! the kernel writes into them is not reset, and all messages of a call get the same control
//! messages.

use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, zeroed};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void, cmsghdr, iovec, mmsghdr, msghdr, sockaddr_storage};

use crate::relay::listener::unmapped;

/// How many messages one call receives or sends at most.
pub(super) const BATCH: usize = 32;
/// The room for one message, in bytes: the longest datagram, or what the kernel has put together of
/// several (`UDP_GRO`, udp(7)).
const ROOM: usize = 65_536;

/// Room for the control messages of one message: an original destination and a segment size.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 96]);

/// Messages as they were received.
pub(super) struct Inbox {
    /// `ROOM` bytes for each message. The system gives pages as they are written to.
    memory: Box<[u8]>,
    senders: Box<[sockaddr_storage; BATCH]>,
    controls: Box<[Control; BATCH]>,
    slices: Box<[iovec; BATCH]>,
    headers: Box<[mmsghdr; BATCH]>,
    /// How many messages there are.
    length: usize,
    /// How many there have been in all.
    total: u64,
}

// SAFETY: the pointers in `slices` and `headers` lead to memory that the same value owns.
unsafe impl Send for Inbox {}

impl Inbox {
    pub(super) fn new() -> Self {
        // SAFETY: addresses, slices and headers are plain integers and pointers, for which zero is a
        // value.
        let mut inbox = unsafe {
            Self {
                memory: vec![0; BATCH * ROOM].into(),
                senders: Box::new(zeroed()),
                controls: Box::new([Control([0; 96]); BATCH]),
                slices: Box::new(zeroed()),
                headers: Box::new(zeroed()),
                length: 0,
                total: 0,
            }
        };
        for index in 0..BATCH {
            inbox.prepare(index);
        }
        inbox
    }

    /// Points the header of one message at its room.
    fn prepare(&mut self, index: usize) {
        self.slices[index] = iovec {
            iov_base: (&raw mut self.memory[index * ROOM]).cast(),
            iov_len: ROOM,
        };
        let header = &mut self.headers[index].msg_hdr;
        header.msg_name = (&raw mut self.senders[index]).cast();
        header.msg_namelen = size::<sockaddr_storage>();
        header.msg_iov = &raw mut self.slices[index];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut self.controls[index]).cast();
        header.msg_controllen = size_of::<Control>();
        header.msg_flags = 0;
    }

    /// Takes what waits at a socket, `BATCH` messages at most, in place of what was here before. If
    /// they are fewer, none is left.
    pub(super) fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        for index in 0..self.length {
            self.prepare(index);
        }
        self.length = 0;
        // SAFETY: each header points at a name, a slice and a control buffer that this value owns, of
        // the lengths that it says; no timeout is given.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                libc::c_uint::try_from(BATCH).expect("a small number"),
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let received = Errno::result(received)?;
        self.length = usize::try_from(received).unwrap_or_default();
        self.total += self.length as u64;
        Ok(self.length)
    }

    /// How many messages it has received in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The bytes of a message.
    pub(super) fn payload(&self, index: usize) -> &[u8] {
        assert!(index < self.length);
        let length = usize::try_from(self.headers[index].msg_len).unwrap_or_default();
        &self.memory[index * ROOM..][..length.min(ROOM)]
    }

    /// Who sent a message.
    pub(super) fn sender(&self, index: usize) -> Option<SocketAddr> {
        assert!(index < self.length);
        socket_address(&self.senders[index])
    }

    /// Where a message was sent to, if the socket has `IP_RECVORIGDSTADDR` and its counterpart.
    pub(super) fn destination(&self, index: usize) -> Option<SocketAddr> {
        self.controls(index).find_map(|(level, kind, content)| {
            // SAFETY: zero is an address of no family.
            let mut address: sockaddr_storage = unsafe { zeroed() };
            let length = match (level, kind) {
                (libc::SOL_IP, libc::IP_ORIGDSTADDR) => size_of::<libc::sockaddr_in>(),
                (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR) => size_of::<libc::sockaddr_in6>(),
                _ => return None,
            };
            let content = content.get(..length)?;
            // SAFETY: an address of either family fits in one of any, and both are plain integers.
            unsafe {
                ptr::copy_nonoverlapping(content.as_ptr(), (&raw mut address).cast::<u8>(), length);
            }
            socket_address(&address)
        })
    }

    /// The length of the datagrams that the kernel has put together to this message, if it has. The
    /// last one may be shorter.
    pub(super) fn segment(&self, index: usize) -> Option<u16> {
        let (_, _, content) = self
            .controls(index)
            .find(|&(level, kind, _)| (level, kind) == (libc::SOL_UDP, libc::UDP_GRO))?;
        let segment = c_int::from_ne_bytes(content.get(..size_of::<c_int>())?.try_into().ok()?);
        u16::try_from(segment).ok().filter(|&segment| segment > 0)
    }

    /// The control messages of a message: level, kind and content.
    fn controls(&self, index: usize) -> impl Iterator<Item = (c_int, c_int, &[u8])> {
        assert!(index < self.length);
        let header: &msghdr = &self.headers[index].msg_hdr;
        // SAFETY: the kernel has left its control messages in the buffer that the header points at,
        // and their length in the header.
        let mut next: *const cmsghdr = unsafe { libc::CMSG_FIRSTHDR(header) };
        std::iter::from_fn(move || {
            // SAFETY: null, or a control message within the buffer, which is aligned for one and lives
            // as long as `self`.
            let control = unsafe { next.as_ref()? };
            let length = control.cmsg_len.checked_sub(CONTROL_HEADER)?;
            // SAFETY: the content of a control message follows its header, and the kernel writes
            // only those that fit.
            let content = unsafe { std::slice::from_raw_parts(libc::CMSG_DATA(control), length) };
            // SAFETY: as for the first.
            next = unsafe { libc::CMSG_NXTHDR(header, control) };
            Some((control.cmsg_level, control.cmsg_type, content))
        })
    }
}

/// What precedes the content of a control message, in bytes.
const CONTROL_HEADER: usize = {
    // SAFETY: computes a length.
    unsafe { libc::CMSG_LEN(0) as usize }
};

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// Which slices it consists of.
    pub(super) slices: Range<usize>,
    /// The length of the datagrams that the kernel is to make of it (`UDP_SEGMENT`, udp(7)), or one
    /// datagram.
    pub(super) segment: Option<u16>,
}

/// Sends messages over a connected socket, `BATCH` at most, and says how many were sent. An error is
/// that of the first.
pub(super) fn send(
    socket: &impl AsFd,
    slices: &[IoSlice<'_>],
    messages: &[Message],
) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<mmsghdr>::zeroed() }; BATCH];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; BATCH];
    let number = messages.len().min(BATCH);
    for ((message, header), control) in messages.iter().zip(&mut headers).zip(&mut controls) {
        // SAFETY: a header is plain integers and pointers, for which zero is a value.
        let header = &mut unsafe { header.assume_init_mut() }.msg_hdr;
        let slices = &slices[message.slices.clone()];
        // An `IoSlice` has the layout of an `iovec` (its documentation), and is only read.
        header.msg_iov = slices.as_ptr().cast_mut().cast();
        header.msg_iovlen = slices.len();
        if let Some(segment) = message.segment {
            header.msg_control = control.as_mut_ptr().cast();
            // SAFETY: computes a length.
            header.msg_controllen = unsafe { libc::CMSG_SPACE(size::<u16>()) } as usize;
            // SAFETY: the control buffer is aligned for a control message and has room for this one.
            unsafe {
                let first = libc::CMSG_FIRSTHDR(header);
                (*first).cmsg_level = libc::SOL_UDP;
                (*first).cmsg_type = libc::UDP_SEGMENT;
                (*first).cmsg_len = libc::CMSG_LEN(size::<u16>()) as usize;
                ptr::write_unaligned(libc::CMSG_DATA(first).cast::<u16>(), segment);
            }
        }
    }
    // SAFETY: the first `number` headers point at slices and control messages that outlive the call,
    // and the kernel writes nothing but the lengths in the headers.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr().cast(),
            libc::c_uint::try_from(number).expect("a small number"),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    Ok(usize::try_from(Errno::result(sent)?).unwrap_or_default())
}

/// Sets a socket option that is an integer.
pub(super) fn set_option(
    socket: &impl AsFd,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    // SAFETY: the pointer is to an integer that outlives the call, and the length is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            size::<c_int>(),
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// How many datagrams a socket has not taken since it exists, for want of room in its receive buffer
/// above all (`SO_MEMINFO`, Linux 4.12).
pub(super) fn overflow(socket: &impl AsFd) -> io::Result<u32> {
    // `SK_MEMINFO_VARS` and `SK_MEMINFO_DROPS` of linux/sock_diag.h.
    const VALUES: usize = 9;
    const DROPS: usize = 8;
    let mut values = [0u32; VALUES];
    let mut length = size::<[u32; VALUES]>();
    // SAFETY: the pointers are to an array and to its length in bytes, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(values[DROPS])
}

/// An address of either family. IPv4 comes as IPv4, also from a socket of both.
fn socket_address(storage: &sockaddr_storage) -> Option<SocketAddr> {
    let pointer: *const sockaddr_storage = storage;
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what lies there; the storage is large enough and aligned for it.
            let address = unsafe { *pointer.cast::<libc::sockaddr_in>() };
            let octets = address.sin_addr.s_addr.to_ne_bytes();
            let port = u16::from_be(address.sin_port);
            Some(SocketAddrV4::new(octets.into(), port).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { *pointer.cast::<libc::sockaddr_in6>() };
            let octets = address.sin6_addr.s6_addr;
            let port = u16::from_be(address.sin6_port);
            let whole = SocketAddrV6::new(octets.into(), port, 0, address.sin6_scope_id);
            Some(unmapped(whole.into()))
        }
        _ => None,
    }
}

fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("a small type")
}
