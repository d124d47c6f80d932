//! Why a socket of another program cannot be used, in the operator's words.

use std::{fs, io, net::SocketAddr};

use nix::errno::Errno;

use super::Process;

/// A failure to find or to take a socket of another program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel did not list the sockets.
    #[error(
        "cannot list the {protocol} sockets: {}{}",
        .errno.desc(), listing_advice(.protocol, *.errno)
    )]
    List {
        /// "tcp" or "udp".
        protocol: &'static str,
        /// What the kernel answered.
        errno: Errno,
    },

    /// The processes could not be listed.
    #[error("cannot read /proc, which names who has a socket: is it mounted?")]
    Processes(#[source] io::Error),

    /// A socket is there, and no process can be seen to have it.
    #[error("{}", no_holder(.protocol, *.bound, *.inode, .hidden))]
    NoHolder {
        /// "tcp" or "udp".
        protocol: &'static str,
        /// What the socket is bound to.
        bound: SocketAddr,
        /// Its inode; 0 when no process has it.
        inode: u32,
        /// Processes that could not be looked into.
        hidden: Vec<Process>,
    },

    /// The kernel does not give a descriptor of that process.
    #[error(
        "cannot take the socket at {bound} from {process}: {}{}",
        .errno.desc(), refusal_advice(*.errno)
    )]
    Refused {
        /// The process that has the socket.
        process: Process,
        /// What the socket is bound to.
        bound: SocketAddr,
        /// What the kernel answered.
        errno: Errno,
    },

    /// The socket cannot have connections to addresses that are not of this host.
    #[error(
        "{process} listens at {bound} without IP_TRANSPARENT, so it cannot answer for addresses that are not of this host: {advice}, or use --scope inbound"
    )]
    NotTransparent {
        /// The process that has the socket.
        process: Process,
        /// What the socket is bound to.
        bound: SocketAddr,
        /// What to do, as a clause.
        advice: &'static str,
    },
}

/// How a program is told to make its listener transparent. nginx has `transparent` for `proxy_bind`
/// alone, which is about the connections that it opens.
pub(super) fn advice(command: &str) -> &'static str {
    match command {
        "squid" => "write `tproxy` behind the port in its line `http_port`",
        "haproxy" => "write `transparent` behind the address in its line `bind`",
        "envoy" => "set `transparent: true` in its listener",
        "nginx" => {
            "nginx cannot set it by itself, so start it with a socket that has it (`NGINX=\"3;\"` in its environment, or systemd.socket with Transparent=yes)"
        }
        _ => {
            "let it set that option before it listens (Squid: `http_port 3129 tproxy`; HAProxy: `bind :3129 transparent`; Envoy: `transparent: true`)"
        }
    }
}

/// The kernel answers so when it has not got the part that lists sockets of this protocol.
fn listing_advice(protocol: &str, errno: Errno) -> String {
    match errno {
        Errno::ENOENT => format!("; `modprobe {protocol}_diag` loads what lists them"),
        _ => String::new(),
    }
}

fn no_holder(protocol: &str, bound: SocketAddr, inode: u32, hidden: &[Process]) -> String {
    let found = format!("{protocol} {bound} is listened at, but no process can be seen to have it");
    match hidden {
        _ if inode == 0 => format!("{found}: the kernel itself has it; take another listener"),
        [] => format!(
            "{found}: it runs in another PID namespace or belongs to the kernel; run tproxy in the PID namespace of the host"
        ),
        [first, others @ ..] => {
            let others = match others.len() {
                0 => String::new(),
                count => format!(" and {count} others"),
            };
            format!(
                "{found}, and {first}{others} may not be looked into: run tproxy as root, with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
            )
        }
    }
}

fn refusal_advice(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM if forbids_tracing() => {
            "; kernel.yama.ptrace_scope is 3, which forbids it to everybody until the next boot"
        }
        Errno::EPERM | Errno::EACCES => {
            "; run tproxy as root with CAP_SYS_PTRACE, in the user namespace of that process or above it"
        }
        Errno::ENOSYS => "; pidfd_getfd needs Linux 5.6",
        Errno::EMFILE | Errno::ENFILE => "; raise the limit of open files (`ulimit -n`)",
        _ => "",
    }
}

/// Whether the Yama module lets nobody trace, not even root (`ptrace(2)`).
fn forbids_tracing() -> bool {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .is_ok_and(|scope| scope.trim_end() == "3")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(command: &str) -> Process {
        Process {
            pid: 812,
            command: command.into(),
        }
    }

    #[test]
    fn a_listener_that_is_not_transparent_is_told_with_what_to_do() {
        let said = |command| {
            let bound = "0.0.0.0:8080".parse().unwrap();
            super::super::found::not_transparent(process(command), bound).to_string()
        };
        let squid = said("squid");
        assert!(
            squid.starts_with("squid (process 812) listens at 0.0.0.0:8080 without IP_TRANSPARENT"),
            "{squid}"
        );
        assert!(
            squid.ends_with("`http_port`, or use --scope inbound"),
            "{squid}"
        );
        assert!(said("nginx").contains("nginx cannot"));
        assert!(said("other").contains("HAProxy"));
    }

    #[test]
    fn who_has_a_socket_that_nobody_has_is_told_as_far_as_it_is_known() {
        let said =
            |inode, hidden: &[Process]| no_holder("tcp", "[::]:80".parse().unwrap(), inode, hidden);
        assert!(said(0, &[]).contains("the kernel itself"));
        assert!(said(1, &[]).contains("PID namespace"));
        let one = said(1, &[process("squid")]);
        assert!(one.contains("and squid (process 812) may not"), "{one}");
        let two = said(1, &[process("squid"), process("nginx")]);
        assert!(
            two.contains("and squid (process 812) and 1 others may not"),
            "{two}"
        );
    }
}
