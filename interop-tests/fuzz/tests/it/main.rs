//! What fuzzing found and grew, on every run of the tests: each file of each corpus, and
//! some changes of them that are the same each time.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use chancery_fuzz::{TARGETS, Target, mutate};
use chancery_types::Entropy;
use chancery_types::entropy::SeededEntropy;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Inputs made for each target …
const CHANGED: usize = 600;
/// … and for those that take a while for each.
const CHANGED_SLOW: usize = 60;
const SLOW: [&str; 6] = ["map", "map_place", "record_rules", "replay", "signed_statement", "transcript"];

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Seeds and corpus of a target, in order.
fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let folder = std::fs::read_dir(corpora().join(target.name));
    let mut paths: Vec<_> = folder.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let files = paths.iter().map(|path| std::fs::read(path).unwrap());
    (target.seeds)().into_iter().chain(files).collect()
}

/// Names the input that does not hold.
fn hold(target: &Target, input: &[u8]) {
    let held = std::panic::catch_unwind(|| (target.run)(input));
    assert!(held.is_ok(), "{}: {}", target.name, hex::encode(input));
}

#[test]
fn every_input_holds() {
    for target in TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{} has no seeds", target.name);
        inputs.iter().for_each(|input| hold(target, input));
    }
}

#[test]
fn changed_inputs_hold() {
    for target in TARGETS {
        let (inputs, entropy) = (inputs(target), SeededEntropy::new(1));
        let entropy: &dyn Entropy = &entropy;
        let count = if SLOW.contains(&target.name) { CHANGED_SLOW } else { CHANGED };
        for _ in 0..count {
            let [one, other] = [0; 2].map(|_| u32::from_be_bytes(entropy.array()) as usize % inputs.len());
            hold(target, &mutate::mutated(&inputs[one], &inputs[other], entropy));
        }
    }
}

#[test]
fn every_target_has_a_small_corpus() {
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names.len(), TARGETS.len(), "two targets have one name");
    let (mut total, mut found) = (0, BTreeSet::new());
    for folder in std::fs::read_dir(corpora()).unwrap() {
        let folder = folder.unwrap();
        found.insert(folder.file_name().into_string().unwrap());
        let sizes =
            std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
        let sizes: Vec<_> = sizes.collect();
        assert!(sizes.len() <= 60 && sizes.iter().all(|size| *size <= 4096), "{:?}", folder.path());
        total += sizes.iter().sum::<u64>();
    }
    // The runner goes by the folders.
    assert!(found.iter().eq(&names), "a target has no corpus, or a corpus no target");
    assert!(total < 2_000_000, "{total} bytes");
}
