//! Delivery against the running kernel, each test in a network namespace of its own. They need root.

mod apply;
mod links;
mod local;
mod local_flows;
mod log_capture;
mod namespace;
mod namespace_watch;
mod plan;
mod watch;
