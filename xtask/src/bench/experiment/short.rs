//! Short connections: connect, 18 bytes, 64 bytes back, the server closes first, client ports come round.

use anyhow::{Result, ensure};

use crate::bench::{
    load::Shorts,
    peer::{Capture, Peer},
    quantity::Quantity,
    setting::Setting,
    testbed::{Testbed, short_address, threads},
};

use super::Values;

pub(super) fn measure(setting: &Setting, peer: Peer, at_once: u16) -> Result<Values> {
    let testbed = Testbed::new(setting, peer, Capture::Tcp)?;
    let address = short_address();
    let _server = testbed.server(&[
        "short-server",
        "--listen",
        &address,
        "--threads",
        &threads(),
    ])?;
    let before = testbed.cpu()?;
    let outcome = connect(&testbed, setting, at_once)?;
    let used = testbed.cpu()?.since(before);
    let microseconds_each = |seconds: f64| seconds * 1e6 / count(outcome.connections);
    let mut values = Values::from([
        (Quantity::Connections, rate(&outcome)),
        (
            Quantity::MachineCpuPerConnection,
            microseconds_each(used.machine),
        ),
        (Quantity::FirstByteP50, outcome.first_byte.p50),
        (Quantity::FirstByteP99, outcome.first_byte.p99),
        (Quantity::SynRetransmits, count(outcome.syn_retransmits)),
        (Quantity::Failures, count(outcome.failures)),
    ]);
    if peer != Peer::Direct {
        values.insert(
            Quantity::ProxyCpuPerConnection,
            microseconds_each(used.proxy),
        );
    }
    Ok(values)
}

pub(super) fn connect(testbed: &Testbed, setting: &Setting, at_once: u16) -> Result<Shorts> {
    let outcome: Shorts = testbed.client(&[
        "short-client",
        "--connect",
        &short_address(),
        "--concurrency",
        &at_once.to_string(),
        "--seconds",
        &setting.seconds(1.0, 3.0).to_string(),
        "--threads",
        &threads(),
    ])?;
    ensure!(
        outcome.connections > 0,
        "no connection succeeded, {} failed",
        outcome.failures
    );
    Ok(outcome)
}

/// Connections a second.
pub(super) fn rate(outcome: &Shorts) -> f64 {
    count(outcome.connections) / outcome.seconds
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a few seconds are far below 2^52"
)]
pub(super) fn count(number: u64) -> f64 {
    number as f64
}
