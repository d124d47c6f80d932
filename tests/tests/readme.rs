//! The uses in the README: each of its commands, as it stands there, on a machine that has the names that it uses.

use std::{fs, net::SocketAddr};

use tproxy_tests::{
    Agent, ControlGroup, DatagramClient, Exchange, Family, FlowLine, Lab, Namespace, Shell,
    address::FAMILIES,
    cli::Attempt,
    datagrams::Answer,
    peer::{
        Certificate, DatagramWitness, Fetched, Nginx, Product, Proxy, Repository, Source, Witness,
    },
    private_host,
    process::Process,
};

const README: &str = include_str!("../../README.md");

/// The headings of the uses, and who tests them.
const TESTED: [(&str, fn()); 6] = [
    ("A gateway", a_gateway),
    ("Programs of this host", programs_of_this_host),
    ("One command", one_command),
    (
        "A service on other ports or addresses",
        a_service_on_other_ports_or_addresses,
    ),
    ("Squid, Envoy, HAProxy, nginx", programs_of_others),
    ("A sidecar", a_sidecar),
];

/// A section of the README.
struct Section {
    heading: &'static str,
    /// The lines of its code blocks.
    code: Vec<&'static str>,
}

/// What is below "Uses": what stands before the first of its sections, and those.
fn uses() -> Vec<Section> {
    let (_, uses) = README.split_once("\n## Uses\n").expect("there are uses");
    let (uses, _) = uses.split_once("\n## ").expect("they end");
    let section = |text: &'static str| {
        let (heading, body) = text.split_once('\n').expect("a heading is a line");
        assert!(!body.contains("```"), "{heading}: code is indented");
        let code = body.lines().filter_map(|line| line.strip_prefix("    "));
        Section {
            heading,
            code: code.collect(),
        }
    };
    uses.split("\n### ").map(section).collect()
}

/// The commands of a section. A test takes each of them by a name, and so notices one that is new.
#[track_caller]
fn commands<const N: usize>(heading: &str) -> [&'static str; N] {
    let section = uses().into_iter().find(|use_| use_.heading == heading);
    let code = section.unwrap_or_else(|| panic!("no {heading:?}")).code;
    let number = code.len();
    code.try_into()
        .unwrap_or_else(|_| panic!("{heading}: {number} commands, and a test of {N}"))
}

/// Every section has its test, and what the table says is what they say.
#[test]
fn every_use_has_a_test() {
    let uses = uses();
    let (introduction, sections) = uses.split_first().expect("an introduction");
    assert!(introduction.code.is_empty(), "commands are in sections");
    let headings: Vec<_> = sections.iter().map(|section| section.heading).collect();
    assert_eq!(headings, TESTED.map(|(heading, _)| heading));

    let rows = README
        .lines()
        .skip_while(|line| *line != "| use | command |");
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    let rows: Vec<_> = rows.collect();
    assert_eq!(rows.len(), sections.len(), "{rows:#?}");
    for (row, section) in rows.iter().zip(sections) {
        let link = format!("](#{}) | `", anchor(section.heading));
        let command = row.split_once(&link).map(|(_, rest)| rest);
        let command = command.and_then(|rest| rest.strip_suffix("` |"));
        let command = command.unwrap_or_else(|| panic!("{row} has no {link}"));
        let code = &section.code;
        let is_there = code.iter().any(|line| without_comment(line) == command);
        assert!(is_there, "{command} is none of {code:#?}");
    }
}

fn without_comment(line: &str) -> &str {
    line.split_once(" #")
        .map_or(line, |(command, _)| command.trim_end())
}

/// What links call a heading: small letters, and hyphens for spaces.
fn anchor(heading: &str) -> String {
    let small = heading.to_lowercase().replace(' ', "-");
    small.replace(
        |letter: char| letter.is_ascii_punctuation() && letter != '-',
        "",
    )
}

/// A lab whose gateway has its clients at `eth1`.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.rename_client_link("cl0", "eth1");
    lab
}

