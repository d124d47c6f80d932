//! A server that accepts and never reads.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};

use super::listener::listen;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    listen: SocketAddr,
}

pub(super) fn serve(options: &Options) -> Result<()> {
    let listener = TcpListener::from(listen(options.listen)?);
    println!("listening");
    let mut unread = Vec::new();
    loop {
        unread.push(listener.accept().context("cannot accept")?);
    }
}
