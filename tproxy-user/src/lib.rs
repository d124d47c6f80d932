//! The library behind the `tproxy` command: rules and their compiler, the loader of the kernel
//! programs, delivery (policy rules and routes), the agent and its relay.

pub mod agent;
mod background;
pub mod cli;
pub mod compiler;
pub mod config;
pub mod delivery;
pub mod instance;
pub mod kernel;
pub mod listener;
mod mount_namespace;
mod plural;
pub mod relay;
pub mod requirements;
pub mod rule;
pub mod set;
mod sys;
