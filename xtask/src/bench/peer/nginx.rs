//! nginx's stream module as a transparent relay.
//!
//! It has no option for a listener on foreign addresses, so it inherits one, as it does from an older
//! nginx when it is upgraded: `NGINX` names the descriptor.

use std::{
    env, fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::topology::Topology;

use super::{Running, Source, timed};

/// Where it listens.
pub(super) const PORT: &str = "3128";

const CONFIGURATION: &str = "
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
user root;
worker_processes 2;
worker_rlimit_nofile 20000;
pid DIRECTORY/nginx.pid;
error_log DIRECTORY/nginx.log;
events { worker_connections 19900; }
stream {
  access_log off;
  proxy_connect_timeout 5s;
  proxy_timeout 120s;
  server {
    listen 0.0.0.0:PORT backlog=16384;
    proxy_pass $server_addr:$server_port;
    SOURCE
  }
}
";

const START: Duration = Duration::from_secs(5);

/// Returns when it has its workers.
pub(super) fn start(topology: &Topology, source: Source) -> Result<Running> {
    let directory = topology.directory.display().to_string();
    let path = topology.directory.join("nginx.conf");
    let source = match source {
        Source::Agent => "",
        Source::Client => "proxy_bind $remote_addr transparent;",
    };
    let text = CONFIGURATION
        .replace("DIRECTORY", &directory)
        .replace("PORT", PORT)
        .replace("SOURCE", source);
    fs::write(&path, text).context("cannot write nginx.conf")?;
    let own = env::current_exe().context("cannot find this program")?;
    let mut nginx = topology.gateway.command(own);
    nginx.args(["load", "transparent-listener", "--listen"]);
    nginx.arg(format!("0.0.0.0:{PORT}"));
    nginx.args(["--variable", "NGINX", "--", "nginx", "-c"]);
    let log = topology.directory.join("nginx.log");
    nginx.arg(&path).arg("-e").arg(&log);
    nginx.stdin(Stdio::null()).stdout(Stdio::null());
    let written = topology.directory.join("nginx.pid");
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let (child, ready_after) = timed(|| {
        let mut child = nginx.spawn().context("cannot start nginx")?;
        let deadline = Instant::now() + START;
        while fs::read_to_string(&written).unwrap_or_default().is_empty() {
            ensure!(child.try_wait()?.is_none(), "nginx has ended: {}", said());
            ensure!(
                Instant::now() < deadline,
                "nginx does not start: {}",
                said()
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(child)
    })?;
    Ok(Running {
        ready_after: Some(ready_after),
        _child: Some(child),
        ..Running::default()
    })
}
