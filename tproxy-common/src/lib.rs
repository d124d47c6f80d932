//! What the kernel programs and the agent of `tproxy` share: the packet parser, the flow key, the
//! compiled rule tables with their classifier, and the layout of every map.
//!
//! Nothing here allocates or panics, and everything runs on the host as well, so that the code
//! which decides in the kernel is the code that `cargo test` exercises.
#![no_std]

pub mod address;
pub mod agent;
pub mod classifier;
pub mod counters;
pub mod flow;
pub mod limits;
pub mod outcome;
pub mod packet;
pub mod tables;
