//! The target that CHANCERY_FUZZ_TARGET names while compiling, under libFuzzer. It is alone in its
//! program, because libFuzzer goes through the counters of all that is linked after each input. With
//! CHANCERY_FUZZ_SEEDS naming a folder, it writes the target's seeds there first.

#![no_main]

use chancery_fuzz::{Target, target};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

const TARGET: Target = target(env!("CHANCERY_FUZZ_TARGET"));

fuzz_target!(
    init: {
        if let Some(folder) = std::env::var_os("CHANCERY_FUZZ_SEEDS") {
            for (number, seed) in (TARGET.seeds)().iter().enumerate() {
                std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).expect("a seed is written");
            }
        }
    },
    |input: &[u8]| (TARGET.run)(input)
);
