//! What it takes to be there.

use std::fs;

use anyhow::{Context as _, Result};

use crate::bench::{
    peer::{Capture, Peer},
    quantity::Quantity,
    setting::Setting,
    testbed::Testbed,
};

use super::{Values, short::count};

pub(super) fn measure(setting: &Setting, peer: Peer) -> Result<Values> {
    let testbed = Testbed::new(setting, peer, Capture::Tcp)?;
    let resident = testbed.footprint()?.resident;
    let program = peer.program(setting);
    let program = program.with_context(|| format!("{} has no program", peer.name()))?;
    let file =
        fs::metadata(&program).with_context(|| format!("cannot look at {}", program.display()))?;
    let mut values = Values::from([
        (Quantity::Resident, resident / 1e6),
        (Quantity::ProgramSize, count(file.len()) / 1e6),
    ]);
    let ready_after = testbed.running.ready_after;
    values.extend(ready_after.map(|time| (Quantity::ReadyAfter, time.as_secs_f64() * 1e3)));
    Ok(values)
}
