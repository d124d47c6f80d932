//! Whose process opened a flow: users and control groups of a rule.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::mount_namespace::outer_path;
use nix::{
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
    unistd::User,
};
use serde::{Deserialize, Serialize};

/// An inclusive range of user ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidRange {
    /// First id.
    pub first: u32,
    /// Last id.
    pub last: u32,
}

impl FromStr for UidRange {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        // The last number is no user but "unchanged" to setuid(2) and its kin.
        let id = |digits: &str| match digits.parse::<u32>() {
            Ok(id) if id != u32::MAX && !digits.starts_with('+') => Some(id),
            _ => None,
        };
        let ends = match word.split_once('-') {
            Some((first, last)) => id(first).zip(id(last)),
            None => id(word).map(|id| (id, id)),
        };
        match ends {
            Some((first, last)) if first <= last => Ok(Self { first, last }),
            Some((first, last)) => Err(format!("\"{word}\" is upside down: write {last}-{first}")),
            None => Err(format!(
                "\"{word}\" is neither a user, a user id nor a range of ids (0 to 4294967294)"
            )),
        }
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(formatter, "{}", self.first)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

/// The id of the user of this name, if there is one.
pub(super) fn user_id(name: &str) -> Option<u32> {
    // Only a name is looked up: a number is an id, also where a user is called like it.
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let user = User::from_name(name).ok()??;
    Some(user.uid.as_raw())
}

/// A control group of the unified hierarchy, with those below it, as a path from its root: `system.slice/nginx.service`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cgroup(String);

impl Cgroup {
    /// The directory of the root of all groups.
    ///
    /// # Errors
    ///
    /// When no unified hierarchy is mounted.
    pub fn root() -> io::Result<PathBuf> {
        let unified = |path: &PathBuf| {
            statfs(path).is_ok_and(|mounted| mounted.filesystem_type() == CGROUP2_SUPER_MAGIC)
        };
        let paths = ROOTS.map(|root| outer_path(Path::new(root)));
        paths.into_iter().find(unified).ok_or_else(|| {
            let text = "no unified hierarchy of control groups is mounted on /sys/fs/cgroup: `mount -t cgroup2 cgroup2 /sys/fs/cgroup` does that";
            io::Error::new(io::ErrorKind::Unsupported, text)
        })
    }

    /// The group of this process; `None` when it is in the root group, or there is no unified
    /// hierarchy.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        // "0::/PATH", the line of the unified hierarchy (cgroups(7)).
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut unified = groups.lines().filter_map(|line| line.strip_prefix("0::"));
        unified.next().and_then(|path| path.parse().ok())
    }

    /// Whether a group is this one or below it.
    #[must_use]
    pub fn holds(&self, group: &Self) -> bool {
        Path::new(&group.0).starts_with(&self.0)
    }

    /// The groups that one in this is in, from the one below the root down to this.
    pub fn path_from_root(&self) -> impl Iterator<Item = Self> {
        let ends = self.0.match_indices('/').map(|(end, _)| end);
        ends.chain([self.0.len()])
            .map(|end| Self(self.0[..end].to_owned()))
    }

    /// The number that the kernel knows it by (`bpf_get_current_cgroup_id`), which is that of its
    /// directory's inode; `None` when it is not there.
    ///
    /// # Errors
    ///
    /// When no unified hierarchy is mounted, or it cannot be read.
    pub fn id(&self) -> io::Result<Option<u64>> {
        match Self::root()?.join(&self.0).metadata() {
            Ok(directory) if directory.is_dir() => Ok(Some(directory.ino())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl FromStr for Cgroup {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        // As `/proc/PID/cgroup` has it, or as the shell completes it.
        let below = ROOTS.iter().find_map(|root| word.strip_prefix(root));
        let path = below.unwrap_or(word).trim_matches('/');
        let strange = |part: &str| {
            part.is_empty() || part == "." || part == ".." || part.chars().any(char::is_control)
        };
        if path.split('/').any(strange) {
            return Err(format!(
                "\"{word}\" is not the path of a control group, such as system.slice/nginx.service"
            ));
        }
        Ok(Self(path.to_owned()))
    }
}

impl fmt::Display for Cgroup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Where systemd mounts the unified hierarchy, beside the old ones or alone.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_ids_and_ranges() {
        assert_eq!("0".parse(), Ok(UidRange { first: 0, last: 0 }));
        let range: UidRange = "1000-4294967294".parse().unwrap();
        assert_eq!((range.first, range.last), (1000, u32::MAX - 1));
        assert_eq!(range.to_string(), "1000-4294967294");
    }

    #[test]
    fn refuses_what_is_no_user_and_names_it() {
        for word in ["", "-", "-1", "+1", "1-", "4294967295", "nosuchuser", "1 2"] {
            let error = word.parse::<UidRange>().unwrap_err();
            assert!(error.contains(&format!("\"{word}\"")), "{error}");
        }
        let error = "20-10".parse::<UidRange>().unwrap_err();
        assert_eq!(error, "\"20-10\" is upside down: write 10-20");
    }

    #[test]
    fn finds_users_by_their_name_alone() {
        assert_eq!(user_id("root"), Some(0));
        for name in ["", "0", "nosuchuser"] {
            assert_eq!(user_id(name), None, "{name}");
        }
    }

    #[test]
    fn a_control_group_holds_those_below_it() {
        let group = |word: &str| word.parse::<Cgroup>().unwrap();
        let session = group("user.slice/user-1000.slice/session-1.scope");
        let above: Vec<String> = session
            .path_from_root()
            .map(|group| group.to_string())
            .collect();
        assert_eq!(
            above,
            [
                "user.slice",
                "user.slice/user-1000.slice",
                "user.slice/user-1000.slice/session-1.scope"
            ]
        );
        assert!(group("user.slice").holds(&session) && session.holds(&session));
        for other in ["user.slice/user-100.slice", "user", "system.slice"] {
            assert!(!group(other).holds(&session), "{other}");
        }
        assert!(!session.holds(&group("user.slice")));
    }

    #[test]
    fn a_control_group_is_a_path_from_the_root() {
        for word in [
            "system.slice/nginx.service",
            "/system.slice/nginx.service",
            "/sys/fs/cgroup/system.slice/nginx.service/",
            "/sys/fs/cgroup/unified/system.slice/nginx.service",
        ] {
            let group: Cgroup = word.parse().unwrap();
            assert_eq!(group.to_string(), "system.slice/nginx.service");
        }
        for word in ["", "/", "..", "a/../b", "a//b", "a\nb", "/sys/fs/cgroup"] {
            let error = word.parse::<Cgroup>().unwrap_err();
            assert!(error.contains(&format!("\"{word}\"")), "{error}");
        }
    }
}
