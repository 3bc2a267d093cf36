//! Ceremonies with absent, lying and confused evaluators.

use super::conclusion::Conclusion;
use super::transcript::Outcome;
use super::*;
use crate::governance;
use crate::keys;
use crate::oprf::{self, SecretKey};
use crate::testing::{Evaluators, FEDERATION, Rehearsal, World};
use crate::threshold::{Weight, combine};
use chancery_types::entropy::SeededEntropy;
use prost::Message as _;
use std::collections::BTreeMap;

const FIVE: [(u32, &str); 5] = [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (9, "e")];
const ALL: [&str; 5] = ["a", "b", "c", "d", "e"];

fn world(seed: u64) -> World {
    World::new(&SeededEntropy::new(seed))
}

/// A new key for three of five, until everybody has joined.
fn joined(world: &World) -> Rehearsal {
    let mut rehearsal = Rehearsal::new(world, (2, 1, 3), &FIVE, &BTreeMap::new());
    rehearsal.join(&ALL);
    rehearsal
}

fn nobody() -> BTreeMap<NodeId, SecretKey> {
    BTreeMap::new()
}

/// Whether the shares of these evaluate as the epoch's key.
fn evaluate_together(epoch: &EvaluatorEpoch, shares: &[(u32, SecretKey)], entropy: &SeededEntropy) -> bool {
    let blinded = [oprf::blind(b"somebody", entropy).unwrap().1];
    let mut batches = Vec::new();
    for (index, share) in shares {
        let (evaluated, proof) = share.evaluate(&blinded, entropy).unwrap();
        let public = epoch.evaluator(*index).unwrap().public_share;
        if !proof.verifies(&public, &blinded, &evaluated) {
            return false;
        }
        batches.push(evaluated);
    }
    let indices: Vec<_> = shares.iter().map(|(index, _)| *index).collect();
    let weights = Weight::lagrange(&indices).unwrap();
    let public: Vec<_> = indices.iter().map(|i| [epoch.evaluator(*i).unwrap().public_share]).collect();
    let public: Vec<_> = weights.iter().copied().zip(public.iter().map(|p| p.as_slice())).collect();
    let parts: Vec<_> = weights.iter().copied().zip(batches.iter().map(Vec::as_slice)).collect();
    combine(&parts).is_ok() && combine(&public).unwrap()[0] == epoch.public_key
}

fn faults(outcome: &Outcome) -> Vec<(&str, FaultKind)> {
    outcome.faults.iter().map(|fault| (fault.evaluator.as_str(), fault.kind)).collect()
}

/// Says something else in the name of an evaluator, signed by it.
fn say_again(
    rehearsal: &Rehearsal,
    said: &wire::SignedCeremonyMessage,
    name: &str,
    change: impl FnOnce(&mut wire::CeremonyMessage),
) -> wire::SignedCeremonyMessage {
    let mut message = wire::CeremonyMessage::decode(said.message.clone()).unwrap();
    change(&mut message);
    let message = bytes::Bytes::from(message.encode_to_vec());
    let key = &rehearsal.keys[&name.parse::<NodeId>().unwrap()];
    let signature = keys::sign(keys::Purpose::CeremonyMessage, &message, key).to_vec().into();
    wire::SignedCeremonyMessage { message, signature }
}

fn dealing(message: &mut wire::CeremonyMessage) -> &mut wire::CeremonyDealing {
    match message.content.as_mut().unwrap() {
        wire::ceremony_message::Content::Dealing(dealing) => dealing,
        _ => panic!("no dealing"),
    }
}

fn verdict(message: &mut wire::CeremonyMessage) -> &mut wire::CeremonyVerdict {
    match message.content.as_mut().unwrap() {
        wire::ceremony_message::Content::Verdict(verdict) => verdict,
        _ => panic!("no verdict"),
    }
}

#[test]
fn honest_evaluators_come_to_share_a_key() {
    let world = world(1);
    let mut rehearsal = joined(&world);
    rehearsal.deal(&ALL, &nobody(), &world.entropy);
    rehearsal.judge(&ALL);
    let outcome = rehearsal.outcome().unwrap();
    assert_eq!(faults(&outcome), []);
    assert_eq!(outcome.epoch.evaluators.len(), 5);
    let shares: Vec<_> = FIVE.iter().map(|(i, name)| (*i, rehearsal.share(name).unwrap())).collect();
    assert!(evaluate_together(&outcome.epoch, &shares[2..], &world.entropy));

    // Not everybody must conclude; who does not is not in the epoch.
    let concluded = rehearsal.conclude(&["a", "c", "e"]);
    let conclusion = Conclusion::verify(&concluded, FEDERATION, &world.governance).unwrap();
    assert_eq!(conclusion.judge(&concluded, &world.state).unwrap(), []);
    let held: Vec<_> = conclusion.epoch().evaluators.iter().map(|e| e.index).collect();
    assert_eq!(held, [1, 3, 9]);
    assert_eq!(conclusion.epoch().public_key, outcome.epoch.public_key);
    let too_few = rehearsal.conclude(&["a", "c"]);
    assert!(matches!(
        Conclusion::verify(&too_few, FEDERATION, &world.governance).unwrap_err(),
        Error::Ceremony(_)
    ));
}

