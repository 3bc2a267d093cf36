//! Links between nodes: frames, the parcels in them, and the bookkeeping of both sides.

use crate::Target;
use crate::cell;
use crate::input::{Steps, message};
use crate::world::NOW;
use bytes::Bytes;
use chancery_node_core::backoff::Backoff;
use chancery_node_core::link::{CREDIT, MAX_BATCH, Receiving, Sending, VERSIONS, negotiate};
use chancery_node_core::outbox::Waiting;
use chancery_node_core::parcel::{
    Body, Commit, Delivery, Join, MAX_ALIASES, MAX_APPLICATION, MAX_COMMIT, MAX_DEVICES, MAX_FAN_OUT,
    MAX_LIFE, MAX_RECEIPT, MAX_SKEW, MAX_WELCOME, Moved, Outcome, Report, Submission,
};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1::cell_item::Item;
use chancery_types::entropy::SeededEntropy;
use chancery_types::{Alias, Chain, DeviceId, GroupId, KeyPackageRef, MessageId};
use prost::Message as _;
use std::time::Duration;

/// A frame of either direction.
pub(crate) const FRAME: Target = Target { name: "link_frame", run: frame, seeds: frame_seeds };
/// A parcel.
pub(crate) const PARCEL: Target = Target { name: "parcel", run: parcel, seeds: parcel_seeds };
/// Batches and acknowledgements, as both sides count them.
pub(crate) const STATE: Target = Target { name: "link_state", run: state, seeds: state_seeds };
/// Tries that fail and tries that do not.
pub(crate) const BACKOFF: Target = Target { name: "backoff", run: backoff, seeds: backoff_seeds };

fn frame(bytes: &[u8]) {
    use wire::link_request::Frame;
    if let Some(request) = message::<wire::LinkRequest>(bytes) {
        match request.frame {
            Some(Frame::Hello(hello)) => {
                if let Ok(version) = negotiate(&hello) {
                    assert!((hello.version_min..=hello.version_max).contains(&version));
                    assert!((VERSIONS.0..=VERSIONS.1).contains(&version), "a version nobody speaks");
                }
            }
            Some(Frame::Batch(batch)) => {
                let (mut receiving, count) = (Receiving::default(), batch.parcels.len());
                if let Ok(last) = receiving.batch(&batch) {
                    assert!(batch.first_sequence == 1 && last == count as u64 && count <= MAX_BATCH);
                    batch.parcels.into_iter().for_each(enter);
                }
            }
            None => {}
        }
    }
    if let Some(wire::LinkResponse { frame: Some(wire::link_response::Frame::Ack(ack)) }) = message(bytes) {
        let mut sending = Sending::new(CREDIT);
        send(&mut sending, &[(1, 10), (2, 10)]);
        let covers = ack.sequence <= 2;
        assert!(sending.acked(ack).is_ok() == covers, "an ack of what was not sent");
    }
}

fn parcel(bytes: &[u8]) {
    if let Some(parcel) = message(bytes) {
        enter(parcel);
    }
}

/// Takes a parcel through its door.
fn enter(parcel: wire::Parcel) {
    use wire::parcel::Parcel;
    match parcel.parcel {
        Some(Parcel::Submission(message)) => submission(message),
        Some(Parcel::Delivery(message)) => delivery(message),
        Some(Parcel::Outcome(message)) => {
            let Ok(outcome) = Outcome::try_from(message.clone()) else { return };
            assert!(outcome.message == message && outcome.message_id.to_wire() == message.message_id);
            if let Some(wire::outcome::Decision::Accepted(accepted)) = message.decision {
                assert!(accepted.sequence <= Chain::LAST && accepted.epoch <= Chain::LAST);
            }
        }
        Some(Parcel::Report(message)) => {
            let Ok(report) = Report::try_from(message.clone()) else { return };
            assert!(report.message == message && report.recipient.to_wire() == message.recipient);
            if let Some(wire::report::Outcome::Delivered(delivered)) = message.outcome {
                assert!(delivered.receipt.len() <= MAX_RECEIPT);
            }
        }
        Some(Parcel::Moved(message)) => {
            let Ok(moved) = Moved::try_from(message.clone()) else { return };
            assert!(moved.node.as_str() == message.node && moved.alias.to_wire() == message.alias);
        }
        Some(Parcel::Seats(message)) => cell::enter_seats(message.list),
        Some(Parcel::CellChange(message)) => cell::enter(Item::Change(message)),
        Some(Parcel::Announcement(message)) => cell::enter(Item::Announcement(message)),
        Some(Parcel::Wraps(message)) => cell::enter(Item::Wraps(message)),
        Some(Parcel::CellsClosed(message)) => cell::enter(Item::Closed(message)),
        Some(Parcel::MoveNoted(_)) | None => {}
    }
}

