//! The target that CHANCERY_FUZZ_TARGET names, under libFuzzer. With CHANCERY_FUZZ_SEEDS naming a
//! folder, it writes the target's seeds there first; with CHANCERY_FUZZ_LIST, it names the
//! targets and ends.

#![no_main]

use chancery_fuzz::{TARGETS, Target, target};
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    if std::env::var_os("CHANCERY_FUZZ_LIST").is_some() {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    }
    let name = std::env::var("CHANCERY_FUZZ_TARGET").expect("CHANCERY_FUZZ_TARGET names a target");
    let target = target(&name).expect("CHANCERY_FUZZ_TARGET is the name of a target");
    if let Some(folder) = std::env::var_os("CHANCERY_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).expect("a seed is written");
        }
    }
    target
});

fuzz_target!(|input: &[u8]| (TARGET.run)(input));
