//! New flows while the rules name one CIDR, and while they name a million.

use std::{fmt::Write as _, fs, net::Ipv4Addr, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    bench::{
        peer::{Capture, Peer},
        quantity::Quantity,
        report,
        setting::Setting,
        testbed::{Testbed, short_address, threads},
    },
    topology::SERVER_V4,
};

use super::{Values, short};

const MILLION: u32 = 1_000_000;

pub(super) fn measure(setting: &Setting, peer: Peer) -> Result<Values> {
    let (one, _) = with(setting, peer, 1)?;
    let (million, loaded_in) = with(setting, peer, MILLION)?;
    let mut values = Values::from([
        (Quantity::ConnectionsOneCidr, one),
        (Quantity::ConnectionsMillionCidrs, million),
        (Quantity::MillionToOne, million / one),
    ]);
    values.extend(loaded_in.map(|seconds| (Quantity::MillionLoadedIn, seconds)));
    Ok(values)
}

/// Connections a second, and the seconds that it took to load the CIDRs.
fn with(setting: &Setting, peer: Peer, cidrs: u32) -> Result<(f64, Option<f64>)> {
    let file = file(cidrs)?;
    let testbed = Testbed::new(setting, peer, Capture::TcpTo(&file))?;
    let address = short_address();
    let _server = testbed.server(&[
        "short-server",
        "--listen",
        &address,
        "--threads",
        &threads(),
    ])?;
    let outcome = short::connect(&testbed, setting, 32)?;
    let loaded_in = testbed.running.loaded_in.map(|time| time.as_secs_f64());
    Ok((short::rate(&outcome), loaded_in))
}

/// Networks of 256 addresses, all different, with the server's address among them.
fn file(cidrs: u32) -> Result<PathBuf> {
    // Multiplication by an odd number permutes the numbers of a width.
    const ODD: u32 = 0x9e37_79b9;
    let mut text = format!("{SERVER_V4}/32\n");
    for number in 1..cidrs {
        let [_, a, b, c] = number.wrapping_mul(ODD).to_be_bytes();
        let _ = writeln!(text, "{}/24", Ipv4Addr::new(a, b, c, 0));
    }
    let path = report::directory().join(format!("cidrs-{cidrs}.txt"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
