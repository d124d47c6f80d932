//! nginx, serving files.

use std::{fs, path::Path};

use tempfile::TempDir;

use crate::{Namespace, process::Process};

/// A running nginx with a directory of its own.
#[derive(Debug)]
pub struct Nginx {
    directory: TempDir,
    _process: Process,
}

impl Nginx {
    /// Serves the files of [`Nginx::root`] and, at `/who`, the client's address, on `port` of every address.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace, port: u16) -> Self {
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
                 listen {port}; listen [::]:{port} ipv6only=on;\n\
                 root {path};\n\
                 location = /who {{ return 200 \"$remote_addr $server_addr\\n\"; }}\n\
               }}\n\
             }}\n"
        );
        fs::write(directory.path().join("nginx.conf"), configuration)
            .expect("write the configuration");
        let mut command = namespace.command_line(&format!("nginx -p {path} -c {path}/nginx.conf"));
        let process = Process::start(&mut command);
        namespace.wait_for_listener(port);
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
