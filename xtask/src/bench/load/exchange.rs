//! One short connection: connect, a request, an answer, the server's end.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mio::{Interest, Registry, Token, net::TcpStream};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    latencies::Latencies,
    ports::Ports,
    short_server::{REQUEST, RESPONSE},
};

/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Exchange {
    stream: TcpStream,
    started: Instant,
    sent: bool,
    received: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Going,
    Done,
    Failed,
}

impl Exchange {
    /// Starts a connection from the next port that is free: the port of a connection whose last
    /// acknowledgement is still under way is not.
    pub(super) fn open(
        destination: SocketAddr,
        ports: &mut Ports,
        registry: &Registry,
        token: Token,
    ) -> Result<Self> {
        let started = Instant::now();
        for _ in 0..ports.len() {
            let socket = match connect(ports.take(), destination) {
                Ok(socket) => socket,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error).context("cannot open a connection"),
            };
            let mut stream = TcpStream::from_std(socket.into());
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut stream, token, interest)?;
            return Ok(Self {
                stream,
                started,
                sent: false,
                received: 0,
            });
        }
        anyhow::bail!("all client ports are in use")
    }

    pub(super) fn is_too_slow(&self) -> bool {
        self.started.elapsed() > PATIENCE
    }

    /// Goes as far as the socket lets it; the time to the first byte back is recorded.
    pub(super) fn go_on(&mut self, latencies: &mut Latencies) -> Progress {
        if !self.sent {
            match self.stream.write(&[b'?'; REQUEST]) {
                Ok(REQUEST) => self.sent = true,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::NotConnected
                    ) =>
                {
                    return Progress::Going;
                }
                _ => return Progress::Failed,
            }
        }
        let mut buffer = [0; 256];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) if self.received == RESPONSE => return Progress::Done,
                Ok(0) => return Progress::Failed,
                Ok(count) => {
                    if self.received == 0 {
                        latencies.record(self.started.elapsed());
                    }
                    self.received += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Going,
                Err(_) => return Progress::Failed,
            }
        }
    }
}

fn connect(port: u16, destination: SocketAddr) -> io::Result<Socket> {
    let any: SockAddr = match destination {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], port)).into(),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], port)).into(),
    };
    let socket = Socket::new(Domain::for_address(destination), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&any)?;
    match socket.connect(&destination.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}
