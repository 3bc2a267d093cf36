//! What follows from statements, in which order.

use super::*;
use crate::EvaluatorShare;
use crate::entry::Event;
use crate::governance;
use crate::testing::{FEDERATION, World};
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
    assert_eq!(world.state.in_force(), [0, 2, 3]);
}

#[test]
fn a_nonce_is_logged_once() {
    let world = World::new(&SeededEntropy::new(2));
    let Event::Statement(keys) = &world.log[1] else { panic!("no statement") };
    let again = governance::verify(keys, FEDERATION, &world.governance).unwrap();
    assert_eq!(world.state.admit(&again), Ok(Admission::Logged(1)));
    let mut other = again.into_statement();
    other.decision =
        Decision::DirectoryKeys(DirectoryKeys { hpke_public_key: [2; 32], lookup_prefix_bits: 8 });
    let signed = governance::sign(&other, &[&world.governor]);
    let other = governance::verify(&signed, FEDERATION, &world.governance).unwrap();
    assert_eq!(world.state.admit(&other), Ok(Admission::NonceReused));
}

#[test]
fn a_ceremonys_plan_is_not_logged_by_itself() {
    let mut world = World::new(&SeededEntropy::new(3));
    let Event::Ceremony(concluded) = world.log[2].clone() else { panic!("no ceremony") };
    let plan = governance::verify(&concluded.plan.unwrap(), FEDERATION, &world.governance).unwrap();
    assert_eq!(world.state.concluded(plan.digest()), Some(2));
    assert!(matches!(world.state.admit(&plan), Err(Error::Statement(_))));
    let decision = plan.into_statement().decision;
    assert!(admitted(&world, decision).is_err());
    let keys = DirectoryKeys { hpke_public_key: [1; 32], lookup_prefix_bits: 12 };
    world.decide(Decision::DirectoryKeys(keys));
    assert!(world.state.evaluators().is_some());
}

#[test]
fn malformed_epochs_do_not_parse() {
    use chancery_proto::directory::v1 as wire;
    let world = World::new(&SeededEntropy::new(4));
    let mut epoch = world.state.evaluators().unwrap().clone();
    epoch.evaluators.truncate(1);
    (epoch.threshold, epoch.public_key) = (1, epoch.evaluators[0].public_share);
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
    let other = world.state.evaluators().unwrap().public_key;
    assert!(!parses(&|e| e.evaluators[0].public_share = other));
}
