//! Sockets, and other processes that have them.

use std::{
    net::SocketAddr,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, Command, Stdio},
};

use socket2::{Domain, Protocol, Socket, Type};

/// A process that has a socket, and nothing to do with it.
pub(crate) struct Holder(Child);

impl Holder {
    /// Gives the socket to a new process, and keeps nothing of it.
    pub(crate) fn of(socket: Socket) -> Self {
        Self::spawn(&mut Command::new("sleep"), [Some(socket), None])
    }

    /// Two sockets for one process.
    pub(crate) fn of_both(sockets: [Socket; 2]) -> Self {
        Self::spawn(&mut Command::new("sleep"), sockets.map(Some))
    }

    /// As another user.
    pub(crate) fn of_user(user: u32, socket: Socket) -> Self {
        Self::spawn(Command::new("sleep").uid(user), [Some(socket), None])
    }

    fn spawn(command: &mut Command, sockets: [Option<Socket>; 2]) -> Self {
        let [input, output] = sockets
            .map(|socket| socket.map_or_else(Stdio::null, |socket| OwnedFd::from(socket).into()));
        let command = command.arg("600").stdin(input).stdout(output);
        Self(command.spawn().expect("sleep runs"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends the process, and returns when its sockets are closed.
    pub(crate) fn end(self) {
        drop(self);
    }

    /// Ends the process without waiting for it.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("a process to end");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is special about a socket.
#[derive(Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) only_v6: bool,
    pub(crate) transparent: bool,
    pub(crate) share: bool,
}

pub(crate) const PLAIN: Options = Options {
    only_v6: false,
    transparent: false,
    share: false,
};

pub(crate) const TRANSPARENT: Options = Options {
    transparent: true,
    ..PLAIN
};

pub(crate) const SHARED: Options = Options {
    share: true,
    ..PLAIN
};

pub(crate) const ONLY_V6: Options = Options {
    only_v6: true,
    ..PLAIN
};

/// A TCP socket that listens.
pub(crate) fn listener(address: &str, options: Options) -> Socket {
    let socket = bound(Type::STREAM, Protocol::TCP, address, options);
    socket.listen(16).unwrap();
    socket
}

/// A UDP socket.
pub(crate) fn datagrams(address: &str, options: Options) -> Socket {
    bound(Type::DGRAM, Protocol::UDP, address, options)
}

fn bound(kind: Type, protocol: Protocol, address: &str, options: Options) -> Socket {
    let address = self::address(address);
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol)).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(options.only_v6).unwrap();
    }
    if options.transparent {
        socket.set_ip_transparent_v4(true).unwrap();
    }
    socket.set_reuse_port(options.share).unwrap();
    let bound = socket.bind(&address.into());
    bound.unwrap_or_else(|error| panic!("bind {address}: {error}"));
    socket
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
