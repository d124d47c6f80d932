//! curl, and what it saw of its connection.

use std::net::SocketAddr;

use crate::{Namespace, process::Process};

/// A page that curl was given.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The client's own address and port.
    pub client: SocketAddr,
    /// Whom the client takes for the server.
    pub server: SocketAddr,
    /// The page, without the end of its last line.
    pub body: String,
}

impl Fetched {
    /// Fetches `http://SERVER/PATH` from inside `namespace`, which must give status 200.
    #[must_use]
    #[track_caller]
    pub fn from(namespace: &Namespace, server: SocketAddr, path: &str) -> Self {
        Self::attempt(namespace, server, path).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Fetched::from`], for what may fail.
    ///
    /// # Errors
    ///
    /// What curl complains of.
    #[track_caller]
    pub fn attempt(namespace: &Namespace, server: SocketAddr, path: &str) -> Result<Self, String> {
        const ENDS: &str = "%{stderr}%{local_ip} %{local_port} %{remote_ip} %{remote_port}\\n";
        let mut command = namespace.command("curl");
        command
            .args(["--silent", "--show-error", "--fail", "--max-time", "10"])
            .args(["--globoff", "--noproxy", "*", "--write-out", ENDS])
            .arg(format!("http://{server}/{path}"));
        let mut process = Process::start(&mut command);
        let status = process.wait();
        let complaints = process.stderr.text();
        if !status.success() {
            return Err(format!(
                "curl http://{server}/{path}: {status}: {complaints}"
            ));
        }
        let words: Vec<_> = complaints.split_whitespace().collect();
        let address = |ip: &str, port: &str| {
            let ip = ip.parse().expect("curl prints addresses");
            SocketAddr::new(ip, port.parse().expect("curl prints ports"))
        };
        Ok(Self {
            client: address(words[0], words[1]),
            server: address(words[2], words[3]),
            body: process.stdout.text(),
        })
    }
}