fn at(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.near(), port)
}

/// TCP and UDP to the ports named go through the agent, others do not, and the commands beside it tell of that.
#[test]
fn a_gateway() {
    private_host::run("a_gateway", || {
        let [run, status, list] = commands("A gateway");
        let lab = lab();
        let _witnesses = [53, 80, 443, 81].map(|port| Witness::start(&lab.server, port));
        let _datagrams = [53, 80, 443, 81].map(|port| DatagramWitness::start(&lab.server, port));
        let shell = Shell::new(&lab.gateway);
        let agent = shell.agent(run);
        let ask = |target| DatagramClient::connected(&lab.client, target).ask(b"hello");
        for family in FAMILIES {
            for port in [53, 80, 443] {
                lab.ask(family.near(), port).assert_relayed(&agent);
                ask(at(family, port)).assert_relayed_from(family.gateway_upstream());
            }
            lab.ask(family.near(), 81).assert_direct(&agent);
            ask(at(family, 81)).assert_direct();
        }
        let status = shell.output(status);
        assert!(status.contains("eth1"), "{status}");
        let list = shell.output(list);
        let rule = list.lines().last().expect("a line of the rule");
        let words: Vec<_> = rule.split_whitespace().collect();
        assert!(words.contains(&"53,80,443"), "{list}");
        assert!(words.contains(&"12"), "the flows of {list}");
    });
}

/// The programs of a control group, and those of some users: theirs go through the agent, those of others do not.
#[test]
fn programs_of_this_host() {
    private_host::run("programs_of_this_host", || {
        let [of_group, of_users] = commands("Programs of this host");
        let lab = lab();
        let _witnesses = [53, 80, 443, 81].map(|port| Witness::start(&lab.server, port));
        let shell = Shell::new(&lab.gateway);
        let group = ControlGroup::named("user.slice");
        let session = group.child("session");
        let mut agent = shell.agent(of_group);
        for family in FAMILIES {
            for group in [&group, &session] {
                let ask = |port| {
                    let start = |line: &str| group.command_line(&lab.gateway, line);
                    Exchange::by_program(at(family, port), start)
                };
                ask(80).assert_relayed_locally(&agent);
                ask(443).assert_relayed_locally(&agent);
                ask(81).assert_direct(&agent);
            }
            Exchange::of(&lab.gateway, at(family, 80)).assert_direct(&agent);
        }
        assert_eq!(agent.stop().len(), 8);
        drop(agent);

        assert_users_are_relayed(&lab, &shell, of_users);
    });
}

fn assert_users_are_relayed(lab: &Lab, shell: &Shell, run: &str) {
    const ALICE: u32 = 2000;
    let users = fs::read_to_string("/etc/passwd").expect("read the users");
    let users = users + &format!("alice:x:{ALICE}:{ALICE}::/:/bin/sh\n");
    private_host::replace("/etc/passwd", &users);
    let _datagrams = [53, 443, 81].map(|port| DatagramWitness::start(&lab.server, port));
    let agent = shell.agent(run);
    for (user, is_named) in [(ALICE, true), (1000, true), (1999, true), (2001, false)] {
        for (family, port) in FAMILIES.into_iter().zip([53, 443]) {
            let as_user = format!("setpriv --reuid {user} --clear-groups");
            let start = |line: &str| lab.gateway.command_line(&format!("{as_user} {line}"));
            let ask = |port| Exchange::by_program(at(family, port), start);
            let host = family.near();
            let script = format!(
                "exec 3<>/dev/udp/{host}/{port}; printf hello >&3; timeout 15 dd bs=2048 count=1 status=none <&3"
            );
            let before = flows(&agent);
            let mut datagram = start("bash -c");
            let answer = Attempt::end_of(&script, &mut Process::start(datagram.arg(&script)));
            assert!(answer.stdout.ends_with("hello"), "{answer:?}");
            assert_eq!(flows(&agent) - before, u64::from(is_named), "{user}");
            if is_named {
                ask(port).assert_relayed_locally(&agent);
            } else {
                ask(port).assert_direct(&agent);
            }
            ask(81).assert_direct(&agent);
        }
    }
}

