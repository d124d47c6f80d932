//! Three network namespaces in a row, `client - gateway - server`, joined by veth pairs: the place
//! where the lab and the bench happen.

use std::{
    fs::{self, File, TryLockError},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::{
        prctl::set_child_subreaper,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};

use crate::command;

/// The gateway's interfaces, by the side that they are on.
pub(crate) const CLIENT_SIDE: &str = "lan0";
pub(crate) const SERVER_SIDE: &str = "wan0";

pub(crate) const CLIENT_V4: &str = "10.77.1.2";
pub(crate) const CLIENT_V6: &str = "fd77:1::2";
/// The gateway as the client sees it.
pub(crate) const GATEWAY_CLIENT_SIDE_V4: &str = "10.77.1.1";
/// The gateway as the server sees it.
pub(crate) const GATEWAY_V4: &str = "10.77.2.1";
pub(crate) const GATEWAY_V6: &str = "fd77:2::1";
pub(crate) const SERVER_V4: &str = "10.77.2.2";
pub(crate) const SERVER_V6: &str = "fd77:2::2";

/// The namespaces of one name. They exist for as long as this does, and no process in them outlives
/// it.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) client: Namespace,
    pub(crate) gateway: Namespace,
    pub(crate) server: Namespace,
    /// For the files of the programs inside.
    pub(crate) directory: PathBuf,
}

impl Topology {
    /// Makes `NAME-client`, `NAME-gateway` and `NAME-server` anew, after taking down what a killed
    /// process may have left of them. The server has no route back to the client: what the gateway
    /// forwards on its own gets no answer.
    ///
    /// # Errors
    ///
    /// Which command failed, and what it said. Nothing is left then.
    pub(crate) fn create(name: &str, _lock: &Lock) -> Result<Self> {
        let topology = Self {
            client: Namespace::named(format!("{name}-client")),
            gateway: Namespace::named(format!("{name}-gateway")),
            server: Namespace::named(format!("{name}-server")),
            directory: PathBuf::from(format!("/run/{name}-namespaces")),
        };
        // What becomes a daemon inside is ours to reap: init does not do it in every container.
        set_child_subreaper(true).context("cannot become the parent of daemons")?;
        topology
            .remove()
            .context("cannot take down the leftovers of an earlier lab")?;
        topology.build()?;
        Ok(topology)
    }

    fn build(&self) -> Result<()> {
        fs::create_dir(&self.directory)
            .with_context(|| format!("cannot make {}", self.directory.display()))?;
        for namespace in self.namespaces() {
            command::quietly(Command::new("ip").args(["netns", "add", &namespace.name]))?;
            // An address that is checked for duplicates first cannot be used for a second or two.
            namespace.sysctl(&[
                "net.ipv6.conf.all.disable_ipv6=0",
                "net.ipv6.conf.default.disable_ipv6=0",
                "net.ipv6.conf.default.accept_dad=0",
                "net.ipv6.conf.default.accept_ra=0",
            ])?;
        }
        for (outer, interface) in [(&self.client, CLIENT_SIDE), (&self.server, SERVER_SIDE)] {
            let inner = &self.gateway;
            command::quietly(Command::new("ip").args([
                "link",
                "add",
                "eth0",
                "netns",
                &outer.name,
                "type",
                "veth",
                "peer",
                "name",
                interface,
                "netns",
                &inner.name,
            ]))?;
        }
        self.client.ip(&[
            "link set lo up",
            "link set eth0 up",
            &format!("address add {CLIENT_V4}/24 dev eth0"),
            &format!("address add {CLIENT_V6}/64 dev eth0 nodad"),
            &format!("route add default via {GATEWAY_CLIENT_SIDE_V4}"),
            "route add default via fd77:1::1",
        ])?;
        self.gateway.ip(&[
            "link set lo up",
            &format!("link set {CLIENT_SIDE} up"),
            &format!("link set {SERVER_SIDE} up"),
            &format!("address add {GATEWAY_CLIENT_SIDE_V4}/24 dev {CLIENT_SIDE}"),
            &format!("address add fd77:1::1/64 dev {CLIENT_SIDE} nodad"),
            &format!("address add {GATEWAY_V4}/24 dev {SERVER_SIDE}"),
            &format!("address add {GATEWAY_V6}/64 dev {SERVER_SIDE} nodad"),
        ])?;
        self.gateway
            .sysctl(&["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])?;
        self.server.ip(&[
            "link set lo up",
            "link set eth0 up",
            &format!("address add {SERVER_V4}/24 dev eth0"),
            &format!("address add {SERVER_V6}/64 dev eth0 nodad"),
        ])
    }

    /// Lets the server answer the client directly.
    pub(crate) fn route_server_to_client(&self) -> Result<()> {
        self.server.ip(&[
            &format!("route add default via {GATEWAY_V4}"),
            &format!("route add default via {GATEWAY_V6}"),
        ])
    }

    /// Lets the gateway forward nothing: what arrives then was relayed.
    pub(crate) fn forbid_forwarding(&self) -> Result<()> {
        self.gateway.nft(
            "table inet lab { chain forward { type filter hook forward priority filter; policy drop; counter; }; }",
        )
    }

    /// The packets that [`Topology::forbid_forwarding`] has dropped.
    pub(crate) fn packets_not_forwarded(&self) -> Result<u64> {
        let listing = command::quietly(
            self.gateway
                .command("nft")
                .args(["--json", "list", "chain", "inet", "lab", "forward"]),
        )?;
        let listing: serde_json::Value = serde_json::from_str(&listing)?;
        listing["nftables"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|object| object["rule"]["expr"][0]["counter"]["packets"].as_u64())
            .context("nft lists no counter in the forward chain")
    }

    fn namespaces(&self) -> [&Namespace; 3] {
        [&self.client, &self.gateway, &self.server]
    }

    fn remove(&self) -> Result<()> {
        let removed = self.namespaces().map(Namespace::remove);
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory)
                .with_context(|| format!("cannot remove {}", self.directory.display()))?;
        }
        removed.into_iter().collect()
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            let _ = writeln!(std::io::stderr(), "xtask: {error:#}");
        }
    }
}

