//! QUIC by aioquic: a server with a certificate of its own, and a client that downloads from it.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    Namespace,
    peer::python::python,
    process::{self, Process},
};

/// A running QUIC server.
#[derive(Debug)]
pub struct QuicServer {
    address: SocketAddr,
    directory: TempDir,
    process: Process,
}

impl QuicServer {
    /// Serves `address` in `namespace`: bound to all, it would answer from any.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Self {
        let directory = TempDir::new().expect("make a directory");
        let file = |name: &str| directory.path().join(name);
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-nodes", "-days", "1", "-newkey", "ec"])
            .args([
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-subj",
                "/CN=quic.test",
            ])
            .args(["-addext", "subjectAltName=DNS:quic.test"])
            .arg("-keyout")
            .arg(file("key.pem"))
            .arg("-out")
            .arg(file("certificate.pem"));
        process::expect_success(&mut openssl);
        let mut command = namespace.command_line(&python("quic_server.py"));
        command
            .args([address.ip().to_string(), address.port().to_string()])
            .args([file("certificate.pem"), file("key.pem")]);
        let process = Process::start(&mut command);
        let ready = process.stdout.find(|line| (line == "ready").then_some(()));
        assert!(ready.is_some(), "no QUIC server: {}", process.stderr.text());
        Self {
            address,
            directory,
            process,
        }
    }

    /// Downloads `count` bytes from inside `namespace`, which has to get what the server sent. Returns the client's own
    /// port, and its address as the server saw it.
    #[must_use]
    #[track_caller]
    pub fn download(&self, namespace: &Namespace, count: usize) -> (u16, SocketAddr) {
        let mut command = namespace.command_line(&self.client(count));
        self.check_download(&process::expect_success(&mut command), count)
    }

    /// The command line of a client that downloads `count` bytes.
    #[must_use]
    pub fn client(&self, count: usize) -> String {
        let (ip, port) = (self.address.ip(), self.address.port());
        let certificate = self.directory.path().join("certificate.pem");
        let certificate = certificate.display();
        format!(
            "{} {ip} {port} {certificate} {count}",
            python("quic_client.py")
        )
    }

    /// Checks that what a client printed who asked for `count` bytes is what the server sent, and returns the client's
    /// own port, and its address as the server saw it.
    #[must_use]
    #[track_caller]
    pub fn check_download(&self, printed: &str, count: usize) -> (u16, SocketAddr) {
        let [port, length, digest] = words(printed);
        assert_eq!(length, count.to_string(), "all of it comes");
        let stdout = &self.process.stdout;
        let sent = stdout.find(|line| line.ends_with(&digest).then(|| line.to_owned()));
        let sent =
            sent.unwrap_or_else(|| panic!("{digest} is not what was sent: {}", stdout.text()));
        let [ip, seen_port, _, _] = words(&sent);
        let ip: IpAddr = ip.parse().expect("the server prints addresses");
        let seen_port = seen_port.parse().expect("the server prints ports");
        (
            port.parse().expect("the client prints its port"),
            SocketAddr::new(ip.to_canonical(), seen_port),
        )
    }
}

#[track_caller]
fn words<const COUNT: usize>(line: &str) -> [String; COUNT] {
    let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    let words: Result<[String; COUNT], _> = words.try_into();
    words.unwrap_or_else(|words| panic!("{words:?} are not {COUNT} words"))
}
