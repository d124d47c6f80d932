//! A control group of the unified hierarchy, for processes of a test.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tempfile::TempDir;

use crate::{Namespace, wait};

/// A control group. It is removed when it goes out of scope, once its processes are gone.
#[derive(Debug)]
pub struct ControlGroup {
    directory: PathBuf,
    scripts: TempDir,
}

static CREATED: AtomicU32 = AtomicU32::new(0);

impl ControlGroup {
    /// Makes one below the root.
    #[must_use]
    #[track_caller]
    pub fn create() -> Self {
        Self::named(&unique_name())
    }

    /// Makes one of this name below the root: a [`unique_name`], or any on a machine of a test's own.
    #[must_use]
    #[track_caller]
    pub fn named(name: &str) -> Self {
        Self::at(root().join(name))
    }

    /// Makes one in this one.
    #[must_use]
    #[track_caller]
    pub fn child(&self, name: &str) -> Self {
        Self::at(self.directory.join(name))
    }

    fn at(directory: PathBuf) -> Self {
        fs::create_dir(&directory).unwrap_or_else(|error| {
            panic!("make the control group {}: {error}", directory.display())
        });
        let scripts = TempDir::new().expect("make a directory");
        Self { directory, scripts }
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its path from the root of all groups, as `--cgroup` takes it.
    #[must_use]
    pub fn path(&self) -> &Path {
        let path = self.directory.strip_prefix(root());
        path.expect("it is below the root")
    }

    /// The path of a program that enters the group and then becomes the program that its arguments name.
    #[must_use]
    pub fn wrapper(&self) -> String {
        let path = self.scripts.path().join("enter");
        let processes = self.directory.join("cgroup.procs");
        let script = format!("#!/bin/sh\necho $$ >{}\nexec \"$@\"\n", processes.display());
        fs::write(&path, script).expect("write a script");
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&path, executable).expect("make it executable");
        path.display().to_string()
    }

    /// A command, split at spaces, that will run in this group and in `namespace`.
    #[must_use]
    pub fn command_line(&self, namespace: &Namespace, command_line: &str) -> Command {
        let mut command = namespace.command("sh");
        let processes = self.directory.join("cgroup.procs");
        command
            .args(["-c", r#"echo $$ > "$0" && exec "$@""#])
            .arg(processes)
            .args(command_line.split_whitespace());
        command
    }
}

/// A name that no group has.
#[must_use]
pub fn unique_name() -> String {
    let number = CREATED.fetch_add(1, Ordering::Relaxed);
    format!("tproxy-test-{}-{number}", std::process::id())
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // A process that was killed leaves it a moment later, and may have made groups in it.
        let _ = wait::within(wait::PATIENCE, || remove(&self.directory).ok());
    }
}

/// Removes a group, and first those in it.
fn remove(group: &Path) -> io::Result<()> {
    for entry in group.read_dir()?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// The directory of the root of all groups.
#[must_use]
#[track_caller]
pub fn root() -> PathBuf {
    let mut candidates = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(PathBuf::from)
        .into_iter();
    let root = candidates.find(|path| {
        statfs(path).is_ok_and(|mounted| mounted.filesystem_type() == CGROUP2_SUPER_MAGIC)
    });
    root.expect("cgroup2 is mounted")
}