/// The flows that its only rule has taken.
fn flows(agent: &Agent) -> u64 {
    agent.rules()[0]["flows"].as_u64().expect("a number")
}

/// curl and git, by the name of the server, over TLS and without. Flows of curl to another port go direct.
#[test]
fn one_command() {
    const HOST: &str = "example.com";
    private_host::run("one_command", || {
        let [curl, git] = commands("One command");
        let lab = lab();
        let certificate = Certificate::of(HOST);
        let encrypted = [443, 8443].map(|port| Nginx::with_tls(&lab.server, port, &certificate));
        for nginx in &encrypted {
            fs::write(nginx.root().join("index.html"), "the page\n").expect("write a page");
        }
        let nginx = Nginx::start(&lab.server, 80);
        let repository = Repository::serve(&nginx);
        let mut shell = Shell::new(&lab.gateway);
        shell.export("CURL_CA_BUNDLE", certificate.path().display().to_string());
        for family in FAMILIES {
            private_host::replace("/etc/hosts", &format!("{} {HOST}\n", family.near()));

            let attempt = shell.attempt(curl);
            attempt.assert_done();
            assert_eq!(attempt.stdout, "the page", "and nothing else");
            assert_eq!(servers(&attempt), [at(family, 443)]);

            let other = curl.replace("https://example.com", "https://example.com:8443");
            assert_ne!(other, curl);
            let attempt = shell.attempt(&other);
            attempt.assert_done();
            assert_eq!(attempt.stdout, "the page");
            assert_eq!(servers(&attempt), []);

            let attempt = shell.attempt(git);
            attempt.assert_done();
            let clone = shell.directory().join("project");
            repository.assert_cloned(&clone);
            let servers = servers(&attempt);
            assert!(!servers.is_empty(), "{attempt:?}");
            assert!(servers.iter().all(|server| *server == at(family, 80)));
            fs::remove_dir_all(clone).expect("remove the clone");
        }
        let attempt = shell.attempt(&curl.replace("curl", "false"));
        assert_eq!(attempt.code, Some(1), "{attempt:?}");
    });
}

/// Where the flows went that a command has logged.
fn servers(attempt: &Attempt) -> Vec<SocketAddr> {
    let flows = attempt
        .stderr
        .iter()
        .filter_map(|line| FlowLine::parse(line));
    flows.map(|flow| flow.server).collect()
}

/// A service at 127.0.0.1 is reached at another port, and at every address and port of a prefix but 22.
#[test]
fn a_service_on_other_ports_or_addresses() {
    private_host::run("a_service_on_other_ports_or_addresses", || {
        let [route, run, port, prefix] = commands("A service on other ports or addresses");
        let lab = lab();
        let service = Witness::bound(&lab.gateway, (Family::V4.loopback(), 80).into());
        let shell = Shell::new(&lab.gateway);
        shell.run(route);
        let mut agent = shell.agent(run);
        let reached = |target: &str| {
            let exchange = Exchange::attempt(&lab.client, target.parse().expect("an address"));
            exchange.map(|exchange| exchange.assert_unproxied())
        };
        let ports = ["10.77.1.1:50080", "10.77.2.1:50080"];
        let addresses = ["203.0.113.1:1", "203.0.113.7:80", "203.0.113.254:65535"];
        let assert_only = |expected: &[&str]| {
            let never = ["10.77.1.1:80", "10.77.1.1:50081", "203.0.113.7:22"];
            for target in ports.into_iter().chain(addresses).chain(never) {
                let refused = reached(target).is_err();
                assert_eq!(!refused, expected.contains(&target), "{target}");
            }
            assert_eq!(service.clients().len(), expected.len());
        };
        assert_only(&[]);
        shell.run(port);
        assert_only(&ports);
        shell.run(prefix);
        assert_only(&[&ports[..], &addresses].concat());
        assert_eq!(agent.stop(), [], "nothing was relayed");
        shell.run("ip route del local 203.0.113.0/24 dev lo");
    });
}

