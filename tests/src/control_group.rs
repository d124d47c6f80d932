//! Control groups for programs to be started in.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use tempfile::TempDir;

use crate::wait;

/// Where the unified hierarchy is, beside old ones or alone.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// A control group of the unified hierarchy, and those above it, which nobody else has.
#[derive(Debug)]
pub struct ControlGroup {
    root: &'static Path,
    path: String,
    _directory: TempDir,
    wrapper: String,
}

impl ControlGroup {
    /// Makes `below`, a path, in a group of its own.
    #[must_use]
    pub fn new(below: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut roots = ROOTS.into_iter().map(Path::new);
        let root = roots.find(|root| root.join("cgroup.procs").exists());
        let root = root.expect("a unified hierarchy of control groups is mounted");
        let path = format!("tproxy-test-{}-{number}/{below}", process::id());
        fs::create_dir_all(root.join(&path)).expect("a control group can be made");
        let directory = TempDir::new().expect("a temporary directory");
        let wrapper = directory.path().join("enter");
        write_wrapper(&wrapper, &root.join(&path).join("cgroup.procs"));
        Self {
            root,
            path,
            wrapper: wrapper.to_str().expect("the path is UTF-8").to_owned(),
            _directory: directory,
        }
    }

    /// Its path from the root, as a rule names it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of a program that enters the group and then becomes the program that its arguments name.
    #[must_use]
    pub fn wrapper(&self) -> &str {
        &self.wrapper
    }
}

fn write_wrapper(path: &Path, members: &Path) {
    let mut file = File::create(path).expect("a file");
    let script = format!("#!/bin/sh\necho $$ >{}\nexec \"$@\"\n", members.display());
    file.write_all(script.as_bytes()).expect("a script");
    let executable = fs::Permissions::from_mode(0o755);
    file.set_permissions(executable).expect("permissions");
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let mut path = PathBuf::from(&self.path);
        // From the innermost one on; a group is busy until the last of its processes is reaped.
        while path.components().next().is_some() {
            let directory = self.root.join(&path);
            let _ = wait::within(wait::PATIENCE, || fs::remove_dir(&directory).ok());
            path.pop();
        }
    }
}
