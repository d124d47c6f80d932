//! `HAProxy` as a transparent relay.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Namespace, peer::Source};

/// `transparent` is what lets a listener take flows to any address; a server 0.0.0.0:0 is the address that the client
/// asked for, in either family. Of threads that log at once, some would lose their line.
pub(super) fn configuration(directory: &Path, source: Source) -> String {
    let socket = socket(directory);
    let socket = socket.display();
    let source = match source {
        Source::Proxy => "",
        Source::Client => "source 0.0.0.0 usesrc clientip",
    };
    format!(
        "global\n\
       maxconn 200\n\
       nbthread 1\n\
       log stdout format raw local0\n\
       stats socket {socket} expose-fd listeners\n\
     defaults\n\
       mode tcp\n\
       timeout connect 5s\n\
       timeout client 60s\n\
       timeout server 60s\n\
     listen transparent\n\
       bind 0.0.0.0:3129 transparent\n\
       bind :::3129 v6only transparent\n\
       log global\n\
       log-format \"%ci %cp %[dst] %[dst_port] %si %sp %ts\"\n\
       {source}\n\
       server original 0.0.0.0:0\n"
    )
}

/// Where a successor is given the listening sockets.
pub(super) fn socket(directory: &Path) -> PathBuf {
    directory.join("haproxy.sock")
}

pub(super) fn command(namespace: &Namespace, configuration: &Path) -> Command {
    let mut command = namespace.command("haproxy");
    // In the foreground, as one process.
    command.args(["-db", "-f"]).arg(configuration);
    command
}