#[test]
fn absent_and_lying_evaluators_do_not_stop_the_others() {
    let world = world(2);
    let mut rehearsal = Rehearsal::new(&world, (2, 1, 3), &FIVE, &BTreeMap::new());
    rehearsal.join(&["a", "b", "c", "d"]);
    rehearsal.deal(&["a", "b", "c", "d"], &nobody(), &world.entropy);
    // b deals c another's share: c cannot open it, and shows so.
    let b = say_again(&rehearsal, &rehearsal.transcript.dealings[1], "b", |message| {
        dealing(message).shares.swap(0, 2);
    });
    rehearsal.transcript.dealings[1] = b;
    rehearsal.judge(&["a", "b", "c", "d"]);
    let outcome = rehearsal.outcome().unwrap();
    assert_eq!(
        faults(&outcome),
        [("b", FaultKind::WrongShare), ("b", FaultKind::WrongShare)],
        "by the complaints of a and of c"
    );
    assert_eq!(outcome.epoch.evaluators.iter().map(|e| e.index).collect::<Vec<_>>(), [1, 3, 4]);
    let shares: Vec<_> =
        [(1, "a"), (3, "c"), (4, "d")].map(|(i, name)| (i, rehearsal.share(name).unwrap())).into();
    assert!(evaluate_together(&outcome.epoch, &shares, &world.entropy));
    assert!(rehearsal.share("b").is_err());

    // One more who lies, and the key would be made by fewer than the threshold.
    let mut rehearsal = Rehearsal::new(&world, (2, 1, 3), &FIVE, &BTreeMap::new());
    rehearsal.join(&["a", "b", "c"]);
    rehearsal.deal(&["a", "b"], &nobody(), &world.entropy);
    rehearsal.judge(&["a", "b", "c"]);
    assert!(matches!(rehearsal.outcome(), Err(Error::Ceremony(_))));
}

#[test]
fn each_way_of_dealing_badly_is_named() {
    let world = world(3);
    type Change = fn(&mut wire::CeremonyDealing);
    let changes: [Change; 5] = [
        |d| d.joins = vec![0; 32].into(),
        |d| d.commitments.truncate(2),
        |d| d.commitments.swap(0, 1),
        |d| d.possession = vec![7; 64].into(),
        |d| d.shares.truncate(4),
    ];
    for change in changes {
        let mut rehearsal = joined(&world);
        rehearsal.deal(&ALL, &nobody(), &world.entropy);
        let said = say_again(&rehearsal, &rehearsal.transcript.dealings[4], "e", |m| change(dealing(m)));
        rehearsal.transcript.dealings[4] = said;
        rehearsal.judge(&["a", "b", "c", "d"]);
        let outcome = rehearsal.outcome().unwrap();
        assert_eq!(faults(&outcome), [("e", FaultKind::BadDealing)]);
    }
}

#[test]
fn a_dealer_that_says_two_things_is_out() {
    let world = world(4);
    let mut rehearsal = joined(&world);
    rehearsal.deal(&["a", "a", "b", "c", "d"], &nobody(), &world.entropy);
    rehearsal.judge(&["b", "c", "d"]);
    let outcome = rehearsal.outcome().unwrap();
    assert_eq!(faults(&outcome), [("a", FaultKind::Equivocated)]);
    assert!(outcome.epoch.evaluator(1).is_none());

    // Shown one thing here and another there, the verdicts do not fit together.
    let mut rehearsal = joined(&world);
    rehearsal.deal(&["a", "b", "c", "d", "e"], &nobody(), &world.entropy);
    rehearsal.judge(&["b", "c"]);
    let first = rehearsal.transcript.dealings.remove(0);
    rehearsal.deal(&["a"], &nobody(), &world.entropy);
    let other = rehearsal.transcript.dealings.pop().unwrap();
    rehearsal.transcript.dealings.insert(0, other.clone());
    rehearsal.judge(&["d", "e"]);
    assert!(matches!(rehearsal.outcome(), Err(Error::Ceremony(_))), "a verdict is about other dealings");
    rehearsal.transcript.dealings.insert(0, first);
    assert!(matches!(rehearsal.outcome(), Err(Error::Ceremony(_))));
}

