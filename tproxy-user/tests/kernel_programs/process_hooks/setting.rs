//! The hooks in a namespace with a neighbour, and rules for each thing that can become of a flow.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use nix::errno::Errno;
use socket2::SockRef;
use tproxy_common::{address::Family, flow::Protocol, outcome::Outcome};
use tproxy_user::{
    kernel::{attach_process_hooks, detach_process_hooks},
    rule::{Cgroup, Rule, RuleSpec},
};

use crate::{
    neighbour::{
        Addresses, NEAR, Neighbour, PATIENCE, accept, attach_to_link, deliver, families, listen,
        patient,
    },
    sandbox::{FIRST_SLOT, Sandbox, Workers, in_sandbox, ip, rule, settings},
};
/// One port for each thing that can become of a flow, and one that no rule names.
pub(crate) const RELAYED: u16 = 80;
pub(crate) const PASSED: u16 = 81;
pub(crate) const REJECTED: u16 = 82;
pub(crate) const DROPPED: u16 = 83;
pub(crate) const REDIRECTED: u16 = 84;
pub(crate) const OPEN: u16 = 85;
pub(crate) const UNNAMED: u16 = 86;

fn to_port(port: u16, edit: impl FnOnce(&mut RuleSpec)) -> Rule {
    local(|spec| {
        spec.dport = vec![port.to_string()];
        edit(spec);
    })
}

pub(crate) fn local(edit: impl FnOnce(&mut RuleSpec)) -> Rule {
    rule(|spec| {
        spec.scope = Some("local".into());
        spec.proto = Some("any".into());
        edit(spec);
    })
}

fn action(word: &str) -> impl FnOnce(&mut RuleSpec) {
    move |spec| spec.action = Some(word.into())
}

fn redirect(spec: &mut RuleSpec) {
    spec.action = Some("redirect".into());
    spec.to = Some("127.0.0.1:8080".into());
}

fn rules() -> [Rule; 6] {
    [
        to_port(REDIRECTED, redirect),
        to_port(RELAYED, |_| ()),
        to_port(PASSED, action("pass")),
        to_port(REJECTED, action("reject")),
        to_port(DROPPED, action("drop")),
        to_port(OPEN, |spec| spec.on_missing = Some("pass".into())),
    ]
}

/// The hooks, attached while this lives, in a namespace with a neighbour that has servers.
pub(crate) struct Setting<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) neighbour: Neighbour,
    servers: Vec<(u16, TcpListener, UdpSocket)>,
}

pub(crate) fn in_setting(test: impl FnOnce(&Setting<'_>) + Send + 'static) {
    in_sandbox(|sandbox| {
        let neighbour = Neighbour::on_link();
        attach_to_link(sandbox);
        for Addresses { client, server, .. } in families() {
            ip(&format!("route add {server} via {client}"));
            neighbour.run(|| ip(&format!("addr add {server} dev lo")));
        }
        // It mirrors the routes.
        deliver(&[NEAR], true);
        sandbox.install(&rules());
        let root = Cgroup::root().expect("control groups");
        attach_process_hooks(sandbox.directory, &root, &settings()).expect("the hooks");
        let servers = neighbour.run(servers);
        let setting = Setting {
            sandbox,
            neighbour,
            servers,
        };
        test(&setting);
    });
}

impl Drop for Setting<'_> {
    fn drop(&mut self) {
        // They would stay as long as their pins, and these go with the namespace of mounts.
        let _ = detach_process_hooks(self.sandbox.directory);
    }
}

fn servers() -> Vec<(u16, TcpListener, UdpSocket)> {
    let ports = [
        RELAYED, PASSED, REJECTED, DROPPED, REDIRECTED, OPEN, UNNAMED,
    ];
    let server = |port| {
        let address = SocketAddr::from(([0_u16; 8], port));
        let udp = UdpSocket::bind(address).expect("a free port");
        (port, listen(address), patient(udp))
    };
    ports.map(server).into()
}

impl Setting<'_> {
    pub(crate) fn tcp(&self, port: u16) -> &TcpListener {
        let mut servers = self.servers.iter();
        &servers
            .find(|server| server.0 == port)
            .expect("it is there")
            .1
    }

    pub(crate) fn udp(&self, port: u16) -> &UdpSocket {
        let mut servers = self.servers.iter();
        &servers
            .find(|server| server.0 == port)
            .expect("it is there")
            .2
    }

    /// Has the rule for redirected flows hand them to these sockets.
    pub(crate) fn redirect_to(&self, tcp: &TcpListener, udp: &UdpSocket) {
        let maps = &self.sandbox.maps;
        let tcp = tcp.try_clone().expect("a duplicate").into();
        let udp = udp.try_clone().expect("a duplicate").into();
        for (protocol, socket) in [(Protocol::Tcp, &tcp), (Protocol::Udp, &udp)] {
            for family in [Family::V4, Family::V6] {
                let set = maps.set_redirect_member(protocol, family, FIRST_SLOT, 2, socket);
                set.expect("the socket is taken");
            }
        }
    }

    /// How often each of these occurred while something was done.
    pub(crate) fn occurred<R>(&self, action: impl FnOnce() -> R) -> (R, Vec<(Outcome, u64)>) {
        let before = self.sandbox.outcomes();
        let result = action();
        let mut moved = self.sandbox.moved_since(&before);
        moved.retain(|(outcome, _)| *outcome as u32 >= Outcome::LocalMarked as u32);
        (result, moved)
    }
}

/// Sockets of a worker that fail a test rather than to hang it.
pub(crate) fn of_worker(workers: &Workers) -> (TcpListener, UdpSocket) {
    let listener = &workers.listeners[0];
    let tcp = listener.tcp.try_clone().expect("a duplicate");
    let limit = Some(PATIENCE);
    SockRef::from(&tcp)
        .set_read_timeout(limit)
        .expect("an option");
    (tcp, patient(listener.udp.try_clone().expect("a duplicate")))
}

pub(crate) fn at(family: Addresses, port: u16) -> SocketAddr {
    SocketAddr::new(family.server, port)
}

#[track_caller]
pub(crate) fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: Errno) {
    let error = result.expect_err("it is refused");
    assert_eq!(error.raw_os_error(), Some(errno as i32), "{error}");
}

/// A connection comes to this listener as what it is: with the address that it would have without us.
#[track_caller]
pub(crate) fn assert_accepted(family: Addresses, port: u16, listener: &TcpListener) {
    let target = at(family, port);
    let mut client = TcpStream::connect(target).expect("a connection");
    let (mut accepted, destination, source) = accept(listener);
    assert_eq!(destination, target);
    assert_eq!(source, client.local_addr().expect("an address"));
    assert_eq!(source.ip(), family.own);
    client.write_all(b"?").expect("a connection");
    accepted.read_exact(&mut [0]).expect("a connection");
    accepted.write_all(b"!").expect("a connection");
    client.read_exact(&mut [0]).expect("a connection");
}
