//! A server that tells each client whose address it sees: a check that a proxy is in the path, and keeps
//! the client's address or does not, before anything is measured.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::listener::listen;

const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(crate) struct ServerOptions {
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ClientOptions {
    #[arg(long)]
    connect: SocketAddr,
}

/// What both ends see of one connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// The client's address, as the server sees it.
    pub(crate) client: IpAddr,
    /// The server's address, as the client sees it.
    pub(crate) server: IpAddr,
}

pub(super) fn serve(options: &ServerOptions) -> Result<()> {
    let listener = TcpListener::from(listen(options.listen)?);
    println!("listening");
    loop {
        let (mut stream, client) = listener.accept().context("cannot accept")?;
        // A client that is gone is the client's error to report.
        let _ = stream.write_all(client.ip().to_string().as_bytes());
    }
}

pub(super) fn ask(options: &ClientOptions) -> Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&options.connect, PATIENCE).context("cannot connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .context("the witness says nothing")?;
    let seen = Seen {
        client: text.parse().context("the witness says no address")?,
        server: stream.peer_addr()?.ip(),
    };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}
