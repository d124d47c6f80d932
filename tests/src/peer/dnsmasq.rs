//! dnsmasq as a DNS server, and dig as its client.

use std::net::{IpAddr, SocketAddr};

use crate::{Namespace, process::Process};

/// A name with an address, [`Dnsmasq::ADDRESS`].
pub const NAME: &str = "host.example.test";

/// A name with a text that does not fit a datagram.
pub const LONG_NAME: &str = "long.example.test";

/// A running dnsmasq, which knows [`NAME`] and [`LONG_NAME`] and asks nobody.
#[derive(Debug)]
pub struct Dnsmasq {
    process: Process,
}

impl Dnsmasq {
    /// The address of [`NAME`].
    pub const ADDRESS: &str = "192.0.2.77";

    /// The length of the text of [`LONG_NAME`].
    pub const TEXT_LENGTH: usize = 20 * 200;

    /// A name with a text that fits a datagram of EDNS, but not a packet of Ethernet.
    pub const FRAGMENTED_NAME: &str = "fragmented.example.test";

    /// The length of the text of [`Dnsmasq::FRAGMENTED_NAME`].
    pub const FRAGMENTED_LENGTH: usize = 10 * 200;

    /// Serves `port` at every address of `namespace`, over UDP and TCP.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        let text = |length: usize| vec!["x".repeat(200); length / 200].join(",");
        let (long, fragmented) = (text(Self::TEXT_LENGTH), text(Self::FRAGMENTED_LENGTH));
        let mut command = namespace.command("dnsmasq");
        command
            .args(["--no-daemon", "--user=root", "--conf-file=/dev/null"])
            .args(["--pid-file=", "--no-resolv", "--no-hosts", "--log-queries"])
            .arg(format!("--port={port}"))
            .arg(format!("--host-record={NAME},{}", Self::ADDRESS))
            .arg("--edns-packet-max=4096")
            .arg(format!("--txt-record={LONG_NAME},{long}"))
            .arg(format!(
                "--txt-record={},{fragmented}",
                Self::FRAGMENTED_NAME
            ));
        let process = Process::start(&mut command);
        namespace.wait_for_listener(port);
        Self { process }
    }

    /// The clients that have asked for `name`, as the server saw them, as soon as there are `count` questions.
    #[must_use]
    #[track_caller]
    pub fn clients(&self, name: &str, count: usize) -> Vec<IpAddr> {
        let mut clients = Vec::new();
        let seen = self.process.stderr.find(|line| {
            clients.extend(client_of(line, name));
            (clients.len() >= count).then_some(())
        });
        assert!(seen.is_some(), "{clients:?} are not {count} questions");
        clients
    }
}

/// The client in a line such as `dnsmasq: query[A] host.example.test from 10.77.1.2`.
fn client_of(line: &str, name: &str) -> Option<IpAddr> {
    let (_, question) = line.split_once(": query[")?;
    let (_, question) = question.split_once("] ")?;
    let (asked, client) = question.split_once(" from ")?;
    let client = client.trim().parse().ok()?;
    (asked == name).then_some(client)
}

/// What dig was told.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The data of the records.
    pub records: Vec<String>,
    /// Whether the answer came over TCP.
    pub over_tcp: bool,
}

/// Asks `server` for a record (`A host.example.test +tcp`) from inside `namespace`, once. dig takes no answer from
/// another address than the one that it asked.
#[must_use]
#[track_caller]
pub fn dig(namespace: &Namespace, server: SocketAddr, question: &str) -> Answer {
    let command_line = format!(
        "dig -r @{} -p {} {question} +tries=1 +time=10 +noall +answer +stats",
        server.ip(),
        server.port()
    );
    let output = namespace.output(&command_line);
    let told = |line: &&str| line.starts_with(";; SERVER: ");
    let source = output.lines().find(told);
    let source = source.unwrap_or_else(|| panic!("no answer to {command_line}: {output}"));
    let answers = output.lines().filter(|line| !line.starts_with(';'));
    let data = |line: &str| {
        let mut words = line.split_whitespace().skip(4);
        words
            .next()
            .map(|first| words.fold(first.to_owned(), |text, word| text + " " + word))
    };
    Answer {
        records: answers.filter_map(data).collect(),
        over_tcp: source.ends_with("(TCP)"),
    }
}
