//! Listening sockets of the servers.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

/// Each thread has a listener of its own: the kernel spreads the connections.
pub(super) fn listen(address: SocketAddr) -> Result<Socket> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(16_384)?;
        std::io::Result::Ok(socket)
    };
    listen().with_context(|| format!("cannot listen on {address}"))
}