fn submission(message: wire::Submission) {
    let Ok(submission) = Submission::from_wire(message.clone(), NOW) else { return };
    assert!(submission.to_wire() == message, "a submission changes at the door");
    let again = Submission::from_wire(submission.to_wire(), NOW).map(|again| again.digest());
    assert!(again == Ok(submission.digest()), "a submission has two digests");
    assert!(submission.expires_at <= NOW.after(MAX_LIFE).after(MAX_SKEW) && submission.category <= 7);
    assert!(!submission.message().is_empty());
    match &submission.body {
        Body::Application(bytes) => assert!(bytes.len() <= MAX_APPLICATION),
        Body::Commit(commit) => {
            assert!(commit.mls_commit.len() <= MAX_COMMIT && commit.welcome.len() <= MAX_WELCOME);
            assert!(commit.joins.len() <= MAX_ALIASES && commit.leaves.len() <= MAX_ALIASES);
            assert!(commit.joins.iter().all(|join| (1..=MAX_DEVICES).contains(&join.key_packages.len())));
        }
    }
}

fn delivery(message: wire::Delivery) {
    let Ok(delivery) = Delivery::from_wire(message.clone(), NOW) else { return };
    assert!(delivery.message == message && (1..=MAX_ALIASES).contains(&delivery.recipients.len()));
    assert!(message.sequence <= Chain::LAST && message.epoch <= Chain::LAST);
    let size = match message.body {
        Some(wire::delivery::Body::Application(bytes) | wire::delivery::Body::Commit(bytes)) => bytes.len(),
        Some(wire::delivery::Body::Welcome(bytes)) => {
            assert!(delivery.welcome);
            bytes.len()
        }
        Some(wire::delivery::Body::Expired(digest)) => digest.len(),
        None => unreachable!("a delivery of nothing"),
    };
    assert!(size * delivery.recipients.len() <= MAX_FAN_OUT, "a fan-out beyond its limit");
}

/// Sends parcels of these ids and sizes; their first sequence.
fn send(sending: &mut Sending, parcels: &[(i64, usize)]) -> Option<u64> {
    let waiting = parcels.iter().map(|&(id, bytes)| {
        let report = wire::Report { message_id: vec![0; bytes].into(), ..Default::default() };
        let parcel = wire::Parcel { parcel: Some(wire::parcel::Parcel::Report(report)) };
        Waiting { id, parcel: parcel.encode_to_vec().into(), expires_at: NOW.after(MAX_LIFE) }
    });
    let batch = sending.batch(waiting.collect(), NOW).expect("parcels that decode");
    batch.map(|batch| batch.first_sequence)
}

