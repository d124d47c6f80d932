//! iperf3 from the client to the server.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    bench::{
        peer::{BULK_PORT, Capture, Peer},
        quantity::Quantity,
        setting::Setting,
        testbed::Testbed,
    },
    command,
    topology::SERVER_V4,
};

use super::Values;

pub(super) fn measure(setting: &Setting, peer: Peer, streams: u32) -> Result<Values> {
    let testbed = Testbed::new(setting, peer, Capture::Tcp)?;
    let _server = testbed.iperf3_server()?;
    transfer(&testbed, setting, peer, streams)
}

/// Throughput at the receiver, and the CPU time that a gigabyte takes.
pub(super) fn transfer(
    testbed: &Testbed,
    setting: &Setting,
    peer: Peer,
    streams: u32,
) -> Result<Values> {
    let seconds = setting.seconds(1.0, 3.0);
    let mut iperf3 = testbed.topology.client.command("iperf3");
    iperf3.args(["--json", "--client", SERVER_V4, "--port", BULK_PORT]);
    iperf3.args(["--time", &seconds.to_string()]);
    iperf3.args(["--parallel", &streams.to_string()]);
    let before = testbed.cpu()?;
    let report: Value = serde_json::from_str(&command::quietly(&mut iperf3)?)?;
    let used = testbed.cpu()?.since(before);
    let received = &report["end"]["sum_received"];
    let number = |key: &str| {
        let number = received[key].as_f64();
        number.with_context(|| format!("iperf3 reports no {key}"))
    };
    let (rate, gigabytes) = (number("bits_per_second")? / 1e9, number("bytes")? / 1e9);
    ensure!(gigabytes > 0.0, "iperf3 moved no bytes");
    let mut values = Values::from([
        (Quantity::Throughput, rate),
        (Quantity::MachineCpuPerGigabyte, used.machine / gigabytes),
    ]);
    if peer != Peer::Direct {
        values.insert(Quantity::ProxyCpuPerGigabyte, used.proxy / gigabytes);
    }
    Ok(values)
}
