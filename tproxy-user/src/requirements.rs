//! What the kernel and the caller must have.

use aya::util::KernelVersion;
use caps::{CapSet, Capability};

/// The first kernel whose programs at connect(2) can say why it fails (`bpf_set_retval`, Linux 5.18).
const OLDEST: (u8, u8) = (5, 18);

const NEEDED: [(Capability, &str, &str); 4] = [
    (
        Capability::CAP_NET_ADMIN,
        "CAP_NET_ADMIN",
        "to attach programs and to write routes",
    ),
    (Capability::CAP_BPF, "CAP_BPF", "to load programs"),
    (
        Capability::CAP_NET_RAW,
        "CAP_NET_RAW",
        "to listen on foreign addresses",
    ),
    (
        Capability::CAP_SYS_ADMIN,
        "CAP_SYS_ADMIN",
        "to reach pins and maps",
    ),
];

/// What is missing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Capabilities.
    #[error("missing: {0} ({1}); run as root, for instance with sudo")]
    Capability(String, &'static str),
    /// A newer kernel.
    #[error("this kernel is Linux {0}, and programs that answer connect(2) need 5.18 or later")]
    Kernel(String),
}

/// Checks everything that a change of the kernel's state needs.
///
/// # Errors
///
/// The first thing that is missing.
pub fn check() -> Result<(), Missing> {
    let held = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    check_capabilities(held)?;
    match KernelVersion::current() {
        Ok(version) => check_kernel(version),
        // A kernel that does not say is taken at its deeds: loading names what it lacks.
        Err(_) => Ok(()),
    }
}

fn check_capabilities(held: impl Fn(Capability) -> bool) -> Result<(), Missing> {
    let mut missing = NEEDED.iter().filter(|(capability, ..)| !held(*capability));
    let Some((_, first, purpose)) = missing.next() else {
        return Ok(());
    };
    let names: Vec<&str> = std::iter::once(*first)
        .chain(missing.map(|(_, name, _)| *name))
        .collect();
    Err(Missing::Capability(names.join(", "), purpose))
}

fn check_kernel(version: KernelVersion) -> Result<(), Missing> {
    if version < KernelVersion::new(OLDEST.0, OLDEST.1, 0) {
        // LINUX_VERSION_CODE: eight bits each for minor and patch (include/uapi/linux/version.h).
        let code = version.code();
        return Err(Missing::Kernel(format!(
            "{}.{}",
            code >> 16,
            code >> 8 & 0xff
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_named_with_what_it_lacks() {
        let error = check_kernel(KernelVersion::new(5, 10, 0))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("5.10") && error.contains("connect(2)") && error.contains("5.18"),
            "{error}"
        );
        assert!(check_kernel(KernelVersion::new(5, 17, 0)).is_err());
        assert_eq!(check_kernel(KernelVersion::new(5, 18, 0)), Ok(()));
        assert_eq!(check_kernel(KernelVersion::new(6, 1, 0)), Ok(()));
    }

    #[test]
    fn each_missing_capability_is_named() {
        let error = check_capabilities(|capability| capability == Capability::CAP_BPF).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN"),
            "{text}"
        );
        assert!(!text.contains("CAP_BPF"), "{text}");
        assert_eq!(check_capabilities(|_| true), Ok(()));
    }
}
