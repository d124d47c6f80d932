//! Programs of others under `tproxy exec`, in the gateway: they know of no proxy, are given none, and are relayed.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use tempfile::{NamedTempFile, TempDir};
use tproxy_tests::{
    Cli, Family, FlowLine, Lab, Snapshot,
    address::FAMILIES,
    agent::unique_instance,
    cli::Attempt,
    peer::{
        Dnsmasq, Fetched, Iperf, NAME, Nginx, QuicServer, Repository, UdpReport, WITHOUT_PROXIES,
        python, sender,
    },
    process::Process,
};

/// What nginx says at `/flow`: the client and the server as it sees them.
#[track_caller]
fn seen(page: &str) -> (SocketAddr, SocketAddr) {
    let words: Vec<_> = page.split_whitespace().collect();
    let [client, client_port, server, server_port] = words[..] else {
        panic!("{page:?} is not four words");
    };
    let address = |ip: &str, port: &str| {
        let ip: IpAddr = ip.parse().expect("nginx prints addresses");
        SocketAddr::new(ip, port.parse().expect("nginx prints ports"))
    };
    (address(client, client_port), address(server, server_port))
}

fn flows(attempt: &Attempt) -> Vec<FlowLine> {
    let lines = attempt.stderr.iter();
    lines.filter_map(|line| FlowLine::parse(line)).collect()
}

/// Runs a command with the rules of `rules` on its own traffic, in the gateway, with flow lines on standard error.
#[track_caller]
fn execute(lab: &Lab, rules: &str, command: &str) -> Attempt {
    let cli = Cli::new(&lab.gateway, &unique_instance());
    cli.attempt_under(WITHOUT_PROXIES, &format!("-v exec {rules} -- {command}"))
}

/// Checks that the flow lines of an attempt are of one flow of `protocol` to `server`, and returns it.
#[track_caller]
fn one_flow(attempt: &Attempt, protocol: &str, server: SocketAddr) -> FlowLine {
    let mut flows = flows(attempt);
    assert_eq!(flows.len(), 1, "{attempt:#?}");
    let flow = flows.remove(0);
    assert_eq!((flow.protocol.as_str(), flow.server), (protocol, server));
    flow
}

fn curl(server: SocketAddr) -> String {
    let ends = "%{stderr}%{local_port}\\n";
    format!("curl --silent --show-error --fail --noproxy * --write-out {ends} http://{server}/flow")
}

/// The server sees the relay's port instead of curl's, and the address that was asked for; a port that no rule names is
/// reached directly.
#[test]
fn curl_is_relayed_at_the_port_named_only() {
    let lab = Lab::new();
    let _servers = [80, 81].map(|port| Nginx::start(&lab.server, port));
    for family in FAMILIES {
        for (port, is_relayed) in [(80, true), (81, false)] {
            let server = SocketAddr::new(family.near(), port);
            let attempt = execute(&lab, "--dport 80", &curl(server));
            attempt.assert_done();
            let (client, reached) = seen(&attempt.stdout);
            assert_eq!(reached, server);
            assert_eq!(client.ip(), family.gateway_upstream());
            let own_port = attempt.stderr.iter().find_map(|line| line.parse().ok());
            let own_port: u16 = own_port.expect("curl prints its port");
            if is_relayed {
                let own = SocketAddr::new(family.gateway_upstream(), own_port);
                assert_eq!(one_flow(&attempt, "tcp", server).client, own);
                assert_ne!(client.port(), own_port, "the server sees the relay");
            } else {
                assert_eq!(flows(&attempt), []);
                assert_eq!(client.port(), own_port, "the server sees curl itself");
            }
        }
    }
}

/// All of a repository comes through the relay, in as many connections as git likes.
#[test]
fn git_clones_through_the_relay() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab.server, 80);
    let repository = Repository::serve(&nginx);
    for family in FAMILIES {
        let server: SocketAddr = (family.far(), 80).into();
        let clone = TempDir::new().expect("make a directory");
        let command = repository.clone_command(server, clone.path());
        let attempt = execute(&lab, "--dport 80", &command);
        attempt.assert_done();
        repository.assert_cloned(clone.path());
        let flows = flows(&attempt);
        assert!(!flows.is_empty(), "{attempt:#?}");
        assert!(flows.iter().all(|flow| flow.server == server));
        let received: u64 = flows.iter().map(|flow| flow.received).sum();
        assert!(received > 1 << 20, "{flows:#?}");
    }
}

/// The client of Python's library finds no variable that names a proxy, and its exit code is that of the whole.
#[test]
fn the_exit_code_of_the_command_is_passed_on() {
    let lab = Lab::new();
    let _nginx = Nginx::start(&lab.server, 80);
    for family in FAMILIES {
        let server: SocketAddr = (family.near(), 80).into();
        for code in [0, 7, 255] {
            let command = format!("{} http://{server}/flow --exit {code}", python("fetch.py"));
            let attempt = execute(&lab, "--dport 80", &command);
            assert_eq!(attempt.code, Some(code), "{attempt:#?}");
            assert_eq!(seen(&attempt.stdout).1, server);
            let flow = one_flow(&attempt, "tcp", server);
            assert_eq!(flow.client.ip(), family.gateway_upstream());
        }
    }
}

