//! Names of rules, instances and interfaces.

/// Whether a rule or an instance can be called so: the name is part of paths and of log lines.
#[must_use]
pub fn valid_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Whether the kernel would take this as an interface name (`dev_valid_name`, net/core/dev.c).
#[must_use]
pub fn valid_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_paths_and_log_lines() {
        for name in ["web", "a.b_c-1", "7", &"x".repeat(63)] {
            assert!(valid_name(name), "{name}");
        }
        for name in ["", ".", "-x", "a b", "a/b", "a\n", "ä", &"x".repeat(64)] {
            assert!(!valid_name(name), "{name}");
        }
    }

    #[test]
    fn interface_names_are_those_of_the_kernel() {
        for name in ["eth0", "br-lan", "wg0.1", "fifteen-letters"] {
            assert!(valid_interface_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "eth0:1", "a b", "sixteen-letters!"] {
            assert!(!valid_interface_name(name), "{name}");
        }
    }
}
