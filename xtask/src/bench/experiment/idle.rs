//! What a flow holds that does nothing, and what becomes of others meanwhile.

use std::time::Duration;

use anyhow::Result;

use crate::bench::{
    load::Holding,
    peer::{Capture, Peer},
    quantity::Quantity,
    setting::Setting,
    testbed::{Testbed, short_address},
};

use super::{Values, bulk};

/// Close to what a limit of 20,000 descriptors allows a relay that needs two for each.
const FLOWS: u32 = 9_000;

const PATIENCE: Duration = Duration::from_mins(1);

pub(super) fn measure(setting: &Setting, peer: Peer) -> Result<Values> {
    let testbed = Testbed::new(setting, peer, Capture::Tcp)?;
    let address = short_address();
    let _echo = testbed.server(&["echo-server", "--listen", &address])?;
    let _iperf3 = testbed.iperf3_server()?;
    let before = testbed.footprint()?;
    let flows = FLOWS.to_string();
    let client =
        testbed.start_client(&["idle-client", "--connect", &address, "--flows", &flows])?;
    let Holding { flows, .. } = client.next(PATIENCE)?;
    let held = testbed.footprint()?.since(before);
    let mut values = bulk::transfer(&testbed, setting, peer, 1)?;
    values.extend([
        (Quantity::MemoryPerFlow, held.written / f64::from(flows)),
        (
            Quantity::DescriptorsPerFlow,
            held.descriptors / f64::from(flows),
        ),
    ]);
    Ok(values)
}
