//! Set up, build, run, test and measure tproxy.
fn main() {}
