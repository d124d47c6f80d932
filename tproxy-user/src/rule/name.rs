//! Names of rules, sets and instances.

/// Whether a rule, a set or an instance can be called so: the name is part of paths and of log lines.
#[must_use]
pub fn valid_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
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
}
