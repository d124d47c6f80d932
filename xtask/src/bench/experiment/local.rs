//! What this host's own connections pay for rules of scope local when no rule matches them.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{
    bench::{
        load::LatencySummary,
        peer::{Capture, Peer},
        quantity::Quantity,
        setting::Setting,
        testbed::{Testbed, short_address},
    },
    command,
};

use super::Values;

pub(super) fn measure(setting: &Setting, peer: Peer) -> Result<Values> {
    let others = Programs::of_this_machine()?;
    let testbed = Testbed::new(setting, peer, Capture::OtherLocalFlows)?;
    let address = short_address();
    let _server = testbed.server(&["echo-server", "--listen", &address])?;
    let connections: u32 = if setting.quick { 5_000 } else { 20_000 };
    let connections = connections.to_string();
    let client = [
        "connect-client",
        "--connect",
        &address,
        "--connections",
        &connections,
    ];
    let connect: LatencySummary = testbed.local_client(&client)?;
    let mut values = Values::from([
        (Quantity::ConnectP50, connect.p50),
        (Quantity::ConnectP99, connect.p99),
    ]);
    if peer != Peer::Direct {
        values.extend(hooks(&testbed, &client, &others)?);
    }
    Ok(values)
}

/// The kernel's own account of the time in our programs, in a run of its own, since accounting takes time.
fn hooks(testbed: &Testbed, client: &[&str], others: &Programs) -> Result<Values> {
    let statistics = Statistics::enable()?;
    let before = Programs::of_this_machine()?;
    let connect: LatencySummary = testbed.local_client(client)?;
    let after = Programs::of_this_machine()?;
    drop(statistics);
    let spent = after.since(&before, others);
    ensure!(
        !spent.is_empty(),
        "no kernel program of tproxy has run for this host's own connections"
    );
    let (mut hook, mut all) = (0.0_f64, 0.0_f64);
    for program in spent {
        #[expect(
            clippy::cast_precision_loss,
            reason = "nanoseconds of a few seconds are far below 2^52"
        )]
        let (time, runs) = (program.run_time_ns as f64, program.run_cnt as f64);
        all += time;
        if program.kind == "cgroup_sock_addr" {
            hook = hook.max(time / runs);
        }
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a few thousand connections are far below 2^52"
    )]
    let connections = connect.count as f64;
    Ok(Values::from([
        (Quantity::ConnectHook, hook),
        (Quantity::HooksPerConnect, all / connections),
    ]))
}

/// Kernel programs by id, as bpftool lists them.
struct Programs(BTreeMap<u32, Program>);

#[derive(Debug, Clone, Deserialize)]
struct Program {
    id: u32,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    run_time_ns: u64,
    #[serde(default)]
    run_cnt: u64,
}

impl Programs {
    fn of_this_machine() -> Result<Self> {
        let listing = command::quietly(Command::new("bpftool").args(["--json", "prog", "show"]))?;
        let programs: Vec<Program> =
            serde_json::from_str(&listing).context("bpftool prints something else")?;
        Ok(Self(
            programs
                .into_iter()
                .map(|program| (program.id, program))
                .collect(),
        ))
    }

    /// What programs did that are not among `others`.
    fn since(&self, earlier: &Self, others: &Self) -> Vec<Program> {
        let ours = self
            .0
            .values()
            .filter(|program| !others.0.contains_key(&program.id));
        ours.filter_map(|program| {
            let before = earlier.0.get(&program.id)?;
            let runs = program.run_cnt - before.run_cnt;
            (runs > 0).then(|| Program {
                run_time_ns: program.run_time_ns - before.run_time_ns,
                run_cnt: runs,
                ..program.clone()
            })
        })
        .collect()
    }
}

/// The kernel keeps accounts for as long as this is there.
struct Statistics;

impl Statistics {
    fn enable() -> Result<Self> {
        set_statistics("1").map(|()| Self)
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = set_statistics("0");
    }
}

fn set_statistics(value: &str) -> Result<()> {
    let setting = format!("kernel.bpf_stats_enabled={value}");
    command::quietly(Command::new("sysctl").args(["-q", "-w", &setting])).map(drop)
}
