//! The command line: what was typed becomes what is valid, and everything past here is sure of it.

mod attach;
mod exec;
mod explain;
mod file;
mod listing;
mod logging;
mod output;
mod progress;
mod reference;
mod rule;
mod run;
mod set;
mod status;
mod unload;

use std::{collections::HashSet, io, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{
    ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind,
};
use log::LevelFilter;
use logging::Log;

use crate::{
    agent::CannotRun,
    config::Problems,
    instance::{self, AgentLock, Change, Instance, State, enter_namespace},
    rule::{RuleSpec, valid_name},
    set::{LoadError, ReadError, absolute_word},
};

/// Transparent redirector for TCP and UDP, steered by eBPF: no iptables, no nftables.
#[derive(Parser)]
#[command(
    name = "tproxy",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = "Examples:
  tproxy run --iface eth1 --dport 80,443
  tproxy rule add --name internal --dst 10.0.0.0/8 --action pass --at 1
  tproxy exec --dport 80,443 -- curl https://example.com
  tproxy rule list
  tproxy status --json")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// Which instance
    #[arg(long, global = true, value_name = "NAME", default_value = DEFAULT_INSTANCE)]
    instance: String,
    /// Network namespace, by path or by the name that `ip netns` knows
    #[arg(long, global = true, value_name = "PATH|NAME")]
    netns: Option<PathBuf>,
    /// Print state as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Log warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent in the foreground
    Run(Box<run::Arguments>),
    /// Attach interfaces to a running or pinned instance
    Attach(attach::Arguments),
    /// Detach interfaces from a running or pinned instance
    Detach(attach::Arguments),
    /// List and change rules
    Rule(rule::Arguments),
    /// List and change sets of CIDRs
    Set(set::Arguments),
    /// Say which rule takes a flow, and why
    Explain(explain::Arguments),
    /// Run one command with a rule about its own flows
    Exec(Box<exec::Arguments>),
    /// Show the instance: agent, interfaces, flows, counters
    Status,
    /// Take everything of this instance out of the kernel
    Unload,
    /// Print the completions of a shell
    Completions(reference::Completions),
    /// Write manual pages, one for each command
    Man(reference::Man),
}

const DEFAULT_INSTANCE: &str = "default";

/// A mistake on the command line: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return explain(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let log = Log::start(level(&cli));
    let result = execute(cli);
    log.flush();
    match result {
        Ok(code) => code.into(),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            for line in lines(&error) {
                eprintln!("tproxy: {line}");
            }
            match error.downcast_ref::<CannotRun>() {
                Some(cannot) => cannot.code().into(),
                None => ExitCode::from(if is_usage(&error) { 2 } else { 1 }),
            }
        }
    }
}

/// Executes a command, and says what to exit with: 0, or what the command of `exec` exited with.
fn execute(cli: Cli) -> anyhow::Result<u8> {
    // Whatever this process creates is for its user alone.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let instance = match &cli.command {
        Command::Exec(_) if cli.global.instance == DEFAULT_INSTANCE => exec::own_instance()?,
        _ => Instance::new(&cli.global.instance)?,
    };
    let namespace = cli.global.netns.as_deref().map(namespace_path);
    if let Some(path) = &namespace {
        enter_namespace(path).map_err(|error| {
            anyhow::anyhow!(
                "cannot enter the network namespace {}: {error}; `ip netns list` shows those with a name",
                path.display()
            )
        })?;
    }
    let (json, quiet) = (cli.global.json, cli.global.quiet);
    match cli.command {
        Command::Exec(arguments) => return exec::execute(&instance, *arguments, namespace),
        Command::Run(arguments) => run::execute(&instance, *arguments, namespace, quiet),
        Command::Attach(arguments) => attach::attach(&instance, &arguments),
        Command::Detach(arguments) => attach::detach(&instance, &arguments),
        Command::Rule(arguments) => rule::execute(&instance, arguments, json, quiet),
        Command::Set(arguments) => set::execute(&instance, arguments, json, quiet),
        Command::Explain(arguments) => explain::execute(&instance, &arguments, json),
        Command::Status => status::execute(&instance, json),
        Command::Unload => unload::execute(&instance),
        Command::Completions(arguments) => reference::completions(&arguments, &mut Cli::command()),
        Command::Man(arguments) => reference::man(&arguments, Cli::command()),
    }?;
    Ok(0)
}

