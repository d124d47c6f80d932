//! The first file system of the virtual machine: a static shell and the modules that reach the host.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::kernel::Kernel;

/// Without these the host's file system is out of reach.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Packs it, with the script that is to be run.
///
/// # Errors
///
/// When a file cannot be read or written, or cpio fails.
pub(super) fn pack(kernel: &Kernel, job: &str, directory: &Path) -> Result<PathBuf> {
    let tree = directory.join("initramfs");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    for place in ["bin", "modules", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(place))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).context("/bin/busybox")?;
    let mut order = String::new();
    for module in kernel.modules_in_order(&MODULES)? {
        let name = module.file_name().unwrap_or_default();
        fs::copy(&module, tree.join("modules").join(name))
            .with_context(|| module.display().to_string())?;
        let _ = writeln!(order, "{}", name.display());
    }
    fs::write(tree.join("modules/order"), order)?;
    fs::write(
        tree.join("modules/directory"),
        kernel.modules.as_os_str().as_encoded_bytes(),
    )?;
    fs::write(tree.join("init"), include_str!("init.sh"))?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    fs::write(tree.join("finish"), include_str!("finish.sh"))?;
    fs::write(tree.join("job"), job)?;

    let archive = directory.join("initramfs.cpio");
    let status = Command::new("sh")
        .args(["-c", "find . | cpio --quiet --create --format=newc"])
        .current_dir(&tree)
        .stdout(Stdio::from(fs::File::create(&archive)?))
        .status()
        .context("cannot start cpio")?;
    ensure!(status.success(), "cpio failed: {status}");
    Ok(archive)
}
