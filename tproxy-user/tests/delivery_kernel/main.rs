//! Delivery against the running kernel, each test in a network namespace of its own. They need root.

mod apply;
mod namespace;
mod plan;
