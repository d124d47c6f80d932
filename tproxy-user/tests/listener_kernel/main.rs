//! Finding and taking the sockets of other programs, against the running kernel, each test in a
//! network namespace of its own. They need root.

mod discard;
mod find;
mod holder;
mod namespace;
mod scale;
mod sockmap;
mod watch;
