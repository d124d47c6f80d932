//! One session: the datagrams between a client and a destination.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::Socket;

use super::sys::overflow;
use crate::relay::RuleTag;
use crate::relay::side::Side;

/// The two sockets of a session, and its account.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact about a socket or a membership, true independently of the others"
)]
pub(super) struct Session {
    pub(super) destination: SocketAddr,
    /// Where replies go to.
    pub(super) reply_to: SocketAddr,
    pub(super) rule: RuleTag,
    /// The socket at the destination's address. Without one, replies go out by a raw socket, and the
    /// client's datagrams come to the worker's socket.
    pub(super) reply: Option<Socket>,
    pub(super) upstream: Socket,
    /// When it was opened, since the worker's epoch.
    pub(super) opened: Duration,
    /// Tells this session from others that had or will have its place in the table.
    pub(super) serial: u32,
    /// Payload of the last datagram of the client, in bytes.
    pub(super) last_length: u16,
    pub(super) to_upstream: Account,
    pub(super) to_client: Account,
    /// How many datagrams its sockets had not taken at the last look.
    overflow: u32,
    /// The sockets take messages of several datagrams.
    pub(super) upstream_segmentation: bool,
    pub(super) reply_segmentation: bool,
    /// Datagrams of others may wait at the reply socket, which came before it was connected.
    pub(super) fresh: bool,
    /// What had come to the worker's socket before this session existed has been handled, so that
    /// the reply socket's datagrams are next.
    pub(super) settled: bool,
    client_ready: bool,
    upstream_ready: bool,
    /// The session is in the list of those with work left.
    pub(super) queued: bool,
    /// The session is in the list of those with bytes to report.
    pub(super) unreported: bool,
}

/// What is left of a session when its sockets are closed.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) rule: RuleTag,
    pub(super) to_upstream: u64,
    pub(super) to_client: u64,
    pub(super) opened: Duration,
}

/// Bytes that went one way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    pub(super) moved: u64,
    reported: u64,
}

impl Account {
    /// Bytes that went this way since the last call.
    pub(super) fn take_unreported(&mut self) -> u64 {
        let more = self.moved - self.reported;
        self.reported = self.moved;
        more
    }
}

impl Session {
    pub(super) fn new(
        (destination, reply_to): (SocketAddr, SocketAddr),
        (reply, upstream): (Option<Socket>, Socket),
        rule: RuleTag,
        opened: Duration,
        serial: u32,
    ) -> Self {
        Self {
            destination,
            reply_to,
            rule,
            reply,
            upstream,
            opened,
            serial,
            last_length: 0,
            to_upstream: Account::default(),
            to_client: Account::default(),
            overflow: 0,
            upstream_segmentation: true,
            reply_segmentation: true,
            fresh: true,
            settled: false,
            client_ready: false,
            upstream_ready: false,
            queued: false,
            unreported: false,
        }
    }

    /// How many datagrams the sockets have not taken since the last call, because they came faster than
    /// they were read.
    pub(super) fn take_overflow(&mut self) -> u64 {
        let sockets = self.reply.iter().chain([&self.upstream]);
        let overflow = sockets
            .filter_map(|socket| overflow(socket).ok())
            .fold(0u32, u32::wrapping_add);
        let more = overflow.wrapping_sub(self.overflow);
        self.overflow = overflow;
        more.into()
    }

    /// Closes the sockets.
    pub(super) fn close(self) -> Closed {
        Closed {
            rule: self.rule,
            to_upstream: self.to_upstream.moved,
            to_client: self.to_client.moved,
            opened: self.opened,
        }
    }

    /// A socket of the session.
    pub(super) fn socket(&self, side: Side) -> Option<&Socket> {
        match side {
            Side::Client => self.reply.as_ref(),
            Side::Upstream => Some(&self.upstream),
        }
    }

    /// Datagrams, or an error, may wait at a socket.
    pub(super) fn set_ready(&mut self, side: Side, ready: bool) {
        match side {
            Side::Client => self.client_ready = ready,
            Side::Upstream => self.upstream_ready = ready,
        }
    }

    /// Whether a socket is to be read now.
    pub(super) fn is_ready(&self, side: Side) -> bool {
        match side {
            Side::Client => self.client_ready && self.settled && self.reply.is_some(),
            Side::Upstream => self.upstream_ready,
        }
    }
}
