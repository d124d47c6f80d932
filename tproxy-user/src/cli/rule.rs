//! `tproxy rule`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tproxy_common::limits::RULES;

use super::{accept, file, interface_name, listing, output::print_line, rule_name};
use crate::{
    config::Source,
    instance::{Change, Error, Instance},
    requirements,
    rule::RuleSpec,
};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a rule, at the end unless told otherwise
    #[command(after_help = "Examples:
  tproxy rule add --dport 80,443
  tproxy rule add --name internal --dst 10.0.0.0/8,fd00::/8 --action pass --at 1
  tproxy rule add --src '192.0.2.0/24,!192.0.2.1' --dport 25 --action drop --before web")]
    Add(Box<Add>),
    /// List the rules in their order
    List,
    /// Show one rule
    Show {
        /// Its name
        #[arg(value_parser = rule_name)]
        name: String,
    },
    /// Delete rules
    Del {
        /// Their names
        #[arg(required = true, value_parser = rule_name)]
        names: Vec<String>,
    },
    /// Delete all rules
    Flush,
    /// Replace all rules and sets by those of a file, in one step
    #[command(after_help = FILE_HELP)]
    Load {
        /// TOML file with [[rule]] and [set.NAME]; - is standard input
        file: PathBuf,
    },
    /// Say whether a file would load, and all that is wrong in it; touch nothing
    #[command(after_help = FILE_HELP)]
    Check {
        /// TOML file with [[rule]] and [set.NAME]; - is standard input
        file: PathBuf,
    },
}

const FILE_HELP: &str = "A file:
  [set.internal]
  cidrs = [\"10.0.0.0/8\", \"fd00::/8\"]

  [[rule]]
  name = \"internal\"
  dst = [\"set:internal\"]
  action = \"pass\"

  [[rule]]
  name = \"web\"
  dport = [80, 443, \"8000-8999\"]";

#[derive(Args)]
struct Add {
    #[command(flatten)]
    rule: RuleSpec,
    /// Interfaces that it holds for [default: all attached]
    #[arg(long, value_name = "IF,...", value_delimiter = ',', value_parser = interface_name, help_heading = "Rule")]
    iface: Vec<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
#[group(multiple = false)]
struct Place {
    /// Make it the N-th rule, from 1
    #[arg(long, value_name = "N", value_parser = place, help_heading = "Place")]
    at: Option<usize>,
    /// Put it before this rule
    #[arg(long, value_name = "NAME", value_parser = rule_name, help_heading = "Place")]
    before: Option<String>,
    /// Put it after this rule
    #[arg(long, value_name = "NAME", value_parser = rule_name, help_heading = "Place")]
    after: Option<String>,
}

/// A place in a list of rules, from 1.
fn place(word: &str) -> Result<usize, String> {
    match word.parse() {
        Ok(place @ 1..=RULES) => Ok(place),
        _ => Err(format!("not a place from 1 to {RULES}")),
    }
}

pub(super) fn execute(
    instance: &Instance,
    arguments: Arguments,
    json: bool,
    quiet: bool,
) -> anyhow::Result<()> {
    match arguments.command {
        Command::Add(arguments) => add(instance, *arguments),
        Command::List => listing::list(instance, json),
        Command::Show { name } => listing::show(instance, &name, json),
        Command::Del { names } => {
            requirements::check()?;
            let mut change = Change::begin(instance)?;
            change.delete_rules(&names).map_err(Error::from)?;
            change.commit()?;
            Ok(())
        }
        Command::Flush => {
            requirements::check()?;
            let mut change = Change::begin(instance)?;
            if change.flush_rules() > 0 {
                change.commit()?;
            }
            Ok(())
        }
        Command::Load { file } => file::load(instance, &Source::of_argument(&file), quiet),
        Command::Check { file } => file::check(instance, &Source::of_argument(&file), quiet),
    }
}

fn add(instance: &Instance, arguments: Add) -> anyhow::Result<()> {
    let Add {
        mut rule,
        iface,
        place,
    } = arguments;
    rule.iface = iface;
    // Before the instance is asked for anything: a mistake is a mistake wherever it is made.
    accept(&mut rule)?;
    requirements::check()?;
    let mut change = Change::begin(instance)?;
    let rules = change.state().rules.len();
    let place = match (place.at, place.before, place.after) {
        (Some(at), _, _) if at > rules + 1 => {
            anyhow::bail!(
                "--at: {at} is behind the end: {} would be the last",
                rules + 1
            );
        }
        (Some(at), _, _) => at - 1,
        (_, Some(name), _) => change.place_of(&name).map_err(Error::from)?,
        (_, _, Some(name)) => change.place_of(&name).map_err(Error::from)? + 1,
        _ => rules,
    };
    let made_up = rule.name.is_none();
    let name = change.add_rule(rule, place)?;
    change.commit()?;
    file::warn_of_idle_rules(instance, Some(&name))?;
    if made_up {
        print_line(&name)?;
    }
    Ok(())
}
