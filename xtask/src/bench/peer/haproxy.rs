//! HAProxy as a transparent relay that splices.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{command, topology::Topology};

use super::{Running, Source, timed};

/// Where it listens.
pub(super) const PORT: &str = "3129";

const CONFIGURATION: &str = "
global
  maxconn 9800
  nbthread 2
  maxpipes 128
defaults
  mode tcp
  timeout connect 5s
  timeout client 120s
  timeout server 120s
  option splice-auto
  option splice-request
  option splice-response
listen tp
  bind 0.0.0.0:PORT transparent
  SOURCE
  server orig 0.0.0.0:0
";

/// Returns when it listens.
pub(super) fn start(topology: &Topology, source: Source) -> Result<Running> {
    let path = topology.directory.join("haproxy.cfg");
    let source = match source {
        Source::Agent => "",
        Source::Client => "source 0.0.0.0 usesrc clientip",
    };
    let text = CONFIGURATION
        .replace("PORT", PORT)
        .replace("SOURCE", source);
    fs::write(&path, text).context("cannot write haproxy.cfg")?;
    // As a daemon it returns when it listens.
    let mut haproxy = topology.gateway.command("haproxy");
    haproxy.args(["-D", "-q", "-f"]).arg(path);
    let (_, ready_after) = timed(|| command::quietly(&mut haproxy))?;
    Ok(Running {
        ready_after: Some(ready_after),
        ..Running::default()
    })
}
