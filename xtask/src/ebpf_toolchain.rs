//! Finds the compiler and the linker for the eBPF crate, and makes the cargo command that uses them.
//!
//! Standard library only: `tproxy-user/build.rs` takes in this very file with
//! `#[path = "../xtask/src/ebpf_toolchain.rs"] mod ebpf_toolchain;`, so that the build script and
//! `cargo xtask setup` cannot disagree on what is usable. Either uses a part of it: both declare the
//! module with `#[expect(dead_code)]`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The target of the kernel programs: little-endian eBPF.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The first release of Rust that Debian ships with a ready-made `core` for [`TARGET`].
const MINIMUM_DISTRIBUTION_RUST: (u32, u32) = (1, 96);

/// A compiler with a `core` for eBPF, or the source of one, and the linker that fits it.
#[derive(Debug)]
pub(crate) struct EbpfToolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    bpf_linker: PathBuf,
    core: Core,
}

/// Where `core` for [`TARGET`] comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Core {
    /// Installed beside the compiler.
    Prebuilt,
    /// Compiled by cargo from the `rust-src` component.
    FromSource,
}

/// Finds a usable toolchain: the distribution's first, since `cargo xtask setup` installs that one
/// together with a linker that has the same LLVM, then any rustup nightly that has `rust-src`.
///
/// # Errors
///
/// One line that says what is missing.
pub(crate) fn find() -> Result<EbpfToolchain, String> {
    match (find_compiler(), find_bpf_linker()) {
        (Ok(compiler), Some(bpf_linker)) => Ok(EbpfToolchain {
            cargo: compiler.cargo,
            rustc: compiler.rustc,
            core: compiler.core,
            bpf_linker,
        }),
        (Ok(compiler), None) => Err(format!(
            "bpf-linker is neither on PATH nor in ~/.cargo/bin ({} is there to compile with)",
            compiler.rustc.display()
        )),
        (Err(reason), Some(_)) => Err(reason),
        (Err(reason), None) => Err(format!("{reason}; and bpf-linker is missing")),
    }
}

impl EbpfToolchain {
    /// The release build of the eBPF crate in `crate_dir`, with everything cargo makes kept in
    /// `target_dir`. The result is at [`object_path`].
    pub(crate) fn cargo_build(&self, crate_dir: &Path, target_dir: &Path) -> Command {
        let mut command = Command::new(&self.cargo);
        command.arg("build");
        self.complete(&mut command, crate_dir, target_dir);
        command
    }

    /// Clippy over the same code for the same target, by the compiler that builds it. `None` when
    /// clippy is not installed beside that compiler.
    pub(crate) fn cargo_clippy(&self, crate_dir: &Path, target_dir: &Path) -> Option<Command> {
        let program = self.cargo.with_file_name("cargo-clippy");
        if !program.is_file() {
            return None;
        }
        // Called directly: `cargo clippy` would prefer a rustup proxy in ~/.cargo/bin.
        let mut command = Command::new(program);
        command.arg("clippy");
        self.complete(&mut command, crate_dir, target_dir);
        command.env("CARGO", &self.cargo);
        Some(command)
    }

    /// What every cargo command for the eBPF crate has in common.
    fn complete(&self, command: &mut Command, crate_dir: &Path, target_dir: &Path) {
        forget_outer_cargo(command);
        command
            .current_dir(crate_dir)
            .args(["--release", "--target", TARGET, "--target-dir"])
            .arg(target_dir)
            .env("RUSTC", &self.rustc)
            // aya-ebpf uses unstable features, whichever release compiles it.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", self.rustflags().join("\u{1f}"))
            .env("PATH", self.search_path());
        if self.core == Core::FromSource {
            command.args(["-Z", "build-std=core"]);
        }
    }

    /// Whether the compiler is the distribution's rather than rustup's.
    pub(crate) fn is_of_distribution(&self) -> bool {
        self.core == Core::Prebuilt
    }

    /// Which compiler and linker these are, in one line.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{} with {}",
            self.rustc.display(),
            self.bpf_linker.display()
        )
    }

    fn rustflags(&self) -> [String; 7] {
        [
            "-C".into(),
            // Maps and programs get their BTF types from the debug information.
            "debuginfo=2".into(),
            "-C".into(),
            format!("linker={}", self.bpf_linker.display()),
            "-C".into(),
            "link-arg=--btf".into(),
            format!("--cfg=bpf_target_arch=\"{}\"", host_architecture()),
        ]
    }

    fn search_path(&self) -> std::ffi::OsString {
        let own = [&self.rustc, &self.bpf_linker]
            .into_iter()
            .filter_map(|program| program.parent().map(Path::to_path_buf));
        let inherited = env::var_os("PATH").unwrap_or_default();
        env::join_paths(own.chain(env::split_paths(&inherited))).unwrap_or(inherited)
    }
}

