//! Flows of this host's own users, relayed or handed to a proxy of others, which has flows of its own.

use std::net::SocketAddr;

use tproxy_tests::{
    Agent, FlowLine, Lab,
    address::FAMILIES,
    peer::{Dnsmasq, NAME, Nginx, Product, Proxy, QuicServer, Source},
};

/// The user whose flows are caught: Debian's `nobody`, who runs nothing here.
const USER: u32 = 65_534;

const WEB: u16 = 80;

/// No rule names it.
const OTHER: u16 = 81;

/// What a command line starts with that is to run as a user, who may read what root may: the tests can lie where others
/// cannot go.
fn as_user(user: u32) -> String {
    format!(
        "setpriv --reuid={user} --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    )
}

/// Fetches a page in the gateway as `user`; returns the client's port, and the page.
#[track_caller]
fn fetch(lab: &Lab, user: u32, server: SocketAddr) -> (u16, String) {
    let output = lab.gateway.output(&format!(
        "{} curl --silent --show-error --fail --noproxy * --max-time 10 --write-out %{{local_port}} \
         http://{server}/flow",
        as_user(user)
    ));
    let (page, port) = output.split_once('\n').expect("a page, and curl's port");
    (port.parse().expect("curl prints its port"), page.to_owned())
}

#[track_caller]
fn assert_direct(lab: &Lab, user: u32, server: SocketAddr) {
    let (port, page) = fetch(lab, user, server);
    let words: Vec<_> = page.split_whitespace().collect();
    assert_eq!(words[1], port.to_string(), "the server sees curl: {page}");
    assert_eq!(words[2], server.ip().to_string());
}

#[track_caller]
fn assert_not_direct(lab: &Lab, server: SocketAddr) -> u16 {
    let (port, page) = fetch(lab, USER, server);
    let words: Vec<_> = page.split_whitespace().collect();
    assert_ne!(
        words[1],
        port.to_string(),
        "the server sees another: {page}"
    );
    assert_eq!(words[2], server.ip().to_string());
    port
}

/// The flows of one user go through the agent, those of root and to other ports do not.
#[test]
fn curl_of_one_user_is_relayed() {
    let lab = Lab::new();
    let _servers = [WEB, OTHER].map(|port| Nginx::start(&lab.server, port));
    let mut agent = lab.agent("--iface cl0");
    agent.run(&format!("rule add --scope local --uid {USER} --dport 80"));
    for family in FAMILIES {
        let server: SocketAddr = (family.near(), WEB).into();
        let port = assert_not_direct(&lab, server);
        let client = (family.gateway_upstream(), port).into();
        let _ = agent.flow_between(client, server);
        assert_direct(&lab, 0, server);
        assert_direct(&lab, USER, (family.near(), OTHER).into());
    }
    assert_eq!(agent.stop().len(), 2);
}

/// The flows of one user are handed to a proxy on this host, whose own are not: it runs as another user.
fn takes_flows_of_one_user(product: Product) {
    let lab = Lab::new();
    let _servers = [WEB, OTHER].map(|port| Nginx::start(&lab.server, port));
    let proxy = Proxy::start(&lab.gateway, product, Source::Proxy);
    let mut agent = lab.agent("--iface cl0");
    agent.run(&format!(
        "rule add --scope local --uid {USER} --dport 80 --action redirect --to 0.0.0.0:3129"
    ));
    for family in FAMILIES {
        let server: SocketAddr = (family.near(), WEB).into();
        let port = assert_not_direct(&lab, server);
        proxy.wait_for((family.gateway_upstream(), port).into(), server);
        assert_direct(&lab, 0, server);
        assert_direct(&lab, USER, (family.near(), OTHER).into());
    }
    assert_eq!(proxy.handed().len(), 2);
    assert_eq!(agent.stop(), []);
}

#[test]
fn squid_takes_flows_of_one_user() {
    takes_flows_of_one_user(Product::Squid);
}

#[test]
fn envoy_takes_flows_of_one_user() {
    takes_flows_of_one_user(Product::Envoy);
}

#[test]
fn haproxy_takes_flows_of_one_user() {
    takes_flows_of_one_user(Product::Haproxy);
}

fn sessions(agent: &mut Agent) -> Vec<FlowLine> {
    let mut flows = agent.stop();
    flows.retain(|flow| flow.protocol == "udp");
    flows
}

/// dig and QUIC of one user: a connected socket, and an unconnected one of both families.
#[test]
fn datagrams_of_one_user_are_relayed() {
    let lab = Lab::new();
    let dnsmasq = Dnsmasq::start(&lab.server, 53);
    let mut agent = lab.agent("--iface cl0 --drain 1");
    agent.run(&format!(
        "rule add --scope local --uid {USER} --proto udp --dport 53,443"
    ));
    let mut expected = Vec::new();
    for family in FAMILIES {
        let near = family.near();
        for user in [USER, 0] {
            let answer = lab.gateway.output(&format!(
                "{} dig -r @{near} A {NAME} +tries=1 +time=10 +short",
                as_user(user)
            ));
            assert_eq!(answer, Dnsmasq::ADDRESS);
        }
        expected.push(SocketAddr::new(near, 53));

        let server = QuicServer::start(&lab.server, (near, 443).into());
        let client = server.client(1 << 20);
        for user in [USER, 0] {
            let printed = lab.gateway.output(&format!("{} {client}", as_user(user)));
            let (port, seen) = server.check_download(&printed, 1 << 20);
            assert_eq!(seen.ip(), family.gateway_upstream());
            assert_eq!(seen.port() == port, user == 0, "{seen}");
        }
        expected.push(SocketAddr::new(near, 443));
    }
    assert_eq!(dnsmasq.clients(NAME, 4).len(), 4);
    let mut servers: Vec<_> = sessions(&mut agent)
        .iter()
        .map(|flow| flow.server)
        .collect();
    servers.sort_unstable();
    expected.sort_unstable();
    assert_eq!(servers, expected);
}
