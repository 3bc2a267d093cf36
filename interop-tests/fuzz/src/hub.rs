//! The hub's order of a group's messages, under submissions of all kinds by anybody: no gap in the
//! sequence, a chain that follows from what was accepted, epochs that commits alone move; and
//! a refused submission changes nothing.

use crate::Target;
use crate::input::Steps;
use crate::mls::{private_message, welcome};
use crate::world::NOW;
use bytes::Bytes;
use chancery_node_core::framing::ContentType;
use chancery_node_core::hub::{Group, Ordered, order};
use chancery_node_core::parcel::{Body, Commit, Delivery, Join, MAX_ALIASES, Submission};
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, Chain, DeviceId, GroupId, KeyPackageRef, MessageId, NodeId, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

/// Submissions to one group, one after the other.
pub(crate) const ORDER: Target = Target { name: "hub", run, seeds };

const GROUP: GroupId = GroupId::from_bytes([7; 32]);
static NODES: LazyLock<[NodeId; 3]> = LazyLock::new(|| ["a", "b", "c"].map(|name| name.parse().unwrap()));

/// What the hub must come to, told by what it accepted.
struct Expected {
    epoch: u64,
    sequence: u64,
    chain: Chain,
    members: BTreeMap<Alias, NodeId>,
}

fn run(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let here = &NODES[0];
    let mut group = None;
    let mut expected = None;
    let mut taken = 0;
    while steps.more(taken, 24) {
        taken += 1;
        let from = steps.of(&*NODES).clone();
        let submission = submission(&mut steps, taken, &group);
        let before = group.clone();
        match order(&mut group, &submission, &from, here, NOW) {
            Ok(ordered) => {
                let expected = expected.get_or_insert_with(|| open(&submission, &from, here));
                accepted(expected, &submission, &from, &ordered);
                let group = group.as_ref().unwrap();
                let found = (group.epoch, group.sequence, group.chain, &group.members);
                assert!(found == (expected.epoch, expected.sequence, expected.chain, &expected.members));
            }
            Err(refusal) => {
                assert!(group == before, "a refused submission changed the group");
                let stale = refusal.reason == Reason::StaleEpoch;
                assert!(!stale || before.is_some_and(|group| group.epoch != submission.epoch));
            }
        }
    }
}

fn open(submission: &Submission, from: &NodeId, here: &NodeId) -> Expected {
    assert!(from == here && submission.epoch == 0, "a stranger opened a group");
    assert!(matches!(submission.body, Body::Commit(_)), "a message opened a group");
    let members = BTreeMap::from([(submission.sender, from.clone())]);
    Expected { epoch: 0, sequence: 0, chain: Chain::START, members }
}

fn accepted(expected: &mut Expected, submission: &Submission, from: &NodeId, ordered: &Ordered) {
    assert!(expected.members.get(&submission.sender) == Some(from), "somebody else was accepted");
    assert!(submission.epoch == expected.epoch, "a message of another epoch was accepted");
    expected.sequence += 1;
    let (id, digest) = (&submission.message_id, submission.message_digest());
    expected.chain = expected.chain.next(expected.sequence, id, &digest);
    deliveries(expected, submission, ordered);
    if let Body::Commit(commit) = &submission.body {
        expected.epoch += 1;
        for join in &commit.joins {
            expected.members.insert(join.alias, join.node.clone());
        }
        expected.members.retain(|alias, _| !commit.leaves.contains(alias));
    }
    assert!(expected.members.len() <= MAX_ALIASES);
    let told = &ordered.accepted;
    assert!((told.sequence, told.epoch) == (expected.sequence, expected.epoch));
    assert!(told.chain == expected.chain.to_wire());
}

