//! Two nodes' stores with a wire of function calls between them.

use super::account::NewDevice;
use super::key_package::{Package, Published};
use super::*;
use chancery_node_core::expire::expire;
use chancery_node_core::link::Acked;
use chancery_node_core::mailbox::{self, Acknowledgement};
use chancery_node_core::parcel::{Body, Commit, Join, Submission};
use chancery_node_core::{batch, outbox, submit};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::clock::ManualClock;
use chancery_types::entropy::SeededEntropy;
use chancery_types::{AccountId, Alias, Chain, DeviceId, GroupId, KeyPackageRef, MessageId, Reason};
use prost::Message as _;
use std::collections::HashMap;
use std::time::Duration;

mod beside;
mod cells;
mod moves;
mod neighbours;
mod silence;
mod whole;

const GROUP: GroupId = GroupId::from_bytes([7; 32]);
const ANNA: Alias = Alias::from_bytes([1; 16]);
const BERT: Alias = Alias::from_bytes([2; 16]);

struct Side {
    store: NodeStore,
    clock: ManualClock,
    _folder: tempfile::TempDir,
}

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn device(byte: u8) -> DeviceId {
    DeviceId::from_bytes([byte; 16])
}

async fn side(text: &str, alias: Alias, devices: &[u8]) -> Side {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp::from_millis(1_000_000));
    let entropy = Arc::new(SeededEntropy::new(text.len() as u64 + u64::from(text.as_bytes()[0])));
    let path = folder.path().join("node.db");
    let store = NodeStore::open(&path, name(text), Arc::new(clock.clone()), entropy).await.unwrap();
    let account = AccountId::from_bytes([9; 16]);
    for (index, byte) in devices.iter().enumerate() {
        let new = NewDevice { device_id: device(*byte), auth_key: [*byte; 32] };
        store
            .change("open", move |tx| {
                Box::pin(async move {
                    if index == 0 {
                        account::open(tx, account, None, new, alias).await.map(|r| r.map(drop))
                    } else {
                        account::add_device(tx, account, new).await
                    }
                })
            })
            .await
            .unwrap()
            .unwrap();
    }
    Side { store, clock, _folder: folder }
}

impl Side {
    async fn submit(&self, from: &str, submissions: Vec<Submission>) -> Vec<Option<wire::outcome::Decision>> {
        let input = Arc::new((name(from), submissions));
        self.store
            .change("submit", move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { submit::submit(tx, &input.0, &input.1).await })
            })
            .await
            .unwrap()
            .into_iter()
            .map(|result| match result {
                submit::Submitted::Decided(outcome) => outcome.decision,
                submit::Submitted::Queued => None,
            })
            .collect()
    }

    /// Hands everything that waits for `to` over; the refusals.
    async fn hand_over(&self, to: &Self, twice: bool) -> Vec<(usize, Reason)> {
        let waiting = super::outbox::next(&self.store, &to.store.here, 0, 256).await.unwrap();
        let parcels: Vec<_> =
            waiting.iter().map(|w| wire::Parcel::decode(w.parcel.clone()).unwrap()).collect();
        let mut refused = Vec::new();
        for _ in 0..if twice { 2 } else { 1 } {
            let input = Arc::new((self.store.here.clone(), parcels.clone()));
            refused = to
                .store
                .change("receive", move |tx| {
                    let input = Arc::clone(&input);
                    Box::pin(async move { batch::receive(tx, &input.0, &input.1).await })
                })
                .await
                .unwrap();
        }
        let taken = waiting.iter().map(|w| w.id).collect();
        let acked = Arc::new(Acked { taken, refused: Vec::new() });
        self.store
            .change("acked", move |tx| {
                let acked = Arc::clone(&acked);
                Box::pin(async move { outbox::acked(tx, &acked).await })
            })
            .await
            .unwrap();
        refused
    }

    async fn read(&self, alias: Alias, by: u8) -> Vec<node::SubscribeResponse> {
        super::mailbox::read(&self.store, alias, device(by), 0, 100).await.unwrap().0
    }

    async fn acknowledge(&self, alias: Alias, by: u8) {
        let through = self.read(alias, by).await.last().map_or(0, |item| item.position);
        let receipt = |message| (id(message), bytes::Bytes::from_static(b"receipt"));
        let receipts = HashMap::from([3, 4].map(receipt));
        self.acknowledge_all(vec![Acknowledgement { alias, device: device(by), through, receipts }]).await;
    }

    /// In one transaction.
    async fn acknowledge_all(&self, acknowledgements: Vec<Acknowledgement>) -> Vec<u64> {
        let acknowledgements = Arc::new(acknowledgements);
        self.store
            .change("acknowledge", move |tx| {
                let acknowledgements = Arc::clone(&acknowledgements);
                Box::pin(async move { mailbox::acknowledge(tx, &acknowledgements).await })
            })
            .await
            .unwrap()
    }

    async fn events(&self, alias: Alias, by: u8) -> Vec<&'static str> {
        let kind = |item: &node::SubscribeResponse| match &item.item {
            Some(node::subscribe_response::Item::Event(event)) => Some(match event.kind.as_ref().unwrap() {
                node::event::Kind::Relayed(_) => "relayed",
                node::event::Kind::Delivered(d) if d.receipt.is_empty() => "delivered without receipt",
                node::event::Kind::Delivered(_) => "delivered",
                node::event::Kind::Refused(_) => "refused",
                node::event::Kind::Expired(_) => "expired",
            }),
            _ => None,
        };
        self.read(alias, by).await.iter().filter_map(kind).collect()
    }

    async fn count(&self, table: &str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(self.store.readers())
            .await
            .unwrap()
    }
}

