//! An HTTP server that tells each client who it seems to be.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{Namespace, address::canonical, peer::Server};

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
    _server: Server<io::Result<()>>,
    clients: mpsc::Receiver<SocketAddr>,
}

impl Witness {
    /// Serves `port` at every address of `namespace`.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        Self::bound(namespace, (Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// Serves one address, or, for a wildcard, all addresses of its family (of both for `[::]`).
    #[must_use]
    #[track_caller]
    pub fn bound(namespace: &Namespace, address: SocketAddr) -> Self {
        let (seen, clients) = mpsc::channel();
        let server = Server::bound(namespace, address, move |stream| testify(stream, &seen));
        Self {
            _server: server,
            clients,
        }
    }

    /// Serves a listener that is there already.
    #[must_use]
    #[track_caller]
    pub fn over(listener: TcpListener) -> Self {
        let (seen, clients) = mpsc::channel();
        let server = Server::over(listener, move |stream| testify(stream, &seen));
        Self {
            _server: server,
            clients,
        }
    }

    /// The clients seen since the last call, as the server saw them. A client that has its answer is among them.
    #[must_use]
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.clients.try_iter().collect()
    }
}

fn testify(mut stream: TcpStream, seen: &mpsc::Sender<SocketAddr>) -> io::Result<()> {
    let peer = canonical(stream.peer_addr()?);
    let local = canonical(stream.local_addr()?);
    // Nobody may be there to receive once the test is over.
    let _ = seen.send(peer);
    read_request(&stream)?;
    let body = format!("peer {peer}\nlocal {local}\n");
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn read_request(stream: &TcpStream) -> io::Result<()> {
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    Ok(())
}
