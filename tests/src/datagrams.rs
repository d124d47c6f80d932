//! A UDP client of a [`DatagramWitness`](crate::peer::DatagramWitness), and what it is told.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use nix::sys::socket::{setsockopt, sockopt};

use crate::{
    FlowLine, Namespace,
    address::canonical,
    wait::{self, uninterrupted},
};

/// The longest answer.
const LONGEST: usize = 1 << 16;

/// A UDP socket of a client.
#[derive(Debug)]
pub struct DatagramClient {
    socket: UdpSocket,
}

/// A question by datagram and its answer, as both ends saw them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The client's own address and port; the address is a wildcard when it is not bound to one.
    pub client: SocketAddr,
    /// Where the client sent to.
    pub target: SocketAddr,
    /// Where the answer came from.
    pub from: SocketAddr,
    /// The address that the server sees as its client's.
    pub seen_client: SocketAddr,
    /// The address at which the server was reached.
    pub seen_target: SocketAddr,
}

impl DatagramClient {
    /// A socket of `namespace` that is connected to `target`.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn try_connected(namespace: &Namespace, target: SocketAddr) -> io::Result<Self> {
        let wildcard = wildcard(target.ip());
        let socket = namespace.enter(|| UdpSocket::bind((wildcard, 0)))?;
        socket.connect(target)?;
        Ok(Self::over(socket))
    }

    /// As [`DatagramClient::try_connected`], which must succeed.
    #[must_use]
    #[track_caller]
    pub fn connected(namespace: &Namespace, target: SocketAddr) -> Self {
        let client = Self::try_connected(namespace, target);
        client.unwrap_or_else(|error| panic!("connect a datagram socket to {target}: {error}"))
    }

    /// A socket of `namespace` that is bound to `address`, which may be a wildcard, and not connected.
    #[must_use]
    #[track_caller]
    pub fn bound(namespace: &Namespace, address: IpAddr) -> Self {
        let socket = namespace.enter(|| UdpSocket::bind((address, 0)));
        Self::over(socket.unwrap_or_else(|error| panic!("bind to {address}: {error}")))
    }

    /// A socket that is there already.
    #[must_use]
    pub fn over(socket: UdpSocket) -> Self {
        let patience = Some(wait::PATIENCE);
        socket.set_read_timeout(patience).expect("a positive time");
        Self { socket }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Asks the kernel to tell of errors although the socket is not connected (`IP_RECVERR`, ip(7)).
    pub fn request_errors(&self) {
        let told = if self.address().is_ipv4() {
            setsockopt(&self.socket, sockopt::Ipv4RecvErr, &true)
        } else {
            setsockopt(&self.socket, sockopt::Ipv6RecvErr, &true)
        };
        told.expect("a UDP socket has this option");
    }

    /// Its own address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("the address of a socket")
    }

    /// Asks where the socket is connected to.
    #[must_use]
    #[track_caller]
    pub fn ask(&self, payload: &[u8]) -> Answer {
        self.try_ask(payload)
            .unwrap_or_else(|error| panic!("no answer at {}: {error}", self.address()))
    }

    /// As [`DatagramClient::ask`], for a question that may fail.
    ///
    /// # Errors
    /// Those of send(2) and recv(2), and `InvalidData` for an answer that is not a witness's.
    pub fn try_ask(&self, payload: &[u8]) -> io::Result<Answer> {
        let target = self.socket.peer_addr()?;
        self.socket.send(payload)?;
        self.answer(target, payload)
    }

    /// Asks at `target`.
    #[must_use]
    #[track_caller]
    pub fn ask_at(&self, target: SocketAddr, payload: &[u8]) -> Answer {
        self.try_ask_at(target, payload)
            .unwrap_or_else(|error| panic!("no answer of {target}: {error}"))
    }

    /// As [`DatagramClient::ask_at`], for a question that may fail.
    ///
    /// # Errors
    /// As [`DatagramClient::try_ask`].
    pub fn try_ask_at(&self, target: SocketAddr, payload: &[u8]) -> io::Result<Answer> {
        self.socket.send_to(payload, target)?;
        self.answer(target, payload)
    }

    /// Receives the answer to `payload`, which was sent to `target`.
    ///
    /// # Errors
    /// As [`DatagramClient::try_ask`].
    pub fn answer(&self, target: SocketAddr, payload: &[u8]) -> io::Result<Answer> {
        let mut buffer = vec![0; LONGEST];
        let (length, from) = uninterrupted(|| self.socket.recv_from(&mut buffer))?;
        let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let Some(end) = buffer[..length].windows(2).position(|pair| pair == b"\n\n") else {
            return wrong("not the answer of a witness");
        };
        if &buffer[end + 2..length] != payload {
            return wrong("not the same bytes");
        }
        let words = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let field = |name| {
            let mut lines = words.lines();
            lines.find_map(|line| line.strip_prefix(name)?.parse().ok())
        };
        let (Some(seen_client), Some(seen_target)) = (field("peer "), field("local ")) else {
            return wrong("not the words of a witness");
        };
        Ok(Answer {
            client: canonical(self.socket.local_addr()?),
            target: canonical(target),
            from: canonical(from),
            seen_client,
            seen_target,
        })
    }
}

impl Answer {
    /// Checks that the agent was between: the server saw a socket of the gateway at `gateway`.
    #[track_caller]
    pub fn assert_relayed_from(&self, gateway: IpAddr) {
        self.assert_truthful();
        assert_eq!(
            self.seen_client.ip(),
            gateway,
            "the server sees the gateway: {self:?}"
        );
        assert!(
            self.seen_client.port() != self.client.port() || self.is_elsewhere(),
            "it is another socket that the server sees: {self:?}"
        );
    }

    /// Checks that nobody was between: the server saw the client itself.
    #[track_caller]
    pub fn assert_direct(&self) {
        self.assert_truthful();
        assert!(
            self.seen_client.port() == self.client.port() && !self.is_elsewhere(),
            "the server sees the client itself: {self:?}"
        );
    }

    /// Checks that both ends saw the address that was asked for.
    #[track_caller]
    pub fn assert_truthful(&self) {
        assert_eq!(
            self.from, self.target,
            "the answer comes from where the client asked: {self:?}"
        );
        assert_eq!(
            self.seen_target, self.target,
            "the server is reached where the client asked: {self:?}"
        );
    }

    /// The line of this flow among those of an agent.
    #[must_use]
    pub fn line<'f>(&self, flows: &'f [FlowLine]) -> Option<&'f FlowLine> {
        flows.iter().find(|flow| {
            flow.protocol == "udp"
                && flow.client.port() == self.client.port()
                && flow.server == self.target
        })
    }

    /// Whether the server saw an address that the client has not got.
    fn is_elsewhere(&self) -> bool {
        !self.client.ip().is_unspecified() && self.seen_client.ip() != self.client.ip()
    }
}

/// Lets a host tell of each datagram that does not arrive; by default it tells of some fifty, and then of fewer
/// (`icmp_ratemask`, `icmp_msgs_burst`, icmp(7)).
#[track_caller]
pub fn allow_many_errors(host: &Namespace) {
    host.sysctl("net.ipv4.icmp_ratemask", 0);
    // A list of types, of which this is none.
    host.sysctl("net.ipv6.icmp.ratemask", 0);
}

/// The wildcard address of the family of `address`.
fn wildcard(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
