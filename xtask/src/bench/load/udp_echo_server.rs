//! A server that sends back datagrams.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    thread,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use super::datagrams::Datagrams;

/// Datagrams with one system call, at most.
const BATCH: usize = 64;
/// Bytes of the receive buffer, so that bursts are not lost here.
const BUFFER: usize = 4 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

pub(super) fn serve(options: &Options) -> Result<()> {
    let sockets: Vec<_> = (0..options.threads)
        .map(|_| bind(options.listen))
        .collect::<Result<_>>()?;
    println!("listening");
    let workers: Vec<_> = sockets
        .into_iter()
        .map(|socket| thread::spawn(move || echo(&socket)))
        .collect();
    for worker in workers {
        worker.join().expect("a worker does not panic")?;
    }
    Ok(())
}

/// Each thread has a socket of its own: the kernel spreads the flows.
fn bind(address: SocketAddr) -> Result<UdpSocket> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        socket.set_reuse_port(true)?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.bind(&address.into())?;
        std::io::Result::Ok(socket.into())
    };
    bind().with_context(|| format!("cannot bind {address}"))
}

fn echo(socket: &UdpSocket) -> Result<()> {
    let mut datagrams = Datagrams::new(BATCH);
    loop {
        match datagrams.receive(socket) {
            // A client that is gone.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            result => result.context("cannot receive")?,
        }
        datagrams.send_back(socket).context("cannot send")?;
    }
}
