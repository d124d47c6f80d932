//! A TCP server that handles each connection on a thread of its own.

use std::{
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{Namespace, wait};

/// A running server; it stops accepting when it goes out of scope. `T` is what a handler makes of its connection.
#[derive(Debug)]
pub struct Server<T> {
    listener: TcpListener,
    outcomes: mpsc::Receiver<T>,
}

impl<T: Send + 'static> Server<T> {
    /// Serves `port` at every address of `namespace`, in both families.
    #[must_use]
    #[track_caller]
    pub fn start(
        namespace: &Namespace,
        port: u16,
        handler: impl Fn(TcpStream) -> T + Send + Sync + 'static,
    ) -> Self {
        Self::bound(
            namespace,
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
            handler,
        )
    }

    /// Serves one address, or, for a wildcard, all addresses of its family (of both for `[::]`).
    #[must_use]
    #[track_caller]
    pub fn bound(
        namespace: &Namespace,
        address: SocketAddr,
        handler: impl Fn(TcpStream) -> T + Send + Sync + 'static,
    ) -> Self {
        let listener = namespace
            .enter(|| listen(address))
            .unwrap_or_else(|error| panic!("listen at {address}: {error}"));
        Self::over(listener, handler)
    }

    /// Serves a listener that is there already.
    #[must_use]
    #[track_caller]
    pub fn over(
        listener: TcpListener,
        handler: impl Fn(TcpStream) -> T + Send + Sync + 'static,
    ) -> Self {
        let accepting = listener.try_clone().expect("duplicate the listener");
        let (sender, outcomes) = mpsc::channel();
        let handler = Arc::new(handler);
        thread::spawn(move || {
            // Ends with EINVAL when the listener is shut down.
            while let Ok((stream, _)) = accepting.accept() {
                let (handler, sender) = (Arc::clone(&handler), sender.clone());
                stream
                    .set_read_timeout(Some(wait::PATIENCE))
                    .expect("a positive time");
                stream
                    .set_write_timeout(Some(wait::PATIENCE))
                    .expect("a positive time");
                // Nobody may be there to receive once the test is over.
                thread::spawn(move || drop(sender.send(handler(stream))));
            }
        });
        Self { listener, outcomes }
    }

    /// Waits for the next connection to be handled and returns what its handler made of it.
    #[track_caller]
    #[must_use]
    pub fn outcome(&self) -> T {
        self.outcomes
            .recv_timeout(wait::PATIENCE)
            .expect("a connection handled to its end")
    }
}

impl<T> Drop for Server<T> {
    fn drop(&mut self) {
        // On Linux this wakes a thread that waits in accept(2); closing would not.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

/// Listens at an address of the calling thread's namespace, as [`Server::bound`] does.
///
/// # Errors
/// Those of the system calls.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    listen_prepared(address, |_| Ok(()))
}

/// As [`listen`], with a socket that `prepare` has set options of.
///
/// # Errors
/// Those of the system calls.
pub fn listen_prepared(
    address: SocketAddr,
    prepare: impl FnOnce(&Socket) -> std::io::Result<()>,
) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    prepare(&socket)?;
    if address.is_ipv6() {
        let wildcard = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        socket.set_only_v6(!wildcard)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}