/// A named network namespace, as `ip netns` knows it.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    path: String,
}

impl Namespace {
    fn named(name: String) -> Self {
        let path = format!("/run/netns/{name}");
        Self { name, path }
    }

    /// `program`, to be run inside. By nsenter rather than `ip netns exec`, which hides the host's
    /// bpffs from the program.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path))
            .arg("--")
            .arg(program);
        command
    }

    /// Sets `NAME=VALUE` each.
    pub(crate) fn sysctl(&self, settings: &[&str]) -> Result<()> {
        command::quietly(self.command("sysctl").args(["-q", "-w"]).args(settings)).map(drop)
    }

    /// Loads rules of nftables.
    pub(crate) fn nft(&self, ruleset: &str) -> Result<()> {
        command::quietly(self.command("nft").arg(ruleset)).map(drop)
    }

    /// Runs the `ip` subcommands, in one process.
    pub(crate) fn ip(&self, lines: &[&str]) -> Result<()> {
        let mut ip = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start `ip`")?;
        let mut input = ip.stdin.take().context("ip has no standard input")?;
        input
            .write_all(lines.join("\n").as_bytes())
            .context("cannot write to `ip -batch`")?;
        drop(input);
        let output = ip.wait_with_output().context("cannot wait for `ip`")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "ip in {}: {}",
            self.name,
            said.trim()
        );
        Ok(())
    }

    /// Ends all processes inside and deletes the name, if it exists.
    fn remove(&self) -> Result<()> {
        if !Path::new(&self.path).exists() {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let inside = self.processes()?;
            if inside.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                bail!("processes {inside:?} in {} do not end", self.name);
            }
            for process in inside {
                // It may have ended meanwhile, and it may be a child of somebody else.
                let _ = kill(process, Signal::SIGKILL);
                let _ = waitpid(process, None);
            }
            thread::sleep(Duration::from_millis(2));
        }
        command::quietly(Command::new("ip").args(["netns", "delete", &self.name])).map(drop)
    }

    /// Those inside.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>> {
        let listing = command::quietly(Command::new("ip").args(["netns", "pids", &self.name]))?;
        Ok(listing
            .split_whitespace()
            .filter_map(|pid| Some(Pid::from_raw(pid.parse().ok()?)))
            .collect())
    }
}

/// That no other process has a topology of the same name.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of `name`; the kernel gives it back when this process ends, however it ends.
    ///
    /// # Errors
    ///
    /// When another process holds it.
    pub(crate) fn take(name: &str) -> Result<Self> {
        let path = format!("/run/lock/{name}.lock");
        fs::create_dir_all("/run/lock").context("cannot make /run/lock")?;
        let file = File::create(&path).with_context(|| format!("cannot open {path}"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => {
                bail!("another {name} is running ({path} is locked): end that one first")
            }
            Err(TryLockError::Error(error)) => Err(error).context(format!("cannot lock {path}")),
        }
    }
}
