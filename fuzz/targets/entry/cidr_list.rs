//! What is done with an input: by the fuzz target, and by the smoke test that runs with all others
//! (`tproxy-user/tests/fuzz_smoke.rs`).

use tproxy_user::set;

/// Reads bytes as a list of CIDRs, and reads again what was made of them.
pub(crate) fn run(input: &[u8]) {
    match set::read("list", input) {
        Ok(reading) => {
            let lines: Vec<String> = reading.list.iter().map(|net| net.to_string()).collect();
            let again = set::read("list", lines.join("\n").as_bytes()).expect("it was written so");
            let repeated: Vec<String> = again.list.iter().map(|net| net.to_string()).collect();
            assert_eq!(repeated, lines);
            assert_eq!((again.duplicates, again.masked.count), (0, 0));
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
}
