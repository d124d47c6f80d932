//! The stream module of nginx with plain listeners, saying who was connected to what.

use std::{fs, net::SocketAddr};

use tempfile::TempDir;

use crate::{Namespace, process::Process};

/// Says the client's address and port, and those at which it was reached, to each that connects, and closes:
/// `10.77.1.2 51514 203.0.113.7 8080`.
#[derive(Debug)]
pub struct StreamEcho {
    _directory: TempDir,
    _process: Process,
}

impl StreamEcho {
    /// Listens at these addresses.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace, addresses: &[SocketAddr]) -> Self {
        let directory = TempDir::new().expect("make a directory");
        let path = directory.path().display();
        let listen = |address: &SocketAddr| format!("listen {address};");
        let listen: String = addresses.iter().map(listen).collect();
        let configuration = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
             daemon off; master_process off; pid {path}/nginx.pid; error_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             stream {{ server {{\n\
               {listen}\n\
               return \"$remote_addr $remote_port $server_addr $server_port\\n\";\n\
             }} }}\n"
        );
        fs::write(directory.path().join("nginx.conf"), configuration)
            .expect("write the configuration");
        let command_line = format!("nginx -e stderr -c {path}/nginx.conf");
        let process = Process::start(&mut namespace.command_line(&command_line));
        for address in addresses {
            namespace.wait_for_listener(address.port());
        }
        Self {
            _directory: directory,
            _process: process,
        }
    }
}
