//! Flows handed to programs of others, transparent proxies and plain servers, which know nothing of the one that steers.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tproxy_tests::{
    Agent, Family, Lab, Namespace,
    address::FAMILIES,
    peer::{
        Dnsmasq, EnvoyDatagrams, Fetched, NAME, Nginx, Product, Proxy, Sockets, Source, StreamEcho,
        dig,
    },
    wait,
};

const WEB: u16 = 80;

/// No rule names it.
const OTHER: u16 = 81;

/// Hands flows to [`WEB`] to the proxy: to every socket of its that listens at all addresses of a family.
fn hand_over(agent: &Agent, more: &str) {
    agent.run(&format!(
        "rule add --name web --dport 80 --action redirect --to 0.0.0.0:3129 {more}"
    ));
}

/// Fetches a page as a client does who knows of no proxy.
#[track_caller]
fn fetch(lab: &Lab, address: IpAddr, port: u16) -> Fetched {
    let target = SocketAddr::new(address, port);
    let fetched = Fetched::from(&lab.client, target, "who");
    assert_eq!(fetched.server, target, "the client sees the server");
    fetched
}

#[track_caller]
fn assert_handed(lab: &Lab, proxy: &Proxy, family: Family, source: Source) {
    let seen = match source {
        Source::Proxy => family.gateway_upstream(),
        Source::Client => family.client(),
    };
    for address in [family.near(), family.server()] {
        let fetched = fetch(lab, address, WEB);
        assert_eq!(fetched.body, format!("{seen} {address}"));
        proxy.wait_for(fetched.client, (address, WEB).into());
    }
}

#[track_caller]
fn assert_direct(lab: &Lab, family: Family, port: u16) {
    let fetched = fetch(lab, family.far(), port);
    assert_eq!(
        fetched.body,
        format!("{} {}", family.client(), family.far())
    );
}

/// The proxy gets the flows that the rule names, knows where they were going, and the server sees the proxy; flows to
/// another port never come near it. Another process of it takes over within a second, and the agent stays.
fn takes_what_it_is_handed(product: Product) {
    let lab = Lab::new();
    let _servers = [WEB, OTHER].map(|port| Nginx::start(&lab.server, port));
    let mut proxy = Proxy::start(&lab.gateway, product, Source::Proxy);
    let mut agent = lab.agent("--iface cl0");
    hand_over(&agent, "");
    for family in FAMILIES {
        assert_handed(&lab, &proxy, family, Source::Proxy);
        assert_direct(&lab, family, OTHER);
    }
    assert_eq!(proxy.handed().len(), 4, "nothing else was handed over");
    assert_eq!(agent.rules()[0]["flows"], 4);

    proxy.restart();
    for family in FAMILIES {
        assert_reached_within_a_second(&lab, family);
        assert_handed(&lab, &proxy, family, Source::Proxy);
        assert_direct(&lab, family, OTHER);
    }
    assert!(agent.is_running());
    assert_eq!(agent.stop(), [], "the agent relayed none of them");
}

#[track_caller]
fn assert_reached_within_a_second(lab: &Lab, family: Family) {
    let attempt = || Fetched::attempt(&lab.client, (family.near(), WEB).into(), "who").ok();
    let fetched = wait::within(Duration::from_secs(1), attempt);
    let fetched = fetched.expect("a new process of the proxy gets new flows within a second");
    assert_eq!(
        fetched.body,
        format!("{} {}", family.gateway_upstream(), family.near())
    );
}

#[test]
fn squid_takes_what_it_is_handed() {
    takes_what_it_is_handed(Product::Squid);
}

#[test]
fn envoy_takes_what_it_is_handed() {
    takes_what_it_is_handed(Product::Envoy);
}

#[test]
fn envoy_with_http_takes_what_it_is_handed() {
    takes_what_it_is_handed(Product::EnvoyHttp);
}

#[test]
fn haproxy_takes_what_it_is_handed() {
    takes_what_it_is_handed(Product::Haproxy);
}

