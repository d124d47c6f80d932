//! What the kernel programs and the agent of `tproxy` share: the packet parser, the flow key, the
//! compiled rule tables with their classifier, and the layout of every map.
//!
//! Nothing here allocates or panics, and everything runs on the host as well, so that the code
//! which decides in the kernel is the code that `cargo test` exercises.
#![cfg_attr(not(test), no_std)]
#![expect(
    clippy::inline_always,
    reason = "the verifier follows one straight program better than calls with pointers to the stack"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "masked or bounded before; try_from would add branches that can panic in the kernel"
)]

pub mod address;
pub mod agent;
pub mod allowance;
pub mod attachment;
mod bit;
pub mod checksum;
pub mod classifier;
pub mod counters;
pub mod explanation;
pub mod flow;
pub mod flow_filter;
pub mod fragment;
pub mod handover;
pub mod icmp;
pub mod limits;
pub mod local_udp;
pub mod outcome;
pub mod packed;
pub mod packet;
pub mod sockets;
pub mod tables;
pub mod turn;
pub mod unreachable;
