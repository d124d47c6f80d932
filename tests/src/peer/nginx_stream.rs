//! The stream module of nginx as a transparent relay.
//!
//! nginx has no option for transparent listeners, but takes over sockets that its environment variable NGINX names, if
//! the configuration has a `listen` of the same address: what opens them can make them transparent. Without a master
//! process nginx 1.22 crashes on sockets that it inherits.

use std::{path::Path, process::Command};

use crate::{
    Namespace,
    peer::{Source, python::python},
};

pub(super) fn configuration(directory: &Path, source: Source) -> String {
    let path = directory.display();
    let bind = match source {
        Source::Proxy => "",
        Source::Client => "proxy_bind $remote_addr transparent;",
    };
    format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         user root; worker_processes 1; daemon off; pid {path}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         stream {{\n\
           log_format flow '$remote_addr $remote_port $server_addr $server_port $upstream_addr';\n\
           access_log {path}/access.log flow;\n\
           map $server_addr $original {{\n\
             ~: [$server_addr]:$server_port;\n\
             default $server_addr:$server_port;\n\
           }}\n\
           server {{\n\
             listen 3129; listen [::]:3129 ipv6only=on;\n\
             {bind} proxy_pass $original;\n\
           }}\n\
         }}\n"
    )
}

pub(super) fn command(namespace: &Namespace, configuration: &Path) -> Command {
    let mut command = namespace.command_line(&python("with_transparent_sockets.py"));
    command
        .args(["3129", "nginx", "-e", "stderr", "-c"])
        .arg(configuration);
    command
}
