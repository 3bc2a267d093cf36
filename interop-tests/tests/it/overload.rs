//! A node that is asked for more than it can do: who asks too much is refused at once
//! and told when to come again, others go on, and what was accepted arrives once. The
//! tests hold the store's write lock, so that what is under way stays so.

use bytes::Bytes;
use chancery_interop_tests::mesh::Mesh;
use chancery_interop_tests::rogue::{Rogue, answer};
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::account_service_client::AccountServiceClient;
use chancery_proto::node::v1::mailbox_service_client::MailboxServiceClient;
use chancery_types::{GroupId, Reason, Refusal};
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use rusqlite::Connection;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::timeout;

/// Calls of a flood.
const FLOOD: usize = 200;
/// What one caller may have under way when nobody else calls: a quarter of 128.
const SHARE: usize = 32;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node whose store takes nothing until this is dropped.
struct Held(Connection);

impl Held {
    fn new(mesh: &Mesh) -> Self {
        let store = Connection::open(mesh.path("node-federal/node.db")).unwrap();
        store.busy_timeout(PATIENCE).unwrap();
        store.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self(store)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.execute_batch("ROLLBACK").unwrap();
    }
}

/// A group on the node that the device opened, with another device of the node.
async fn group(mesh: &Mesh, device: &Rogue, other: &Rogue) -> GroupId {
    let group = GroupId::random(&*mesh.entropy);
    let reference = [5; 32];
    // One EncryptedGroupSecrets: reference, empty KEM output and ciphertext.
    let part = [&[32][..], &reference, &[1, 0], &[1, 0]].concat();
    let length = u8::try_from(part.len()).unwrap();
    let commit = federation::Commit {
        mls_commit: private_message(&group, 0, 3),
        welcome: [&[0, 1, 0, 3, 0, 1, length][..], &part, &[1, 0]].concat().into(),
        joins: vec![federation::Join {
            alias: other.alias.to_wire(),
            node: "federal".to_owned(),
            key_package_refs: vec![Bytes::copy_from_slice(&reference)],
        }],
        leaves: Vec::new(),
    };
    let body = Some(federation::submission::Body::Commit(commit));
    submit(device, federation::Submission { body, ..device.submission(mesh, group, 0) }).await.unwrap();
    group
}

fn message(mesh: &Mesh, device: &Rogue, group: GroupId) -> federation::Submission {
    let body = Some(federation::submission::Body::Application(private_message(&group, 1, 1)));
    federation::Submission { body, ..device.submission(mesh, group, 1) }
}

/// The frame of a PrivateMessage (RFC 9420, section 6.3) around zeroes.
fn private_message(group: &GroupId, epoch: u64, content_type: u8) -> Bytes {
    [&[0, 1, 0, 2, 32][..], group.as_bytes(), &epoch.to_be_bytes(), &[content_type, 0, 0, 16], &[0; 16]]
        .concat()
        .into()
}

/// The hub must accept it.
async fn submit(device: &Rogue, submission: federation::Submission) -> Result<(), Refusal> {
    match device.submit(submission).await? {
        wire::submit_result::Result::Outcome(outcome) => {
            assert!(matches!(outcome.decision, Some(federation::outcome::Decision::Accepted(_))));
            Ok(())
        }
        wire::submit_result::Result::Queued(_) => panic!("this node is the hub"),
    }
}

/// Reads a mailbox until each of these messages has come.
async fn read(device: &Rogue, messages: &[federation::Submission]) -> HashMap<Bytes, usize> {
    let request = wire::SubscribeRequest { alias: device.alias.to_wire(), after: 0 };
    let mut client = MailboxServiceClient::new(device.channel.clone());
    let mut items = client.subscribe(request).await.unwrap().into_inner();
    let mut found: HashMap<Bytes, usize> = HashMap::new();
    while messages.iter().any(|message| !found.contains_key(&message.message_id)) {
        let item = timeout(PATIENCE, items.message()).await.expect("a message is missing");
        if let Some(wire::subscribe_response::Item::Delivery(delivery)) = item.unwrap().unwrap().item {
            *found.entry(delivery.message_id).or_default() += 1;
        }
    }
    found
}