#[test]
fn a_false_complaint_falls_back() {
    let world = world(5);
    let mut rehearsal = joined(&world);
    rehearsal.deal(&ALL, &nobody(), &world.entropy);
    rehearsal.judge(&ALL);
    // A seed that is not that of the share's key proves nothing.
    let said = say_again(&rehearsal, &rehearsal.transcript.verdicts[2], "c", |message| {
        let complaint = wire::CeremonyComplaint { dealer: 1, seed: vec![5; 32].into() };
        verdict(message).complaints.push(complaint);
    });
    rehearsal.transcript.verdicts[2] = said;
    let outcome = rehearsal.outcome().unwrap();
    assert_eq!(faults(&outcome), [("c", FaultKind::FalseComplaint)]);
    assert!(outcome.epoch.evaluator(1).is_some() && outcome.epoch.evaluator(3).is_none());
}

/// Deals the world's key anew, to other evaluators with another threshold.
#[test]
fn shares_are_dealt_anew_and_a_lost_evaluator_is_replaced() {
    let mut world = world(6);
    let Evaluators { keys, servings } = std::mem::take(&mut world.evaluators);
    let before = world.state.evaluators().unwrap().clone();
    // e2 is lost; f takes a share, and three must answer from now on.
    let parties = [(1, "e1"), (3, "e3"), (4, "f"), (5, "g")];
    let mut rehearsal = Rehearsal::new(&world, (1, 2, 3), &parties, &keys);
    let names = ["e1", "e3", "f", "g"];
    rehearsal.join(&names);
    let held = ["e1", "e2", "e3"].map(|name| name.parse::<NodeId>().unwrap());
    let held: BTreeMap<_, _> = held.into_iter().zip(servings.into_iter().map(|s| s.share)).collect();
    rehearsal.deal(&["e1", "e3"], &held, &world.entropy);
    rehearsal.judge(&names);
    let concluded = rehearsal.conclude(&names);
    let shares: Vec<_> = parties.iter().map(|(i, name)| (*i, rehearsal.share(name).unwrap())).collect();
    world.conclude(concluded.clone());
    let epoch = world.state.evaluators().unwrap();
    assert_eq!((epoch.generation, epoch.public_key), (2, before.public_key));
    assert!(evaluate_together(epoch, &shares[1..], &world.entropy));
    let id = *rehearsal.ceremony.id();
    assert_eq!(world.state.concluded(&id), Some(3));
    // Once is enough: now it follows nothing any more.
    let again = Conclusion::verify(&concluded, FEDERATION, &world.governance).unwrap();
    assert!(again.judge(&concluded, &world.state).is_err());

    // Old and new shares do not go together.
    let mixed = [(1, SecretKey::from_bytes(&held[&"e1".parse().unwrap()].to_bytes()).unwrap())];
    assert!(!evaluate_together(epoch, &mixed, &world.entropy));
}

#[test]
fn who_deals_anew_deals_its_own_share() {
    let mut world = world(7);
    let Evaluators { keys, servings } = std::mem::take(&mut world.evaluators);
    let parties = [(1, "e1"), (2, "e2"), (3, "e3")];
    let names = ["e1", "e2", "e3"];
    let mut rehearsal = Rehearsal::new(&world, (1, 2, 2), &parties, &keys);
    rehearsal.join(&names);
    let held: BTreeMap<NodeId, _> =
        names.iter().map(|n| n.parse().unwrap()).zip(servings.into_iter().map(|s| s.share)).collect();
    let other = SecretKey::random(&world.entropy);
    let id: NodeId = "e3".parse().unwrap();
    // Honest code refuses; a dealer that forges is found out by its commitment.
    let joins = rehearsal.joins();
    let (ceremony, key) = (&rehearsal.ceremony, &rehearsal.keys[&id]);
    assert!(party::deal(ceremony, 3, Some(&other), &joins, key, &world.entropy).is_err());
    assert!(party::deal(ceremony, 3, None, &joins, key, &world.entropy).is_err());
    rehearsal.deal(&names, &held, &world.entropy);
    let fresh = {
        let mut fresh = Rehearsal::new(&world, (2, 1, 2), &parties, &keys);
        fresh.join(&names);
        fresh.deal(&["e3"], &nobody(), &world.entropy);
        fresh.transcript.dealings.remove(0)
    };
    let said = say_again(&rehearsal, &rehearsal.transcript.dealings[2], "e3", |message| {
        let mut other = wire::CeremonyMessage::decode(fresh.message.clone()).unwrap();
        dealing(message).commitments = dealing(&mut other).commitments.clone();
        dealing(message).possession = dealing(&mut other).possession.clone();
    });
    rehearsal.transcript.dealings[2] = said;
    rehearsal.judge(&["e1", "e2"]);
    assert_eq!(faults(&rehearsal.outcome().unwrap()), [("e3", FaultKind::BadDealing)]);
}

