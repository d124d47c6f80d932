//! nginx, serving files.

use std::{fs, net::SocketAddr, path::Path};

use tempfile::TempDir;

use crate::{Namespace, address::FAMILIES, peer::Certificate, process::Process};

/// A running nginx with a directory of its own.
#[derive(Debug)]
pub struct Nginx {
    directory: TempDir,
    _process: Process,
}

impl Nginx {
    /// Serves the files of [`Nginx::root`] on `port` of every address; `/who` tells the client's address and the one at
    /// which it was asked, `/flow` tells their ports as well.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        let everywhere = FAMILIES.map(|family| (family.any(), port).into());
        Self::bound(namespace, &everywhere)
    }

    /// As [`Nginx::start`], at these addresses and ports only.
    #[must_use]
    #[track_caller]
    pub fn bound(namespace: &Namespace, addresses: &[SocketAddr]) -> Self {
        let listen = |address: &SocketAddr| match address {
            SocketAddr::V4(address) => format!("listen {address};"),
            SocketAddr::V6(address) => format!("listen {address} ipv6only=on;"),
        };
        let listen: String = addresses.iter().map(listen).collect();
        let nginx = Self::launch(namespace, &listen);
        for address in addresses {
            namespace.wait_for_listener(address.port());
        }
        nginx
    }

    /// As [`Nginx::start`], over TLS.
    #[must_use]
    #[track_caller]
    pub fn with_tls(namespace: &Namespace, port: u16, certificate: &Certificate) -> Self {
        let (path, key) = (certificate.path(), certificate.key());
        let nginx = Self::launch(
            namespace,
            &format!(
                "listen {port} ssl; listen [::]:{port} ssl ipv6only=on;\n\
                 ssl_certificate {}; ssl_certificate_key {};",
                path.display(),
                key.display()
            ),
        );
        namespace.wait_for_listener(port);
        nginx
    }

    fn launch(namespace: &Namespace, listen: &str) -> Self {
        let directory = TempDir::new().expect("make a directory");
        let path = directory.path().display();
        let configuration = format!(
            "daemon off; master_process off; pid {path}/nginx.pid; error_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
               access_log off; sendfile on; default_type application/octet-stream;\n\
               client_body_temp_path {path}; proxy_temp_path {path}; fastcgi_temp_path {path};\n\
               uwsgi_temp_path {path}; scgi_temp_path {path};\n\
               server {{\n\
                 {listen}\n\
                 root {path};\n\
                 location = /who {{ return 200 \"$remote_addr $server_addr\\n\"; }}\n\
                 location = /flow {{\n\
                   return 200 \"$remote_addr $remote_port $server_addr $server_port\\n\";\n\
                 }}\n\
               }}\n\
             }}\n"
        );
        fs::write(directory.path().join("nginx.conf"), configuration)
            .expect("write the configuration");
        let mut command = namespace.command_line(&format!("nginx -p {path} -c {path}/nginx.conf"));
        let process = Process::start(&mut command);
        Self {
            directory,
            _process: process,
        }
    }

    /// The directory whose files it serves.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.directory.path()
    }
}
