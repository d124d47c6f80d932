//! One measurement of one peer, in namespaces of its own.

use std::{
    env,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::{
    bench::{
        accounting::CpuSeconds,
        load_client::Outcome,
        peer::{BULK_PORT, Peer, SHORT_PORT},
    },
    command, lines,
    topology::{Lock, SERVER_V4, Topology},
};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Load {
    /// iperf3, one stream.
    Bulk1,
    /// iperf3, four streams.
    Bulk4,
    /// Short connections, 32 at once, the server closes first, client ports come round.
    Short32,
}

/// What a load measured, medians of which are compared.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) peer: Peer,
    pub(crate) load: Load,
    /// Gbit/s at the receiver, or connections a second.
    pub(crate) rate: f64,
    /// CPU of the proxy: seconds a gigabyte, or microseconds a connection.
    pub(crate) proxy_cpu: Option<f64>,
    /// CPU of the whole machine, in the same units.
    pub(crate) machine_cpu: f64,
    pub(crate) short: Option<Outcome>,
    /// Milliseconds.
    pub(crate) ready_after: Option<f64>,
    /// Megabytes.
    pub(crate) memory_at_rest: Option<f64>,
}

/// For how long each load runs, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Durations {
    pub(crate) bulk: u64,
    pub(crate) short: u64,
}

/// What the bench document of the peers sets in all three namespaces.
const SYSCTLS: &[&str] = &[
    "net.ipv4.ip_local_port_range=1024 65535",
    "net.ipv4.tcp_tw_reuse=1",
    "net.core.somaxconn=16384",
    "net.ipv4.tcp_max_syn_backlog=16384",
    "net.ipv4.conf.all.rp_filter=0",
];

/// Measures in fresh namespaces: TIME_WAIT of one run would spoil the next.
pub(crate) fn measure(
    lock: &Lock,
    binary: &Path,
    peer: Peer,
    load: Load,
    durations: Durations,
    round: usize,
) -> Result<Sample> {
    let topology = Topology::create("tproxy-bench", lock)?;
    for namespace in [&topology.client, &topology.gateway, &topology.server] {
        namespace.sysctl(SYSCTLS)?;
    }
    let running = peer.start(&topology, binary)?;
    let memory_at_rest = running.memory_at_rest()?;
    let _server = load.start_server(&topology)?;
    let before = CpuSeconds::read(running.process())?;
    let result = load
        .run(&topology, durations)
        .with_context(|| format!("{} with {}", load.name(), peer.name()))?;
    let used = CpuSeconds::read(running.process())?.since(before);
    Ok(Sample {
        round,
        peer,
        load,
        rate: result.rate,
        proxy_cpu: running.process().map(|_| used.proxy / result.units),
        machine_cpu: used.machine / result.units,
        short: result.short,
        ready_after: running
            .ready_after()
            .map(|duration| duration.as_secs_f64() * 1000.0),
        memory_at_rest,
    })
}

struct LoadResult {
    rate: f64,
    /// Gigabytes, or millions of connections: what CPU seconds are divided by.
    units: f64,
    short: Option<Outcome>,
}

impl Load {
    pub(crate) const ALL: [Self; 3] = [Self::Bulk1, Self::Bulk4, Self::Short32];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bulk1 => "bulk, 1 stream",
            Self::Bulk4 => "bulk, 4 streams",
            Self::Short32 => "short connections, 32 at once",
        }
    }

    /// Returns when the server listens.
    fn start_server(self, topology: &Topology) -> Result<Child> {
        let mut command = match self {
            Self::Bulk1 | Self::Bulk4 => {
                let mut iperf3 = topology.server.command("iperf3");
                iperf3.args(["--server", "--forceflush", "--port", BULK_PORT]);
                iperf3
            }
            Self::Short32 => {
                let mut server = topology.server.command(own_program()?);
                let address = format!("{SERVER_V4}:{SHORT_PORT}");
                server.args(["load-server", "--listen", &address, "--threads", &threads()]);
                server
            }
        };
        let mut server = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the server")?;
        let stdout = server
            .stdout
            .take()
            .context("the server has no standard output")?;
        let lines = lines::follow(stdout);
        loop {
            let line = lines.recv_timeout(Duration::from_secs(5));
            if line
                .context("the server does not listen")?
                .contains("listening")
            {
                return Ok(server);
            }
        }
    }

    fn run(self, topology: &Topology, durations: Durations) -> Result<LoadResult> {
        match self {
            Self::Bulk1 => bulk(topology, 1, durations.bulk),
            Self::Bulk4 => bulk(topology, 4, durations.bulk),
            Self::Short32 => short(topology, durations.short),
        }
    }
}

fn bulk(topology: &Topology, streams: u32, seconds: u64) -> Result<LoadResult> {
    let mut iperf3 = topology.client.command("iperf3");
    iperf3.args(["--json", "--client", SERVER_V4, "--port", BULK_PORT]);
    iperf3.args([
        "--time",
        &seconds.to_string(),
        "--parallel",
        &streams.to_string(),
    ]);
    let report: Value = serde_json::from_str(&command::quietly(&mut iperf3)?)?;
    let received = &report["end"]["sum_received"];
    let bits = received["bits_per_second"]
        .as_f64()
        .context("iperf3 reports no rate")?;
    let bytes = received["bytes"]
        .as_f64()
        .context("iperf3 reports no bytes")?;
    ensure!(bytes > 0.0, "iperf3 moved no bytes");
    Ok(LoadResult {
        rate: bits / 1e9,
        units: bytes / 1e9,
        short: None,
    })
}

fn short(topology: &Topology, seconds: u64) -> Result<LoadResult> {
    let mut client = topology.client.command(own_program()?);
    let address = format!("{SERVER_V4}:{SHORT_PORT}");
    client.args([
        "load-client",
        "--connect",
        &address,
        "--seconds",
        &seconds.to_string(),
    ]);
    client.args(["--threads", &threads()]);
    let outcome: Outcome = serde_json::from_str(&command::quietly(&mut client)?)?;
    ensure!(
        outcome.connections > 0,
        "no connection succeeded, {} failed",
        outcome.failures
    );
    let connections = f64::from(outcome.connections);
    Ok(LoadResult {
        rate: connections / outcome.seconds,
        units: connections / 1e6,
        short: Some(outcome),
    })
}

fn own_program() -> Result<std::path::PathBuf> {
    env::current_exe().context("cannot find this program")
}

/// Half the cores for either end of the load.
fn threads() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1).to_string()
}