fn id(byte: u8) -> MessageId {
    MessageId::from_bytes([byte; 16])
}

fn private(epoch: u64, kind: u8, filler: u8) -> bytes::Bytes {
    let head = [&[0, 1, 0, 2, 32][..], GROUP.as_bytes(), &epoch.to_be_bytes()].concat();
    [&head[..], &[kind, 0, 0, 1, filler]].concat().into()
}

fn submission(message: u8, sender: Alias, by: u8, epoch: u64, body: Body) -> Submission {
    Submission {
        message_id: id(message),
        group_id: GROUP,
        sender,
        sender_device: device(by),
        epoch,
        expires_at: Timestamp::from_millis(2_000_000),
        urgency: 0,
        category: 0,
        wants_events: true,
        echo: false,
        body,
    }
}

/// Anna on `a` opens a thread with Bert on `b`.
fn opening() -> Submission {
    let part = [&[32][..], &[5; 32], &[1, 0], &[1, 0]].concat();
    let welcome = [&[0, 1, 0, 3, 0, 1, part.len() as u8][..], &part, &[1, 0]].concat();
    let join = Join { alias: BERT, node: name("b"), key_packages: vec![KeyPackageRef::from_bytes([5; 32])] };
    let commit =
        Commit { mls_commit: private(0, 3, 0), welcome: welcome.into(), joins: vec![join], leaves: vec![] };
    submission(2, ANNA, 10, 0, Body::Commit(commit))
}

fn letter(message: u8, sender: Alias, by: u8) -> Submission {
    submission(message, sender, by, 1, Body::Application(private(1, 1, message)))
}

async fn thread() -> (Side, Side) {
    let (a, b) = (side("a", ANNA, &[10]).await, side("b", BERT, &[20]).await);
    let decisions = a.submit("a", vec![opening(), letter(3, ANNA, 10)]).await;
    assert!(decisions.iter().all(|d| matches!(d, Some(wire::outcome::Decision::Accepted(_)))));
    (a, b)
}

#[tokio::test]
async fn a_letter_goes_over_and_its_report_comes_back_once() {
    let (a, b) = thread().await;
    a.hand_over(&b, true).await;
    let items = b.read(BERT, 20).await;
    assert_eq!(items.len(), 2, "a Welcome and a letter, each once");
    assert_eq!(a.events(ANNA, 10).await, ["relayed"]);
    b.acknowledge(BERT, 20).await;
    b.acknowledge(BERT, 20).await;
    b.hand_over(&a, true).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "delivered"]);
    assert_eq!((a.count("outbox").await, b.count("outbox").await, b.count("mailbox").await), (0, 0, 0));
}