/// Every member but the sender gets the message, every joiner its Welcome, nobody else anything;
/// and the recipient's node finds it well formed.
fn deliveries(before: &Expected, submission: &Submission, ordered: &Ordered) {
    let (mut reached, mut welcomed, mut parts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (node, message) in &ordered.deliveries {
        assert!(parts.insert((node.clone(), message.part)), "two deliveries are one");
        assert!(message.sequence == before.sequence && message.chain == before.chain.to_wire());
        let delivery = Delivery::from_wire(message.clone(), NOW).unwrap();
        for alias in delivery.recipients {
            match &message.body {
                Some(wire::delivery::Body::Welcome(bytes)) => {
                    let Body::Commit(commit) = &submission.body else { panic!("a Welcome to a message") };
                    assert!(bytes.len() <= commit.welcome.len(), "a part is larger than the whole");
                    assert!(welcomed.insert((node.clone(), alias)), "somebody is welcomed twice");
                }
                _ => {
                    assert!(before.members.get(&alias) == Some(node), "a message to a stranger");
                    assert!(reached.insert(alias), "somebody is reached twice");
                }
            }
        }
    }
    let mut members: BTreeSet<_> = before.members.keys().copied().collect();
    if !submission.echo {
        members.remove(&submission.sender);
    }
    assert!(reached == members, "a member is left out");
    let joins = match &submission.body {
        Body::Commit(commit) => commit.joins.as_slice(),
        Body::Application(_) => &[],
    };
    let joiners: BTreeSet<_> = joins.iter().map(|join| (join.node.clone(), join.alias)).collect();
    assert!(welcomed == joiners, "a joiner is left out");
}

fn submission(steps: &mut Steps<'_>, id: usize, group: &Option<Group>) -> Submission {
    let alias = |steps: &mut Steps<'_>| Alias::from_bytes([u8::try_from(steps.below(6)).unwrap(); 16]);
    let sender = alias(steps);
    let now = group.as_ref().map_or(0, |group| group.epoch);
    let epoch = match steps.below(8) {
        0 => steps.number(),
        1 => now.saturating_sub(1),
        2 => now + 1,
        _ => now,
    };
    let commits = steps.flip();
    let message = match steps.below(8) {
        0 => Bytes::copy_from_slice(steps.bytes(200)),
        other => {
            let kind = if commits == (other != 1) { ContentType::Commit } else { ContentType::Application };
            let within = if other == 2 { epoch.wrapping_add(1) } else { epoch };
            private_message(&GROUP, within, kind, steps.bytes(20))
        }
    };
    let body = if commits { commit(steps, message, alias) } else { Body::Application(message) };
    Submission {
        message_id: MessageId::from_bytes([u8::try_from(id).unwrap(); 16]),
        group_id: GROUP,
        sender,
        sender_device: DeviceId::from_bytes([1; 16]),
        epoch,
        expires_at: NOW.after(Duration::from_hours(1)),
        urgency: 1,
        category: 0,
        wants_events: steps.flip(),
        echo: steps.flip(),
        body,
    }
}

/// What the parcels' door lets in: aliases stand once, a Welcome comes with joiners.
fn commit(steps: &mut Steps<'_>, mls_commit: Bytes, alias: impl Fn(&mut Steps<'_>) -> Alias) -> Body {
    let (mut joins, mut leaves, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for _ in 0..steps.below(4) {
        let who = alias(steps);
        if !seen.insert(who) {
            continue;
        }
        if steps.flip() {
            leaves.push(who);
        } else {
            let first = u8::try_from(steps.below(4)).unwrap();
            let devices = (first..5).take(steps.below(3) as usize + 1);
            let key_packages = devices.map(|device| KeyPackageRef::from_bytes([device; 32])).collect();
            joins.push(Join { alias: who, node: steps.of(&*NODES).clone(), key_packages });
        }
    }
    let welcome = match joins.is_empty() {
        true => Bytes::new(),
        false if steps.below(8) == 0 => Bytes::copy_from_slice(steps.bytes(200)),
        false => welcome(&[0, 1, 2, 3], 5),
    };
    Body::Commit(Commit { mls_commit, welcome, joins, leaves })
}

fn seeds() -> Vec<Vec<u8>> {
    vec![vec![0; 60], (0..=255).collect(), (0..=255).rev().collect()]
}
