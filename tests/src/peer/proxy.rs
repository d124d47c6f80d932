//! Transparent proxies of others: they listen for flows to any address, and reach for the address that the client asked
//! for.

use std::{
    fs::{self, Permissions},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    Namespace,
    peer::{envoy, haproxy, nginx_stream, squid},
    process::Process,
    wait,
};

/// A program that can take flows to any address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// Squid, with `tproxy` sockets.
    Squid,
    /// Envoy relaying bytes: the original destination filter and cluster.
    Envoy,
    /// Envoy reading HTTP.
    EnvoyHttp,
    /// `HAProxy` relaying bytes.
    Haproxy,
    /// The stream module of nginx, with transparent sockets that it inherits.
    NginxStream,
}

/// Whom the server sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The host of the proxy.
    Proxy,
    /// The client. What the server answers comes back to the proxy only if it is steered to it, too.
    Client,
}

/// Where a successor has its listening sockets from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    /// It opens its own beside those that are there (`SO_REUSEPORT`).
    Opened,
    /// From its predecessor.
    HandedOver,
}

/// A flow that a proxy was given, as its access log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handed {
    /// The client.
    pub client: SocketAddr,
    /// Where the client wanted to go.
    pub destination: SocketAddr,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy<'a> {
    product: Product,
    namespace: &'a Namespace,
    directory: TempDir,
    process: Process,
}

impl<'a> Proxy<'a> {
    /// The port at which it listens, in both families at the wildcard address.
    pub const PORT: u16 = 3129;

    /// Starts it in `namespace` and waits until it listens. Servers see `source`.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &'a Namespace, product: Product, source: Source) -> Self {
        let directory = TempDir::new().expect("make a directory");
        // Some of them give up root before they open their files.
        let open = Permissions::from_mode(0o777);
        fs::set_permissions(directory.path(), open).expect("open the directory to all");
        let configuration = product.configuration(directory.path(), source);
        fs::write(directory.path().join("configuration.yaml"), configuration)
            .expect("write the configuration");
        let process = launch(namespace, product, &directory);
        Self {
            product,
            namespace,
            directory,
            process,
        }
    }

    /// Ends it and starts it again: another process, other sockets, the same log.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.process = launch(self.namespace, self.product, &self.directory);
    }

    /// Starts another process of `HAProxy`, which takes the place of this one: that has closed its listeners then, and ends
    /// with its last flow. Returns it.
    #[must_use]
    #[track_caller]
    pub fn reload(&mut self, sockets: Sockets) -> Process {
        assert_eq!(self.product, Product::Haproxy, "who knows `-sf`");
        let directory = self.directory.path();
        let mut command = self.product.command(self.namespace, directory);
        command.args(["-sf", &self.id().to_string()]);
        if sockets == Sockets::HandedOver {
            command.arg("-x").arg(haproxy::socket(directory));
        }
        let old = std::mem::replace(&mut self.process, Process::start(&mut command));
        let listeners = format!("ss -Htlnp sport = :{}", Self::PORT);
        wait::until("the listeners of the successor alone", || {
            let listeners = self.namespace.output(&listeners);
            let is_there =
                |process: &Process| listeners.contains(&format!("pid={},", process.id()));
            (is_there(&self.process) && !is_there(&old)).then_some(())
        });
        old
    }

    /// Ends it, with its sockets.
    #[track_caller]
    pub fn stop(&mut self) {
        self.process.signal(self.product.end());
        let _ = self.process.wait();
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The flows in its log so far.
    #[must_use]
    pub fn handed(&self) -> Vec<Handed> {
        // HAProxy cannot write to a file.
        let file = fs::read_to_string(self.directory.path().join("access.log"));
        let log = file.unwrap_or_default() + &self.process.stdout.text();
        log.lines().filter_map(Handed::parse).collect()
    }

    /// Waits for the flow from `client` to `destination` in its log, which some write when the flow ends.
    #[track_caller]
    pub fn wait_for(&self, client: SocketAddr, destination: SocketAddr) {
        let wanted = Handed {
            client,
            destination,
        };
        let logged = wait::within(wait::PATIENCE, || {
            self.handed().contains(&wanted).then_some(())
        });
        assert!(
            logged.is_some(),
            "{wanted:?} is not in the log of {:?}: {:#?}\n{}",
            self.product,
            self.handed(),
            self.process.stderr.text()
        );
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        if self.process.has_ended() {
            return;
        }
        self.process.signal(self.product.end());
        let _ = wait::within(wait::PATIENCE, || self.process.has_ended().then_some(()));
    }
}

/// Starts it and waits for its listeners.
#[track_caller]
fn launch(namespace: &Namespace, product: Product, directory: &TempDir) -> Process {
    let mut process = Process::start(&mut product.command(namespace, directory.path()));
    let listening = wait::within(wait::PATIENCE, || {
        let listening = listeners(namespace, Proxy::PORT) >= product.sockets();
        (listening || process.has_ended()).then_some(listening)
    });
    assert!(
        listening == Some(true),
        "{product:?} does not listen:\n{}\n{}",
        process.stdout.text(),
        process.stderr.text()
    );
    process
}

/// How many TCP sockets listen at `port`: lines of `/proc/net/tcp` in state LISTEN (0A).
fn listeners(namespace: &Namespace, port: u16) -> usize {
    let end = format!(":{port:04X}");
    let is_listener = |line: &&str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.len() > 3 && words[1].ends_with(&end) && words[3] == "0A"
    };
    let sockets = ["tcp", "tcp6"].map(|table| namespace.proc_net(table));
    let lines = sockets.iter().flat_map(|table| table.lines());
    lines.filter(is_listener).count()
}

impl Product {
    #[track_caller]
    fn configuration(self, directory: &Path, source: Source) -> String {
        match self {
            Self::Squid => squid::configuration(directory, source),
            Self::Haproxy => haproxy::configuration(directory, source),
            Self::NginxStream => nginx_stream::configuration(directory, source),
            Self::Envoy => envoy::configuration(directory, envoy::Layer::Bytes, source),
            Self::EnvoyHttp => envoy::configuration(directory, envoy::Layer::Http, source),
        }
    }

    /// How many sockets it listens with: Squid takes both families with one, and each worker of Envoy has its own.
    fn sockets(self) -> usize {
        match self {
            Self::Squid => 1,
            Self::Haproxy | Self::NginxStream => 2,
            Self::Envoy | Self::EnvoyHttp => 2 * envoy::WORKERS,
        }
    }

    /// What ends it at once. Squid takes two seconds to end by itself; a master process that is killed leaves its
    /// workers.
    fn end(self) -> Signal {
        match self {
            Self::NginxStream => Signal::SIGTERM,
            _ => Signal::SIGKILL,
        }
    }

    fn command(self, namespace: &Namespace, directory: &Path) -> Command {
        let configuration: &Path = &directory.join("configuration.yaml");
        match self {
            Self::Squid => squid::command(namespace, configuration),
            Self::Envoy | Self::EnvoyHttp => envoy::command(namespace, configuration),
            Self::Haproxy => haproxy::command(namespace, configuration),
            Self::NginxStream => nginx_stream::command(namespace, configuration),
        }
    }
}

impl Handed {
    /// Reads a line of four words: the client's address and port, and those that it asked for.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut address = || {
            let ip: IpAddr = words.next()?.parse().ok()?;
            let port = words.next()?.parse().ok()?;
            Some(SocketAddr::new(ip.to_canonical(), port))
        };
        Some(Self {
            client: address()?,
            destination: address()?,
        })
    }
}