#[test]
fn plans_follow_what_is_in_force() {
    let world = world(8);
    let follows = |key_epoch, generation| {
        let plan = Plan {
            key_epoch,
            generation,
            threshold: 1,
            parties: vec![Party {
                index: 1,
                evaluator: "e1".parse().unwrap(),
                key: (&keys::generate(&world.entropy)).into(),
                endpoints: vec!["localhost:1".to_owned()],
                tls_key_pin: [9; 32],
            }],
        };
        let plan = world.sign(Decision::CeremonyPlan(plan));
        let plan = governance::verify(&plan, FEDERATION, &world.governance).unwrap();
        Ceremony::new(&plan, &world.state).is_ok()
    };
    assert!(follows(1, 2) && follows(2, 1));
    for (key_epoch, generation) in [(1, 1), (1, 3), (2, 2), (3, 1)] {
        assert!(!follows(key_epoch, generation), "{key_epoch} {generation}");
    }
}

#[test]
fn forged_and_foreign_messages_are_refused() {
    let world = world(9);
    let mut rehearsal = joined(&world);
    rehearsal.deal(&ALL, &nobody(), &world.entropy);
    rehearsal.judge(&ALL);
    let good = rehearsal.transcript.clone();
    let refused = |change: &dyn Fn(&mut wire::CeremonyTranscript)| {
        let mut transcript = good.clone();
        change(&mut transcript);
        Outcome::of(&rehearsal.ceremony, &transcript).is_err()
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|t| t.ceremony = vec![0; 32].into()));
    assert!(refused(&|t| t.joins.swap(0, 1)));
    assert!(refused(&|t| t.joins[0].signature = vec![0; 64].into()));
    assert!(refused(&|t| t.joins.truncate(2)));
    assert!(refused(&|t| t.joins[0] = t.dealings[0].clone()));
    assert!(refused(&|t| t.dealings[1] = t.dealings[0].clone()));
    assert!(refused(&|t| t.dealings[0].message = t.dealings[1].message.clone()));
    assert!(refused(&|t| t.verdicts.swap(0, 1)));
    assert!(refused(&|t| t.verdicts[0] = t.joins[0].clone()));
    assert!(refused(&|t| drop(t.dealings.pop())));
    assert!(refused(&|t| t.joins[0].message = vec![0; 16 * 1024 + 1].into()));
    let foreign = joined(&world);
    assert!(refused(&|t| t.joins[0] = foreign.transcript.joins[0].clone()));

    let concluded = rehearsal.conclude(&ALL);
    let unsound = |change: &dyn Fn(&mut wire::ConcludedCeremony)| {
        let mut concluded = concluded.clone();
        change(&mut concluded);
        let verified = Conclusion::verify(&concluded, FEDERATION, &world.governance);
        verified.and_then(|verified| verified.judge(&concluded, &world.state).map(drop)).is_err()
    };
    assert!(!unsound(&|_| {}));
    assert!(unsound(&|c| c.plan = None));
    assert!(unsound(&|c| c.plan.as_mut().unwrap().signatures.clear()));
    assert!(unsound(&|c| c.transcript = None));
    assert!(unsound(&|c| drop(c.transcript.as_mut().unwrap().verdicts.pop())));
    assert!(unsound(&|c| c.conclusions.swap(0, 1)));
    assert!(unsound(&|c| c.conclusions[0].index = 7));
    assert!(unsound(&|c| c.conclusions[0].signature = vec![0; 64].into()));
    // Signed by all, but not what was said.
    let result = {
        let mut result = wire::CeremonyResult::decode(concluded.result.as_ref()).unwrap();
        let epoch = result.epoch.as_mut().unwrap();
        epoch.public_key = epoch.evaluators[0].public_share.clone();
        bytes::Bytes::from(result.encode_to_vec())
    };
    let lie = wire::ConcludedCeremony {
        conclusions: FIVE
            .iter()
            .map(|(i, name)| conclusion::sign(&result, *i, &rehearsal.keys[&name.parse::<NodeId>().unwrap()]))
            .collect(),
        result,
        ..concluded.clone()
    };
    let verified = Conclusion::verify(&lie, FEDERATION, &world.governance).unwrap();
    assert!(matches!(verified.judge(&lie, &world.state), Err(Error::Ceremony(_))));
}
