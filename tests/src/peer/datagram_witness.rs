//! A UDP server that tells each client who it seems to be.

use std::{
    io::{PipeWriter, pipe},
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    Family, Namespace,
    address::{FAMILIES, canonical},
};

/// Answers each datagram with the address that it came from, the address that it was sent to, and itself:
///
/// ```text
/// peer 10.77.2.1:51514
/// local 192.0.2.9:53
///
/// what the client sent
/// ```
///
/// It has a socket for each address, so that answers come from where the question went to.
#[derive(Debug)]
pub struct DatagramWitness {
    received: mpsc::Receiver<Received>,
    /// The thread ends when this is closed.
    open: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// A datagram as the server got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Where it came from.
    pub peer: SocketAddr,
    /// Where it was sent to.
    pub local: SocketAddr,
    /// What it carried.
    pub payload: Vec<u8>,
}

impl DatagramWitness {
    /// Serves `port` at each address that a lab's server can bind.
    #[must_use]
    #[track_caller]
    pub fn start(server: &Namespace, port: u16) -> Self {
        let of_family = |family: Family| [family.server(), family.near(), family.far()];
        let addresses = FAMILIES.into_iter().flat_map(of_family);
        let addresses: Vec<_> = addresses.map(|ip| SocketAddr::new(ip, port)).collect();
        Self::bound(server, &addresses)
    }

    /// Serves these addresses.
    #[must_use]
    #[track_caller]
    pub fn bound(namespace: &Namespace, addresses: &[SocketAddr]) -> Self {
        let bind = |address: &SocketAddr| {
            let socket = namespace.enter(|| UdpSocket::bind(address));
            socket.unwrap_or_else(|error| panic!("bind {address}: {error}"))
        };
        Self::over(addresses.iter().map(bind).collect())
    }

    /// Serves sockets that are bound to an address each, or to a wildcard: those tell that as where they were asked.
    #[must_use]
    pub fn over(sockets: Vec<UdpSocket>) -> Self {
        let (closed, open) = pipe().expect("make a pipe");
        let (seen, received) = mpsc::channel();
        let thread = thread::spawn(move || serve(&sockets, &closed, &seen));
        Self {
            received,
            open: Some(open),
            thread: Some(thread),
        }
    }

    /// The datagrams received since the last call. One whose answer has come is among them.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.received.try_iter().collect()
    }

    /// Waits for the next datagram.
    #[must_use]
    #[track_caller]
    pub fn next(&self) -> Received {
        let next = self.received.recv_timeout(crate::wait::PATIENCE);
        next.expect("a datagram for the witness")
    }
}

impl Drop for DatagramWitness {
    fn drop(&mut self) {
        // Whoever wants its addresses next finds them free.
        drop(self.open.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(sockets: &[UdpSocket], closed: &impl AsFd, seen: &mpsc::Sender<Received>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let descriptors = sockets.iter().map(AsFd::as_fd).chain([closed.as_fd()]);
        let mut events: Vec<_> = descriptors
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        let failed = poll(&mut events, PollTimeout::NONE).is_err();
        let is_ready = |event: &PollFd| event.any() == Some(true);
        if failed || events.last().is_none_or(is_ready) {
            return;
        }
        let ready: Vec<_> = events.iter().map(is_ready).collect();
        for (socket, _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            // What a socket tells of an answer that did not arrive, it tells once.
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let local = canonical(socket.local_addr().expect("the address of a socket"));
            let payload = buffer[..length].to_vec();
            let words = format!("peer {}\nlocal {local}\n\n", canonical(peer));
            // Nobody may be there to receive once the test is over; an answer may be too long to send.
            let _ = seen.send(Received {
                peer: canonical(peer),
                local,
                payload: payload.clone(),
            });
            let _ = socket.send_to(&[words.as_bytes(), &payload].concat(), peer);
        }
    }
}
