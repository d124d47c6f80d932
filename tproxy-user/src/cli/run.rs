//! `tproxy run`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

use super::{Usage, accept, file::read_file, interface_name, refuse_repeated};
use crate::{
    agent::{self, Options},
    config::{AgentSection, Config, Source, flows, idle, mark, seconds, sessions, table},
    instance::Instance,
    rule::RuleSpec,
};

#[derive(Args)]
#[command(after_help = "Examples:
  tproxy run --iface eth1 --dport 80,443
  tproxy run --iface eth1,wg0 --dst '0.0.0.0/0,!10.0.0.0/8' --proto any --dport 53,80,443
  tproxy run --scope local --cgroup /sys/fs/cgroup/user.slice --dport 80,443
  tproxy run --netns pod --scope local --proto any --dport 53,80,443
  tproxy run --config /etc/tproxy.toml       # SIGHUP reads its rules and sets again
  tproxy --instance lab run --iface veth0    # no rules yet: add them with `tproxy rule add`")]
pub(super) struct Arguments {
    /// File with rules, sets and these options; options on the command line come first
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Interfaces to attach to
    #[arg(long, value_name = "IF,...", value_delimiter = ',', value_parser = interface_name)]
    iface: Vec<String>,
    #[command(flatten)]
    rule: RuleSpec,
    #[command(flatten)]
    agent: Agent,
}

#[derive(Args)]
#[command(next_help_heading = "Agent")]
struct Agent {
    /// Mark of packets that are delivered to the agent [default: one that is free]
    #[arg(long, value_name = "N", value_parser = mark)]
    mark: Option<u32>,
    /// Routing table for the local routes [default: one that is free]
    #[arg(long, value_name = "N", value_parser = table)]
    table: Option<u32>,
    /// Port that the agent listens on [default: one that is free]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Attach in a clsact qdisc, although the kernel has tcx
    #[arg(long)]
    clsact: bool,
    /// Worker threads [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: Option<u32>,
    /// How long an upstream connection may take [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    connect_timeout: Option<Duration>,
    /// How long running flows may take to finish at the end [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    drain: Option<Duration>,
    /// Leave programs, maps and rules in the kernel at the end
    #[arg(long)]
    pin: bool,
    /// TCP flows at once of one client, over all workers [default: no limit]
    #[arg(long, value_name = "N", value_parser = flows)]
    flows_per_source: Option<usize>,
    /// How long a UDP session is kept in which nothing passes [default: 120]
    #[arg(long, value_name = "SECONDS", value_parser = idle)]
    udp_idle: Option<Duration>,
    /// The same for sessions to port 53 [default: 20]
    #[arg(long, value_name = "SECONDS", value_parser = idle)]
    dns_idle: Option<Duration>,
    /// UDP sessions at once [default: half of what open files allow]
    #[arg(long, value_name = "N", value_parser = sessions)]
    udp_sessions: Option<usize>,
    /// UDP sessions at once of one client, at each worker [default: 1024]
    #[arg(long, value_name = "N", value_parser = sessions)]
    udp_sessions_per_source: Option<usize>,
}

/// What RFC 4787 (REQ-5) lets clients count on.
const LEAST_UDP_IDLE: Duration = Duration::from_mins(2);

pub(super) fn execute(
    instance: &Instance,
    mut arguments: Arguments,
    namespace: Option<PathBuf>,
    quiet: bool,
) -> anyhow::Result<()> {
    refuse_repeated("--iface", &arguments.iface)?;
    let file = match &arguments.config {
        Some(path) => Some(read_config(path, &arguments.rule, quiet)?),
        None => None,
    };
    let rules = if arguments.rule.is_empty() {
        Vec::new()
    } else {
        accept(&mut arguments.rule)?;
        vec![arguments.rule]
    };
    let section = file.as_ref().map(|(_, config)| config.agent.clone());
    let options = Options {
        namespace,
        ..options(
            arguments.iface,
            rules,
            &arguments.agent,
            section.unwrap_or_default(),
        )
    };
    if options.udp_idle < LEAST_UDP_IDLE {
        log::warn!(
            "--udp-idle: clients may count on 120 s (RFC 4787, REQ-5), and get {} s",
            options.udp_idle.as_secs_f64()
        );
    }
    agent::run(instance, &options, file)
}