fn state(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let credit = steps.number() >> steps.below(64);
    let (mut sending, mut receiving) = (Sending::new(credit), Receiving::default());
    let (mut sent, mut acked, mut received) = (Vec::<(i64, usize)>::new(), 0, 0);
    let mut taken = 0;
    while steps.more(taken, 40) {
        taken += 1;
        match steps.below(3) {
            0 => {
                let parcels: Vec<_> = (1..=i64::from(steps.below(4)))
                    .map(|n| (sent.len() as i64 + n, steps.below(1 << 10) as usize))
                    .collect();
                let first = send(&mut sending, &parcels);
                assert!(first.is_none_or(|first| first == sent.len() as u64 + 1), "a gap in what is sent");
                sent.extend(parcels);
            }
            1 => {
                let sequence = if steps.flip() { steps.number() } else { u64::from(steps.below(64)) };
                match sending.acked(wire::Ack { sequence, refusals: Vec::new() }) {
                    Ok(covered) => {
                        assert!(sequence <= sent.len() as u64, "an ack of what was not sent");
                        let expected: Vec<_> = (acked as i64 + 1..=sequence as i64).collect();
                        assert!(
                            covered.taken == expected && covered.refused.is_empty(),
                            "an ack covers something twice or not at all"
                        );
                        acked = acked.max(sequence);
                    }
                    Err(_) => assert!(sequence > sent.len() as u64),
                }
            }
            _ => {
                let count = steps.below(MAX_BATCH as u32 + 2) as usize;
                let first = if steps.flip() { received + 1 } else { steps.number() };
                let parcels = vec![wire::Parcel::default(); count];
                let taken = receiving.batch(&wire::Batch { first_sequence: first, parcels });
                let fits = (1..=MAX_BATCH).contains(&count) && first == received + 1;
                assert!(taken.is_ok() == fits, "a batch out of its order");
                if fits {
                    received += count as u64;
                    assert!(taken == Ok(received));
                }
            }
        }
        // Some bytes around each.
        let unacked = sent.iter().filter(|(n, _)| *n > acked as i64);
        let (least, most) = unacked
            .fold((0, 0), |(least, most), (_, bytes)| (least + *bytes as u64, most + *bytes as u64 + 16));
        assert!(sending.may_send() || most >= credit, "credit is not given back");
        assert!(!sending.may_send() || least < credit, "more is on the way than the peer allows");
        assert!(sending.is_idle() == (acked == sent.len() as u64));
    }
}

fn backoff(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let [first, cap] = [0; 2].map(|_| Duration::from_millis(steps.below(u32::MAX).into()));
    let entropy = SeededEntropy::new(steps.number());
    let (mut backoff, mut tries) = (Backoff::new(first, cap), 0_u32);
    let mut taken = 0;
    while steps.more(taken, 60) {
        taken += 1;
        if steps.below(16) == 0 {
            backoff.reset();
            tries = 0;
        }
        let bound = first.saturating_mul(1 << tries.min(20)).min(cap);
        let delay = backoff.next(&entropy);
        assert!(delay <= bound, "a pause beyond its bound");
        tries += 1;
    }
}

