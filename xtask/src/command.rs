//! Runs programs and shows each command before it runs.

use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, bail};

use crate::terminal;

static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Shows the commands of [`quietly`] as well, from now on.
pub(crate) fn be_verbose() {
    VERBOSE.store(true, Ordering::Relaxed);
}

/// Runs `command` with its output on ours.
///
/// # Errors
///
/// When it cannot be started or does not exit with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        let program = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default();
        bail!("`{}` failed: {status}", program.display());
    }
    Ok(())
}

/// Runs one of the many small commands that build a namespace or read a counter. It is shown under
/// `--verbose`; its standard output is the result, its standard error part of the error.
///
/// # Errors
///
/// When it cannot be started or does not exit with 0.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    if VERBOSE.load(Ordering::Relaxed) {
        show(command);
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("`{}`: {}: {}", line(command), output.status, reason.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Shows a command without running it.
pub(crate) fn show(command: &Command) {
    eprintln!("{}", terminal::dim(&format!("$ {}", line(command))));
}

/// The command as one would type it in a shell, with the variables that it sets.
pub(crate) fn line(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        let Some(value) = value.map(OsStr::to_string_lossy) else {
            continue;
        };
        let _ = match name.to_string_lossy().as_ref() {
            // These only lead to the program that is named anyway.
            "CARGO" | "PATH" => continue,
            "CARGO_ENCODED_RUSTFLAGS" => {
                write!(line, "RUSTFLAGS={} ", quoted(&value.replace('\u{1f}', " ")))
            }
            name => write!(line, "{name}={} ", quoted(&value)),
        };
    }
    let program = command.get_program();
    // The cargo that runs us comes with the whole path of its toolchain.
    let is_own_cargo = env::var_os("CARGO").is_some_and(|own| own == program);
    line += &if is_own_cargo {
        "cargo".into()
    } else {
        quoted(&program.to_string_lossy())
    };
    for argument in command.get_args() {
        line.push(' ');
        line += &quoted(&argument.to_string_lossy());
    }
    line
}

fn quoted(word: &str) -> String {
    let plain =
        |character: char| character.is_ascii_alphanumeric() || "-_=+./:,@%[]".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", command.get_program().display())
}

/// The cargo that runs us, for the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The root of the source tree.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Looks a program up on PATH and in the directories that hold an administrator's programs, which
/// are not on everybody's PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
