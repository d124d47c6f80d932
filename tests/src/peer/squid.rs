//! Squid as a transparent proxy.
//!
//! One dual-stack socket takes both families. Squid keeps CAP_NET_ADMIN when it gives up root, which is enough for its
//! transparent sockets. `spoof_client_ip` is about the other side: by default Squid reaches the server from the client's
//! address, whose answers come back here only if they are steered as well.

use std::{path::Path, process::Command};

use crate::{Namespace, peer::Source};

pub(super) fn configuration(directory: &Path, source: Source) -> String {
    let path = directory.display();
    let spoof = match source {
        Source::Proxy => "deny",
        Source::Client => "allow",
    };
    format!(
        "http_port 3129 tproxy\n\
         # Squid does not start without a port for clients that know it.\n\
         http_port 127.0.0.1:3128\n\
         http_access allow all\n\
         spoof_client_ip {spoof} all\n\
         cache deny all\n\
         cache_mem 8 MB\n\
         logformat flow %>a %>p %>la %>lp %<a %>Hs %ru\n\
         access_log stdio:{path}/access.log logformat=flow\n\
         buffered_logs off\n\
         cache_log {path}/cache.log\n\
         coredump_dir {path}\n\
         pid_filename none\n\
         netdb_filename none\n\
         pinger_enable off\n\
         icp_port 0\n\
         snmp_port 0\n\
         hosts_file none\n\
         dns_nameservers 127.0.0.1\n\
         visible_hostname gateway\n\
         shutdown_lifetime 0 seconds\n"
    )
}

pub(super) fn command(namespace: &Namespace, configuration: &Path) -> Command {
    let mut command = namespace.command("squid");
    // In the foreground, as one process, with its complaints on standard error.
    command.args(["-N", "-d", "1", "-f"]).arg(configuration);
    command
}
