//! The mount namespace that this command was started from.
//!
//! `ip netns exec` gives its command a mount namespace of its own with another `/sys`, in which neither
//! pins nor control groups are to be seen. What is asked of those is asked of the outermost ancestor,
//! on most machines process 1.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The outermost ancestor that this process may look at, if its mount namespace is another one.
pub(crate) fn outer_process() -> Option<u32> {
    static FOUND: OnceLock<Option<u32>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let own = namespace(std::process::id())?;
        let mut outermost = None;
        let mut process = std::process::id();
        while let Some(parent) = parent_of(process).filter(|parent| *parent != 0) {
            if let Some(namespace) = namespace(parent) {
                outermost = Some((parent, namespace));
            }
            process = parent;
        }
        let (process, namespace) = outermost?;
        (namespace != own).then_some(process)
    })
}

/// An absolute path as it is there.
pub(crate) fn outer_path(path: &Path) -> PathBuf {
    match outer_process() {
        None => path.into(),
        Some(process) => {
            let below = path.strip_prefix("/").unwrap_or(path);
            Path::new(&format!("/proc/{process}/root")).join(below)
        }
    }
}

/// The fourth field of `/proc/PID/stat`; the second, a name, may hold anything but ends with the
/// last parenthesis (`proc_pid_stat(5)`).
fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_whitespace().nth(1)?.parse().ok()
}
