//! `cargo xtask run`: a transparent proxy at work, in three network namespaces on this host.

mod fetch;
mod story;

use std::{
    env,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    agent::{Agent, Settings},
    build, command, interrupt,
    privilege::Privilege,
    topology::{CLIENT_SIDE, GATEWAY_V4, GATEWAY_V6, Lock, SERVER_V4, SERVER_V6, Topology},
    web_server,
};

use self::fetch::Fetch;

const NAME: &str = "tproxy";
const INSTANCE: &str = "lab";
const PORTS: &str = "80,443,8080";
/// How long after the end of a flow the agent may take to log it.
const LOG_DELAY: Duration = Duration::from_secs(5);

/// Builds as this user, then shows the lab as root.
///
/// # Errors
///
/// When the build fails, root is out of reach, or the lab fails.
pub(crate) fn build_and_show(once: bool, verbose: bool) -> Result<()> {
    build::build()?;
    let privilege = Privilege::required_for("the lab (network namespaces, eBPF)")?;
    if privilege == Privilege::Root {
        return show(once);
    }
    let own = env::current_exe().context("cannot find this program")?;
    let mut lab = privilege.reenter(own);
    lab.arg("lab")
        .args(once.then_some("--once"))
        .args(verbose.then_some("--verbose"));
    command::run(&mut lab)
}

/// Builds the lab, fetches pages through it, says what happened, and unless it is for `once` stays
/// until it is interrupted.
///
/// # Errors
///
/// When a part does not start, or a fetch did not go through the agent.
pub(crate) fn show(once: bool) -> Result<()> {
    interrupt::catch()?;
    let out = &mut io::stdout();
    let lock = Lock::take("tproxy-lab")?;
    let topology = Topology::create(NAME, &lock)?;
    topology.forbid_forwarding()?;
    web_server::start(&topology.server, &topology.directory)?;
    interrupt::check()?;
    story::print_picture(out)?;

    let binary = command::target_directory().join("release").join("tproxy");
    let settings = Settings {
        binary: &binary,
        instance: INSTANCE,
        interface: CLIENT_SIDE,
        ports: PORTS,
        log: "info",
    };
    story::print_agent_command(out, &settings)?;
    let agent = Agent::start(&topology.gateway, &settings)?;
    story::print_ready(out, &agent)?;

    let mut fetches = fetch_all(&topology)?;
    find_flow_lines(&agent, &mut fetches)?;
    story::print_fetches(out, &fetches)?;
    story::print_rules(out, &agent.ask(&topology.gateway, &["rule", "list"])?)?;
    let verdict = judge(&topology, &agent, &fetches);
    story::print_verdict(out, verdict.as_ref())?;
    if once || verdict.is_err() {
        return verdict;
    }
    story::print_what_to_try(out, &binary)?;
    let ended = stay(&agent);
    let _ = writeln!(io::stdout(), "\nTaking the lab down.");
    ended
}

fn fetch_all(topology: &Topology) -> Result<Vec<Fetch>> {
    let v6 = |scheme: &str, port: &str| format!("{scheme}://[{SERVER_V6}]{port}/");
    let v4 = |scheme: &str, port: &str| format!("{scheme}://{SERVER_V4}{port}/");
    [
        (v4("http", ""), GATEWAY_V4),
        (v6("http", ""), GATEWAY_V6),
        (v4("http", ":8080"), GATEWAY_V4),
        (v6("https", ""), GATEWAY_V6),
    ]
    .into_iter()
    .map(|(url, gateway)| {
        interrupt::check()?;
        Fetch::perform(&topology.client, &url, gateway)
    })
    .collect()
}

/// Gives each fetch the line that the agent logs when its flow has ended.
fn find_flow_lines(agent: &Agent, fetches: &mut [Fetch]) -> Result<()> {
    let deadline = Instant::now() + LOG_DELAY;
    while fetches.iter().any(|fetch| fetch.flow_line.is_none()) {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(line) = agent.next_line(left)? else {
            return Ok(());
        };
        for fetch in fetches
            .iter_mut()
            .filter(|fetch| line.contains(&fetch.flow()))
        {
            fetch.flow_line = Some(fetch.part_of_interest(&line));
        }
    }
    Ok(())
}

/// Whether every fetch went through the agent, by four witnesses that know nothing of each other.
fn judge(topology: &Topology, agent: &Agent, fetches: &[Fetch]) -> Result<()> {
    for fetch in fetches {
        fetch.judge()?;
    }
    let rules = agent.ask(&topology.gateway, &["rule", "list", "--json"])?;
    let rules: Value = serde_json::from_str(&rules).context("`rule list --json` is not JSON")?;
    let flows = rules[0]["flows"]
        .as_u64()
        .context("`rule list --json` has no flows")?;
    if flows != fetches.len() as u64 {
        bail!(
            "the rule counted {flows} flows, the client opened {}",
            fetches.len()
        );
    }
    let dropped = topology.packets_not_forwarded()?;
    if dropped > 0 {
        bail!("{dropped} packets passed the agent by and were dropped by the forward chain");
    }
    Ok(())
}

/// Shows the flows that people make until they have enough.
fn stay(agent: &Agent) -> Result<()> {
    while !interrupt::arrived() {
        if let Some(line) = agent.next_line(Duration::from_millis(100))? {
            writeln!(io::stdout(), "    {line}").context("cannot write to the terminal")?;
        }
    }
    Ok(())
}