/// Where [`EbpfToolchain::cargo_build`] leaves the object of the binary target `name`.
pub(crate) fn object_path(target_dir: &Path, name: &str) -> PathBuf {
    target_dir.join(TARGET).join("release").join(name)
}

/// The `--cfg bpf_target_arch` value for the machine whose registers the programs read: the one that
/// the user-space crate is compiled for.
fn host_architecture() -> String {
    env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned())
}

/// Removes what an outer cargo or rustup set for its own compiler, and keeps what the user set about
/// registries, the network, the terminal and the number of jobs.
fn forget_outer_cargo(command: &mut Command) {
    const KEPT: [&str; 9] = [
        "CARGO_HOME",
        "CARGO_BUILD_JOBS",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const OF_BUILD_SCRIPTS: [&str; 12] = [
        "DEBUG",
        "HOST",
        "LD_LIBRARY_PATH",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
    ];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let of_cargo = name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept));
        if of_cargo || name.starts_with("RUSTC") || OF_BUILD_SCRIPTS.contains(&name) {
            command.env_remove(name);
        }
    }
}

/// Whether there is a compiler already, with whichever linker.
pub(crate) fn has_compiler() -> bool {
    find_compiler().is_ok()
}

/// Whether there is a linker already, for whichever compiler.
pub(crate) fn has_bpf_linker() -> bool {
    find_bpf_linker().is_some()
}

/// The linker, on PATH or where `cargo install` puts it.
fn find_bpf_linker() -> Option<PathBuf> {
    let on_path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&on_path)
        .chain(cargo_home().map(|home| home.join("bin")))
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
}

fn find_compiler() -> Result<Compiler, String> {
    distribution_compiler().or_else(|distribution| {
        nightly_compiler()
            .map_err(|nightly| format!("no compiler for {TARGET}: {distribution}; {nightly}"))
    })
}

/// A compiler before its linker is known.
struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    core: Core,
}

/// Debian's `cargo-web`, `rustc-web` and `libstd-rust-web-dev-bpf`, or a later release's equals.
fn distribution_compiler() -> Result<Compiler, String> {
    let cargo = PathBuf::from("/usr/bin/cargo");
    let rustc = PathBuf::from("/usr/bin/rustc");
    let Some(version) = rustc.is_file().then(|| release_of(&rustc)).flatten() else {
        return Err("there is no /usr/bin/rustc".into());
    };
    if version < MINIMUM_DISTRIBUTION_RUST {
        return Err(format!(
            "/usr/bin/rustc is {}.{}, 1.96 is needed",
            version.0, version.1
        ));
    }
    if !Path::new("/usr/lib/rustlib")
        .join(TARGET)
        .join("lib")
        .is_dir()
    {
        return Err(format!("/usr/lib/rustlib has no core for {TARGET}"));
    }
    if !cargo.is_file() {
        return Err("there is no /usr/bin/cargo".into());
    }
    Ok(Compiler {
        cargo,
        rustc,
        core: Core::Prebuilt,
    })
}

/// The newest rustup nightly that has the source of `core`.
fn nightly_compiler() -> Result<Compiler, String> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    let toolchains = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    let mut nightlies: Vec<_> = toolchains
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("nightly"))
        .map(|entry| entry.path())
        .filter(|path| path.join("lib/rustlib/src/rust/library/core").is_dir())
        .map(|path| (release_of(&path.join("bin/rustc")), path))
        .collect();
    nightlies.sort();
    let Some((_, path)) = nightlies.pop() else {
        return Err("no rustup nightly has rust-src".into());
    };
    Ok(Compiler {
        cargo: path.join("bin/cargo"),
        rustc: path.join("bin/rustc"),
        core: Core::FromSource,
    })
}

/// Major and minor number from a line such as `rustc 1.96.0 (ac68faa20 2026-05-25)`.
fn release_of(rustc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(rustc)
        .arg("--version")
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    let mut numbers = line.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}
