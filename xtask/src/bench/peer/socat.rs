//! socat as a relay of datagrams. It is no transparent proxy: clients ask the gateway itself.

use std::process::Stdio;

use anyhow::{Context as _, Result};

use crate::topology::{SERVER_V4, Topology};

use super::{Running, UDP_PORT};

/// A process a flow. Clients have to try until it listens.
pub(super) fn start(topology: &Topology) -> Result<Running> {
    let mut socat = topology.gateway.command("socat");
    socat.arg(format!("UDP4-LISTEN:{UDP_PORT},fork,reuseaddr"));
    socat.arg(format!("UDP4:{SERVER_V4}:{UDP_PORT}"));
    // It says so whenever a client or the server is gone.
    socat
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = socat.spawn().context("cannot start socat")?;
    Ok(Running {
        _child: Some(child),
        ..Running::default()
    })
}
