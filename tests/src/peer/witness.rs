//! An HTTP server that tells each client who it seems to be.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
};

use crate::{Namespace, peer::Server};

/// Answers each request with the address that it came from and the address that it was sent to:
///
/// ```text
/// peer 10.77.2.1:51514
/// local 192.0.2.9:80
/// ```
///
/// The server closes the connection first, as many servers of short answers do.
#[derive(Debug)]
pub struct Witness {
    server: Server<io::Result<SocketAddr>>,
}

impl Witness {
    /// Serves `port` at every address of `namespace`.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        Self {
            server: Server::start(namespace, port, testify),
        }
    }

    /// Serves one address only, or all of one family.
    #[must_use]
    #[track_caller]
    pub fn bound(namespace: &Namespace, address: SocketAddr) -> Self {
        Self {
            server: Server::bound(namespace, address, testify),
        }
    }

    /// The clients seen since the last call, as the server saw them.
    #[must_use]
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.server.pending().into_iter().flatten().collect()
    }
}

fn testify(mut stream: TcpStream) -> io::Result<SocketAddr> {
    let peer = canonical(stream.peer_addr()?);
    let local = canonical(stream.local_addr()?);
    read_request(&stream)?;
    let body = format!("peer {peer}\nlocal {local}\n");
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(peer)
}

fn read_request(stream: &TcpStream) -> io::Result<()> {
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    Ok(())
}

/// IPv4 as IPv4, also when a dual-stack socket has it as a mapped address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
