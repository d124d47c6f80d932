//! `cargo xtask test`: every test there is.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{build, command, privilege::Privilege, terminal};

/// Builds as this user, runs the tests as root, and counts. Some units need root as well: they ask
/// the kernel.
///
/// # Errors
///
/// When the build fails, root is out of reach, or a test fails.
pub(crate) fn test(arguments: &[OsString]) -> Result<()> {
    let privilege = Privilege::required_for("testing against the kernel")?;
    let binary = build::build()?;
    let mut suite = command::cargo();
    suite
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        .args(arguments);
    suite.env("TPROXY_BIN", &binary);
    if privilege != Privilege::Root {
        let (name, sudo) = root_runner(privilege, &binary);
        suite.env(name, sudo);
    }
    let count = count(&mut suite)?;
    println!("\n{}", count.summary());
    if count.failed > 0 || count.broken {
        bail!("tests failed");
    }
    Ok(())
}

/// Makes cargo start the test programs, and nothing else, through sudo.
fn root_runner(privilege: Privilege, binary: &Path) -> (String, OsString) {
    let architecture = env::consts::ARCH.to_uppercase();
    let name = format!("CARGO_TARGET_{architecture}_UNKNOWN_LINUX_GNU_RUNNER");
    let sudo = privilege.command("env", [("TPROXY_BIN", binary.as_os_str())]);
    let mut line = sudo.get_program().to_owned();
    for argument in sudo.get_args() {
        line.push(OsStr::new(" "));
        line.push(argument);
    }
    (name, line)
}

#[derive(Debug, Default)]
struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// A test program ended without saying how its tests went, or did not compile.
    broken: bool,
}

impl Count {
    /// Takes in a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
    fn read(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else {
            return;
        };
        let number = |what: &str| {
            let (before, _) = result.split_once(what)?;
            before.split_whitespace().next_back()?.parse::<u64>().ok()
        };
        self.passed += number(" passed").unwrap_or(0);
        self.failed += number(" failed").unwrap_or(0);
        self.ignored += number(" ignored").unwrap_or(0);
    }

    fn summary(&self) -> String {
        let mut text = format!("{} passed, {} failed", self.passed, self.failed);
        if self.ignored > 0 {
            let _ = write!(text, ", {} ignored", self.ignored);
        }
        if self.broken {
            text += "; not every test program ran to its end";
        }
        if self.failed > 0 || self.broken {
            terminal::red(&text)
        } else {
            terminal::green(&text)
        }
    }
}

/// Runs a `cargo test`, lets its output through and counts what it says.
fn count(suite: &mut Command) -> Result<Count> {
    command::show(suite);
    let mut process = suite
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = process
        .stdout
        .take()
        .context("cargo has no standard output")?;
    let mut count = Count::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what the tests print")?;
        count.read(&line);
        println!("{line}");
    }
    let status = process.wait().context("cannot wait for cargo")?;
    count.broken = !status.success() && count.failed == 0;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn results_are_summed_over_test_programs() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            count.read(line);
        }
        assert_eq!((count.passed, count.failed, count.ignored), (13, 2, 1));
    }
}