/// Each of the programs gets the flows to the port named, and no others, and reaches for where they were going.
#[test]
fn programs_of_others() {
    private_host::run("programs_of_others", || {
        let [run, add] = commands("Squid, Envoy, HAProxy, nginx");
        for product in [
            Product::Squid,
            Product::Envoy,
            Product::Haproxy,
            Product::NginxStream,
        ] {
            let lab = lab();
            let _servers = [80, 81].map(|port| Nginx::start(&lab.server, port));
            let proxy = Proxy::start(&lab.gateway, product, Source::Proxy);
            let shell = Shell::new(&lab.gateway);
            let mut agent = shell.agent(run);
            let assert_seen = |family: Family, port, seen| {
                let fetched = Fetched::from(&lab.client, at(family, port), "who");
                assert_eq!(fetched.body, format!("{seen} {}", family.near()));
                fetched.client
            };
            for family in FAMILIES {
                assert_seen(family, 80, family.client());
            }
            shell.run(add);
            for family in FAMILIES {
                let client = assert_seen(family, 80, family.gateway_upstream());
                proxy.wait_for(client, at(family, 80));
                assert_seen(family, 81, family.client());
            }
            assert_eq!(proxy.handed().len(), 2);
            assert_eq!(agent.stop(), [], "the agent relayed nothing");
        }
    });
}

/// Two pods, one named and one told by a process, with an agent each that was started elsewhere: what the one opens, and
/// what is addressed to the other, is relayed.
#[test]
fn a_sidecar() {
    private_host::run("a_sidecar", || {
        let [local, inbound] = commands("A sidecar");
        let labs = [lab(), lab()];
        let [of_name, of_process] = &labs;
        of_name.gateway.name_also("pod");
        let process = start_as(812, &of_process.gateway);
        let host = Namespace::create("host");
        let shell = Shell::new(&host);
        let _servers = [53, 80, 443, 81].map(|port| Witness::start(&of_name.server, port));
        let _datagrams = [53, 81].map(|port| DatagramWitness::start(&of_name.server, port));
        let _services = [8080, 8081].map(|port| Witness::start(&of_process.gateway, port));
        let agent = shell.agent_in(&of_name.gateway, "default", local);
        let mut sidecar = shell.agent_in(&of_process.gateway, "inbound", inbound);
        for family in FAMILIES {
            let of_pod = |port| Exchange::of(&of_name.gateway, at(family, port));
            for port in [53, 80, 443] {
                of_pod(port).assert_relayed_locally(&agent);
            }
            of_pod(81).assert_direct(&agent);
            let datagram = |port| -> Answer {
                DatagramClient::connected(&of_name.gateway, at(family, port)).ask(b"hello")
            };
            datagram(53).assert_relayed_from(family.gateway_upstream());
            datagram(81).assert_direct();

            let own = family.gateway();
            let to_pod = |port| of_process.ask(own, port);
            to_pod(8080).assert_relayed_from(&sidecar, own);
            to_pod(8081).assert_direct(&sidecar);
        }
        assert_eq!(agent.status()["instance"], "default");
        drop(process);
        // With the process that it was named by, if not before, the namespace is gone for the agent.
        let flows = sidecar.wait();
        assert_eq!(flows.len(), 2);
    });
}

/// A process with this id that does nothing.
#[track_caller]
fn start_as(id: u32, namespace: &Namespace) -> Process {
    // The next process gets the next number (proc_sys_kernel(5)).
    fs::write("/proc/sys/kernel/ns_last_pid", (id - 1).to_string()).expect("choose an id");
    let process = Process::start(&mut namespace.command_line("sleep infinity"));
    assert_eq!(process.id(), id);
    process
}