#[tokio::test]
async fn the_same_submission_gets_the_same_answer() {
    let (a, b) = thread().await;
    let again = a.submit("a", vec![opening(), letter(3, ANNA, 10)]).await;
    let chain = |decision: &Option<wire::outcome::Decision>| match decision {
        Some(wire::outcome::Decision::Accepted(accepted)) => Chain::try_from(&accepted.chain).unwrap(),
        _ => panic!("not accepted"),
    };
    assert_ne!(chain(&again[0]), chain(&again[1]));
    let mut other = letter(3, ANNA, 10);
    other.body = Body::Application(private(1, 1, 99));
    let decision = a.submit("a", vec![other]).await.remove(0);
    assert!(matches!(decision, Some(wire::outcome::Decision::Refused(r)) if r.reason == "REQUEST_ID_REUSED"));
    a.hand_over(&b, false).await;
    assert_eq!(b.read(BERT, 20).await.len(), 2);
}

#[tokio::test]
async fn an_answer_goes_through_the_hub_and_its_outcome_comes_back() {
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    assert!(b.submit("b", vec![letter(4, BERT, 20)]).await[0].is_none());
    assert!(b.submit("b", vec![letter(4, BERT, 20)]).await[0].is_none(), "still queued once");
    b.hand_over(&a, true).await;
    a.acknowledge(ANNA, 10).await;
    a.hand_over(&b, true).await;
    assert_eq!(b.events(BERT, 20).await, ["delivered"]);
    let outcomes = b.read(BERT, 20).await;
    let is_outcome =
        |i: &&node::SubscribeResponse| matches!(i.item, Some(node::subscribe_response::Item::Outcome(_)));
    assert_eq!(outcomes.iter().filter(is_outcome).count(), 1);
    let accepted = b.submit("b", vec![letter(4, BERT, 20)]).await.remove(0);
    assert!(matches!(accepted, Some(wire::outcome::Decision::Accepted(a)) if a.sequence == 3));
}

/// A thread in which Anna renewed the epoch while Bert wrote in the old one.
async fn crossed() -> (Side, Side) {
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    let commit =
        Commit { mls_commit: private(1, 3, 1), welcome: Default::default(), joins: vec![], leaves: vec![] };
    a.submit("a", vec![submission(5, ANNA, 10, 1, Body::Commit(commit))]).await;
    b.submit("b", vec![letter(4, BERT, 20)]).await;
    (a, b)
}

#[tokio::test]
async fn a_stale_answer_is_refused_and_its_id_may_come_again() {
    let (a, b) = crossed().await;
    b.hand_over(&a, true).await;
    a.hand_over(&b, true).await;
    let stale = b.read(BERT, 20).await.into_iter().find_map(|item| match item.item {
        Some(node::subscribe_response::Item::Outcome(outcome)) => outcome.decision,
        _ => None,
    });
    let Some(wire::outcome::Decision::Refused(refused)) = stale else { panic!("a refusal") };
    assert_eq!((refused.reason.as_str(), refused.current_epoch), ("STALE_EPOCH", Some(2)));
    // The same bytes get the same answer, whatever has happened since.
    b.submit("b", vec![letter(4, BERT, 20)]).await;
    let mut again = letter(4, BERT, 20);
    again.epoch = 2;
    again.body = Body::Application(private(2, 1, 4));
    assert!(b.submit("b", vec![again]).await[0].is_none());
    b.hand_over(&a, false).await;
    a.hand_over(&b, false).await;
    let last = b.read(BERT, 20).await.pop().unwrap().item;
    let Some(node::subscribe_response::Item::Outcome(outcome)) = last else { panic!("an outcome") };
    assert!(matches!(outcome.decision, Some(wire::outcome::Decision::Accepted(_))));
}

#[tokio::test]
async fn an_expired_submission_is_refused_alone_and_a_known_one_keeps_its_answer() {
    let (a, _b) = thread().await;
    a.clock.advance(Duration::from_secs(2000));
    let fresh = Submission { expires_at: Timestamp::from_millis(9_000_000), ..letter(7, ANNA, 10) };
    let decisions = a.submit("a", vec![letter(3, ANNA, 10), letter(6, ANNA, 10), fresh]).await;
    let reasons: Vec<_> = decisions
        .into_iter()
        .map(|decision| match decision.unwrap() {
            wire::outcome::Decision::Accepted(_) => "accepted".to_owned(),
            wire::outcome::Decision::Refused(refused) => refused.reason,
        })
        .collect();
    assert_eq!(reasons, ["accepted", "EXPIRED", "accepted"]);
}

