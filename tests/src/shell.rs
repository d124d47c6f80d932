//! Command lines as they are typed, `tproxy` among them.

use std::{env, fs, os::unix::fs::symlink, path::Path, process::Command};

use tempfile::TempDir;

use crate::{
    Agent, Cli, Namespace,
    cli::{Attempt, program},
    process::Process,
};

/// A shell in a namespace, with a home directory and no variables but the necessary. Flows are logged.
#[derive(Debug)]
pub struct Shell<'a> {
    namespace: &'a Namespace,
    home: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl<'a> Shell<'a> {
    /// Where it finds the program.
    const PROGRAMS: &'static str = "bin";

    /// A shell that finds the program under test.
    #[must_use]
    #[track_caller]
    pub fn new(namespace: &'a Namespace) -> Self {
        let home = TempDir::new().expect("make a directory");
        let programs = home.path().join(Self::PROGRAMS);
        fs::create_dir(&programs).expect("make a directory");
        let program = fs::canonicalize(program()).expect("the program is built");
        symlink(program, programs.join("tproxy")).expect("link the program");
        Self {
            namespace,
            home,
            variables: Vec::new(),
        }
    }

    /// Sets a variable of the environment.
    pub fn export(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.push((name, value.into()));
    }

    /// The directory that it is in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// Runs a line to its end.
    #[must_use]
    #[track_caller]
    pub fn attempt(&self, line: &str) -> Attempt {
        Attempt::end_of(line, &mut Process::start(&mut self.command(line)))
    }

    /// Runs a line that must succeed.
    #[track_caller]
    pub fn run(&self, line: &str) {
        self.attempt(line).assert_done();
    }

    /// As [`Shell::run`]; returns what the line wrote to standard output.
    #[must_use]
    #[track_caller]
    pub fn output(&self, line: &str) -> String {
        let attempt = self.attempt(line);
        attempt.assert_done();
        attempt.stdout
    }

    /// Runs a line that starts the agent of `instance` in the foreground, and waits until it is ready. It is stopped from
    /// `namespace`, where it works.
    #[must_use]
    #[track_caller]
    pub fn agent_in<'n>(&self, namespace: &'n Namespace, instance: &str, line: &str) -> Agent<'n> {
        let process = Process::start(&mut self.command(line));
        Agent::over(Cli::new(namespace, instance), process)
    }

    /// As [`Shell::agent_in`], for the instance `default` in the namespace of the shell.
    #[must_use]
    #[track_caller]
    pub fn agent(&self, line: &str) -> Agent<'a> {
        self.agent_in(self.namespace, "default", line)
    }

    fn command(&self, line: &str) -> Command {
        let own = self.directory().join(Self::PROGRAMS);
        let path = env::var_os("PATH").unwrap_or_default();
        let directories = [own].into_iter().chain(env::split_paths(&path));
        let path = env::join_paths(directories).expect("the directories have no colons");
        // It becomes the last command that it is given, so that signals reach that.
        let mut command = self.namespace.command(Path::new("bash"));
        command
            .args(["-c", line])
            .current_dir(self.directory())
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.directory())
            .env("RUST_LOG", "info")
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}
