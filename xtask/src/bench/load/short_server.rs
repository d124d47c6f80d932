//! The server of short connections: reads a request, answers, closes first.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    thread,
};

use anyhow::Result;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use slab::Slab;

use super::listener::listen;

/// What the client sends, in bytes.
pub(super) const REQUEST: usize = 18;
/// What the server answers, in bytes.
pub(super) const RESPONSE: usize = 64;

const LISTENER: Token = Token(usize::MAX);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

pub(super) fn serve(options: &Options) -> Result<()> {
    let listeners: Vec<_> = (0..options.threads)
        .map(|_| {
            let socket = listen(options.listen)?;
            socket.set_nonblocking(true)?;
            Ok(TcpListener::from_std(socket.into()))
        })
        .collect::<Result<_>>()?;
    println!("listening");
    let workers: Vec<_> = listeners
        .into_iter()
        .map(|listener| thread::spawn(move || serve_one(listener)))
        .collect();
    for worker in workers {
        worker.join().expect("a worker does not panic")?;
    }
    Ok(())
}

fn serve_one(mut listener: TcpListener) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut connections: Slab<(TcpStream, usize)> = Slab::new();
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    let entry = connections.vacant_entry();
                    let token = Token(entry.key());
                    poll.registry()
                        .register(&mut stream, token, Interest::READABLE)?;
                    entry.insert((stream, 0));
                }
                continue;
            }
            let key = event.token().0;
            let Some((stream, received)) = connections.get_mut(key) else {
                continue;
            };
            if is_over(stream, received) {
                connections.remove(key);
            }
        }
    }
}

/// Reads what has come; once the request is whole, answers. Dropping the stream then closes it, which
/// makes the server the one that keeps TIME_WAIT.
fn is_over(stream: &mut TcpStream, received: &mut usize) -> bool {
    let mut buffer = [0; 256];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(count) => *received += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
        if *received >= REQUEST {
            // It fits into an empty send buffer; a client that is gone is the client's error to count.
            let _ = stream.write_all(&[b'.'; RESPONSE]);
            return true;
        }
    }
}
