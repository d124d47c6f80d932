//! `tproxy set`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde::Serialize;

use super::{
    Usage,
    output::{print_json, print_line, print_lines, table},
    progress::Progress,
};
use crate::{
    instance::{Change, Error, Instance, State, StoredRule},
    requirements,
    set::{Cidr, SetName, load},
};

#[derive(Args)]
#[command(
    after_help = "Rules name a set by set:NAME. Sets of files that rules name by @FILE are listed as @/PATH; \
they are read again when a rule with that word is added or loaded.

Examples:
  tproxy set add blocked 192.0.2.0/24 2001:db8::/32
  tproxy rule add --dst set:blocked --action drop
  tproxy set del blocked 192.0.2.0/24
  tproxy set load blocked blocked.txt"
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the sets
    List,
    /// Show what is in a set, a CIDR a line, as `load` takes it
    Show {
        /// Its name
        name: String,
    },
    /// Add CIDRs to a set; one that is not there is made
    Add(Cidrs),
    /// Take CIDRs out of a set, all or none; `flush` takes out all, `remove` takes the set away
    Del(Cidrs),
    /// Make a set hold what is in a file, and nothing else; one that is not there is made
    Load {
        /// Its name
        name: String,
        /// A CIDR a line, # begins a comment; - is standard input
        file: PathBuf,
    },
    /// Take all CIDRs out of a set: rules that want it take nothing then
    Flush {
        /// Its name
        name: String,
    },
    /// Remove sets that no rule names
    Remove {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Args)]
struct Cidrs {
    /// The set
    name: String,
    /// CIDRs or addresses
    #[arg(required = true, value_name = "CIDR")]
    cidrs: Vec<String>,
}

pub(super) fn execute(
    instance: &Instance,
    arguments: Arguments,
    json: bool,
    quiet: bool,
) -> anyhow::Result<()> {
    match arguments.command {
        Command::List => list(instance, json),
        Command::Show { name } => show(instance, &name, json),
        Command::Add(Cidrs { name, cidrs }) => {
            let (name, nets) = (named(&name)?, parse(&cidrs)?);
            change(instance, |change| change.add_to_set(&name, &nets).map(drop))
        }
        Command::Del(Cidrs { name, cidrs }) => {
            let (name, nets) = (named(&name)?, parse(&cidrs)?);
            change(instance, |change| change.delete_from_set(&name, &nets))
        }
        Command::Load { name, file } => load_file(instance, &named(&name)?, &file, quiet),
        Command::Flush { name } => {
            let name = named(&name)?;
            change(instance, |change| change.flush_set(&name))
        }
        Command::Remove { names } => {
            let names = names
                .iter()
                .map(|name| named(name))
                .collect::<Result<Vec<_>, _>>()?;
            change(instance, |change| {
                names.iter().try_for_each(|name| change.remove_set(name))
            })
        }
    }
}

fn named(name: &str) -> Result<SetName, Usage> {
    SetName::new(name).map_err(Usage)
}

/// All words that make no sense are said at once.
fn parse(words: &[String]) -> Result<Vec<IpNet>, Usage> {
    let (mut nets, mut wrong) = (Vec::new(), Vec::new());
    for word in words {
        match Cidr::parse(word) {
            Some(Cidr { net, masked }) => {
                if masked {
                    log::warn!("\"{word}\" has host bits set: taken as {net}");
                }
                nets.push(net);
            }
            None => wrong.push(format!("\"{word}\" is not a CIDR or an IP address")),
        }
    }
    if wrong.is_empty() {
        Ok(nets)
    } else {
        Err(Usage(wrong.join("; ")))
    }
}

fn change(
    instance: &Instance,
    edit: impl FnOnce(&mut Change) -> Result<(), Error>,
) -> anyhow::Result<()> {
    requirements::check()?;
    let mut change = Change::begin(instance)?;
    edit(&mut change)?;
    change.commit()?;
    Ok(())
}

fn load_file(instance: &Instance, name: &SetName, file: &Path, quiet: bool) -> anyhow::Result<()> {
    let called = if file == Path::new("-") {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    };
    let progress = Progress::start(&format!("reading {called}"), quiet);
    // Before the instance is asked for anything: a mistake is a mistake wherever it is made.
    let reading = load(file, &mut |bytes| progress.bytes(bytes))?;
    if reading.masked.count > 0 {
        log::warn!("{}", reading.masked.of(&called));
    }
    if reading.duplicates > 0 {
        log::debug!("{} CIDRs are there twice", reading.duplicates);
    }
    progress.say("compiling");
    change(instance, |change| {
        change.set_contents(name, reading.list);
        Ok(())
    })
}

/// A set as JSON has it.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a SetName,
    count: usize,
    /// The rules that name it.
    rules: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cidrs: Option<Vec<IpNet>>,
}

fn shown(state: &State) -> Vec<Shown<'_>> {
    state
        .sets
        .iter()
        .map(|set| Shown {
            name: &set.name,
            count: set.cidrs,
            rules: rules_with(state, &set.name),
            cidrs: None,
        })
        .collect()
}

fn rules_with<'a>(state: &'a State, name: &SetName) -> Vec<&'a str> {
    let word = name.to_word();
    let names_it = |words: &[String]| {
        let mut named = words
            .iter()
            .map(|word| word.strip_prefix('!').unwrap_or(word));
        named.any(|named| named == word)
    };
    let rules = state.rules.iter();
    rules
        .filter(|rule| names_it(&rule.spec.src) || names_it(&rule.spec.dst))
        .map(StoredRule::name)
        .collect()
}

fn list(instance: &Instance, json: bool) -> anyhow::Result<()> {
    requirements::check()?;
    let state = instance.state()?;
    let sets = shown(&state);
    if json {
        return print_json(&sets);
    }
    if sets.is_empty() {
        return print_line("no sets");
    }
    let mut table = table(&["NAME", "CIDRS", "RULES"]);
    for set in sets {
        table.add_row([
            set.name.to_string(),
            set.count.to_string(),
            set.rules.join(","),
        ]);
    }
    print_line(&table.to_string())
}

fn show(instance: &Instance, name: &str, json: bool) -> anyhow::Result<()> {
    // Sets of files can be looked at as well.
    let name = match SetName::of_word(name) {
        Some(name) => name.map_err(Usage)?,
        None => named(name)?,
    };
    requirements::check()?;
    let (state, _, sets) = instance.in_force_with_sets(|set| set.name == name)?;
    let set = sets
        .get(&name)
        .ok_or_else(|| Error::NoSuchSet(name.clone()))?;
    let rules = rules_with(&state, &name);
    if json {
        return print_json(&Shown {
            name: &name,
            count: set.len(),
            rules,
            cidrs: Some(set.iter().collect()),
        });
    }
    let used = match rules.as_slice() {
        [] => "no rule".to_owned(),
        rules => rules.join(", "),
    };
    print_line(&format!("# {name}: {} CIDRs, named by {used}", set.len()))?;
    print_lines(set.iter())
}
