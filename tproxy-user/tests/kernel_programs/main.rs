//! The loaded programs on crafted and on real packets, each test in namespaces of its own. They
//! need root.

mod answer;
mod budgets;
mod devices;
mod differential;
mod established;
mod explanation;
mod flow_filter;
mod fragments;
mod frame;
mod generations;
mod inbound;
mod model;
mod neighbour;
mod outcomes;
mod process_hooks;
mod reject;
mod sandbox;
mod set_edits;
mod steered;
mod syn_cookie;
mod turns;