#[test]
fn nginx_stream_takes_what_it_is_handed() {
    takes_what_it_is_handed(Product::NginxStream);
}

/// Where the proxy reaches for the server from the client's address, the way back needs the interface towards the server
/// attached as well.
fn keeps_the_clients_address(product: Product) {
    let lab = Lab::new();
    let _servers = [WEB, OTHER].map(|port| Nginx::start(&lab.server, port));
    let proxy = Proxy::start(&lab.gateway, product, Source::Client);
    let mut agent = lab.agent("--iface cl0,sv0");
    hand_over(&agent, "");
    for family in FAMILIES {
        assert_handed(&lab, &proxy, family, Source::Client);
        assert_direct(&lab, family, OTHER);
    }
    assert_eq!(proxy.handed().len(), 4, "nothing else was handed over");
    assert_eq!(agent.stop(), []);
}

#[test]
fn squid_keeps_the_clients_address() {
    keeps_the_clients_address(Product::Squid);
}

#[test]
fn envoy_keeps_the_clients_address() {
    keeps_the_clients_address(Product::Envoy);
}

#[test]
fn envoy_with_http_keeps_the_clients_address() {
    keeps_the_clients_address(Product::EnvoyHttp);
}

#[test]
fn haproxy_keeps_the_clients_address() {
    keeps_the_clients_address(Product::Haproxy);
}

#[test]
fn nginx_stream_keeps_the_clients_address() {
    keeps_the_clients_address(Product::NginxStream);
}

/// Squid has one socket for both families, which can be called by the address that it is bound to.
#[test]
fn one_socket_takes_both_families() {
    let lab = Lab::new();
    let _servers = [WEB, OTHER].map(|port| Nginx::start(&lab.server, port));
    let proxy = Proxy::start(&lab.gateway, Product::Squid, Source::Proxy);
    let agent = lab.agent("--iface cl0");
    agent.run("rule add --dport 80 --action redirect --to [::]:3129");
    for family in FAMILIES {
        assert_handed(&lab, &proxy, family, Source::Proxy);
        assert_direct(&lab, family, OTHER);
    }
}

/// While the proxy is not there, its flows are refused at once, or go their own way where the rule says so; others are
/// not touched by that.
#[test]
fn flows_are_refused_or_go_direct_while_the_proxy_is_away() {
    const OPEN: u16 = 8080;
    let lab = Lab::new();
    let _servers = [WEB, OPEN, OTHER].map(|port| Nginx::start(&lab.server, port));
    let mut proxy = Proxy::start(&lab.gateway, Product::Haproxy, Source::Proxy);
    let agent = lab.agent("--iface cl0");
    hand_over(&agent, "");
    agent.run("rule add --dport 8080 --action redirect --to 0.0.0.0:3129 --on-missing pass");
    let assert_open_is_handed = |family: Family| {
        let fetched = fetch(&lab, family.near(), OPEN);
        let seen = format!("{} {}", family.gateway_upstream(), family.near());
        assert_eq!(fetched.body, seen);
    };
    for family in FAMILIES {
        assert_handed(&lab, &proxy, family, Source::Proxy);
        assert_open_is_handed(family);
    }
    proxy.stop();
    for family in FAMILIES {
        assert_refused(&lab.client, (family.near(), WEB).into());
        assert_direct(&lab, family, OPEN);
        assert_direct(&lab, family, OTHER);
    }
    let proxy = Proxy::start(&lab.gateway, Product::Haproxy, Source::Proxy);
    for family in FAMILIES {
        wait::until("flows go to the proxy again", || {
            let fetched = fetch(&lab, family.near(), OPEN);
            fetched
                .body
                .starts_with(&family.gateway_upstream().to_string())
                .then_some(())
        });
        assert_reached_within_a_second(&lab, family);
        assert_handed(&lab, &proxy, family, Source::Proxy);
        assert_open_is_handed(family);
    }
}