/// A parcel of each kind.
pub(crate) fn parcels() -> Vec<wire::Parcel> {
    use wire::parcel::Parcel;
    let alias = |byte| Alias::from_bytes([byte; 16]);
    let (message_id, group_id) =
        (MessageId::from_bytes([1; 16]).to_wire(), GroupId::from_bytes([2; 32]).to_wire());
    let (sender, sender_device) = (alias(3).to_wire(), DeviceId::from_bytes([4; 16]).to_wire());
    let application = wire::Submission {
        message_id: message_id.clone(),
        group_id: group_id.clone(),
        sender: sender.clone(),
        sender_device: sender_device.clone(),
        epoch: 5,
        expires_at_ms: NOW.after(Duration::from_hours(1)).millis(),
        wants_events: true,
        body: Some(wire::submission::Body::Application(Bytes::from_static(b"message"))),
        ..Default::default()
    };
    let join = Join {
        alias: alias(7),
        node: "regional".parse().unwrap(),
        key_packages: vec![KeyPackageRef::from_bytes([8; 32])],
    };
    let commit = Commit {
        mls_commit: Bytes::from_static(b"commit"),
        welcome: Bytes::from_static(b"welcome"),
        joins: vec![join],
        leaves: vec![alias(9)],
    };
    let commit = wire::Submission {
        body: Some(wire::submission::Body::Commit((&commit).into())),
        echo: true,
        ..application.clone()
    };
    let delivery = wire::Delivery {
        message_id: message_id.clone(),
        group_id: group_id.clone(),
        sequence: 9,
        chain: Chain::START.to_wire(),
        epoch: 5,
        expires_at_ms: NOW.after(Duration::from_hours(1)).millis(),
        recipients: vec![alias(7).to_wire(), alias(8).to_wire()],
        except_device: sender_device.clone(),
        body: Some(wire::delivery::Body::Application(Bytes::from_static(b"message"))),
        ..Default::default()
    };
    let welcome = wire::Delivery {
        body: Some(wire::delivery::Body::Welcome(Bytes::from_static(b"welcome"))),
        ..delivery.clone()
    };
    let outcome = |decision| wire::Outcome {
        message_id: message_id.clone(),
        group_id: group_id.clone(),
        sender: sender.clone(),
        sender_device: sender_device.clone(),
        decision: Some(decision),
    };
    let accepted =
        wire::Accepted { sequence: 9, epoch: 5, chain: Chain::START.to_wire(), accepted_at_ms: NOW.millis() };
    let refused = wire::Refused { reason: "STALE_EPOCH".to_owned(), current_epoch: Some(6) };
    let delivered = wire::Delivered { receipt: Bytes::from_static(b"receipt") };
    let report = |outcome| wire::Report {
        message_id: message_id.clone(),
        recipient: alias(7).to_wire(),
        part: 1,
        outcome: Some(outcome),
        ..Default::default()
    };
    [
        Parcel::Submission(application),
        Parcel::Submission(commit),
        Parcel::Delivery(delivery),
        Parcel::Delivery(welcome),
        Parcel::Outcome(outcome(wire::outcome::Decision::Accepted(accepted))),
        Parcel::Outcome(outcome(wire::outcome::Decision::Refused(refused))),
        Parcel::Report(report(wire::report::Outcome::Delivered(delivered))),
        Parcel::Report(report(wire::report::Outcome::Refused("EXPIRED".to_owned()))),
        Parcel::Moved(wire::Moved { alias: alias(7).to_wire(), node: "regional".to_owned() }),
        Parcel::MoveNoted(wire::MoveNoted { alias: alias(7).to_wire() }),
    ]
    .into_iter()
    .chain(cell::parcels())
    .map(|parcel| wire::Parcel { parcel: Some(parcel) })
    .collect()
}

fn parcel_seeds() -> Vec<Vec<u8>> {
    parcels().iter().map(wire::Parcel::encode_to_vec).collect()
}

fn frame_seeds() -> Vec<Vec<u8>> {
    use wire::link_request::Frame;
    let incarnation = Bytes::from_static(&[6; 16]);
    let hello = wire::Hello { version_min: 1, version_max: 1, incarnation: incarnation.clone() };
    let batch = wire::Batch { first_sequence: 1, parcels: parcels() };
    let refusal = wire::ParcelRefusal { sequence: 2, reason: "INVALID_FIELD".to_owned() };
    let ack = wire::Ack { sequence: 2, refusals: vec![refusal] };
    let hello_ack = wire::HelloAck { version: 1, incarnation, credit_bytes: CREDIT };
    let request = |frame| wire::LinkRequest { frame: Some(frame) }.encode_to_vec();
    let response = |frame| wire::LinkResponse { frame: Some(frame) }.encode_to_vec();
    vec![
        request(Frame::Hello(hello)),
        request(Frame::Batch(batch)),
        response(wire::link_response::Frame::Ack(ack)),
        response(wire::link_response::Frame::HelloAck(hello_ack)),
    ]
}

fn state_seeds() -> Vec<Vec<u8>> {
    vec![vec![0xff; 40], (0..120).collect()]
}

fn backoff_seeds() -> Vec<Vec<u8>> {
    vec![(1..60).collect(), vec![0xff; 60]]
}