#[tokio::test]
async fn the_outcome_of_a_later_commit_stands_behind_what_was_ordered_before() {
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    b.submit("b", vec![letter(4, BERT, 20)]).await;
    b.hand_over(&a, false).await;
    let commit =
        Commit { mls_commit: private(1, 3, 1), welcome: Default::default(), joins: vec![], leaves: vec![] };
    let commit = || submission(5, ANNA, 10, 1, Body::Commit(commit.clone()));
    for _ in 0..2 {
        assert!(a.submit("a", vec![commit()]).await[0].is_none(), "not by the call, not even repeated");
    }
    let kinds: Vec<_> = a
        .read(ANNA, 10)
        .await
        .into_iter()
        .map(|item| match item.item.unwrap() {
            node::subscribe_response::Item::Delivery(_) => "letter",
            node::subscribe_response::Item::Outcome(_) => "outcome",
            _ => "event",
        })
        .filter(|kind| *kind != "event")
        .collect();
    assert_eq!(kinds, ["letter", "outcome"]);
}

#[tokio::test]
async fn a_repeated_refusal_does_not_undo_what_was_submitted_anew() {
    let (a, b) = crossed().await;
    b.hand_over(&a, false).await;
    // The refusal arrives; its acknowledgement does not.
    let refusal: Vec<_> = super::outbox::next(&a.store, &name("b"), 0, 256).await.unwrap();
    a.hand_over(&b, false).await;
    let mut again = letter(4, BERT, 20);
    (again.epoch, again.body) = (2, Body::Application(private(2, 1, 4)));
    assert!(b.submit("b", vec![again.clone()]).await[0].is_none());
    let repeated: Vec<_> =
        refusal.iter().map(|waiting| wire::Parcel::decode(waiting.parcel.clone()).unwrap()).collect();
    let input = Arc::new((name("a"), repeated));
    b.store
        .change("repeat", move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move { batch::receive(tx, &input.0, &input.1).await.map(drop) })
        })
        .await
        .unwrap();
    assert!(b.submit("b", vec![again]).await[0].is_none(), "still waiting for its own outcome");
    assert_eq!(b.count("outbox WHERE kind = 0").await, 1);
}

#[tokio::test]
async fn only_the_hub_may_deliver() {
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    let c = side("c", ANNA, &[10]).await;
    c.submit("c", vec![opening(), letter(6, ANNA, 10)]).await;
    let refused = c.hand_over(&b, false).await;
    assert_eq!(refused, [(0, Reason::WrongHub), (1, Reason::WrongHub)]);
    assert_eq!(b.read(BERT, 20).await.len(), 2);
}

#[tokio::test]
async fn the_second_device_reads_too_and_the_first_one_counts() {
    let (a, b) = (side("a", ANNA, &[10]).await, side("b", BERT, &[20, 21]).await);
    a.submit("a", vec![opening(), letter(3, ANNA, 10)]).await;
    a.hand_over(&b, false).await;
    b.acknowledge(BERT, 20).await;
    assert_eq!(b.read(BERT, 21).await.len(), 2);
    b.acknowledge(BERT, 21).await;
    b.hand_over(&a, false).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "delivered"]);
    assert_eq!(b.count("mailbox").await, 0);
}

#[tokio::test]
async fn devices_that_acknowledge_together_settle_a_letter_once() {
    let (a, b) = (side("a", ANNA, &[10]).await, side("b", BERT, &[20, 21]).await);
    a.submit("a", vec![opening(), letter(3, ANNA, 10)]).await;
    a.hand_over(&b, false).await;
    let of = |by, through| Acknowledgement {
        alias: BERT,
        device: device(by),
        through,
        receipts: HashMap::from([(id(3), bytes::Bytes::from_static(b"receipt"))]),
    };
    assert_eq!(b.acknowledge_all(vec![of(20, 1), of(20, 2), of(21, 2)]).await, [1, 2, 2]);
    assert_eq!(b.count("outbox").await, 2, "one report for the Welcome, one for the letter");
    assert_eq!(b.count("mailbox").await, 0);
    b.hand_over(&a, false).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "delivered"]);
}

