use super::*;
use crate::framing::tests::private_message;
use crate::parcel::Join;
use chancery_types::{DeviceId, GroupId, KeyPackageRef, MessageId};
use proptest::prelude::*;

const GROUP: GroupId = GroupId::from_bytes([7; 32]);
const NOW: Timestamp = Timestamp::from_millis(5);

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn alias(byte: u8) -> Alias {
    Alias::from_bytes([byte; 16])
}

fn welcome(reference: u8) -> Bytes {
    let part = [&[32][..], &[reference; 32], &[1, 0], &[1, 0]].concat();
    [&[0, 1, 0, 3, 0, 1, part.len() as u8][..], &part, &[1, 0]].concat().into()
}

fn submission(id: u8, sender: u8, epoch: u64, body: Body) -> Submission {
    Submission {
        message_id: MessageId::from_bytes([id; 16]),
        group_id: GROUP,
        sender: alias(sender),
        sender_device: DeviceId::from_bytes([sender; 16]),
        epoch,
        expires_at: Timestamp::from_millis(1000),
        urgency: 0,
        category: 0,
        wants_events: true,
        echo: false,
        body,
    }
}

fn message(id: u8, sender: u8, epoch: u64) -> Submission {
    let bytes = private_message(&GROUP, epoch, ContentType::Application, &[id]);
    submission(id, sender, epoch, Body::Application(bytes))
}

fn commit(id: u8, sender: u8, epoch: u64, joins: &[(u8, &str)], leaves: &[u8]) -> Submission {
    let joins: Vec<_> = joins
        .iter()
        .map(|(a, home)| Join {
            alias: alias(*a),
            node: node(home),
            key_packages: vec![KeyPackageRef::from_bytes([*a; 32])],
        })
        .collect();
    let welcome = joins.first().map(|j| welcome(j.alias.as_bytes()[0])).unwrap_or_default();
    let body = Body::Commit(Commit {
        mls_commit: private_message(&GROUP, epoch, ContentType::Commit, &[id]),
        welcome,
        joins,
        leaves: leaves.iter().map(|a| alias(*a)).collect(),
    });
    submission(id, sender, epoch, body)
}

fn opened() -> Option<Group> {
    let mut group = None;
    order(&mut group, &commit(1, 1, 0, &[(2, "b")], &[]), &node("a"), &node("a"), NOW).unwrap();
    group
}

#[test]
fn a_message_to_very_many_has_a_limit() {
    let mut group = opened();
    let most = crate::parcel::MAX_FAN_OUT / crate::parcel::MAX_APPLICATION;
    let members = &mut group.as_mut().unwrap().members;
    members.extend((0..most as u128).map(|n| (Alias::from_bytes((n + 1000).to_be_bytes()), node("c"))));
    let large = vec![0; crate::parcel::MAX_APPLICATION - 100];
    let bytes = private_message(&GROUP, 1, ContentType::Application, &large);
    let send = |group: &mut Option<Group>| {
        let large = submission(2, 1, 1, Body::Application(bytes.clone()));
        order(group, &large, &node("a"), &node("a"), NOW).map(drop)
    };
    send(&mut group).unwrap();
    group.as_mut().unwrap().members.insert(alias(9), node("c"));
    assert_eq!(send(&mut group).unwrap_err().reason, chancery_types::Reason::TooLarge);
}

#[test]
fn opening_delivers_the_welcome_to_the_joiner() {
    let mut group = None;
    let ordered = order(&mut group, &commit(1, 1, 0, &[(2, "b")], &[]), &node("a"), &node("a"), NOW).unwrap();
    let group = group.unwrap();
    assert_eq!((group.epoch, group.sequence, group.members.len()), (1, 1, 2));
    let [(to, delivery)] = ordered.deliveries.as_slice() else { panic!("one delivery") };
    assert_eq!((to, delivery.recipients[0].as_ref()), (&node("b"), &[2; 16][..]));
    assert!(matches!(delivery.body, Some(wire::delivery::Body::Welcome(_))));
}

#[test]
fn a_stranger_cannot_open_or_submit() {
    let reason = |group: &mut Option<Group>, s: &Submission, from: &str| {
        order(group, s, &node(from), &node("a"), NOW).err().map(|r| r.reason)
    };
    assert_eq!(reason(&mut None, &commit(1, 1, 0, &[], &[]), "b"), Some(Reason::GroupUnknown));
    assert_eq!(reason(&mut None, &message(1, 1, 0), "a"), Some(Reason::GroupUnknown));
    let mut group = opened();
    assert_eq!(reason(&mut group, &message(2, 3, 1), "a"), Some(Reason::NotInGroup));
    // The alias is a member, but the node that vouches for it is not its home.
    assert_eq!(reason(&mut group, &message(2, 2, 1), "a"), Some(Reason::NotInGroup));
}

#[test]
fn the_second_commit_of_an_epoch_loses() {
    let mut group = opened();
    let (a, b) = (node("a"), node("b"));
    order(&mut group, &commit(2, 2, 1, &[], &[]), &b, &a, NOW).unwrap();
    let lost = order(&mut group, &commit(3, 1, 1, &[], &[]), &a, &a, NOW).err().unwrap();
    assert_eq!((lost.reason, group.as_ref().unwrap().epoch), (Reason::StaleEpoch, 2));
    let late = order(&mut group, &message(4, 1, 1), &a, &a, NOW).err().unwrap();
    assert_eq!(late.reason, Reason::StaleEpoch);
}

