//! What a proxy holds of a flow whose receiver stops reading while the sender goes on.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::bench::{
    load::Flooded,
    peer::{Capture, Peer},
    quantity::Quantity,
    setting::Setting,
    testbed::{Testbed, short_address},
};

use super::{Values, short::count};

const PATIENCE: Duration = Duration::from_secs(15);

pub(super) fn measure(setting: &Setting, peer: Peer) -> Result<Values> {
    let testbed = Testbed::new(setting, peer, Capture::Tcp)?;
    let address = short_address();
    let _server = testbed.server(&["deaf-server", "--listen", &address])?;
    let before = testbed.footprint()?;
    let client = testbed.start_client(&["flood-client", "--connect", &address])?;
    let Flooded { bytes, stalled } = client.next(PATIENCE)?;
    ensure!(
        stalled,
        "the sender was never held back, {bytes} bytes were taken"
    );
    let held = testbed.footprint()?.since(before);
    Ok(Values::from([
        (Quantity::UserMemoryHeld, held.written / 1e6),
        (Quantity::PipeMemoryHeld, held.in_pipes / 1e6),
        (Quantity::TakenFromSender, count(bytes) / 1e6),
    ]))
}
