//! One question of a client and what the server saw of it: the proof that a flow went through the agent, or did not.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
};

use crate::{Agent, Family, Namespace, address::canonical, process};

/// A command line by which curl asks the witness at `target`. It writes the answer, and its own address.
#[must_use]
pub fn command_line(target: SocketAddr) -> String {
    format!("curl -sS -g --max-time 15 -w client=%{{local_ip}}/%{{local_port}}\\n http://{target}/")
}

/// Checks that what is sent on a stream whose server echoes comes back: the flow goes on.
#[track_caller]
pub fn assert_goes_on(stream: &mut TcpStream) {
    stream.write_all(b"still here").expect("send");
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"still here");
}

/// A request to a [`Witness`](crate::peer::Witness), as both ends saw it.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    /// The client's own address and port.
    pub client: SocketAddr,
    /// The address that the client connected to, and as whose peer it sees itself.
    pub target: SocketAddr,
    /// The address that the server sees as its client's.
    pub seen_client: SocketAddr,
    /// The address at which the server was reached.
    pub seen_target: SocketAddr,
}

impl Exchange {
    /// As [`Exchange::of`], from one of several addresses of `namespace`.
    #[must_use]
    #[track_caller]
    pub fn from(namespace: &Namespace, source: IpAddr, target: SocketAddr) -> Self {
        Self::from_port(namespace, (source, 0).into(), target)
    }

    /// As [`Exchange::of`], from an address and a port.
    #[must_use]
    #[track_caller]
    pub fn from_port(namespace: &Namespace, source: SocketAddr, target: SocketAddr) -> Self {
        let stream = namespace.connect_from(source, target);
        let exchange = stream.and_then(|stream| Self::over(stream, target));
        exchange.unwrap_or_else(|error| panic!("ask {target} from {source}: {error}"))
    }

    /// As [`Exchange::of`], with a socket option (level, name and value) set before connecting.
    #[must_use]
    #[track_caller]
    pub fn with_option(
        namespace: &Namespace,
        option: (i32, i32, &[u8]),
        target: SocketAddr,
    ) -> Self {
        let stream = namespace.connect_with_option(option, target);
        let exchange = stream.and_then(|stream| Self::over(stream, target));
        exchange.unwrap_or_else(|error| panic!("ask {target} with {option:?}: {error}"))
    }

    /// Connects from `namespace` to the witness at `target` and asks.
    #[must_use]
    #[track_caller]
    pub fn of(namespace: &Namespace, target: SocketAddr) -> Self {
        Self::attempt(namespace, target).unwrap_or_else(|error| panic!("ask {target}: {error}"))
    }

    /// As [`Exchange::of`], for a question that may fail.
    ///
    /// # Errors
    /// Those of connecting, sending and receiving, and `InvalidData` for an answer that is not a witness's.
    pub fn attempt(namespace: &Namespace, target: SocketAddr) -> std::io::Result<Self> {
        Self::over(namespace.connect(target)?, target)
    }

    /// Lets curl ask the witness at `target`: `start` makes the command of a command line, and may have it run in a
    /// control group, or as another user.
    #[must_use]
    #[track_caller]
    pub fn by_program(target: SocketAddr, start: impl FnOnce(&str) -> Command) -> Self {
        let output = process::expect_success(&mut start(&command_line(target)));
        Self::told(&output, target)
            .unwrap_or_else(|| panic!("not the answer of a witness at {target}: {output}"))
    }

    /// What a program that was started with [`command_line`] has written.
    #[must_use]
    pub fn told(output: &str, target: SocketAddr) -> Option<Self> {
        let field = |name| {
            let mut lines = output.lines();
            lines.find_map(|line| line.strip_prefix(name))
        };
        let (address, port) = field("client=")?.split_once('/')?;
        Some(Self {
            client: SocketAddr::new(address.parse().ok()?, port.parse().ok()?),
            target,
            seen_client: field("peer ")?.parse().ok()?,
            seen_target: field("local ")?.parse().ok()?,
        })
    }

    /// As [`Exchange::attempt`], over a connection that is there.
    ///
    /// # Errors
    /// As [`Exchange::attempt`].
    pub fn over(mut stream: TcpStream, target: SocketAddr) -> std::io::Result<Self> {
        let client = canonical(stream.local_addr()?);
        assert_eq!(
            stream.peer_addr()?,
            target,
            "the client sees the server that it asked for"
        );
        stream.write_all(b"GET / HTTP/1.1\r\nHost: witness\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let field = |name: &str| {
            answer
                .lines()
                .find_map(|line| line.strip_prefix(name)?.parse().ok())
        };
        let (Some(seen_client), Some(seen_target)) = (field("peer "), field("local ")) else {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, answer));
        };
        Ok(Self {
            client,
            target: canonical(target),
            seen_client,
            seen_target,
        })
    }

    /// Checks that the flow went through `agent`: the server was reached at the address that the client asked for, it
    /// saw the gateway, and the agent reported the flow.
    #[track_caller]
    pub fn assert_relayed(&self, agent: &Agent) {
        self.assert_relayed_from(agent, self.family().gateway_upstream());
    }

    /// As [`Exchange::assert_relayed`], where the server sees `gateway`.
    #[track_caller]
    pub fn assert_relayed_from(&self, agent: &Agent, gateway: IpAddr) {
        assert_eq!(
            self.seen_client.ip(),
            gateway,
            "the server sees the gateway: {self:?}"
        );
        assert_eq!(
            self.seen_target, self.target,
            "the server is reached where the client asked: {self:?}"
        );
        // Of the original destination, not of the agent's port.
        let flow = agent.flow_between(self.client, self.target);
        assert_eq!(flow.protocol, "tcp");
    }

    /// Checks that the flow did not go through `agent`: the server saw the client itself, and the agent reported
    /// nothing.
    #[track_caller]
    pub fn assert_direct(&self, agent: &Agent) {
        self.assert_unproxied();
        let reported = agent
            .flows()
            .into_iter()
            // Its port may have been that of a flow to another server or port before.
            .find(|flow| (flow.client, flow.server) == (self.client, self.target));
        assert_eq!(
            reported, None,
            "the agent reports no flow that it did not take"
        );
    }

    /// Checks that the server saw the client itself.
    #[track_caller]
    pub fn assert_unproxied(&self) {
        assert_eq!(
            self.seen_client, self.client,
            "the server sees the client itself: {self:?}"
        );
        assert_eq!(
            self.seen_target, self.target,
            "the server is reached where the client asked: {self:?}"
        );
    }

    /// Checks that a program of the gateway itself went through `agent`, which the server tells by another port.
    #[track_caller]
    pub fn assert_relayed_locally(&self, agent: &Agent) {
        self.assert_relayed(agent);
        assert_eq!(
            self.client.ip(),
            self.family().gateway_upstream(),
            "the program has the address of the way to the server: {self:?}"
        );
        assert_ne!(
            self.seen_client, self.client,
            "it is another socket: {self:?}"
        );
    }

    fn family(&self) -> Family {
        if self.target.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}