/// The file of `--config`. It has all rules: one more from the command line would be gone with the
/// first time that the file is read again.
fn read_config(path: &Path, rule: &RuleSpec, quiet: bool) -> anyhow::Result<(Source, Config)> {
    if !rule.is_empty() {
        let text = "--config: the file has all rules: write the rule of the other flags into it";
        return Err(Usage(text.into()).into());
    }
    let source = Source::of_argument(path);
    if source == Source::StandardInput {
        let text = "--config: a file is wanted that can be read again, not standard input";
        return Err(Usage(text.into()).into());
    }
    let config = read_file(&source, quiet)?;
    Ok((source, config))
}

/// What is on the command line comes before what is in the file.
fn options(
    interfaces: Vec<String>,
    rules: Vec<RuleSpec>,
    agent: &Agent,
    section: AgentSection,
) -> Options {
    let default = Options::default();
    Options {
        interfaces: if interfaces.is_empty() {
            section.interfaces
        } else {
            interfaces
        },
        rules,
        mark: agent.mark.or(section.mark),
        table: agent.table.or(section.table),
        clsact: agent.clsact || section.clsact.unwrap_or(false),
        port: agent.port.or(section.port).unwrap_or(0),
        workers: agent.workers.or(section.workers),
        connect_timeout: agent
            .connect_timeout
            .or(section.connect_timeout)
            .unwrap_or(default.connect_timeout),
        drain: agent.drain.or(section.drain).unwrap_or(default.drain),
        pin: agent.pin || section.pin.unwrap_or(false),
        flows_per_source: agent.flows_per_source.or(section.flows_per_source),
        udp_idle: agent
            .udp_idle
            .or(section.udp_idle)
            .unwrap_or(default.udp_idle),
        dns_idle: agent
            .dns_idle
            .or(section.dns_idle)
            .unwrap_or(default.dns_idle),
        udp_sessions: agent.udp_sessions.or(section.udp_sessions),
        udp_sessions_per_source: agent
            .udp_sessions_per_source
            .or(section.udp_sessions_per_source)
            .unwrap_or(default.udp_sessions_per_source),
        namespace: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Agent {
        Agent {
            mark: None,
            table: None,
            port: None,
            clsact: false,
            workers: None,
            connect_timeout: None,
            drain: None,
            pin: false,
            flows_per_source: None,
            udp_idle: None,
            dns_idle: None,
            udp_sessions: None,
            udp_sessions_per_source: None,
        }
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_defaults() {
        let section = AgentSection {
            interfaces: vec!["eth0".into()],
            mark: Some(1),
            port: Some(80),
            flows_per_source: Some(20),
            clsact: Some(true),
            drain: Some(Duration::ZERO),
            ..AgentSection::default()
        };
        let flags = Agent {
            mark: Some(2),
            workers: Some(3),
            flows_per_source: Some(10),
            pin: true,
            ..agent()
        };
        let merged = options(vec!["eth1".into()], Vec::new(), &flags, section.clone());
        assert_eq!(merged.interfaces, ["eth1"]);
        assert_eq!(
            (merged.mark, merged.port, merged.workers),
            (Some(2), 80, Some(3))
        );
        assert!(merged.clsact && merged.pin);
        assert_eq!(merged.flows_per_source, Some(10));
        assert_eq!(merged.drain, Duration::ZERO);
        assert_eq!(merged.connect_timeout, Duration::from_secs(10));
        let of_file = options(Vec::new(), Vec::new(), &agent(), section);
        assert_eq!(
            (of_file.interfaces, of_file.mark),
            (vec!["eth0".to_owned()], Some(1))
        );
        assert_eq!(of_file.flows_per_source, Some(20));
        let nothing = options(Vec::new(), Vec::new(), &agent(), AgentSection::default());
        assert_eq!((nothing.port, nothing.drain), (0, Duration::from_secs(10)));
        assert!(!nothing.pin && !nothing.clsact);
        assert_eq!(nothing.flows_per_source, None);
    }
}