/// A flow that begins before the rule is deleted is served to its end, a new one goes direct.
#[test]
fn flows_in_the_proxy_outlive_their_rule() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab.server, WEB);
    let content = vec![0x5a; 8 << 20];
    std::fs::write(nginx.root().join("large"), &content).expect("write a file");
    let proxy = Proxy::start(&lab.gateway, Product::Envoy, Source::Proxy);
    let agent = lab.agent("--iface cl0");
    hand_over(&agent, "");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), WEB).into()).unwrap();
        request(&mut stream, "large");
        let mut start = [0; 1024];
        stream.read_exact(&mut start).unwrap();
        agent.run("rule del web");
        lab.gateway.ip("route add 203.0.113.0/24 dev lo");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        let answer = [&start[..], &rest].concat();
        assert!(answer.ends_with(&content), "the whole file arrives");
        let client = stream.local_addr().unwrap();
        // Envoy writes its line when the client has closed as well.
        drop(stream);
        proxy.wait_for(client, (family.near(), WEB).into());
        assert_direct(&lab, family, WEB);
        lab.gateway.ip("route del 203.0.113.0/24 dev lo");
        hand_over(&agent, "");
    }
}

fn request(stream: &mut impl std::io::Write, path: &str) {
    let request = format!("GET /{path} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .expect("send a request");
}

#[track_caller]
fn assert_refused(namespace: &Namespace, target: SocketAddr) {
    let error = namespace.connect(target).expect_err("nobody is there");
    assert_eq!(
        error.kind(),
        std::io::ErrorKind::ConnectionRefused,
        "{target}: {error}"
    );
}

/// Programs that cannot answer in the name of a foreign address are not handed forwarded flows: the command says so, names
/// the program, and changes nothing.
#[test]
fn listeners_that_are_not_transparent_are_refused() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.server, WEB);
    let _nginx = Nginx::start(&lab.gateway, WEB);
    let _dnsmasq = Dnsmasq::start(&lab.gateway, 53);
    let agent = lab.agent("--iface cl0");
    for (flags, program) in [
        ("--dport 80 --to 0.0.0.0:80", "nginx"),
        ("--dport 80 --to [::1]:80", "nginx"),
        ("--dport 53 --proto udp --to 0.0.0.0:53", "dnsmasq"),
    ] {
        let attempt = agent.attempt(&format!("rule add --action redirect {flags}"));
        attempt.assert_refused(1, &[program, "IP_TRANSPARENT"]);
    }
    assert!(agent.rules().is_empty(), "{:?}", agent.rules());
    for family in FAMILIES {
        assert_direct(&lab, family, WEB);
    }
}

/// Questions to whatever DNS server are answered by the resolver of this host, in the name of whom they were sent to; those
/// to another port reach the server. A listener for datagrams has to have the port that they are sent to: that is where
/// it answers from.
#[test]
fn envoy_answers_datagrams_for_any_address() {
    let lab = Lab::new();
    let resolver = Dnsmasq::start(&lab.gateway, 5353);
    let servers = [53, 5300].map(|port| Dnsmasq::start(&lab.server, port));
    let loopback: SocketAddr = (Family::V4.loopback(), 5353).into();
    let _envoy = EnvoyDatagrams::start(&lab.gateway, 53, loopback);
    let agent = lab.agent("--iface cl0");
    agent.run("rule add --proto udp --dport 53 --action redirect --to 0.0.0.0:53");
    for family in FAMILIES {
        for address in [family.near(), family.far()] {
            for (options, port) in [("", 53), ("+tcp", 53), ("", 5300)] {
                let question = format!("A {NAME} {options}");
                let answer = dig(&lab.client, (address, port).into(), &question);
                assert_eq!(answer.records, [Dnsmasq::ADDRESS]);
            }
        }
    }
    assert_eq!(resolver.clients(NAME, 4), [loopback.ip(); 4]);
    for server in &servers {
        let clients = FAMILIES.map(|family| [family.client(); 2]).concat();
        assert_eq!(server.clients(NAME, clients.len()), clients);
    }
    assert_eq!(agent.rules()[0]["flows"], 4, "one for each question");
}

