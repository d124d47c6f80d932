//! iperf3: datagrams at a steady rate.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{Namespace, process::Process};

/// A running iperf3 server.
#[derive(Debug)]
pub struct Iperf {
    _process: Process,
}

impl Iperf {
    /// Serves one address of `namespace`, over TCP for control and over UDP for datagrams: bound to all, it would answer
    /// from any.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Self {
        let (ip, port) = (address.ip(), address.port());
        let command_line = format!("iperf3 --server --bind {ip} --port {port}");
        let process = Process::start(&mut namespace.command_line(&command_line));
        namespace.wait_for_listener(port);
        Self { _process: process }
    }
}

/// What became of the datagrams.
#[derive(Debug, Clone, Copy)]
pub struct UdpReport {
    /// How many the receiver waited for.
    pub packets: u64,
    /// How many of them did not come.
    pub lost: u64,
    /// The client's end of the flow of datagrams.
    pub client: SocketAddr,
}

/// The rate at which datagrams are sent, in bits a second: few enough that half a second of them fits the buffer of a
/// receiver that other tests keep from running.
const RATE: &str = "3M";

/// The largest buffer that the kernel gives without being asked to allow more.
const BUFFER: &str = "208K";

/// The command line that sends datagrams of 1,200 bytes to `server` for a second, at a modest rate; with `reverse` the
/// server sends.
#[must_use]
pub fn sender(server: SocketAddr, reverse: bool) -> String {
    let (ip, port) = (server.ip(), server.port());
    let direction = if reverse { "--reverse" } else { "" };
    format!(
        "iperf3 --client {ip} --port {port} --udp --bitrate {RATE} --window {BUFFER} --length 1200 \
         --time 1 --json {direction}"
    )
}

/// Runs [`sender`] in `namespace`.
#[must_use]
#[track_caller]
pub fn send_datagrams(namespace: &Namespace, server: SocketAddr, reverse: bool) -> UdpReport {
    UdpReport::read(&namespace.output(&sender(server, reverse)))
}

impl UdpReport {
    /// Reads what [`sender`] printed.
    #[must_use]
    #[track_caller]
    pub fn read(printed: &str) -> Self {
        let report: Value = serde_json::from_str(printed).expect("iperf3 prints JSON");
        let number = |name: &str| {
            let number = report["end"]["sum"][name].as_u64();
            number.unwrap_or_else(|| panic!("end.sum.{name} in {printed}"))
        };
        let connected = &report["start"]["connected"][0];
        let host = connected["local_host"].as_str().unwrap_or_default();
        let port = connected["local_port"].as_u64().unwrap_or_default();
        Self {
            packets: number("packets"),
            lost: number("lost_packets"),
            client: SocketAddr::new(
                host.parse().expect("iperf3 prints addresses"),
                u16::try_from(port).expect("ports have 16 bits"),
            ),
        }
    }

    /// Checks that a second's datagrams were sent, and none was lost.
    #[track_caller]
    pub fn assert_complete(&self) {
        assert!(self.packets > 200, "{self:?}");
        assert_eq!(self.lost, 0, "{self:?}");
    }
}
