//! Debian packages: which, how to see that one is there, and how to install them without leaving a
//! service behind.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{command, privilege::Privilege};

/// A package and the file that shows that it, or an equal of it, is installed.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    /// An absolute path, or the name of a program.
    pub(crate) proof: &'static str,
}

const fn package(name: &'static str, proof: &'static str) -> Package {
    Package { name, proof }
}

/// Where `llvm-22-dev` puts `llvm-config`: bpf-linker's build asks it.
pub(crate) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The compiler for the kernel programs, with a `core` for their target.
pub(crate) const COMPILER: &[Package] = &[
    package("rustc-web", "/usr/bin/rustc"),
    package("cargo-web", "/usr/bin/cargo"),
    package(
        "libstd-rust-web-dev-bpf",
        "/usr/lib/rustlib/bpfel-unknown-none/lib",
    ),
];

/// What bpf-linker is compiled with.
pub(crate) const LLVM: &[Package] = &[
    package("llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
    package("libpolly-22-dev", "/usr/lib/llvm-22/lib/libPolly.a"),
    package("zlib1g-dev", "/usr/include/zlib.h"),
    package("libzstd-dev", "/usr/include/zstd.h"),
    package("g++", "g++"),
];

/// What the tests, the lab and the bench run.
pub(crate) const PROGRAMS: &[Package] = &[
    package("iproute2", "ip"),
    package("nftables", "nft"),
    package("curl", "curl"),
    package("nginx", "nginx"),
    package(
        "libnginx-mod-stream",
        "/usr/lib/nginx/modules/ngx_stream_module.so",
    ),
    package("ncat", "ncat"),
    package("socat", "socat"),
    package("iperf3", "iperf3"),
    package("haproxy", "haproxy"),
    package("bpftool", "bpftool"),
    package("tcpdump", "tcpdump"),
    package("procps", "sysctl"),
    package("ethtool", "ethtool"),
    package("iputils-ping", "ping"),
    package("kmod", "modprobe"),
    package("openssl", "openssl"),
    package("strace", "strace"),
    package("python3-minimal", "python3"),
    package("squid", "squid"),
    package("dnsmasq-base", "dnsmasq"),
    package("bind9-dnsutils", "dig"),
    package("git", "git"),
];

/// What a Python of Debian's may lack to make the environment of `python.rs`, which tries it.
/// No file of its own shows it.
pub(crate) const VIRTUAL_ENVIRONMENTS: Package = package("python3-venv", "python3 -m venv");

/// What `cargo xtask vm` needs to boot another kernel.
pub(crate) const EMULATOR: &[Package] = &[
    package("qemu-system-x86", "qemu-system-x86_64"),
    package("busybox-static", "/bin/busybox"),
    package("cpio", "cpio"),
];

/// What `cargo xtask lint` needs to look at the kernel programs.
pub(crate) const LINTERS: &[Package] = &[package("rust-web-clippy", "/usr/bin/cargo-clippy")];

/// Those whose file is not there.
pub(crate) fn missing(packages: &'static [Package]) -> Vec<&'static Package> {
    packages
        .iter()
        .filter(|package| !package.is_installed())
        .collect()
}

impl Package {
    fn is_installed(&self) -> bool {
        if self.proof.starts_with('/') {
            Path::new(self.proof).exists()
        } else {
            command::find_program(self.proof).is_some()
        }
    }
}

/// Installs, with fresh package lists where those that are there do not do.
pub(crate) fn install(privilege: Privilege, packages: &[&Package]) -> Result<()> {
    let names: Vec<_> = packages.iter().map(|package| package.name).collect();
    let lists_do = can_be_resolved(&names);
    if !lists_do {
        update(privilege)?;
    }
    let script = command::workspace().join("xtask/src/setup/install-without-services.sh");
    let attempt = || {
        command::run(
            apt(privilege, "sh")
                .arg(&script)
                .args(&names)
                .stdin(Stdio::null()),
        )
    };
    match attempt() {
        // The lists name versions that the mirror has replaced since.
        Err(_) if lists_do => {
            update(privilege)?;
            attempt()
        }
        result => result,
    }
    .with_context(|| format!("cannot install {}", names.join(" ")))
}

fn update(privilege: Privilege) -> Result<()> {
    command::run(
        apt(privilege, "apt-get")
            .args(["-q", "update"])
            .stdin(Stdio::null()),
    )
}

/// Whether the package lists of this host know all of `names`, with what they depend on.
fn can_be_resolved(names: &[&str]) -> bool {
    Command::new("apt-get")
        .args(["install", "--simulate", "--no-install-recommends"])
        .args(names)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn apt(privilege: Privilege, program: &str) -> Command {
    privilege.command(program, [("DEBIAN_FRONTEND", "noninteractive".as_ref())])
}