#[tokio::test]
async fn a_long_acknowledgement_is_taken_in_slices() {
    let b = side("b", BERT, &[20, 21]).await;
    b.store
        .change("arrive", |tx| {
            Box::pin(async move {
                let origin = mailbox::Origin::Hub(name("a"));
                let item = |part| mailbox::Item {
                    alias: BERT,
                    item: node::subscribe_response::Item::Event(node::Event::default()),
                    delivery: Some(mailbox::Delivered {
                        message_id: id(9),
                        part,
                        origin: origin.clone(),
                        wants_receipt: false,
                    }),
                    only_device: None,
                    except_device: None,
                    expires_at: Timestamp::from_millis(2_000_000),
                };
                let items: Vec<_> = (0..mailbox::TAKEN_AT_ONCE as u32 + 10).map(item).collect();
                mailbox::put(tx, &items).await
            })
        })
        .await
        .unwrap();
    let all = mailbox::TAKEN_AT_ONCE as u64 + 10;
    let of = |device| Acknowledgement { alias: BERT, device, through: all, receipts: HashMap::new() };
    let together = || vec![of(device(20)), of(device(21))];
    assert_eq!(b.acknowledge_all(together()).await, [all - 10, 0]);
    assert_eq!(b.count("mailbox").await, all as i64, "the other device has none of it");
    assert_eq!(b.acknowledge_all(together()).await, [all, all]);
    assert_eq!((b.count("mailbox").await, b.count("outbox").await), (0, all as i64));
}

#[tokio::test]
async fn what_no_device_could_read_is_refused_once_all_have_seen_it() {
    let (a, b) = (side("a", ANNA, &[10]).await, side("b", BERT, &[20, 21]).await);
    a.submit("a", vec![opening(), letter(5, ANNA, 10)]).await;
    a.hand_over(&b, false).await;
    b.acknowledge(BERT, 20).await;
    b.hand_over(&a, false).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed"], "the other device may still read it");
    b.acknowledge(BERT, 21).await;
    b.hand_over(&a, false).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "refused"]);
}

#[tokio::test]
async fn a_device_that_joins_later_reads_what_comes_from_then_on() {
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    let new = NewDevice { device_id: device(22), auth_key: [22; 32] };
    let account = AccountId::from_bytes([9; 16]);
    b.store.change("add", move |tx| Box::pin(account::add_device(tx, account, new))).await.unwrap().unwrap();
    assert!(b.read(BERT, 22).await.is_empty());
    a.submit("a", vec![letter(4, ANNA, 10)]).await;
    a.hand_over(&b, false).await;
    assert_eq!(b.read(BERT, 22).await.len(), 1);
}

#[tokio::test]
async fn copies_go_to_the_senders_other_devices_alone() {
    let (a, b) = (side("a", ANNA, &[10, 11]).await, side("b", BERT, &[20]).await);
    a.submit("a", vec![opening(), letter(3, ANNA, 10)]).await;
    a.hand_over(&b, false).await;
    let is_copy = |item: &node::SubscribeResponse| {
        matches!(item.item, Some(node::subscribe_response::Item::Delivery(_)))
    };
    assert_eq!(a.read(ANNA, 11).await.iter().filter(|i| is_copy(i)).count(), 2);
    assert_eq!(a.read(ANNA, 10).await.iter().filter(|i| is_copy(i)).count(), 0);
}

#[tokio::test]
async fn what_expires_is_not_served_and_its_sender_hears_of_it() {
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    a.clock.advance(Duration::from_secs(2000));
    b.clock.advance(Duration::from_secs(2000));
    assert!(b.read(BERT, 20).await.is_empty());
    b.store.change("expire", |tx| Box::pin(expire(tx))).await.unwrap();
    b.hand_over(&a, false).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "expired"]);
}