/// A name without a slash is one that `ip netns` keeps (ip-netns(8)).
fn namespace_path(namespace: &std::path::Path) -> PathBuf {
    if namespace.components().count() > 1 || namespace.is_absolute() {
        namespace.into()
    } else {
        std::path::Path::new("/run/netns").join(namespace)
    }
}

fn level(cli: &Cli) -> LevelFilter {
    // Standard error is the command's own.
    let least = u8::from(!matches!(cli.command, Command::Exec(_)));
    match (cli.global.quiet, least + cli.global.verbose) {
        (true, _) | (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, 2) => LevelFilter::Debug,
        (false, _) => LevelFilter::Trace,
    }
}

/// clap's explanation in one line, but help and version as they are.
fn explain(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            let text = error.to_string();
            let explained: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
                .filter(|line| !line.is_empty())
                .collect();
            let explained = explained.join("; ");
            eprintln!("tproxy: {}", explained.trim_start_matches("error: "));
            ExitCode::from(2)
        }
    }
}

/// Whether what was typed makes no sense on any machine, or a file that it names is missing, cannot be
/// read or has mistakes. What an instance or a machine lacks at the moment is another matter.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<Usage>()
        || error.is::<Problems>()
        || load_error(error).is_some()
        || matches!(
            error.downcast_ref(),
            Some(instance::Error::Rule(_) | instance::Error::Name(_))
        )
}

/// The error in one line; all that is wrong in a file, in one line each.
fn lines(error: &anyhow::Error) -> Vec<String> {
    if let Some(LoadError::Content(ReadError::Lines { name, lines })) = load_error(error) {
        return lines.each(name);
    }
    let problems = match error.downcast_ref() {
        Some(instance::Error::Unattached(problems)) => Some(problems),
        _ => error.downcast_ref::<Problems>(),
    };
    match problems {
        Some(problems) => problems.iter().map(ToString::to_string).collect(),
        None => vec![one_line(error)],
    }
}

/// What is wrong with a list of CIDRs, if it is that.
fn load_error(error: &anyhow::Error) -> Option<&LoadError> {
    match error.downcast_ref() {
        Some(instance::Error::Load(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

/// The error and its causes, each said once.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let more = cause.to_string();
        if text.is_empty() {
            text = more;
        } else if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
    }
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Whoever reads our output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Begins a change, in the network namespace of the instance.
fn begin_there(instance: &Instance) -> anyhow::Result<Change> {
    let change = Change::begin(instance)?;
    go_there(instance, change.state())?;
    Ok(change)
}

/// Moves this thread into the network namespace of the instance.
fn go_there(instance: &Instance, state: &State) -> anyhow::Result<()> {
    let agent = AgentLock::holder(instance).and_then(|agent| agent.process());
    if !state.namespace.enter(agent)? {
        return Err(instance::Error::Namespace(instance.name().to_owned()).into());
    }
    Ok(())
}

/// Runs what speaks to netlink, on this thread.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

/// Takes a rule as it was typed, or refuses it. Files that it names are seen from the working
/// directory, and users by their ids, now and ever after.
fn accept(rule: &mut RuleSpec) -> anyhow::Result<()> {
    rule.resolve_users();
    rule.check().map_err(instance::Error::from)?;
    for word in rule.src.iter_mut().chain(&mut rule.dst) {
        let absolute = absolute_word(word, std::path::Path::new(""));
        if let Some(absolute) = absolute.context("cannot find the working directory")? {
            *word = absolute;
        }
    }
    for masked in rule.mask_host_bits() {
        log::warn!("{}", masked.text);
    }
    Ok(())
}

/// Refuses a list of interfaces that names one twice.
fn refuse_repeated(place: &str, names: &[String]) -> Result<(), Usage> {
    let mut seen = HashSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(Usage(format!("{place}: {name} is named twice"))),
        None => Ok(()),
    }
}

/// The name of a rule that is to be there already.
fn rule_name(word: &str) -> Result<String, String> {
    if valid_name(word) {
        Ok(word.to_owned())
    } else {
        Err("not the name of a rule".to_owned())
    }
}

/// One name of an interface; clap has split lists of them.
fn interface_name(word: &str) -> Result<String, String> {
    if crate::delivery::valid_interface_name(word) {
        Ok(word.to_owned())
    } else {
        Err("not an interface name".to_owned())
    }
}
