//! Drawn plans in numbers, and the plans that found something.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

use chancery_simulation::{Op, Person, Plan, run};

/// Operations in a run.
const OPS: usize = 1000;

fn people(homes: &[(usize, usize, bool)]) -> Vec<Person> {
    homes.iter().map(|&(home, devices, agent)| Person { home, devices, agent }).collect()
}

/// Runs plans of a thousand seeds.
fn thousand(first: u64) {
    let (mut steps, mut letters, mut kills) = (0, 0, 0);
    for seed in first..first + 1000 {
        let outcome = run(&Plan::draw(seed, OPS));
        if let Some((violation, about)) = outcome.violation {
            panic!(
                "seed {seed}: {violation}\n{about}\ncargo run --release -p chancery-simulation -- --first {seed} --seeds 1 --ops {OPS}"
            );
        }
        steps += outcome.steps;
        letters += outcome.letters;
        kills += outcome.kills;
    }
    println!("{steps} steps, {letters} letters, {kills} kills");
    assert!(steps > 10_000_000, "a run became so short that it says little: {steps} steps");
}

#[test]
fn no_promise_breaks_in_a_thousand_meshes() {
    thousand(1);
}

#[test]
fn nor_in_another_thousand() {
    thousand(100_001);
}

#[test]
fn a_run_can_be_had_again() {
    let plan = Plan::draw(7, 200);
    let (one, other) = (run(&plan), run(&plan));
    assert_eq!((one.steps, one.letters, one.arrived), (other.steps, other.letters, other.arrived));
    assert!(one.violation.is_none());
}

/// A plan, tried with some seeds.
fn holds(people: Vec<Person>, ops: Vec<Op>) {
    let nodes = people.iter().map(|person| person.home + 1).max().unwrap();
    for seed in 0..200 {
        let outcome = run(&Plan { seed, nodes, people: people.clone(), ops: ops.clone() });
        assert!(outcome.violation.is_none(), "seed {seed}: {:?}", outcome.violation);
    }
}

/// The hub left the copy for an agent out when a person with several devices, at home
/// with it, wrote: it took it for one for the writer's own devices.
#[test]
fn a_neighbour_with_one_device_gets_its_copy() {
    let people = people(&[(0, 1, true), (1, 1, true), (0, 3, false)]);
    let write = |from, to| Op::Write { from, to, life: 86_400 };
    holds(people, vec![write(0, 2), Op::Wait(1024), write(2, 0), write(0, 2), Op::Wait(1024), write(3, 0)]);
}

/// What expired in a mailbox left a gap, which looked like withholding.
#[test]
fn what_expires_in_a_mailbox_is_not_taken_for_withheld() {
    let people = people(&[(0, 1, true), (1, 1, false)]);
    let write = |life| Op::Write { from: 0, to: 1, life };
    holds(people, vec![write(86_400), Op::Skew(1, 82_360), write(20), write(86_400)]);
}

/// What expired in a hub's outbox was left out before it was replaced.
#[test]
fn what_expires_on_its_way_keeps_its_place() {
    let people = people(&[(0, 1, true), (1, 2, false)]);
    let write = |life| Op::Write { from: 0, to: 1, life };
    let cut = Op::CutNodes(0, 1, 65_536);
    holds(people, vec![write(86_400), cut, write(20), Op::Wait(32_768), write(86_400)]);
}

/// A sender's node said that a letter had expired which the hub had accepted.
#[test]
fn only_the_hub_says_whether_a_letter_was_in_time() {
    let people = people(&[(0, 1, true), (1, 2, false)]);
    let answer = |life| Op::Write { from: 1, to: 0, life };
    let ops = vec![
        Op::Write { from: 0, to: 1, life: 86_400 },
        Op::Wait(4096),
        Op::Latency(1024),
        Op::Skew(0, -56_862),
        Op::Skew(1, 10_000),
        answer(20),
        Op::Skew(1, 102_285),
        Op::Wait(4096),
        Op::KillNode(1, 2048),
        answer(60),
    ];
    holds(people, ops);
}
