//! Envoy as a transparent proxy for datagrams: it answers from the address that each was sent to, but from its own port.

use std::{fs, net::SocketAddr};

use tempfile::TempDir;

use crate::{Namespace, address::FAMILIES, peer::envoy, process::Process, wait};

/// A running Envoy that passes datagrams for any address on to one server.
#[derive(Debug)]
pub struct EnvoyDatagrams {
    _directory: TempDir,
    _process: Process,
}

impl EnvoyDatagrams {
    /// Takes datagrams at `port`, in both families at the wildcard address, for the server at `upstream`.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace, port: u16, upstream: SocketAddr) -> Self {
        let directory = TempDir::new().expect("make a directory");
        let configuration = directory.path().join("envoy.yaml");
        fs::write(&configuration, text(port, upstream)).expect("write the configuration");
        let mut process = Process::start(&mut envoy::command(namespace, &configuration));
        let ready = wait::within(wait::PATIENCE, || {
            let ready = sockets(namespace, port) >= FAMILIES.len();
            (ready || process.has_ended()).then_some(ready)
        });
        assert_eq!(ready, Some(true), "{}", process.stderr.text());
        Self {
            _directory: directory,
            _process: process,
        }
    }
}

/// How many UDP sockets are bound to `port` and not connected: lines of `/proc/net/udp` in state 07 (TCP's CLOSE).
fn sockets(namespace: &Namespace, port: u16) -> usize {
    let end = format!(":{port:04X}");
    let is_bound = |line: &&str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.len() > 3 && words[1].ends_with(&end) && words[3] == "07"
    };
    let tables = ["udp", "udp6"].map(|table| namespace.proc_net(table));
    let lines = tables.iter().flat_map(|table| table.lines());
    lines.filter(is_bound).count()
}

fn text(port: u16, upstream: SocketAddr) -> String {
    let listener = |address: &str| {
        format!(
            r#"
  - name: "{address}"
    address: {{socket_address: {{protocol: UDP, address: "{address}", port_value: {port}}}}}
    transparent: true
    listener_filters:
    - name: datagrams
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig
        stat_prefix: datagrams
        matcher:
          on_no_match:
            action:
              name: route
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route
                cluster: upstream"#
        )
    };
    format!(
        r#"static_resources:
  listeners:{}{}
  clusters:
  - name: upstream
    type: STATIC
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{socket_address: {{protocol: UDP, address: "{}", port_value: {}}}}}
"#,
        listener("0.0.0.0"),
        listener("::"),
        upstream.ip(),
        upstream.port()
    )
}
