//! Echoes of datagrams, a fixed number of them under way.

use anyhow::{Result, ensure};

use crate::{
    bench::{
        load::DatagramEchoes,
        peer::{Capture, Peer, UDP_PORT},
        quantity::Quantity,
        setting::Setting,
        testbed::{Testbed, threads},
    },
    topology::{GATEWAY_CLIENT_SIDE_V4, SERVER_V4},
};

use super::{Values, short::count};

const FLOWS: &str = "8";
/// Datagrams under way in each flow: few enough for the socket buffers of all that relay them.
const WINDOW: &str = "16";

pub(super) fn measure(setting: &Setting, peer: Peer, size: u32) -> Result<Values> {
    let testbed = Testbed::new(setting, peer, Capture::Udp)?;
    let listen = format!("{SERVER_V4}:{UDP_PORT}");
    let _server = testbed.server(&[
        "udp-echo-server",
        "--listen",
        &listen,
        "--threads",
        &threads(),
    ])?;
    let connect = match peer {
        Peer::Socat => format!("{GATEWAY_CLIENT_SIDE_V4}:{UDP_PORT}"),
        _ => listen,
    };
    let seconds = setting.seconds(1.0, 3.0).to_string();
    let size_text = size.to_string();
    let before = testbed.cpu()?;
    let outcome: DatagramEchoes = testbed.client(&[
        "udp-echo-client",
        "--connect",
        &connect,
        "--seconds",
        &seconds,
        "--size",
        &size_text,
        "--flows",
        FLOWS,
        "--window",
        WINDOW,
    ])?;
    let used = testbed.cpu()?.since(before);
    ensure!(
        outcome.echoes > 0,
        "no datagram came back, {} were lost",
        outcome.lost
    );
    let rate = count(outcome.echoes) / outcome.seconds;
    let microseconds_each_way = |seconds: f64| seconds * 1e6 / (2.0 * count(outcome.echoes));
    let mut values = Values::from([
        (Quantity::Datagrams, rate),
        (Quantity::Throughput, rate * f64::from(size) * 8.0 / 1e9),
        (
            Quantity::MachineCpuPerDatagram,
            microseconds_each_way(used.machine),
        ),
        (Quantity::EchoP50, outcome.echo.p50),
        (Quantity::EchoP99, outcome.echo.p99),
        (Quantity::DatagramsLost, count(outcome.lost)),
    ]);
    if peer != Peer::Direct {
        values.insert(
            Quantity::ProxyCpuPerDatagram,
            microseconds_each_way(used.proxy),
        );
    }
    Ok(values)
}
