//! Everything that an instance may leave behind, as text, to be compared before and after.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    Namespace,
    bpf::{self, Hook},
};

/// Where instances keep pins and files.
const STATE_ROOTS: [&str; 2] = ["/sys/fs/bpf/tproxy", "/run/tproxy"];

/// The state of a namespace's network and of one instance's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<String, String>,
}

impl Snapshot {
    /// Takes the snapshot: policy rules, routes of all tables, links, queueing disciplines, filters and attached
    /// programs of `namespace`; pins and files of `instance`.
    #[must_use]
    #[track_caller]
    pub fn of(namespace: &Namespace, instance: &str) -> Self {
        let mut sections = BTreeMap::new();
        for command in [
            "ip -4 rule",
            "ip -6 rule",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "ip -details link",
            "tc qdisc",
            "nft list ruleset",
        ] {
            sections.insert(command.to_owned(), namespace.output(command));
        }
        for interface in interfaces(namespace) {
            for (what, hook) in [
                ("tcx ingress", Hook::TcxIngress(&interface)),
                ("tcx egress", Hook::TcxEgress(&interface)),
            ] {
                sections.insert(format!("{what} {interface}"), programs(namespace, hook));
            }
            for side in ["ingress", "egress"] {
                let command = format!("tc filter show dev {interface} {side}");
                let filters = namespace.output(&command);
                sections.insert(command, filters);
            }
        }
        sections.insert("sk_lookup".to_owned(), programs(namespace, Hook::SkLookup));
        for root in STATE_ROOTS {
            sections.insert(root.to_owned(), files(Path::new(root), instance));
        }
        Self { sections }
    }

    /// The same without the instance's files, of which each generation has others.
    #[must_use]
    pub fn without_files(mut self) -> Self {
        for root in STATE_ROOTS {
            self.sections.remove(root);
        }
        self
    }

    /// Checks that nothing differs from what it was at `before`.
    #[track_caller]
    pub fn assert_same_as(&self, before: &Self) {
        let mut difference = String::new();
        let names: std::collections::BTreeSet<_> =
            self.sections.keys().chain(before.sections.keys()).collect();
        for name in names {
            let (was, is) = (before.sections.get(name), self.sections.get(name));
            if was != is {
                let (was, is) = (
                    was.map_or("", String::as_str),
                    is.map_or("", String::as_str),
                );
                let _ = writeln!(difference, "{name}\n  was:\n{was}\n  is:\n{is}");
            }
        }
        assert!(
            difference.is_empty(),
            "something was left or changed:\n{difference}"
        );
    }
}

/// The names of the interfaces of a namespace.
#[must_use]
#[track_caller]
pub fn interfaces(namespace: &Namespace) -> Vec<String> {
    let table = namespace.proc_net("dev");
    table
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect()
}

/// The files below `root` that belong to `instance`: a line each with type, mode, owner and path.
#[must_use]
pub fn files(root: &Path, instance: &str) -> String {
    let mut listing = String::new();
    let Ok(entries) = fs::read_dir(root) else {
        return listing;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // `test-1-1` is no part of `test-1-12`.
        let mut rests = name.split(instance).skip(1);
        if rests.any(|rest| !rest.starts_with(|next: char| next.is_ascii_digit())) {
            list_tree(&entry.path(), &mut listing);
        }
    }
    listing
}

/// The files in a directory and in all directories below it, sorted.
#[must_use]
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut pins = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            pins.extend(files_below(&entry.path()));
        } else {
            pins.push(entry.path());
        }
    }
    pins.sort();
    pins
}

fn list_tree(path: &Path, listing: &mut String) {
    // What vanishes between the two calls is not there.
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return;
    };
    let _ = writeln!(
        listing,
        "{:o} {} {}",
        metadata.mode(),
        metadata.uid(),
        path.display()
    );
    let Ok(entries) = fs::read_dir(path) else {
        return;
    };
    let mut children: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    children.sort();
    for child in children {
        list_tree(&child, listing);
    }
}

#[track_caller]
fn programs(namespace: &Namespace, hook: Hook) -> String {
    let ids =
        bpf::attached(namespace, hook).unwrap_or_else(|error| panic!("query {hook:?}: {error}"));
    format!("{ids:?}")
}
