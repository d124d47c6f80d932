//! Asks the kernel which rule takes a flow, and whether somebody is there who gets it: a program runs over the maps in force on a packet that
//! was made for it (`BPF_PROG_TEST_RUN`).

use std::{net::SocketAddr, path::Path};

use aya::{
    TestRun as _, TestRunOptions,
    programs::{Program, ProgramError, SchedClassifier},
};
use etherparse::PacketBuilder;
use tproxy_common::{
    explanation::{Explanation, Presence},
    flow::Protocol,
    handover::Taken,
};

use super::{
    Error,
    object::{EXPLAIN_PROGRAM, load_program, over_pinned_maps},
};

/// What the kernel says about the first packet of a flow that arrives on the interface with this
/// index, which is in the calling thread's network namespace. `directory` has the pinned maps. Neither
/// they nor anything else changes, and nothing is counted.
///
/// # Errors
///
/// When the kernel refuses the program or the run.
pub fn ask(
    directory: &Path,
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    interface: u32,
) -> Result<Explanation, Error> {
    let packet = packet(protocol, source, destination);
    let code = answer(directory, &packet, &context(0, interface))?;
    Explanation::from_code(code).ok_or(Error::Explanation { code })
}

/// Whether somebody is there who gets the flow from a rule that hands its flows over as `taken` says.
/// `directory` has the pinned maps, of which nothing changes.
///
/// # Errors
///
/// When the kernel refuses the program or the run.
pub fn ask_presence(
    directory: &Path,
    taken: Taken,
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<Presence, Error> {
    let packet = packet(protocol, source, destination);
    let code = answer(
        directory,
        &packet,
        &context(Presence::question(taken), NO_INTERFACE),
    )?;
    Presence::from_code(code).ok_or(Error::Explanation { code })
}

/// In a context: that the packet arrived on none in particular.
const NO_INTERFACE: u32 = 0;

fn answer(directory: &Path, packet: &[u8], context: &[u8]) -> Result<u32, Error> {
    let mut object = over_pinned_maps(None, directory)?;
    run(object.program_mut(EXPLAIN_PROGRAM), packet, context).map_err(|cause| Error::Program {
        program: EXPLAIN_PROGRAM.to_owned(),
        cause,
    })
}

fn run(program: Option<&mut Program>, packet: &[u8], context: &[u8]) -> Result<u32, ProgramError> {
    let program = program.ok_or(ProgramError::NotLoaded)?;
    load_program(program)?;
    let program: &mut SchedClassifier = program.try_into()?;
    let result = program.test_run(TestRunOptions {
        data_in: Some(packet),
        ctx_in: Some(context),
        ..TestRunOptions::new()
    })?;
    Ok(result.return_value)
}

/// A frame with the SYN or the datagram that begins the flow.
fn packet(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    const HOP_LIMIT: u8 = 64;
    let link = PacketBuilder::ethernet2([0; 6], [0; 6]);
    let network = match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            link.ipv4(source.ip().octets(), destination.ip().octets(), HOP_LIMIT)
        }
        _ => link.ipv6(octets(source), octets(destination), HOP_LIMIT),
    };
    let (source, destination) = (source.port(), destination.port());
    let mut packet = Vec::new();
    let written = match protocol {
        Protocol::Tcp => {
            let segment = network.tcp(source, destination, 0, u16::MAX).syn();
            segment.write(&mut packet, &[])
        }
        Protocol::Udp => network.udp(source, destination).write(&mut packet, &[]),
    };
    // A vector takes everything; the kernel refuses a packet that is none.
    written.map_or_else(|_| Vec::new(), |()| packet)
}

fn octets(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(v6) => v6.ip().octets(),
    }
}

/// `struct __sk_buff` with a mark and an interface (include/uapi/linux/bpf.h).
fn context(mark: u32, interface: u32) -> [u8; 192] {
    const MARK: usize = 8;
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[MARK..][..4].copy_from_slice(&mark.to_ne_bytes());
    context[IFINDEX..][..4].copy_from_slice(&interface.to_ne_bytes());
    context
}
