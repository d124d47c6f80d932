//! What a running agent's sets of a million CIDRs cost: whole commands, and the flows that begin while
//! they are at work.

use std::{
    env,
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    agent::{Agent, Settings},
    command, interrupt,
    topology::{CLIENT_SIDE, Lock, SERVER_V4, Topology},
};

const CIDRS: u32 = 1_000_000;
const PORT: u16 = 80;
/// Single additions that are timed.
const ADDITIONS: u32 = 50;
/// Flows begin at this distance.
const INTERVAL: Duration = Duration::from_millis(5);

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Live {
    pub(super) cidrs: u32,
    /// `set load` of a list that shares nothing with the one in force, from start to end, in
    /// milliseconds.
    pub(super) loads: Vec<f64>,
    /// `set add` of one CIDR, from start to end, in milliseconds.
    pub(super) additions: Vec<f64>,
    /// From connect(2) to its end, in microseconds, ascending, with nothing else to do.
    pub(super) connects_at_rest: Vec<u32>,
    /// The same while such lists are loaded one after the other.
    pub(super) connects_while_loading: Vec<u32>,
}

/// Measures, as root, and prints the result as JSON.
///
/// # Errors
///
/// When a part cannot be started or a command fails.
pub(crate) fn measure(seconds: u64) -> Result<()> {
    interrupt::catch()?;
    let lock = Lock::take("tproxy-bench")?;
    let topology = Topology::create("tproxy-bench", &lock)?;
    let files = [1, 2].map(|seed| topology.directory.join(format!("cidrs-{seed}")));
    for (file, seed) in files.iter().zip(1..) {
        fs::write(file, list(seed)).with_context(|| file.display().to_string())?;
    }
    let binary = command::target_directory().join("release").join("tproxy");
    let own = env::current_exe().context("where is this program?")?;
    let _server = Killed(
        topology
            .server
            .command(&own)
            .args(["load", "short-server"])
            .args(["--listen", &format!("0.0.0.0:{PORT}")])
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the server")?,
    );
    let settings = Settings {
        binary: &binary,
        instance: "tproxy-bench",
        flags: &["--iface", CLIENT_SIDE],
        log: "warn",
    };
    let agent = Agent::start(&topology.gateway, &settings)?;
    let ask = |arguments: &[&str]| -> Result<f64> {
        interrupt::check()?;
        let started = Instant::now();
        agent.ask(&topology.gateway, arguments)?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let load = |file: &PathBuf| ask(&["set", "load", "big", &file.display().to_string()]);
    load(&files[0])?;
    let rule = ["rule", "add", "--dport", "80", "--dst", "set:big"];
    ask(&rule)?;

    let loads = (0..5)
        .map(|round| load(&files[(round + 1) % 2]))
        .collect::<Result<_>>()?;
    // The list has room for one more.
    let additions = (0..ADDITIONS)
        .map(|_| {
            let one_more = "198.51.100.77/32";
            let took = ask(&["set", "add", "big", one_more])?;
            ask(&["set", "del", "big", one_more])?;
            Ok(took)
        })
        .collect::<Result<_>>()?;

    let connects = || -> Result<Child> {
        let mut client = topology.client.command(&own);
        client.args(["connect-latency", "--seconds", &seconds.to_string()]);
        client.args(["--target", &format!("{SERVER_V4}:{PORT}")]);
        let client = client.stdout(Stdio::piped()).spawn();
        client.context("cannot start the client")
    };
    let connects_at_rest = latencies(connects()?)?;
    let mut client = connects()?;
    let mut round = 0;
    while client
        .try_wait()
        .context("cannot wait for the client")?
        .is_none()
    {
        load(&files[round % 2])?;
        round += 1;
    }
    let live = Live {
        cidrs: CIDRS,
        loads,
        additions,
        connects_at_rest,
        connects_while_loading: latencies(client)?,
    };
    println!("{}", serde_json::to_string(&live)?);
    Ok(())
}

/// Connects again and again, and prints how long it took each time, in microseconds, ascending.
///
/// # Errors
///
/// When a connection fails.
pub(crate) fn connect(target: SocketAddr, seconds: u64) -> Result<()> {
    let started = Instant::now();
    let mut latencies = Vec::new();
    for number in 1.. {
        let due = INTERVAL * number;
        if due > Duration::from_secs(seconds) {
            break;
        }
        thread::sleep(due.saturating_sub(started.elapsed()));
        let begin = Instant::now();
        let stream = TcpStream::connect(target).context("cannot connect")?;
        latencies.push(u32::try_from(begin.elapsed().as_micros())?);
        drop(stream);
    }
    latencies.sort_unstable();
    println!("{}", serde_json::to_string(&latencies)?);
    Ok(())
}

/// Runs [`measure`] as root and reads what it prints.
pub(super) fn ask(mut measure: Command) -> Result<Live> {
    command::show(&measure);
    let output = measure
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the measurement of sets")?;
    ensure!(output.status.success(), "the measurement of sets failed");
    serde_json::from_slice(&output.stdout).context("the measurement of sets printed nonsense")
}

fn latencies(client: Child) -> Result<Vec<u32>> {
    let output = client
        .wait_with_output()
        .context("cannot wait for the client")?;
    ensure!(output.status.success(), "the client failed");
    serde_json::from_slice(&output.stdout).context("the client printed nonsense")
}

/// As many CIDRs as an instance may have but one, half of each family; the server's address among
/// them. Lists of different seeds have nothing else in common.
fn list(seed: u64) -> String {
    // Multiplication by an odd number permutes the numbers of a width.
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut text = format!("{SERVER_V4}/32\n");
    for number in 1..u64::from(CIDRS) / 2 {
        let mixed = (number * 2 + seed).wrapping_mul(ODD);
        let [.., a, b, c] = mixed.to_be_bytes();
        let v6 = 0x2000_u128 << 112 | u128::from(mixed & 0x1fff_ffff_ffff) << 80;
        let (v4, v6) = (Ipv4Addr::new(a, b, c, 0), Ipv6Addr::from(v6));
        let _ = write!(text, "{v4}/24\n{v6}/48\n");
    }
    text
}

/// A process that is ended with this.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let killed = self.0.kill().and_then(|()| self.0.wait());
        if let Err(error) = killed {
            let _ = writeln!(std::io::stderr(), "xtask: the server does not end: {error}");
        }
    }
}
