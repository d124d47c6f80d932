//! What the verifier says of the programs: each loads, with room for what is to come.

use std::{collections::HashSet, fs};

use aya::{
    maps::MapInfo,
    programs::{ProgramInfo, loaded_programs},
};
use tproxy_user::{
    kernel::{attach_process_hooks, detach_process_hooks, process_hooks_are_attached},
    rule::Cgroup,
};

use crate::sandbox::{in_sandbox, settings};

/// Instructions that the verifier may follow through one program: a third more than through the longest
/// of them, since a start waits for it. It follows 1,000,000 at most (`BPF_COMPLEXITY_LIMIT_INSNS`,
/// include/linux/bpf.h), and other kernels follow more of the same.
const MOST_INSTRUCTIONS: u32 = 75_000;

const PROGRAMS: [&str; 8] = [
    "tproxy_ether",
    "tproxy_ip",
    "tproxy_lookup",
    "tproxy_opening",
    "tproxy_connect4",
    "tproxy_connect6",
    "tproxy_sendmsg4",
    "tproxy_sendmsg6",
];

#[test]
fn every_program_is_verified_with_room_to_spare() {
    in_sandbox(|sandbox| {
        let root = Cgroup::root().expect("control groups");
        attach_process_hooks(sandbox.directory, &root, &settings()).expect("the hooks");
        assert!(process_hooks_are_attached(sandbox.directory));
        let pins = fs::read_dir(sandbox.directory).expect("pins");
        let maps: HashSet<u32> = pins
            .filter_map(|pin| Some(MapInfo::from_pin(pin.ok()?.path()).ok()?.id()))
            .collect();
        // Other instances have programs of the same names, but none that share a map with these. One
        // that goes meanwhile is not theirs.
        let is_here = |program: &ProgramInfo| {
            let of_program = program.map_ids().ok().flatten().unwrap_or_default();
            of_program.iter().any(|map| maps.contains(map))
        };
        let mut verified: Vec<(String, u32)> = loaded_programs()
            .filter_map(Result::ok)
            .filter(is_here)
            .map(|program| {
                let name = program.name_as_str().expect("a name").to_owned();
                let instructions = program.verified_instruction_count();
                (name, instructions.expect("Linux 5.16 or later"))
            })
            .collect();
        verified.sort_unstable();
        for (name, instructions) in &verified {
            println!("{name:16} {instructions:7}");
            assert!(*instructions < MOST_INSTRUCTIONS, "{name}: {instructions}");
        }
        let mut expected = PROGRAMS.map(str::to_owned);
        expected.sort_unstable();
        let names: Vec<String> = verified.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, expected);
        detach_process_hooks(sandbox.directory).expect("the hooks come off");
        assert!(!process_hooks_are_attached(sandbox.directory));
    });
}
