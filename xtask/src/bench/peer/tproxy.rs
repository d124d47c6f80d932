//! tproxy itself, whole or in parts.

use std::process::Command;

use anyhow::Result;

use crate::{
    agent::{Agent, Settings},
    bench::setting::Setting,
    command,
    topology::{CLIENT_SIDE, Topology},
};

use super::{BULK_PORT, Capture, Running, SHORT_PORT, Source, UDP_PORT, timed};

const INSTANCE: &str = "bench";

/// Where the agent listens when nft leads to it.
pub(super) const RELAY_PORT: &str = "3130";

/// A port that no load uses.
const UNUSED_PORT: &str = "9";

pub(super) fn start(topology: &Topology, setting: &Setting, capture: Capture) -> Result<Running> {
    let ports = format!("{SHORT_PORT},{BULK_PORT}");
    match capture {
        Capture::Tcp => {
            let mut flags = vec!["--iface", CLIENT_SIDE, "--dport", &ports];
            if setting.source == Source::Client {
                flags.extend(["--source", "client"]);
            }
            run(topology, setting, &flags)
        }
        Capture::TcpTo(cidrs) => {
            let mut running = run(topology, setting, &["--iface", CLIENT_SIDE])?;
            let file = cidrs.display().to_string();
            let ask = |arguments: &[&str]| match &running.agent {
                Some(agent) => agent.ask(&topology.gateway, arguments),
                None => Ok(String::new()),
            };
            // A set that no rule names is not in force.
            let (_, loaded_in) = timed(|| {
                ask(&["set", "load", "cidrs", &file])?;
                ask(&["rule", "add", "--dport", &ports, "--dst", "set:cidrs"])
            })?;
            running.loaded_in = Some(loaded_in);
            Ok(running)
        }
        Capture::Udp => {
            let flags = [
                "--iface",
                CLIENT_SIDE,
                "--proto",
                "udp",
                "--dport",
                UDP_PORT,
            ];
            run(topology, setting, &flags)
        }
        Capture::OtherLocalFlows => {
            let flags = ["--scope", "local", "--dport", UNUSED_PORT];
            run(topology, setting, &flags)
        }
    }
}

/// The same relay without our steering: the agent attaches to nothing, and its sk_lookup program, which
/// refuses what comes to the agent's own port, is detached.
pub(super) fn start_relay_only(topology: &Topology, setting: &Setting) -> Result<Running> {
    let running = run(topology, setting, &["--port", RELAY_PORT])?;
    let link = format!("/sys/fs/bpf/tproxy/{INSTANCE}/link-lookup");
    command::quietly(Command::new("bpftool").args(["link", "detach", "pinned", &link]))?;
    Ok(running)
}

/// Our steering alone: flows go to whoever listens on `port`.
pub(super) fn start_redirect(
    topology: &Topology,
    setting: &Setting,
    port: &str,
) -> Result<Running> {
    let ports = format!("{SHORT_PORT},{BULK_PORT}");
    let target = format!("0.0.0.0:{port}");
    let flags = [
        "--iface",
        CLIENT_SIDE,
        "--dport",
        &ports,
        "--action",
        "redirect",
        "--to",
        &target,
    ];
    run(topology, setting, &flags)
}

fn run(topology: &Topology, setting: &Setting, flags: &[&str]) -> Result<Running> {
    let settings = Settings {
        binary: &setting.binary,
        instance: INSTANCE,
        flags,
        // The others log no connections here either.
        log: "warn",
    };
    let agent = Agent::start(&topology.gateway, &settings)?;
    Ok(Running {
        ready_after: Some(agent.ready_after),
        agent: Some(agent),
        ..Running::default()
    })
}
