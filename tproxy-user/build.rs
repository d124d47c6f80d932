//! Builds the kernel programs and leaves their object where the crate embeds it.

#[path = "../xtask/src/ebpf_toolchain.rs"]
#[expect(dead_code, reason = "xtask uses the rest of it")]
mod ebpf_toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::exit,
};

fn main() {
    for path in [
        "../tproxy-ebpf/src",
        "../tproxy-ebpf/Cargo.toml",
        "../tproxy-ebpf/Cargo.lock",
        "../tproxy-common/src",
        "../tproxy-common/Cargo.toml",
        "../xtask/src/ebpf_toolchain.rs",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(problem) = build() {
        eprintln!("the eBPF object was not built: {problem}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let toolchain = ebpf_toolchain::find()
        .map_err(|missing| format!("{missing}; `cargo xtask setup` installs what is missing"))?;
    let target = out.join("ebpf");
    let status = toolchain
        .cargo_build(Path::new("../tproxy-ebpf"), &target)
        .arg("--locked")
        .status()
        .map_err(|error| format!("{}: {error}", toolchain.describe()))?;
    if !status.success() {
        return Err(format!("{} ended with {status}", toolchain.describe()));
    }
    let object = ebpf_toolchain::object_path(&target, "tproxy-ebpf");
    fs::copy(&object, out.join("tproxy-ebpf.o"))
        .map_err(|error| format!("{}: {error}", object.display()))?;
    Ok(())
}
