//! Lists of CIDRs.

#![no_main]

#[path = "entry/cidr_list.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|input: &[u8]| entry::run(input));