#[test]
fn who_leaves_hears_of_it_and_no_more() {
    let mut group = opened();
    let (a, b) = (node("a"), node("b"));
    let ordered = order(&mut group, &commit(2, 1, 1, &[], &[2]), &a, &a, NOW).unwrap();
    assert_eq!(ordered.deliveries.len(), 1);
    let gone = order(&mut group, &message(3, 2, 2), &b, &a, NOW).err().unwrap();
    assert_eq!(gone.reason, Reason::NotInGroup);
}

#[test]
fn other_devices_of_the_sender_get_a_copy_when_there_are_any() {
    let mut group = opened();
    let mut echoed = message(2, 1, 1);
    echoed.echo = true;
    let ordered = order(&mut group, &echoed, &node("a"), &node("a"), NOW).unwrap();
    let own = ordered.deliveries.iter().find(|(to, _)| *to == node("a")).unwrap();
    assert_eq!(own.1.except_device.as_ref(), &[1; 16]);
    let other = ordered.deliveries.iter().find(|(to, _)| *to == node("b")).unwrap();
    assert!(other.1.except_device.is_empty());
}

#[test]
fn the_message_must_be_what_its_envelope_says() {
    let mut group = opened();
    let mut forged = message(2, 1, 1);
    forged.body = Body::Application(private_message(&GROUP, 9, ContentType::Application, b""));
    assert!(order(&mut group, &forged, &node("a"), &node("a"), NOW).is_err());
    assert_eq!(group, opened());
}

/// Each joiner's copy has the whole group info: a nation of them would not fit in memory.
#[test]
fn a_welcome_times_its_joiners_has_a_limit() {
    let info = vec![0; 1_000_000];
    let parts: Vec<u8> = (0..40).flat_map(|n: u8| [&[32][..], &[n; 32], &[0, 0]].concat()).collect();
    let vector = |bytes: &[u8]| [&(bytes.len() as u32 | 0x8000_0000).to_be_bytes()[..], bytes].concat();
    let joins = |count: u8| {
        let key_packages = |n| vec![KeyPackageRef::from_bytes([n; 32])];
        (0..count)
            .map(|n| Join { alias: alias(n + 9), node: node("b"), key_packages: key_packages(n) })
            .collect()
    };
    let mut opening = commit(1, 1, 0, &[], &[]);
    let parts = [&[0x40 | (parts.len() >> 8) as u8, parts.len() as u8][..], &parts].concat();
    let whole: Bytes = [&[0, 1, 0, 3, 0, 1][..], &parts, &vector(&info)].concat().into();
    for (count, fits) in [(33, true), (34, false)] {
        let Body::Commit(commit) = &mut opening.body else { unreachable!() };
        (commit.welcome, commit.joins) = (whole.clone(), joins(count));
        assert_eq!(order(&mut None, &opening, &node("a"), &node("a"), NOW).is_ok(), fits);
    }
}

/// Found by the simulation: the copy of somebody with one device, at home with the
/// sender, was taken for one of the sender's own.
#[test]
fn the_senders_other_devices_get_a_copy_of_their_own() {
    let mut group = None;
    let here = node("a");
    order(&mut group, &commit(1, 1, 0, &[(2, "a")], &[]), &here, &here, NOW).unwrap();
    let echoed = Submission { echo: true, ..message(2, 1, 1) };
    let deliveries = order(&mut group, &echoed, &here, &here, NOW).unwrap().deliveries;
    let shape: Vec<_> = deliveries
        .iter()
        .map(|(_, delivery)| (delivery.recipients.clone(), delivery.except_device.is_empty()))
        .collect();
    assert_eq!(shape, [(vec![alias(2).to_wire()], true), (vec![alias(1).to_wire()], false)]);
}

proptest! {
    /// Whatever is thrown at a hub, sequences have no gap, the chain can be
    /// recomputed from what was accepted, and epochs move by one commit each.
    #[test]
    fn sequences_are_gapless_and_chained(
        ops in proptest::collection::vec((1u8..4, 0u64..4, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let mut group = opened();
        let first = commit(1, 1, 0, &[(2, "b")], &[]);
        let mut chain = Chain::START.next(1, &first.message_id, &first.message_digest());
        let (mut sequence, mut epoch) = (1, 1);
        for (index, (sender, back, is_commit, from_home)) in ops.into_iter().enumerate() {
            let id = index as u8 + 2;
            let at = (epoch + 1_u64).saturating_sub(back);
            let submission =
                if is_commit { commit(id, sender, at, &[], &[]) } else { message(id, sender, at) };
            let home = if (sender == 1) == from_home { "a" } else { "b" };
            let result = order(&mut group, &submission, &node(home), &node("a"), NOW);
            let state = group.as_ref().unwrap();
            if let Ok(ordered) = result {
                sequence += 1;
                epoch += u64::from(is_commit);
                chain = chain.next(sequence, &submission.message_id, &submission.message_digest());
                prop_assert_eq!(ordered.accepted.sequence, sequence);
                prop_assert_eq!(at, if is_commit { epoch - 1 } else { epoch });
            }
            prop_assert_eq!((state.sequence, state.epoch, state.chain), (sequence, epoch, chain));
        }
    }
}
