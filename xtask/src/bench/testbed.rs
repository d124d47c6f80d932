//! One peer at work in namespaces of its own, with what starts servers and clients around it.

use std::{
    env,
    io::Write as _,
    net::IpAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use crate::{
    command, lines,
    topology::{CLIENT_V4, GATEWAY_V4, Namespace, SERVER_V4, Topology},
};

use super::{
    accounting::CpuSeconds,
    footprint::Footprint,
    load::Seen,
    peer::{BULK_PORT, Capture, Peer, Running, SHORT_PORT, Source},
    setting::Setting,
};

/// What the bench document of the peers sets in all three namespaces.
const SYSCTLS: &[&str] = &[
    "net.ipv4.ip_local_port_range=1024 65535",
    "net.ipv4.tcp_tw_reuse=1",
    "net.core.somaxconn=16384",
    "net.ipv4.tcp_max_syn_backlog=16384",
    "net.ipv4.conf.all.rp_filter=0",
];

const START: Duration = Duration::from_secs(5);

/// Taken down when it goes out of scope, the peer first.
#[derive(Debug)]
pub(super) struct Testbed {
    pub(super) running: Running,
    pub(super) topology: Topology,
}

impl Testbed {
    /// Fresh namespaces, since TIME_WAIT of one measurement would spoil the next, and the peer in them.
    ///
    /// # Errors
    ///
    /// When the peer cannot be started, or is not in the path.
    pub(super) fn new(setting: &Setting, peer: Peer, capture: Capture) -> Result<Self> {
        let topology = Topology::create("tproxy-bench", &setting.lock)?;
        for namespace in [&topology.client, &topology.gateway, &topology.server] {
            namespace.sysctl(SYSCTLS)?;
        }
        let running = peer.start(&topology, setting, capture)?;
        let testbed = Self { running, topology };
        if matches!(capture, Capture::Tcp | Capture::TcpTo(_)) {
            testbed
                .check_path(peer, setting.source)
                .with_context(|| format!("{} is not in the path", peer.name()))?;
        }
        Ok(testbed)
    }

    /// Since the gateway of a proxy forwards nothing, an answer came through the proxy; the address that the
    /// server sees must be the one that it is measured with.
    fn check_path(&self, peer: Peer, source: Source) -> Result<()> {
        let _witness = self.server(&["witness", "--listen", &short_address()])?;
        let seen: Seen = self.client(&["ask-witness", "--connect", &short_address()])?;
        let client = match (peer, source) {
            (Peer::Direct, _) | (_, Source::Client) => CLIENT_V4,
            (_, Source::Agent) => GATEWAY_V4,
        };
        let expected: [IpAddr; 2] = [client.parse()?, SERVER_V4.parse()?];
        ensure!(
            [seen.client, seen.server] == expected,
            "the server sees {} and not {client}",
            seen.client
        );
        Ok(())
    }

    /// Starts one of our servers, at the server; returns when it listens.
    pub(super) fn server(&self, arguments: &[&str]) -> Result<Server> {
        let mut server = own_program(&self.topology.server)?;
        Server::start(server.args(arguments))
    }

    /// Starts iperf3's server.
    pub(super) fn iperf3_server(&self) -> Result<Server> {
        let mut iperf3 = self.topology.server.command("iperf3");
        Server::start(iperf3.args(["--server", "--forceflush", "--port", BULK_PORT]))
    }

    /// Runs one of our clients, at the client; returns what it prints at its end.
    pub(super) fn client<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        run_client(&self.topology.client, arguments)
    }

    /// Runs one of our clients on the gateway.
    pub(super) fn local_client<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        run_client(&self.topology.gateway, arguments)
    }

    /// Starts one of our clients, at the client.
    pub(super) fn start_client(&self, arguments: &[&str]) -> Result<Client> {
        let mut client = own_program(&self.topology.client)?;
        Client::start(client.args(arguments))
    }

    /// The processes in the gateway: the proxy's.
    pub(super) fn proxy(&self) -> Result<Vec<Pid>> {
        self.topology.gateway.processes()
    }

    pub(super) fn cpu(&self) -> Result<CpuSeconds> {
        CpuSeconds::read(&self.proxy()?)
    }

    pub(super) fn footprint(&self) -> Result<Footprint> {
        Footprint::of(&self.proxy()?)
    }
}

/// Where the servers of short connections, echoes and so on listen.
pub(super) fn short_address() -> String {
    format!("{SERVER_V4}:{SHORT_PORT}")
}

/// Half the cores for either end of a load.
pub(super) fn threads() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1).to_string()
}

fn own_program(namespace: &Namespace) -> Result<Command> {
    let own = env::current_exe().context("cannot find this program")?;
    let mut command = namespace.command(own);
    command.arg("load");
    Ok(command)
}

fn run_client<T: DeserializeOwned>(namespace: &Namespace, arguments: &[&str]) -> Result<T> {
    let mut client = own_program(namespace)?;
    let printed = command::quietly(client.args(arguments))?;
    serde_json::from_str(&printed).with_context(|| format!("{} printed nonsense", arguments[0]))
}

/// A server, ended when it goes out of scope.
#[derive(Debug)]
pub(super) struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Result<Self> {
        let mut server = Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start the server")?,
        );
        let stdout = server.0.stdout.take();
        let lines = lines::follow(stdout.context("the server has no standard output")?);
        loop {
            let line = lines.recv_timeout(START);
            if line
                .context("the server does not listen")?
                .contains("listening")
            {
                return Ok(server);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// A client that is at work while something else is measured, ended when it goes out of scope.
#[derive(Debug)]
pub(super) struct Client {
    process: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Client {
    fn start(command: &mut Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the client")?;
        let stdout = process.stdout.take();
        let lines = lines::follow(stdout.context("the client has no standard output")?);
        Ok(Self { process, lines })
    }

    /// What it prints next.
    ///
    /// # Errors
    ///
    /// When it prints nothing for so long, or has ended.
    pub(super) fn next<T: DeserializeOwned>(&self, patience: Duration) -> Result<T> {
        let Ok(line) = self.lines.recv_timeout(patience) else {
            bail!("the client has failed, or says nothing for {patience:?}");
        };
        serde_json::from_str(&line).context("the client printed nonsense")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

fn end(process: &mut Child) {
    if let Err(error) = process.kill().and_then(|()| process.wait()) {
        let _ = writeln!(std::io::stderr(), "xtask: a process does not end: {error}");
    }
}
