//! A worker's listener: accepts connections while there is a place for them, and stops before there
//! is none.

use std::io;
use std::net::{SocketAddr, TcpListener};

use log::{error, warn};
use nix::libc;
use socket2::{Domain, SockRef, Socket, Type};

use super::capacity::Places;
use super::connect;
use super::listener::unmapped;
use super::occasional::Occasional;

/// The listener of one worker.
#[derive(Debug)]
pub(super) struct Intake {
    listener: Option<TcpListener>,
    places: Places,
    /// Connections may be waiting in the backlog. The poll says so once, so it is remembered.
    pending: bool,
    /// Accepting has to wait until a descriptor or a place is free.
    paused: bool,
    /// A descriptor kept free for an upstream socket, so that no connection is accepted whose
    /// upstream socket cannot be made. `None` while it is in use for one.
    spare: Option<Socket>,
    last_warning: Occasional,
}

/// An accepted connection. It occupies a place until [`Intake::release`].
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) socket: Socket,
    pub(super) client: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// What came of an attempt to accept.
#[derive(Debug)]
pub(super) enum Accepted {
    /// A connection.
    Arrival(Arrival),
    /// A connection that was gone before it was accepted; others may be waiting.
    Gone,
    /// Nothing is waiting.
    Nothing,
    /// Something may be waiting, but it has to wait until a place is free.
    Paused,
}

impl Intake {
    pub(super) fn new(listener: TcpListener, places: Places) -> Self {
        Self {
            listener: Some(listener),
            places,
            pending: true,
            paused: false,
            spare: None,
            last_warning: Occasional::default(),
        }
    }

    /// The poll has reported the listener.
    pub(super) fn set_pending(&mut self) {
        self.pending = true;
    }

    /// Whether there is a reason to call [`accept`](Self::accept) now.
    pub(super) fn is_ready(&self) -> bool {
        self.pending && !self.paused && self.listener.is_some()
    }

    /// A place or a descriptor may have been freed.
    pub(super) fn resume(&mut self) {
        self.paused = false;
    }

    /// Whether connections are still accepted.
    pub(super) fn is_open(&self) -> bool {
        self.listener.is_some()
    }

    /// Stops listening. Connections that nobody has accepted are reset by the kernel.
    pub(super) fn close(&mut self) {
        self.listener = None;
    }

    /// Accepts one connection.
    pub(super) fn accept(&mut self) -> Accepted {
        let Some(listener) = &self.listener else {
            return Accepted::Nothing;
        };
        if self.spare.is_none() {
            match Socket::new(Domain::UNIX, Type::DGRAM, None) {
                Ok(spare) => self.spare = Some(spare),
                Err(error) => return self.pause(&error),
            }
        }
        if !self.places.take() {
            return self.pause(&"all places for flows are taken");
        }
        let accepted = SockRef::from(listener).accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
        let (socket, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                self.places.give_back();
                return self.refused(&error);
            }
        };
        let destination = socket
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket());
        let (Some(client), Some(destination)) = (client.as_socket(), destination) else {
            self.places.give_back();
            return Accepted::Gone;
        };
        Accepted::Arrival(Arrival {
            socket,
            client: unmapped(client),
            destination: unmapped(destination),
        })
    }

    /// Gives the place of an arrival back.
    pub(super) fn release(&mut self) {
        self.places.give_back();
        self.paused = false;
    }

    /// Makes the upstream socket of an arrival, of the spare descriptor if no other is left.
    pub(super) fn upstream_socket(&mut self, upstream: SocketAddr) -> io::Result<Socket> {
        match connect::socket(upstream) {
            Err(error) if is_exhaustion(&error) && self.spare.take().is_some() => {
                connect::socket(upstream)
            }
            result => result,
        }
    }

    fn refused(&mut self, error: &io::Error) -> Accepted {
        if error.kind() == io::ErrorKind::WouldBlock {
            self.pending = false;
            return Accepted::Nothing;
        }
        if is_exhaustion(error) {
            return self.pause(error);
        }
        // Errors of the connection itself, and those that accept(2) asks to treat like them.
        if let Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::EPERM
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENOPROTOOPT
            | libc::ENONET
            | libc::EOPNOTSUPP,
        ) = error.raw_os_error()
        {
            Accepted::Gone
        } else {
            error!("cannot accept connections: {error}; trying again");
            self.paused = true;
            Accepted::Paused
        }
    }

    fn pause(&mut self, reason: &dyn std::fmt::Display) -> Accepted {
        self.paused = true;
        if self.last_warning.is_due() {
            warn!(
                "new flows wait: {reason}; raise the limit of open files (LimitNOFILE=, ulimit -n) to serve more"
            );
        }
        Accepted::Paused
    }
}

/// Whether the call failed for want of descriptors or of memory, of the process or of the system.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
