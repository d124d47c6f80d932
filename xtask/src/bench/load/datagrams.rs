//! Many datagrams with one system call.
//!
//! By the system calls themselves: nix's `MultiHeaders` keeps pointers of a `Box` that it then moves, and
//! optimised code reads the sender of the first datagram for all later ones.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _},
    ptr,
};

use nix::libc::{
    MSG_WAITFORONE, iovec, mmsghdr, msghdr, recvmmsg, sendmmsg, sockaddr_storage, socklen_t,
};

/// The longest datagram that an Ethernet frame carries.
const LONGEST: usize = 1500;

/// Room for as many datagrams as are received or sent at once.
pub(super) struct Datagrams {
    slots: Vec<Slot>,
    /// How many of the slots hold a received one.
    received: usize,
}

/// One datagram.
#[derive(Clone)]
struct Slot {
    bytes: [u8; LONGEST],
    length: usize,
    sender: sockaddr_storage,
    sender_length: socklen_t,
}

impl Datagrams {
    pub(super) fn new(most: usize) -> Self {
        let slot = Slot {
            bytes: [0; LONGEST],
            length: 0,
            // SAFETY: it consists of integers, for which all zeros are valid.
            sender: unsafe { mem::zeroed() },
            sender_length: 0,
        };
        Self {
            slots: vec![slot; most],
            received: 0,
        }
    }

    /// Receives what is there, up to as many as there is room for. A socket that blocks waits for the
    /// first only.
    pub(super) fn receive(&mut self, socket: impl AsFd) -> io::Result<()> {
        self.received = 0;
        for slot in &mut self.slots {
            slot.length = LONGEST;
            slot.sender_length = length_of::<sockaddr_storage>();
        }
        let (lengths, senders) = with_headers(&mut self.slots, |headers| {
            let (descriptor, count) = (socket.as_fd().as_raw_fd(), count_of(headers));
            // SAFETY: the headers lead to buffers and addresses of slots that nobody else uses meanwhile, with
            // their lengths.
            let received = unsafe {
                recvmmsg(
                    descriptor,
                    headers.as_mut_ptr(),
                    count,
                    MSG_WAITFORONE,
                    ptr::null_mut(),
                )
            };
            let received = succeeded(received)?;
            let received = headers[..received].iter();
            io::Result::Ok(
                received
                    .map(|header| (header.msg_len, header.msg_hdr.msg_namelen))
                    .unzip::<_, _, Vec<_>, Vec<_>>(),
            )
        })?;
        self.received = lengths.len();
        for ((slot, length), sender) in self.slots.iter_mut().zip(lengths).zip(senders) {
            slot.length = usize::try_from(length).unwrap_or(0).min(LONGEST);
            slot.sender_length = sender;
        }
        Ok(())
    }

    /// Those that were received last.
    pub(super) fn received(&self) -> impl Iterator<Item = &[u8]> {
        self.slots[..self.received]
            .iter()
            .map(|slot| &slot.bytes[..slot.length])
    }

    /// Sends all that were received back to where they came from.
    pub(super) fn send_back(&mut self, socket: impl AsFd) -> io::Result<usize> {
        send(&mut self.slots[..self.received], socket)
    }

    /// Sends `count` datagrams of `size` bytes that begin with `head`, on a connected socket. Returns how
    /// many the kernel took.
    pub(super) fn send_alike(
        &mut self,
        socket: impl AsFd,
        count: usize,
        size: usize,
        head: [u8; 8],
    ) -> io::Result<usize> {
        let slots = &mut self.slots[..count];
        for slot in slots.iter_mut() {
            slot.bytes[..8].copy_from_slice(&head);
            slot.length = size;
            slot.sender_length = 0;
        }
        send(slots, socket)
    }
}

fn send(slots: &mut [Slot], socket: impl AsFd) -> io::Result<usize> {
    let sent = with_headers(slots, |headers| {
        let (descriptor, count) = (socket.as_fd().as_raw_fd(), count_of(headers));
        // SAFETY: the headers lead to bytes and addresses of slots that nobody writes meanwhile, with their
        // lengths.
        succeeded(unsafe { sendmmsg(descriptor, headers.as_mut_ptr(), count, 0) })
    });
    match sent {
        // Lost, as datagrams are.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(0)
        }
        sent => sent,
    }
}

/// Calls `call` with a header for each slot. They hold pointers to the slots, and end with the call.
fn with_headers<T>(slots: &mut [Slot], call: impl FnOnce(&mut [mmsghdr]) -> T) -> T {
    let (mut buffers, senders): (Vec<_>, Vec<_>) = slots
        .iter_mut()
        .map(|slot| {
            let length = slot.length.min(LONGEST);
            let buffer = iovec {
                iov_base: slot.bytes.as_mut_ptr().cast(),
                iov_len: length,
            };
            let sender = (slot.sender_length > 0).then_some(&raw mut slot.sender);
            (buffer, (sender, slot.sender_length))
        })
        .unzip();
    let mut headers: Vec<_> = buffers
        .iter_mut()
        .zip(senders)
        .map(|(buffer, (sender, length))| {
            // SAFETY: it consists of integers and pointers, for which all zeros are valid.
            let mut header: msghdr = unsafe { mem::zeroed() };
            header.msg_name = sender.unwrap_or(ptr::null_mut()).cast();
            header.msg_namelen = length;
            header.msg_iov = buffer;
            header.msg_iovlen = 1;
            mmsghdr {
                msg_hdr: header,
                msg_len: 0,
            }
        })
        .collect();
    call(&mut headers)
}

fn succeeded(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn count_of(headers: &[mmsghdr]) -> u32 {
    u32::try_from(headers.len()).unwrap_or(u32::MAX)
}

fn length_of<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).unwrap_or(socklen_t::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::Datagrams;

    #[test]
    fn each_client_gets_its_own_back() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a server");
        let address = server.local_addr().expect("its address");
        let mut datagrams = Datagrams::new(4);
        for content in ["one", "another"] {
            let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
            client.send_to(content.as_bytes(), address).expect("sent");
            datagrams.receive(&server).expect("received");
            assert_eq!(datagrams.send_back(&server).expect("sent back"), 1);
            let mut buffer = [0; 100];
            let length = client.recv(&mut buffer).expect("an echo");
            assert_eq!(&buffer[..length], content.as_bytes());
        }
    }

    #[test]
    fn alike_ones_are_sent_to_whom_the_socket_is_connected() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a server");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
        let address = server.local_addr().expect("its address");
        client.connect(address).expect("connected");
        let mut datagrams = Datagrams::new(4);
        let sent = datagrams.send_alike(&client, 3, 64, *b"testtest");
        assert_eq!(sent.expect("sent"), 3);
        datagrams.receive(&server).expect("received");
        assert_eq!(datagrams.received().count(), 3);
        assert!(
            datagrams
                .received()
                .all(|bytes| bytes.len() == 64 && bytes.starts_with(b"test"))
        );
    }
}
