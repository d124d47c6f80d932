//! Envoy as a transparent proxy.
//!
//! `transparent` makes the listener's sockets such; the listener filter `original_dst` finds that out and takes the
//! accepted socket's own address for the destination, and a cluster of type `ORIGINAL_DST` connects to it. The listener
//! filter `original_src` lets it connect from the client's address.

use std::{path::Path, process::Command};

use crate::{
    Namespace,
    peer::{Source, python},
};

/// Each listens with sockets of its own, which share the port.
pub(super) const WORKERS: usize = 2;

/// What Envoy looks at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Layer {
    /// A stream of bytes: `tcp_proxy`.
    Bytes,
    /// HTTP: `http_connection_manager`.
    Http,
}

pub(super) fn configuration(directory: &Path, layer: Layer, source: Source) -> String {
    let log = directory.join("access.log");
    let access_log = format!(
        r#"[{{name: log, typed_config: {{
          "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog,
          path: {}, log_format: {{text_format_source: {{inline_string:
          "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_PORT% %UPSTREAM_HOST%\n"
          }}}}}}}}]"#,
        log.display()
    );
    let filter = match layer {
        Layer::Bytes => format!(
            r#"name: bytes, typed_config: {{
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,
          stat_prefix: bytes, cluster: original, access_log: {access_log}}}"#
        ),
        Layer::Http => format!(
            r#"name: http, typed_config: {{
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
          stat_prefix: http, access_log: {access_log},
          route_config: {{virtual_hosts: [{{name: any, domains: ["*"],
            routes: [{{match: {{prefix: "/"}}, route: {{cluster: original}}}}]}}]}},
          http_filters: [{{name: router, typed_config: {{
            "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}"#
        ),
    };
    let source = match source {
        Source::Proxy => "",
        Source::Client => {
            r#"
    - name: original_src
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc}"#
        }
    };
    let listener = |name: &str, address: &str| {
        format!(
            r#"
  - name: {name}
    address: {{socket_address: {{address: "{address}", port_value: 3129}}}}
    transparent: true
    listener_filters:
    - name: original_dst
      typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}{source}
    filter_chains:
    - filters:
      - {{{filter}}}"#
        )
    };
    format!(
        r"static_resources:
  listeners:{}{}
  clusters:
  - name: original
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: 5s
",
        listener("v4", "0.0.0.0"),
        listener("v6", "::")
    )
}

pub(super) fn command(namespace: &Namespace, configuration: &Path) -> Command {
    let mut command = namespace.command(python::package("envoy/_bin/envoy"));
    command
        .arg("--config-path")
        .arg(configuration)
        // Shared memory for a successor would tie together what runs in different namespaces.
        .args(["--disable-hot-restart", "--concurrency"])
        .arg(WORKERS.to_string())
        .args(["--log-level", "warning", "--file-flush-interval-msec", "20"]);
    command
}
