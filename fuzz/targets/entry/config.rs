//! What is done with an input: by the fuzz target, and by the smoke test that runs with all others
//! (`tproxy-user/tests/fuzz_smoke.rs`).

use std::path::Path;

use tproxy_user::{config::Config, set};

/// Reads a text as a file of rules. Lists that it names hold the same text.
pub(crate) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let mut load = |path: &Path| Ok(set::read(&path.display().to_string(), input)?);
    match Config::parse("rules.toml", text, Path::new("lists"), &mut load) {
        Ok(config) => {
            let _ = config.summary();
            let _ = config.fit();
        }
        Err(problems) => {
            let lines = text.split('\n').count();
            for problem in problems.iter() {
                assert!(!problem.to_string().contains('\n'), "{problem}");
                let line = problem.line.unwrap_or(1);
                assert!((1..=lines).contains(&line), "{problem}");
            }
        }
    }
}
