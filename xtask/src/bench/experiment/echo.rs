//! How long an echo takes on a connection that stands: what a proxy adds to each round trip.

use anyhow::Result;

use crate::bench::{
    load::Echoes,
    peer::{Capture, Peer},
    quantity::Quantity,
    setting::Setting,
    testbed::{Testbed, short_address},
};

use super::Values;

pub(super) fn measure(setting: &Setting, peer: Peer) -> Result<Values> {
    let testbed = Testbed::new(setting, peer, Capture::Tcp)?;
    let address = short_address();
    let _server = testbed.server(&["echo-server", "--listen", &address])?;
    let seconds = setting.seconds(0.5, 2.0).to_string();
    let client = ["echo-client", "--connect", &address, "--seconds", &seconds];
    let Echoes { echo } = testbed.client(&client)?;
    Ok(Values::from([
        (Quantity::EchoP50, echo.p50),
        (Quantity::EchoP99, echo.p99),
    ]))
}
