//! Set up, build, run, test and measure tproxy.
mod ebpf_toolchain;

fn main() {
    match ebpf_toolchain::find() {
        Ok(toolchain) => println!("{}", toolchain.describe()),
        Err(missing) => eprintln!("{missing}"),
    }
}
