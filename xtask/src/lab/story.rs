//! What the lab tells the person who started it.

use std::{
    io::{self, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::{
    agent::{Agent, Settings},
    command,
    lab::fetch::Fetch,
    terminal::{bold, dim, green, red},
    topology::{CLIENT_V4, CLIENT_V6, GATEWAY_V4, GATEWAY_V6, SERVER_V4, SERVER_V6},
};

/// The addresses are all nine characters long.
pub(crate) fn print_picture() {
    println!("\n{}", bold("Three network namespaces on this host"));
    println!(
        "
    tproxy-client              tproxy-gateway                tproxy-server
    ┌───────────┐        ┌───────────────────────┐           ┌───────────┐
    │ {CLIENT_V4} │        │ 10.77.1.1   {GATEWAY_V4} │           │ {SERVER_V4} │
    │ {CLIENT_V6} ├───lan0─┤ fd77:1::1   {GATEWAY_V6} ├─wan0──────┤ {SERVER_V6} │
    └───────────┘        └───────────────────────┘           └───────────┘
    curl                 tproxy, attached to lan0            nginx on 80, 443, 8080
    no proxy set         forwards nothing itself             no route to the client
"
    );
}

pub(crate) fn print_agent_command(settings: &Settings) {
    println!("{}", bold("The agent starts in the gateway"));
    let mut command = std::process::Command::new("tproxy");
    command.args(settings.arguments());
    println!("    {}", dim(&format!("# {}", command::line(&command))));
}

pub(crate) fn print_ready(agent: &Agent) {
    let milliseconds = agent.ready_after.as_millis();
    println!(
        "    {}  {}",
        agent.ready_line,
        dim(&format!("(after {milliseconds} ms)"))
    );
}

pub(crate) fn print_fetches(fetches: &[Fetch]) {
    println!(
        "\n{}",
        bold("The client fetches pages, as if there were no proxy")
    );
    for fetch in fetches {
        let took = format!("HTTP {}, {:.1} ms", fetch.status, fetch.milliseconds);
        println!(
            "    {}  {}",
            dim(&format!("$ {}", fetch.command)),
            dim(&took)
        );
        println!("      client   connected to {}", fetch.destination);
        println!("      server   \"{}\"", fetch.page);
        let flow = fetch.flow_line.as_deref();
        println!(
            "      agent    {}",
            flow.map_or_else(|| red("no such flow"), str::to_owned)
        );
    }
}

pub(crate) fn print_rules(listing: &str) {
    println!("\n{}", bold("The rule has counted"));
    for line in listing.lines() {
        println!("    {line}");
    }
}

pub(crate) fn print_verdict(verdict: std::result::Result<&(), &anyhow::Error>) {
    let text = match verdict {
        Ok(()) => green(
            "Every fetch went through the agent: the server saw only the gateway, the agent logged each\n\
             flow, the rule counted it, and no packet was left for the gateway to forward.",
        ),
        Err(error) => red(&format!(
            "Not every fetch went through the agent: {error:#}"
        )),
    };
    println!("\n{text}");
}

pub(crate) fn print_what_to_try(binary: &Path) {
    let tproxy = format!("{} --instance lab", binary.display());
    println!(
        "\n{} {}",
        bold("Try more in another terminal"),
        dim("(as root)")
    );
    for (what, command) in [
        (
            "fetch",
            format!("ip netns exec tproxy-client curl http://{SERVER_V4}/"),
        ),
        (
            "TLS, IPv6",
            format!("ip netns exec tproxy-client curl -k 'https://[{SERVER_V6}]/'"),
        ),
        ("state", format!("{tproxy} status")),
        ("rules", format!("{tproxy} rule list")),
        (
            "refuse one",
            format!("{tproxy} rule add --at 1 --name no-8080 --dport 8080 --action drop"),
        ),
        (
            "see it",
            format!("ip netns exec tproxy-client curl -m 3 http://{SERVER_V4}:8080/"),
        ),
        ("undo", format!("{tproxy} rule del no-8080")),
        (
            "wire",
            "ip netns exec tproxy-gateway tcpdump -ni wan0".to_owned(),
        ),
    ] {
        println!("    {what:<11} {command}");
    }
    println!("\nThe agent's log follows. Ctrl-C ends the lab and leaves nothing behind.");
}

/// # Errors
///
/// When the terminal is gone.
pub(crate) fn print_log_line(line: &str) -> Result<()> {
    writeln!(io::stdout(), "    {line}").context("cannot write to the terminal")
}