fn overloaded(refusal: &Refusal) -> Duration {
    assert_eq!(refusal.reason, Reason::Overloaded, "{}", refusal.message);
    refusal.retry_after.expect("it says when to come again")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_device_leaves_others_their_places() {
    let mesh = Mesh::with_nodes().await;
    let [noisy, quiet, reader] = [(); 3].map(|()| Rogue::new(&mesh, "federal"));
    let (noisy, quiet, reader) = tokio::join!(noisy, quiet, reader);
    let (loud, calm) = (group(&mesh, &noisy, &reader).await, group(&mesh, &quiet, &reader).await);
    let messages: Vec<_> = (0..FLOOD).map(|_| message(&mesh, &noisy, loud)).collect();

    let held = Held::new(&mesh);
    let mut flood: FuturesUnordered<_> = messages
        .iter()
        .map(async |message| (message.clone(), submit(&noisy, message.clone()).await))
        .collect();
    // Nothing is written, so all that is answered is refused, and what is not has a place.
    let mut refused = Vec::new();
    while refused.len() < FLOOD - SHARE {
        let (message, result) = timeout(PATIENCE, flood.next()).await.unwrap().unwrap();
        overloaded(&result.unwrap_err());
        refused.push(message);
    }

    // The quiet device has a place; what hands out does not ask whether there is one.
    let calmly = message(&mesh, &quiet, calm);
    let mut quiet_call = Box::pin(submit(&quiet, calmly.clone()));
    assert!(timeout(Duration::from_millis(100), &mut quiet_call).await.is_err(), "it waits for the store");
    let mut account = AccountServiceClient::new(noisy.channel.clone());
    let malformed = answer(account.authenticate(wire::AuthenticateRequest::default()).await).map(drop);
    assert_eq!(malformed.unwrap_err().reason, Reason::InvalidField, "it was read");
    let acknowledge = wire::AcknowledgeRequest {
        alias: reader.alias.to_wire(),
        through: 1,
        receipts: vec![],
        ..Default::default()
    };
    let mut acknowledging = MailboxServiceClient::new(reader.channel.clone());
    let mut acknowledged = Box::pin(acknowledging.acknowledge(acknowledge));
    assert!(timeout(Duration::from_millis(100), &mut acknowledged).await.is_err(), "it waits for the store");

    drop(held);
    quiet_call.await.unwrap();
    acknowledged.await.unwrap();
    while let Some((_, result)) = flood.next().await {
        result.unwrap();
    }
    // Each comes again when it was told to, and is accepted in the end.
    join_all(refused.into_iter().map(async |message| {
        let again = async {
            while let Err(refusal) = submit(&noisy, message.clone()).await {
                tokio::time::sleep(overloaded(&refusal)).await;
            }
        };
        timeout(PATIENCE, again).await.expect("it is accepted in the end");
    }))
    .await;
    let expected: Vec<_> = messages.iter().cloned().chain([calmly]).collect();
    let found = read(&reader, &expected).await;
    assert!(found.values().all(|times| *times == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_devices_share_what_is_there() {
    let mesh = Mesh::with_nodes().await;
    let devices = join_all((0..7).map(|_| Rogue::new(&mesh, "federal"))).await;

    let held = Held::new(&mesh);
    let mut floods: FuturesUnordered<_> = devices
        .iter()
        .enumerate()
        .flat_map(|(index, device)| (0..FLOOD).map(move |_| (index, device)))
        .map(async |(index, device)| {
            // Of a group that the node does not know, which is an answer as well.
            let submission = message(&mesh, device, GroupId::random(&*mesh.entropy));
            (index, device.submit(submission).await)
        })
        .collect();
    let mut refused = vec![0; devices.len()];
    while refused.iter().any(|refused| *refused < FLOOD - SHARE) {
        let (index, result) = timeout(PATIENCE, floods.next()).await.unwrap().unwrap();
        overloaded(&result.map(drop).unwrap_err());
        refused[index] += 1;
    }
    drop(held);
    let mut answered = vec![0; devices.len()];
    while let Some((index, result)) = floods.next().await {
        match result {
            Ok(_) => answered[index] += 1,
            Err(refusal) => drop(overloaded(&refusal)),
        }
    }
    assert!(answered.iter().all(|answered| (1..=SHARE).contains(answered)), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_never_reads_costs_rows_only() {
    let mesh = Mesh::with_nodes().await;
    let (writer, reader) = tokio::join!(Rogue::new(&mesh, "federal"), Rogue::new(&mesh, "federal"));
    let to = group(&mesh, &writer, &reader).await;
    let request = wire::SubscribeRequest { alias: reader.alias.to_wire(), after: 0 };
    let mut client = MailboxServiceClient::new(reader.channel.clone());
    let stalled = client.subscribe(request.clone()).await.unwrap().into_inner();

    let messages: Vec<_> = (0..1000).map(|_| message(&mesh, &writer, to)).collect();
    for message in &messages {
        submit(&writer, message.clone()).await.unwrap();
    }
    let store = Connection::open(mesh.path("node-federal/node.db")).unwrap();
    let rows = "SELECT count(*) FROM mailbox WHERE alias = ?1 AND NOT taken";
    let rows: usize = store.query_row(rows, [reader.alias.as_bytes()], |row| row.get(0)).unwrap();
    assert_eq!(rows, messages.len() + 1, "all is there, and the Welcome");
    // A newer subscription takes over, and has everything.
    let found = read(&reader, &messages).await;
    assert!(found.values().all(|times| *times == 1));
    drop(stalled);
}
