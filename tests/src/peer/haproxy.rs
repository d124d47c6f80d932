//! `HAProxy` as a transparent relay.

use std::{path::Path, process::Command};

use crate::{Namespace, peer::Source};

/// `transparent` is what lets a listener take flows to any address; a server 0.0.0.0:0 is the address that the client
/// asked for, in either family.
pub(super) fn configuration(source: Source) -> String {
    let source = match source {
        Source::Proxy => "",
        Source::Client => "source 0.0.0.0 usesrc clientip",
    };
    format!(
        "global\n\
       maxconn 200\n\
       log stdout format raw local0\n\
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

pub(super) fn command(namespace: &Namespace, configuration: &Path) -> Command {
    let mut command = namespace.command("haproxy");
    // In the foreground, as one process.
    command.args(["-db", "-f"]).arg(configuration);
    command
}