/// A web server that listens on a loopback address only is reached at another port of this host; the port beside it is
/// as closed as before, and so is the server's own.
#[test]
fn a_server_at_loopback_is_reached_at_another_port() {
    let lab = Lab::new();
    let loopback = FAMILIES.map(|family| (family.loopback(), WEB).into());
    let _nginx = Nginx::bound(&lab.gateway, &loopback);
    let agent = lab.agent("--iface cl0");
    for (prefix, listener) in [("0.0.0.0/0", "127.0.0.1:80"), ("::/0", "[::1]:80")] {
        agent.run(&format!(
            "rule add --scope inbound --dst {prefix} --dport 50080 --action redirect --to {listener}"
        ));
    }
    for family in FAMILIES {
        for own in [family.gateway(), family.gateway_upstream()] {
            // At a listener of one address nginx does not ask for the address of a connection.
            let fetched = fetch(&lab, own, 50080);
            let expected = format!("{} {}", family.client(), family.loopback());
            assert_eq!(fetched.body, expected);
            assert_refused(&lab.client, (own, 50081).into());
            assert_refused(&lab.client, (own, WEB).into());
        }
        // What this host opens to itself is not inbound.
        assert_refused(&lab.gateway, (family.gateway(), 50080).into());
        assert_refused(&lab.gateway, (family.loopback(), 50080).into());
    }
    for rule in agent.rules() {
        assert_eq!(rule["flows"], 2, "{rule}");
    }
}

/// The rule of the documentation, without addresses.
#[test]
fn a_rule_without_addresses_leads_to_a_server_at_loopback() {
    let lab = Lab::new();
    let family = Family::V4;
    let _nginx = Nginx::bound(&lab.gateway, &[(family.loopback(), WEB).into()]);
    let agent = lab.agent("--iface cl0");
    agent.run("rule add --scope inbound --dport 50080 --action redirect --to 127.0.0.1:80");
    let fetched = fetch(&lab, family.gateway(), 50080);
    let expected = format!("{} {}", family.client(), family.loopback());
    assert_eq!(fetched.body, expected);
    assert_refused(&lab.client, (family.gateway(), 50081).into());
}

/// A prefix that is local to this host, all of it, is served by one listener at as many ports as the rule says. Bound to
/// all addresses, nginx tells which of them it was asked at.
#[test]
fn a_whole_prefix_is_served_by_one_listener() {
    let lab = Lab::new();
    let _echo = StreamEcho::start(
        &lab.gateway,
        &FAMILIES.map(|family| (family.any(), 7000).into()),
    );
    lab.gateway.ip("route add local 203.0.113.0/24 dev lo\n\
                    route add local 2001:db8:3::/48 dev lo");
    let agent = lab.agent("--iface cl0");
    agent.run(
        "rule add --scope inbound --dst 203.0.113.0/24,2001:db8:3::/48 --dport 80,8000-8999 \
         --action redirect --to 0.0.0.0:7000",
    );
    let inside = [
        "203.0.113.1:80",
        "203.0.113.254:8000",
        "203.0.113.7:8999",
        "[2001:db8:3::1]:80",
        "[2001:db8:3:ffff::7]:8500",
    ];
    for target in inside.map(|target| target.parse().unwrap()) {
        let mut stream = lab.client.connect(target).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        let client = stream.local_addr().unwrap();
        assert_eq!(said, format!("{} {}\n", words(client), words(target)));
    }
    let outside = [
        "203.0.113.1:81",
        "203.0.113.254:7999",
        "[2001:db8:3::1]:9000",
        "10.77.1.1:80",
        "[fd77:1::1]:8000",
    ];
    for target in outside.map(|target| target.parse().unwrap()) {
        assert_refused(&lab.client, target);
    }
}

/// An address and a port as nginx prints them.
fn words(address: SocketAddr) -> String {
    format!("{} {}", address.ip(), address.port())
}