#[tokio::test]
async fn what_no_peer_took_in_time_is_told_of_by_the_peer_or_days_later() {
    let past = Duration::from_secs(2000);
    let expired = async |side: &Side| {
        side.store.change("expire", |tx| Box::pin(expire(tx))).await.unwrap();
    };
    // The peer comes back: what remains of the letter has its place, and a report.
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    b.acknowledge(BERT, 20).await;
    b.hand_over(&a, false).await;
    a.submit("a", vec![letter(5, ANNA, 10)]).await;
    a.clock.advance(past);
    b.clock.advance(past);
    expired(&a).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "delivered"], "it may have been taken");
    a.hand_over(&b, true).await;
    let remains = b.read(BERT, 20).await;
    let Some(node::subscribe_response::Item::Delivery(delivery)) = &remains[0].item else {
        panic!("no delivery")
    };
    assert!(matches!(delivery.body, Some(wire::delivery::Body::Expired(_))) && remains.len() == 1);
    b.hand_over(&a, false).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "delivered", "relayed", "expired"]);
    assert_eq!((a.count("outbox").await, b.count("outbox").await), (0, 0));

    // It does not: after three days the node says so itself, once.
    let (a, _) = thread().await;
    a.clock.advance(past);
    expired(&a).await;
    a.clock.advance(chancery_node_core::expire::GRACE);
    expired(&a).await;
    expired(&a).await;
    assert_eq!(a.events(ANNA, 10).await, ["expired"]);
    assert_eq!(a.count("outbox").await, 1, "its place in the group is still to be told");
    a.clock.advance(chancery_node_core::parcel::MAX_LIFE);
    expired(&a).await;
    assert_eq!(a.count("outbox").await, 0);
}

#[tokio::test]
async fn a_restored_peer_gets_again_what_it_has_not_reported_on() {
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    let greet = |byte: u8| {
        let store = a.store.clone();
        async move {
            store
                .change("greet", move |tx| {
                    Box::pin(async move {
                        outbox::greet(tx, &name("b"), Incarnation::from_bytes([byte; 16])).await
                    })
                })
                .await
                .unwrap()
        }
    };
    assert!(!greet(1).await);
    assert!(!greet(1).await);
    assert!(greet(2).await);
    // As if from a backup made before: the same node without what it had.
    let restored = side("b", BERT, &[20]).await;
    a.hand_over(&restored, false).await;
    assert_eq!(restored.read(BERT, 20).await.len(), 2);
}

#[tokio::test]
async fn an_unknown_alias_is_refused_to_its_sender() {
    let a = side("a", ANNA, &[10]).await;
    let b = side("b", Alias::from_bytes([3; 16]), &[20]).await;
    a.submit("a", vec![opening(), letter(3, ANNA, 10)]).await;
    a.hand_over(&b, false).await;
    b.hand_over(&a, false).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "refused"]);
}

#[tokio::test]
async fn a_one_time_key_package_is_handed_out_once() {
    let b = side("b", BERT, &[20]).await;
    let package = |suite: u16, byte: u8| (suite, bytes::Bytes::from(vec![byte; 20]));
    let publish = async |one_time: Vec<Package>, last_resort: Vec<Package>, replace| {
        let published = Arc::new(Published { one_time, last_resort, replace });
        b.store
            .change("publish", move |tx| {
                let published = Arc::clone(&published);
                Box::pin(async move { key_package::publish(tx, BERT, device(20), &published).await })
            })
            .await
            .unwrap()
            .unwrap();
    };
    publish(vec![package(0x4f, 1), package(0x4f, 2)], vec![package(1, 9)], false).await;
    let take = || async {
        let taken = b.store.change("take", |tx| Box::pin(key_package::take(tx, BERT, &[0x4f, 1]))).await;
        taken.unwrap().key_packages.first().map(|p| p[0])
    };
    assert_eq!([take().await, take().await, take().await, take().await], [1, 2, 9, 9].map(Some));
    // A device that was restored from a copy has lost the private parts of what it published.
    publish(vec![package(0x4f, 3), package(0x4f, 4)], Vec::new(), false).await;
    publish(vec![package(0x4f, 5)], Vec::new(), true).await;
    assert_eq!([take().await, take().await], [5, 9].map(Some));
}
