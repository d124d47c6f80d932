//! What the lab tells the person who started it.

use std::{
    io::{self, Write},
    path::Path,
    process::Command,
};

use crate::{
    agent::{Agent, Settings},
    command,
    lab::fetch::Fetch,
    terminal::{bold, dim, green, red},
    topology::{CLIENT_V4, CLIENT_V6, GATEWAY_V4, GATEWAY_V6, SERVER_V4, SERVER_V6},
};

/// The addresses are all nine characters long.
pub(crate) fn print_picture(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n{}", bold("Three network namespaces on this host"))?;
    writeln!(
        out,
        "
    tproxy-client              tproxy-gateway                tproxy-server
    ┌───────────┐        ┌───────────────────────┐           ┌───────────┐
    │ {CLIENT_V4} │        │ 10.77.1.1   {GATEWAY_V4} │           │ {SERVER_V4} │
    │ {CLIENT_V6} ├───lan0─┤ fd77:1::1   {GATEWAY_V6} ├─wan0──────┤ {SERVER_V6} │
    └───────────┘        └───────────────────────┘           └───────────┘
    curl                 tproxy, attached to lan0            nginx on 80, 443, 8080
    no proxy set         forwards nothing itself             no route to the client
"
    )
}

pub(crate) fn print_agent_command(out: &mut impl Write, settings: &Settings) -> io::Result<()> {
    writeln!(out, "{}", bold("The agent starts in the gateway"))?;
    let mut command = Command::new("tproxy");
    command.args(settings.arguments());
    writeln!(
        out,
        "    {}",
        dim(&format!("# {}", command::line(&command)))
    )
}

pub(crate) fn print_ready(out: &mut impl Write, agent: &Agent) -> io::Result<()> {
    let milliseconds = agent.ready_after.as_millis();
    writeln!(
        out,
        "    {}  {}",
        agent.ready_line,
        dim(&format!("(after {milliseconds} ms)"))
    )
}

pub(crate) fn print_fetches(out: &mut impl Write, fetches: &[Fetch]) -> io::Result<()> {
    writeln!(
        out,
        "\n{}",
        bold("The client fetches pages, as if there were no proxy")
    )?;
    for fetch in fetches {
        let took = format!("HTTP {}, {:.1} ms", fetch.status, fetch.milliseconds);
        writeln!(
            out,
            "    {}  {}",
            dim(&format!("$ {}", fetch.command)),
            dim(&took)
        )?;
        writeln!(out, "      client   connected to {}", fetch.destination)?;
        writeln!(out, "      server   \"{}\"", fetch.page)?;
        let flow = fetch.flow_line.as_deref();
        writeln!(
            out,
            "      agent    {}",
            flow.map_or_else(|| red("no such flow"), str::to_owned)
        )?;
    }
    Ok(())
}

pub(crate) fn print_rules(out: &mut impl Write, listing: &str) -> io::Result<()> {
    writeln!(out, "\n{}", bold("The rule has counted"))?;
    for line in listing.lines() {
        writeln!(out, "    {line}")?;
    }
    Ok(())
}

pub(crate) fn print_verdict(
    out: &mut impl Write,
    verdict: Result<&(), &anyhow::Error>,
) -> io::Result<()> {
    let text = match verdict {
        Ok(()) => green(
            "Every fetch went through the agent: the server saw only the gateway, the agent logged each\n\
             flow, the rule counted it, and no packet was left for the gateway to forward.",
        ),
        Err(error) => red(&format!(
            "Not every fetch went through the agent: {error:#}"
        )),
    };
    writeln!(out, "\n{text}")
}

pub(crate) fn print_what_to_try(out: &mut impl Write, binary: &Path) -> io::Result<()> {
    let tproxy = format!("{} --instance lab", binary.display());
    let title = bold("Try more in another terminal, as root");
    let curl = "ip netns exec tproxy-client curl";
    writeln!(
        out,
        "
{title}
    fetch a page    {curl} http://{SERVER_V4}/
    TLS over IPv6   {curl} -k 'https://[{SERVER_V6}]/'
    the agent       {tproxy} status
    its rules       {tproxy} rule list
    drop a port     {tproxy} rule add --at 1 --name no-8080 --dport 8080 --action drop
    see it dropped  {curl} -m 3 http://{SERVER_V4}:8080/
    and undo it     {tproxy} rule del no-8080
    on the wire     ip netns exec tproxy-gateway tcpdump -ni wan0

The agent's log follows. Ctrl-C ends the lab and leaves nothing behind."
    )
}
