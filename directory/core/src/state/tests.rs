//! What follows from statements, in which order.

use super::*;
use crate::governance;
use crate::statement::EvaluatorShare;
use crate::testing::{self, FEDERATION, World};
use chancery_types::entropy::SeededEntropy;

fn admitted(world: &World, decision: Decision) -> Result<Admission, Error> {
    let signed = world.sign(decision);
    world.state.admit(&governance::verify(&signed, FEDERATION, &world.governance).unwrap())
}

#[test]
fn the_last_statement_on_a_subject_counts() {
    let mut world = World::new(&SeededEntropy::new(1));
    assert_eq!(world.state.in_force(), [0, 1, 2]);
    assert_eq!(world.state.lookup_prefix_bits(), 8);
    let keys = DirectoryKeys { hpke_public_key: [1; 32], lookup_prefix_bits: 12 };
    world.decide(Decision::DirectoryKeys(keys.clone()));
    assert_eq!(world.state.directory(), Some(&keys));
    assert_eq!(world.state.in_force(), [0, 1, 3]);
}

#[test]
fn a_nonce_is_logged_once() {
    let world = World::new(&SeededEntropy::new(2));
    let again = governance::verify(&world.statements[2], FEDERATION, &world.governance).unwrap();
    assert_eq!(world.state.admit(&again), Ok(Admission::Logged(2)));
    let mut other = again.into_statement();
    other.decision =
        Decision::DirectoryKeys(DirectoryKeys { hpke_public_key: [2; 32], lookup_prefix_bits: 8 });
    let signed = governance::sign(&other, &[&world.governor]);
    let other = governance::verify(&signed, FEDERATION, &world.governance).unwrap();
    assert_eq!(world.state.admit(&other), Ok(Admission::NonceReused));
}

#[test]
fn evaluator_epochs_follow_each_other() {
    let world = World::new(&SeededEntropy::new(3));
    let current = world.state.evaluators().unwrap().clone();
    let next = |change: &dyn Fn(&mut EvaluatorEpoch)| {
        let mut epoch = current.clone();
        change(&mut epoch);
        admitted(&world, Decision::EvaluatorEpoch(epoch)).is_ok()
    };
    assert!(next(&|e| e.generation = 2));
    assert!(next(&|e| e.key_epoch = 2));
    assert!(!next(&|_| {}), "the same again");
    assert!(!next(&|e| e.generation = 3));
    assert!(!next(&|e| e.key_epoch = 3));
    assert!(!next(&|e| (e.key_epoch, e.generation) = (2, 2)));
    let other_key = testing::evaluators(&world.entropy).1;
    assert!(!next(&|e| {
        *e = other_key.clone();
        e.generation = 2;
    }));
}

#[test]
fn malformed_epochs_do_not_parse() {
    use chancery_proto::directory::v1 as wire;
    let epoch = testing::evaluators(&SeededEntropy::new(4)).1;
    let parses = |change: &dyn Fn(&mut EvaluatorEpoch)| {
        let mut epoch = epoch.clone();
        change(&mut epoch);
        EvaluatorEpoch::try_from(wire::EvaluatorEpoch::from(&epoch)).is_ok()
    };
    let second = |index, name: &str| EvaluatorShare {
        index,
        evaluator: name.parse().unwrap(),
        ..epoch.evaluators[0].clone()
    };
    assert!(parses(&|_| {}));
    assert!(parses(&|e| e.evaluators.push(second(2, "e2"))));
    assert!(!parses(&|e| e.evaluators.push(second(1, "e2"))));
    assert!(!parses(&|e| e.evaluators.push(second(2, "e1"))));
    assert!(!parses(&|e| e.threshold = 0));
    assert!(!parses(&|e| e.threshold = 2));
    assert!(!parses(&|e| e.key_epoch = 0));
    assert!(!parses(&|e| e.evaluators.clear()));
    assert!(!parses(&|e| e.evaluators[0].index = 0));
    assert!(!parses(&|e| e.evaluators[0].endpoints = vec!["no port".to_owned()]));
    let other = testing::evaluators(&SeededEntropy::new(5)).1.public_key;
    assert!(!parses(&|e| e.evaluators[0].public_share = other));
}
