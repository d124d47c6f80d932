//! A server that sends back what comes, to thousands of connections.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
};

use anyhow::Result;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use slab::Slab;

use super::listener::listen;

const LISTENER: Token = Token(usize::MAX);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    listen: SocketAddr,
}

pub(super) fn serve(options: &Options) -> Result<()> {
    let socket = listen(options.listen)?;
    socket.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(socket.into());
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut connections: Slab<TcpStream> = Slab::new();
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("listening");
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let entry = connections.vacant_entry();
                    let token = Token(entry.key());
                    poll.registry()
                        .register(&mut stream, token, Interest::READABLE)?;
                    entry.insert(stream);
                }
                continue;
            }
            let key = event.token().0;
            if connections.get_mut(key).is_some_and(is_over) {
                connections.remove(key);
            }
        }
    }
}

/// Sends back what has come. The clients here never have more under way than a send buffer holds: one
/// that has is cut off.
fn is_over(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(count) => {
                if stream.write_all(&buffer[..count]).is_err() {
                    return true;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}
