//! One page fetched by curl from the lab's client, and whether it went through the agent.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{command, topology::Namespace};

/// A fetch and what the three parties saw of it.
#[derive(Debug)]
pub(crate) struct Fetch {
    /// The command as one would type it in the client.
    pub(crate) command: String,
    /// The client's end of its connection, as the client sees it.
    pub(crate) client: SocketAddr,
    /// The other end, as the client sees it.
    pub(crate) destination: SocketAddr,
    pub(crate) status: u16,
    pub(crate) milliseconds: f64,
    /// What the server answered: it names whom it saw.
    pub(crate) page: String,
    /// The agent's log line of the flow.
    pub(crate) flow_line: Option<String>,
    gateway: IpAddr,
}

impl Fetch {
    /// Fetches `url` in `client`'s namespace. `gateway` is the address that the server must see.
    ///
    /// # Errors
    ///
    /// What curl said.
    pub(crate) fn perform(client: &Namespace, url: &str, gateway: &str) -> Result<Self> {
        const SEEN: &str =
            "\n%{http_code} %{local_ip} %{local_port} %{remote_ip} %{remote_port} %{time_total}";
        let insecure = url.starts_with("https").then_some("--insecure");
        let mut curl = client.command("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "10",
        ]);
        curl.args(insecure).arg("--write-out").arg(SEEN).arg(url);
        let output = command::quietly(&mut curl).with_context(|| format!("cannot fetch {url}"))?;
        let (page, seen) = output.rsplit_once('\n').context("curl printed nothing")?;
        let words: Vec<&str> = seen.split_whitespace().collect();
        let [status, local, local_port, remote, remote_port, seconds] = words[..] else {
            bail!("curl printed `{seen}`");
        };
        Ok(Self {
            command: format!("curl {}{url}", if insecure.is_some() { "-k " } else { "" }),
            client: SocketAddr::new(local.parse()?, local_port.parse()?),
            destination: SocketAddr::new(remote.parse()?, remote_port.parse()?),
            status: status.parse()?,
            milliseconds: seconds.parse::<f64>()? * 1000.0,
            page: page.trim().to_owned(),
            flow_line: None,
            gateway: gateway.parse()?,
        })
    }

    /// How the agent's log names the flow.
    pub(crate) fn flow(&self) -> String {
        format!("tcp {} -> {} ", self.client, self.destination)
    }

    /// The log line from the flow on, without the logger's time and level.
    pub(crate) fn part_of_interest(&self, line: &str) -> String {
        line.find(&self.flow())
            .map_or(line, |start| &line[start..])
            .to_owned()
    }

    /// # Errors
    ///
    /// Which witness denies that the agent relayed this.
    pub(crate) fn judge(&self) -> Result<()> {
        let Self {
            command,
            status,
            page,
            ..
        } = self;
        ensure!(*status == 200, "{command}: HTTP status {status}");
        let seen = format!("from {} port", self.gateway);
        ensure!(
            page.contains(&seen),
            "{command}: the server did not see the gateway: {page}"
        );
        ensure!(
            self.flow_line.is_some(),
            "{command}: the agent logged no flow {}",
            self.flow()
        );
        Ok(())
    }
}
