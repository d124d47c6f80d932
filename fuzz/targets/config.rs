//! The file of rules, sets and options.

#![no_main]

#[path = "entry/config.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|input: &[u8]| entry::run(input));
