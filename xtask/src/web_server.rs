//! nginx in the lab's server namespace, with pages that say whom the server saw.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{command, topology::Namespace};

/// Plain HTTP on 80 and 8080, TLS on 443, on both families. `daemon on`: nginx returns when it listens.
const CONFIGURATION: &str = r#"
daemon on;
pid DIRECTORY/nginx.pid;
error_log DIRECTORY/error.log;
worker_processes 1;
events {}
http {
    access_log off;
    client_body_temp_path DIRECTORY/body;
    proxy_temp_path DIRECTORY/proxy;
    fastcgi_temp_path DIRECTORY/fastcgi;
    uwsgi_temp_path DIRECTORY/uwsgi;
    scgi_temp_path DIRECTORY/scgi;
    ssl_certificate DIRECTORY/certificate.pem;
    ssl_certificate_key DIRECTORY/key.pem;
    server {
        listen 80;
        listen [::]:80;
        listen 8080;
        listen [::]:8080;
        listen 443 ssl;
        listen [::]:443 ssl;
        default_type text/plain;
        location / {
            return 200 "Hello from the server. Connection from $remote_addr port $remote_port to port $server_port, Host: $host\n";
        }
    }
}
"#;

/// Starts nginx in `namespace`, with its files in `directory`. It listens when this returns, and ends
/// with the namespace.
///
/// # Errors
///
/// What nginx or openssl said.
pub(crate) fn start(namespace: &Namespace, directory: &Path) -> Result<()> {
    command::quietly(
        Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-days", "1", "-subj", "/CN=tproxy lab", "-keyout"])
            .arg(directory.join("key.pem"))
            .arg("-out")
            .arg(directory.join("certificate.pem")),
    )?;
    let configuration = directory.join("nginx.conf");
    let text = CONFIGURATION.replace("DIRECTORY", &directory.display().to_string());
    fs::write(&configuration, text).context("cannot write nginx.conf")?;
    let mut nginx = namespace.command("nginx");
    nginx.arg("-e").arg(directory.join("error.log"));
    nginx.arg("-p").arg(directory).arg("-c").arg(configuration);
    command::quietly(&mut nginx).map(drop)
}
