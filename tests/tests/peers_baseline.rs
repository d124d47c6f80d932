//! The programs of others behind the kernel's own means, without the program under test: what fails here is not its
//! fault.

use std::net::SocketAddr;

use tempfile::TempDir;
use tproxy_tests::{
    Family, Lab, Namespace,
    address::FAMILIES,
    peer::{
        Dnsmasq, EnvoyDatagrams, Fetched, Iperf, LONG_NAME, NAME, Nginx, Product, Proxy,
        QuicServer, Repository, Source, WITHOUT_PROXIES, dig, python, send_datagrams,
    },
};

/// Steers flows to `port` at any address to the listener at `listener`, as every guide to TPROXY has it.
fn steer_by_nft(gateway: &Namespace, protocol: &str, port: u16, listener: u16) {
    gateway.nft(&format!(
        "table inet steering {{\n\
           chain prerouting {{\n\
             type filter hook prerouting priority mangle; policy accept;\n\
             meta l4proto tcp socket transparent 1 meta mark set 1 accept\n\
             iifname cl0 {protocol} dport {port} tproxy to :{listener} meta mark set 1 accept\n\
           }}\n\
         }}"
    ));
    for family in ["-4", "-6"] {
        gateway.run(&format!("ip {family} rule add fwmark 1 lookup 100"));
        gateway.run(&format!(
            "ip {family} route add local default dev lo table 100"
        ));
    }
}

fn takes_flows_to_any_address(product: Product, source: Source) {
    let lab = Lab::new();
    let _servers = [80, 81].map(|port| Nginx::start(&lab.server, port));
    let mut proxy = Proxy::start(&lab.gateway, product, source);
    steer_by_nft(&lab.gateway, "tcp", 80, Proxy::PORT);
    for _ in 0..2 {
        for family in FAMILIES {
            let seen = match source {
                Source::Proxy => family.gateway_upstream(),
                Source::Client => family.client(),
            };
            for address in [family.near(), family.server()] {
                let fetched = Fetched::from(&lab.client, (address, 80).into(), "who");
                assert_eq!(fetched.body, format!("{seen} {address}"));
                proxy.wait_for(fetched.client, (address, 80).into());
            }
            let direct = Fetched::from(&lab.client, (family.near(), 81).into(), "who");
            assert_eq!(
                direct.body,
                format!("{} {}", family.client(), family.near())
            );
        }
        assert_eq!(
            proxy
                .handed()
                .iter()
                .filter(|flow| flow.destination.port() != 80)
                .count(),
            0
        );
        proxy.restart();
    }
}

#[test]
fn squid_takes_flows_to_any_address() {
    takes_flows_to_any_address(Product::Squid, Source::Proxy);
}

#[test]
fn envoy_takes_flows_to_any_address() {
    takes_flows_to_any_address(Product::Envoy, Source::Proxy);
}

#[test]
fn envoy_with_http_takes_flows_to_any_address() {
    takes_flows_to_any_address(Product::EnvoyHttp, Source::Proxy);
}

#[test]
fn haproxy_takes_flows_to_any_address() {
    takes_flows_to_any_address(Product::Haproxy, Source::Proxy);
}

#[test]
fn nginx_stream_takes_flows_to_any_address() {
    takes_flows_to_any_address(Product::NginxStream, Source::Proxy);
}

#[test]
fn squid_reaches_servers_from_the_clients_address() {
    takes_flows_to_any_address(Product::Squid, Source::Client);
}

#[test]
fn haproxy_reaches_servers_from_the_clients_address() {
    takes_flows_to_any_address(Product::Haproxy, Source::Client);
}

#[test]
fn nginx_stream_reaches_servers_from_the_clients_address() {
    takes_flows_to_any_address(Product::NginxStream, Source::Client);
}

#[test]
fn dnsmasq_answers_dig_from_the_address_asked() {
    let lab = Lab::new();
    let dnsmasq = Dnsmasq::start(&lab.server, 53);
    for family in FAMILIES {
        let server: SocketAddr = (family.near(), 53).into();
        for (options, over_tcp) in [("", false), ("+tcp", true)] {
            let answer = dig(&lab.client, server, &format!("A {NAME} {options}"));
            assert_eq!(answer.records, [Dnsmasq::ADDRESS]);
            assert_eq!(answer.over_tcp, over_tcp);
        }
        let answer = dig(&lab.client, server, &format!("TXT {LONG_NAME}"));
        assert!(answer.over_tcp, "what does not fit is asked for again");
        assert_eq!(answer.records[0].matches('x').count(), Dnsmasq::TEXT_LENGTH);
        let question = format!("TXT {} +bufsize=4096 +ignore", Dnsmasq::FRAGMENTED_NAME);
        let answer = dig(&lab.client, server, &question);
        assert!(!answer.over_tcp);
        assert_eq!(
            answer.records[0].matches('x').count(),
            Dnsmasq::FRAGMENTED_LENGTH
        );
    }
    let reassembled = lab.client.counter("Ip", "ReasmOKs");
    assert_eq!(reassembled, 1, "the answer over IPv4 came in fragments");
    let clients = FAMILIES.map(|family| [family.client(); 2]).concat();
    assert_eq!(dnsmasq.clients(NAME, 4), clients);
}

#[test]
fn envoy_answers_datagrams_from_the_address_asked() {
    let lab = Lab::new();
    let dnsmasq = Dnsmasq::start(&lab.gateway, 5353);
    let resolver: SocketAddr = (Family::V4.loopback(), 5353).into();
    let _envoy = EnvoyDatagrams::start(&lab.gateway, 53, resolver);
    steer_by_nft(&lab.gateway, "udp", 53, 53);
    for family in FAMILIES {
        let answer = dig(&lab.client, (family.far(), 53).into(), &format!("A {NAME}"));
        assert_eq!(answer.records, [Dnsmasq::ADDRESS]);
    }
    assert_eq!(dnsmasq.clients(NAME, 2), [resolver.ip(); 2]);
}

#[test]
fn quic_downloads_arrive() {
    let lab = Lab::new();
    for family in FAMILIES {
        let server = QuicServer::start(&lab.server, (family.near(), 443).into());
        let (port, seen) = server.download(&lab.client, 3 << 20);
        assert_eq!(seen, (family.client(), port).into());
    }
}

#[test]
fn iperf_loses_nothing_at_a_modest_rate() {
    let lab = Lab::new();
    for family in FAMILIES {
        let address: SocketAddr = (family.near(), 5201).into();
        let _server = Iperf::start(&lab.server, address);
        for reverse in [false, true] {
            send_datagrams(&lab.client, address, reverse).assert_complete();
        }
    }
}

#[test]
fn clients_of_http_need_no_proxy() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab.server, 80);
    let repository = Repository::serve(&nginx);
    for family in FAMILIES {
        let server: SocketAddr = (family.near(), 80).into();
        let page = lab.gateway.output(&format!(
            "{WITHOUT_PROXIES} {} http://{server}/who",
            python("fetch.py")
        ));
        let (gateway, near) = (family.gateway_upstream(), family.near());
        assert_eq!(page.trim(), format!("{gateway} {near}"));
        let clone = TempDir::new().expect("make a directory");
        lab.gateway
            .run(&repository.clone_command(server, clone.path()));
        repository.assert_cloned(clone.path());
    }
}
