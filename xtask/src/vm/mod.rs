//! `cargo xtask vm`: the integration tests on another kernel, in an emulated machine that sees this
//! host's files.

mod initramfs;
mod kernel;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use self::kernel::Kernel;
use crate::{build, command, lines, privilege::Privilege, setup};

/// Suites that do not measure time: emulation is ten times slower than the host.
const SUITES: [&str; 10] = [
    "steering",
    "interfaces",
    "leftovers",
    "lifecycle",
    "coexistence",
    "framing",
    "packets",
    "odd_packets",
    "relay",
    "vlan",
];

/// Builds, boots a kernel of `series` and runs suites in it as root; all that make sense when none
/// is named.
///
/// # Errors
///
/// When something cannot be built, fetched or booted, or a test fails.
pub(crate) fn test(series: &str, suites: &[String]) -> Result<()> {
    let privilege = Privilege::required_for("reading every file of this host")?;
    setup::for_vm()?;
    let binary = build::build()?;
    let programs = test_programs(suites)?;
    let kernel = Kernel::of_series(series)?;
    let directory = command::target_directory().join("vm");
    let archive = initramfs::pack(&kernel, &job(&binary, &programs), &directory)?;
    boot(privilege, &kernel, &archive)
}

#[derive(Deserialize)]
struct Artifact {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The built test programs of these suites.
fn test_programs(suites: &[String]) -> Result<Vec<PathBuf>> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--package", "tproxy-tests", "--no-run"]);
    command::run(&mut cargo)?;
    let messages = command::quietly(cargo.args(["--quiet", "--message-format=json"]))?;
    let artifacts: Vec<Artifact> = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let program = |suite: &str| {
        let of_suite = |artifact: &&Artifact| {
            let target = artifact.target.as_ref();
            target.is_some_and(|target| target.name == suite && target.kind == ["test"])
        };
        let artifact = artifacts.iter().find(of_suite);
        artifact
            .and_then(|artifact| artifact.executable.clone())
            .with_context(|| format!("tests/tests has no suite {suite}"))
    };
    if suites.is_empty() {
        SUITES.iter().map(|suite| program(suite)).collect()
    } else {
        suites.iter().map(|suite| program(suite)).collect()
    }
}

fn job(binary: &Path, programs: &[PathBuf]) -> String {
    let mut job = format!(
        "cd {}\nexport TPROXY_BIN={} TPROXY_TEST_SLOWNESS=10\nfailed=0\n",
        command::workspace().display(),
        binary.display()
    );
    for program in programs {
        // Some tests wait for a kernel with more modules than most hosts have loaded.
        let _ = writeln!(job, "{} --include-ignored || failed=1", program.display());
    }
    job + "exit $failed\n"
}

fn boot(privilege: Privilege, kernel: &Kernel, archive: &Path) -> Result<()> {
    let mut machine: Command = privilege.command("qemu-system-x86_64", []);
    machine
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "3072",
        ])
        .args([
            "-display",
            "none",
            "-serial",
            "stdio",
            "-monitor",
            "none",
            "-no-reboot",
        ])
        .args([
            "-virtfs",
            "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyS0 quiet panic=-1"]);
    command::show(&machine);
    let mut process = machine
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qemu")?;
    let console = process.stdout.take().context("qemu has no console")?;
    let mut exit = None;
    let mut is_up = false;
    for line in lines::follow(console) {
        let line = line.trim_end();
        is_up |= line.starts_with("vm: up");
        match line.strip_prefix("vm: exit ") {
            Some(code) => exit = Some(code.to_owned()),
            // Before that the firmware speaks, with escape sequences, and after it the kernel goes down.
            None if is_up && exit.is_none() => println!("{line}"),
            None => {}
        }
    }
    process.wait().context("cannot wait for qemu")?;
    match exit.as_deref() {
        Some("0") => Ok(()),
        Some(_) => bail!("tests failed"),
        None if is_up => bail!("the machine went down before the tests had ended"),
        None => bail!("the machine did not come up: start the command above by hand to see why"),
    }
}
