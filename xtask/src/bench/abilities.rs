//! What tproxy can do that only some of its versions can: what is `false` here is left out of a run, unless
//! `--pending` asks for it.

/// `tproxy run --proto udp`.
pub(crate) const RELAYS_DATAGRAMS: bool = true;

/// `tproxy run --scope local`.
pub(crate) const TAKES_LOCAL_FLOWS: bool = true;

/// `tproxy run --action redirect --to ADDR:PORT`.
pub(crate) const REDIRECTS: bool = true;

/// `tproxy run --source client`.
pub(crate) const KEEPS_THE_SOURCE: bool = false;