/// A successor of `HAProxy` is given the listening sockets: under load nobody is refused. The flows of its predecessor
/// finish there, new ones are the successor's.
#[test]
fn nobody_is_refused_while_haproxy_hands_its_sockets_over() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.server, WEB);
    let mut proxy = Proxy::start(&lab.gateway, Product::Haproxy, Source::Proxy);
    let mut agent = lab.agent("--iface cl0");
    hand_over(&agent, "");
    let has_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = FAMILIES.map(|family| {
            let (lab, has_ended) = (&lab, &has_ended);
            scope.spawn(move || fetch_again_and_again(lab, family, has_ended))
        });
        // Also when an assertion fails.
        let end = StoresOnDrop(&has_ended);
        for _ in 0..3 {
            reload(&lab, &mut proxy, Sockets::HandedOver);
        }
        drop(end);
        for client in clients {
            let fetched = client.join().expect("no client panics");
            assert!(fetched > 50, "{fetched} pages are no load");
        }
    });
    assert_eq!(agent.stop(), []);
}

/// A successor that opens sockets of its own gets new flows within a second, and its predecessor finishes.
#[test]
fn a_successor_of_haproxy_takes_over_within_a_second() {
    let lab = Lab::new();
    let _server = Nginx::start(&lab.server, WEB);
    let mut proxy = Proxy::start(&lab.gateway, Product::Haproxy, Source::Proxy);
    let mut agent = lab.agent("--iface cl0");
    hand_over(&agent, "");
    for _ in 0..3 {
        reload(&lab, &mut proxy, Sockets::Opened);
    }
    assert_eq!(agent.stop(), []);
}

/// Replaces the process of a proxy that has a flow of each family, which goes on to its end. New flows are the
/// successor's.
#[track_caller]
fn reload(lab: &Lab, proxy: &mut Proxy, sockets: Sockets) {
    let mut flows = FAMILIES.map(|family| {
        let target = (family.near(), WEB).into();
        let stream = lab.client.connect(target).expect("the proxy");
        BufReader::new(stream)
    });
    let ask = |flow: &mut BufReader<TcpStream>, family: Family, connection: &str| {
        let request =
            format!("GET /who HTTP/1.1\r\nHost: server\r\nConnection: {connection}\r\n\r\n");
        flow.get_mut().write_all(request.as_bytes()).expect("send");
        let lines = flow.lines().map(|line| line.expect("an answer"));
        let page = format!("{} {}", family.gateway_upstream(), family.near());
        assert!(lines.take(20).any(|line| line == page), "no {page}");
    };
    for (flow, family) in flows.iter_mut().zip(FAMILIES) {
        ask(flow, family, "keep-alive");
    }
    let mut old = proxy.reload(sockets);
    for family in FAMILIES {
        if sockets == Sockets::Opened {
            assert_reached_within_a_second(lab, family);
        }
        assert_handed(lab, proxy, family, Source::Proxy);
    }
    assert!(!old.has_ended(), "it has flows");
    for (flow, family) in flows.iter_mut().zip(FAMILIES) {
        ask(flow, family, "close");
    }
    drop(flows);
    assert_eq!(old.wait().code(), Some(0));
}

/// Fetches pages, each of which must come, until it is told; returns how many.
fn fetch_again_and_again(lab: &Lab, family: Family, has_ended: &AtomicBool) -> u32 {
    let page = format!("{} {}\n", family.gateway_upstream(), family.near());
    let mut count = 0;
    while !has_ended.load(Ordering::Relaxed) {
        let target = (family.near(), WEB).into();
        let mut stream = lab.client.connect(target).expect("nobody is refused");
        request(&mut stream, "who");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        read.expect("nobody is reset");
        assert!(answer.ends_with(&page), "{answer:?}");
        count += 1;
    }
    count
}

struct StoresOnDrop<'a>(&'a AtomicBool);

impl Drop for StoresOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
