//! A network namespace with a name under `/run/netns`, removed when it goes out of scope.

use std::{
    fmt::Display,
    fs,
    fs::File,
    io::Write,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

use crate::{process, sys, wait};

/// A network namespace of the running test.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
}

static CREATED: AtomicU32 = AtomicU32::new(0);

impl Namespace {
    /// Makes an empty namespace whose name ends in `role`.
    #[must_use]
    #[track_caller]
    pub fn create(role: &str) -> Self {
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        let name = format!("tproxy-test-{}-{number}-{role}", std::process::id());
        process::expect_success(Command::new("ip").args(["netns", "add", &name]));
        let handle = File::open(path_of(&name)).expect("open the namespace just made");
        Self { name, handle }
    }

    /// The name, as `ip netns exec` takes it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives it another name besides, on a machine of a test's own: nothing takes that away.
    #[track_caller]
    pub fn name_also(&self, name: &str) {
        let other = path_of(name);
        File::create_new(&other).expect("the name is free");
        let mut mount = Command::new("mount");
        process::expect_success(mount.arg("--bind").arg(self.path()).arg(other));
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// The open namespace file, for BPF queries.
    #[must_use]
    pub fn handle(&self) -> &File {
        &self.handle
    }

    /// Runs `action` inside the namespace, on a fresh thread, and returns its result. Sockets that it opens stay in the
    /// namespace wherever they are used afterwards.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                action()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `action` inside the namespace on `count` threads at once, and returns when all of them have ended.
    pub fn enter_many(&self, count: u32, action: impl Fn() + Sync) {
        let action = &action;
        thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| self.enter(action));
            }
        });
    }

    /// A command that will run inside the namespace. As with `nsenter --net`, the file systems stay those of the host,
    /// so that pins in bpffs are the same inside and outside. The process dies with the thread that started it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        sys::enter_before_exec(
            &mut command,
            self.handle
                .try_clone()
                .expect("duplicate the namespace file"),
        );
        command
    }

    /// Runs a command line (split at spaces) inside and checks that it succeeds.
    #[track_caller]
    pub fn run(&self, command_line: &str) {
        process::expect_success(&mut self.command_line(command_line));
    }

    /// As [`Namespace::run`]; returns what the command wrote to standard output.
    #[must_use]
    #[track_caller]
    pub fn output(&self, command_line: &str) -> String {
        process::expect_success(&mut self.command_line(command_line))
    }

    /// A [`Namespace::command`] with its arguments, split at spaces.
    #[must_use]
    pub fn command_line(&self, command_line: &str) -> Command {
        let mut words = command_line.split_whitespace();
        let mut command = self.command(words.next().expect("a command line names a program"));
        command.args(words);
        command
    }

    /// Runs many `ip` commands, one a line without the word `ip`, in one process; the first that fails panics.
    #[track_caller]
    pub fn ip(&self, batch: &str) {
        self.feed("ip -batch -", batch);
    }

    /// Loads an nft ruleset.
    #[track_caller]
    pub fn nft(&self, ruleset: &str) {
        self.feed("nft -f -", ruleset);
    }

    #[track_caller]
    fn feed(&self, command_line: &str, input: &str) {
        let mut child = self
            .command_line(command_line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command_line}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin
            .write_all(input.as_bytes())
            .expect("write the commands");
        drop(stdin);
        let output = child.wait_with_output().expect("wait for the command");
        assert!(
            output.status.success(),
            "{command_line} failed in {}: {}\n{input}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Sets a kernel parameter of this namespace, named as for sysctl(8) (`net.ipv4.ip_forward`). Interface names with
    /// a dot are not supported.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: impl Display) {
        let path = sysctl_path(key);
        let value = value.to_string();
        let outcome = self.enter(|| fs::write(&path, &value));
        outcome.unwrap_or_else(|error| panic!("sysctl {key}={value} in {}: {error}", self.name));
    }

    /// Reads a file below `/proc/net` as this namespace has it, for example `tcp6` or `netstat`.
    #[must_use]
    #[track_caller]
    pub fn proc_net(&self, file: &str) -> String {
        let path = format!("/proc/thread-self/net/{file}");
        self.enter(|| fs::read_to_string(&path))
            .unwrap_or_else(|error| panic!("read {path}: {error}"))
    }

    /// A counter of `/proc/net/snmp` or `/proc/net/netstat`, for example `("TcpExt", "TCPSynRetrans")`.
    #[must_use]
    #[track_caller]
    pub fn counter(&self, group: &str, name: &str) -> u64 {
        let text = self.proc_net("snmp") + &self.proc_net("netstat");
        let prefix = format!("{group}:");
        let mut lines = text.lines().filter(|line| line.starts_with(&prefix));
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let position = names.split_whitespace().position(|word| word == name);
            if let Some(value) = position.and_then(|index| values.split_whitespace().nth(index)) {
                return value.parse().expect("kernel counters are numbers");
            }
        }
        panic!("no counter {group} {name}")
    }

    /// Waits until some socket listens at TCP `port` inside, whatever program it belongs to.
    #[track_caller]
    pub fn wait_for_listener(&self, port: u16) {
        wait::until(
            &format!("a listener at port {port} in {}", self.name),
            || self.has_listener(port).then_some(()),
        );
    }

    /// Waits until no socket listens at TCP `port` inside.
    #[track_caller]
    pub fn wait_for_no_listener(&self, port: u16) {
        wait::until(
            &format!("the end of the listeners at port {port} in {}", self.name),
            || (!self.has_listener(port)).then_some(()),
        );
    }

    fn has_listener(&self, port: u16) -> bool {
        (self.proc_net("tcp") + &self.proc_net("tcp6"))
            .lines()
            .any(|line| is_listener(line, port))
    }

    /// Connects to `target` from inside, within the time that anything may take.
    ///
    /// # Errors
    /// Those of connect(2), unchanged.
    pub fn connect(&self, target: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.enter(|| TcpStream::connect_timeout(&target, wait::PATIENCE))?;
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        stream.set_write_timeout(Some(wait::PATIENCE))?;
        Ok(stream)
    }

    /// As [`Namespace::connect`], from the address and port `source` (port zero: any).
    ///
    /// # Errors
    /// Those of bind(2) and connect(2), unchanged.
    pub fn connect_from(
        &self,
        source: SocketAddr,
        target: SocketAddr,
    ) -> std::io::Result<TcpStream> {
        self.connect_prepared(target, |socket| {
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())
        })
    }

    /// As [`Namespace::connect`], with a socket option (level, name and value) set before connecting.
    ///
    /// # Errors
    /// Those of setsockopt(2) and connect(2), unchanged.
    pub fn connect_with_option(
        &self,
        (level, name, value): (i32, i32, &[u8]),
        target: SocketAddr,
    ) -> std::io::Result<TcpStream> {
        self.connect_prepared(target, |socket| sys::set_option(socket, level, name, value))
    }

    fn connect_prepared(
        &self,
        target: SocketAddr,
        prepare: impl FnOnce(&Socket) -> std::io::Result<()>,
    ) -> std::io::Result<TcpStream> {
        let socket = self.enter(|| Socket::new(Domain::for_address(target), Type::STREAM, None))?;
        prepare(&socket)?;
        socket.connect_timeout(&target.into(), wait::PATIENCE)?;
        socket.set_read_timeout(Some(wait::PATIENCE))?;
        socket.set_write_timeout(Some(wait::PATIENCE))?;
        Ok(socket.into())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failure here must not hide the panic of the test that is ending.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

/// Whether a line of `/proc/net/tcp` is a socket in state LISTEN (0A) at `port`.
fn is_listener(line: &str, port: u16) -> bool {
    let mut columns = line.split_whitespace().skip(1);
    let (Some(local), Some(_remote), Some(state)) =
        (columns.next(), columns.next(), columns.next())
    else {
        return false;
    };
    state == "0A" && local.ends_with(&format!(":{port:04X}"))
}