/// What other programs of the host open meanwhile is not relayed, and nothing is left when the command has ended.
#[test]
fn only_the_command_is_relayed_and_nothing_is_left() {
    let lab = Lab::new();
    let _nginx = Nginx::start(&lab.server, 80);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let cli = Cli::new(&lab.gateway, &instance);
    let running = NamedTempFile::new().expect("make a file");
    let server: SocketAddr = (Family::V4.near(), 80).into();
    let mut process = start_and_hold(&cli, server, running.path());

    for family in FAMILIES {
        let server: SocketAddr = (family.near(), 80).into();
        let fetched = Fetched::from(&lab.gateway, server, "flow");
        assert_eq!(seen(&fetched.body), (fetched.client, server), "direct");
        // Nor is what passes through the gateway.
        let fetched = Fetched::from(&lab.client, server, "flow");
        assert_eq!(seen(&fetched.body), (fetched.client, server), "direct");
    }
    drop(running);
    let attempt = Attempt::end_of("exec", &mut process);
    attempt.assert_done();
    let _ = one_flow(&attempt, "tcp", server);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// Starts a command that fetches a page and stays for as long as `file` exists, and waits for the page.
#[track_caller]
fn start_and_hold(cli: &Cli, server: SocketAddr, file: &Path) -> Process {
    let (fetch, file) = (python("fetch.py"), file.display());
    let arguments =
        format!("-v exec --dport 80 -- {fetch} http://{server}/flow --while-exists {file}");
    let process = cli.start_under(WITHOUT_PROXIES, &arguments);
    let page = process.stdout.find(|line| Some(line.to_owned()));
    let Some(page) = page else {
        panic!("no page: {}", process.stderr.text());
    };
    assert_eq!(seen(&page).1, server);
    process
}

/// dig sends datagrams from a socket that it connects.
#[test]
fn dig_is_relayed_over_udp() {
    let lab = Lab::new();
    let _servers = [53, 5300].map(|port| Dnsmasq::start(&lab.server, port));
    for family in FAMILIES {
        for (port, is_relayed) in [(53, true), (5300, false)] {
            let server: SocketAddr = (family.near(), port).into();
            let command = format!(
                "dig -r @{} -p {port} A {NAME} +tries=1 +time=10 +short",
                server.ip()
            );
            let attempt = execute(&lab, "--proto any --dport 53", &command);
            attempt.assert_done();
            assert_eq!(attempt.stdout, Dnsmasq::ADDRESS);
            if is_relayed {
                let flow = one_flow(&attempt, "udp", server);
                assert_eq!(flow.client.ip(), family.gateway_upstream());
            } else {
                assert_eq!(flows(&attempt), []);
            }
        }
    }
}

/// The QUIC client sends datagrams from an unconnected socket of both families, over IPv4 as well.
#[test]
fn a_quic_client_is_relayed() {
    const LENGTH: usize = 1 << 20;
    let lab = Lab::new();
    for family in FAMILIES {
        for (port, is_relayed) in [(443, true), (4433, false)] {
            let address: SocketAddr = (family.near(), port).into();
            let server = QuicServer::start(&lab.server, address);
            let attempt = execute(&lab, "--proto udp --dport 443", &server.client(LENGTH));
            attempt.assert_done();
            let (own_port, seen) = server.check_download(&attempt.stdout, LENGTH);
            assert_eq!(seen.ip(), family.gateway_upstream());
            if is_relayed {
                // The address of such a socket is one that stands for it; the port is its own.
                assert_eq!(one_flow(&attempt, "udp", address).client.port(), own_port);
                assert_ne!(seen.port(), own_port, "the server sees the relay");
            } else {
                assert_eq!(flows(&attempt), []);
                assert_eq!(seen.port(), own_port, "the server sees the client itself");
            }
        }
    }
}

/// iperf3 has a connection for control and a connected socket for datagrams.
#[test]
fn iperf_is_relayed_over_both_protocols() {
    let lab = Lab::new();
    for (family, reverse) in FAMILIES.into_iter().zip([false, true]) {
        for (port, expected) in [(5201, vec!["tcp", "udp"]), (5202, vec![])] {
            let address: SocketAddr = (family.near(), port).into();
            let _server = Iperf::start(&lab.server, address);
            let command = sender(address, reverse);
            let attempt = execute(&lab, "--proto any --dport 5201", &command);
            attempt.assert_done();
            UdpReport::read(&attempt.stdout).assert_complete();
            let flows = flows(&attempt);
            let mut protocols: Vec<_> = flows.iter().map(|flow| flow.protocol.as_str()).collect();
            protocols.sort_unstable();
            assert_eq!(protocols, expected);
        }
    }
}
