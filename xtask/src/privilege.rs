//! Root, or sudo, or a clear refusal.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use crate::{command, refusal::Refusal};

/// How commands that need root are run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    Root,
    /// sudo that asks nothing.
    Sudo,
    /// sudo that will ask on the terminal for a password.
    SudoAsks,
}

impl Privilege {
    /// What there is, without asking for anything.
    pub(crate) fn without_asking() -> Option<Self> {
        if nix::unistd::geteuid().is_root() {
            return Some(Self::Root);
        }
        command::find_program("sudo")?;
        let silent = Command::new("sudo")
            .args(["-n", "true"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        silent
            .is_ok_and(|status| status.success())
            .then_some(Self::Sudo)
    }

    /// What there is, where a person at the terminal may be asked for a password.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] that says that `what` needs root.
    pub(crate) fn required_for(what: &str) -> Result<Self, Refusal> {
        if let Some(privilege) = Self::without_asking() {
            return Ok(privilege);
        }
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
        if terminal && command::find_program("sudo").is_some() {
            return Ok(Self::SudoAsks);
        }
        Err(Refusal(format!(
            "{what} needs root, and sudo does not give it without a password: run the command as root, or `sudo -v` first"
        )))
    }

    /// A command that runs one of our own programs as root, with the same idea of where things are.
    pub(crate) fn reenter(self, program: impl AsRef<OsStr>) -> Command {
        let target = command::target_directory();
        self.command(program, [("CARGO_TARGET_DIR", target.as_os_str())])
    }

    /// A command that runs `program` as root. sudo does not keep the environment: pass what is
    /// needed as `variables`.
    pub(crate) fn command<'a>(
        self,
        program: impl AsRef<OsStr>,
        variables: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
    ) -> Command {
        let variables = variables.into_iter();
        match self {
            Self::Root => {
                let mut command = Command::new(program);
                command.envs(variables);
                command
            }
            Self::Sudo | Self::SudoAsks => {
                let mut command = Command::new("sudo");
                if self == Self::Sudo {
                    command.arg("-n");
                }
                command.arg("env");
                for (name, value) in variables {
                    let mut assignment = std::ffi::OsString::from(name);
                    assignment.push("=");
                    assignment.push(value);
                    command.arg(assignment);
                }
                command.arg(program);
                command
            }
        }
    }
}
