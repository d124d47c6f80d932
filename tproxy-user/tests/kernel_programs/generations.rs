//! Generations while they are replaced: whoever reads finds the one in force.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tproxy_common::tables::Block;
use tproxy_user::{
    compiler::{Compiled, compile},
    kernel::Generation,
    set::Sets,
};

use crate::sandbox::in_sandbox;

/// More readers than processors, so that many are interrupted between the two calls that they need.
const READERS: usize = 5;

const GENERATIONS: u64 = 500;

#[test]
fn a_generation_is_found_while_it_is_replaced() {
    in_sandbox(|sandbox| {
        let maps = &sandbox.maps;
        Generation::install(maps, &blocks(1)).expect("tables");
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..READERS {
                scope.spawn(|| {
                    let mut last = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        let found = Generation::in_force(maps).expect("tables");
                        let number = found.expect("tables").number();
                        assert!(number >= last, "{number} after {last}");
                        last = number;
                    }
                });
            }
            for generation in 2..=GENERATIONS {
                Generation::install(maps, &blocks(generation)).expect("tables");
            }
            is_over.store(true, Ordering::Relaxed);
        });
    });
}

fn blocks(generation: u64) -> Vec<Block> {
    let Compiled { blocks, .. } = compile(&[], &Sets::new(), generation).expect("no rule");
    blocks
}
