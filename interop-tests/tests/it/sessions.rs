//! What an open connection and a known log are worth: a proof counts on its own
//! connection, and once; a removed device is out at once, and a log never goes back.

use bytes::Bytes;
use chancery_interop_tests::agent;
use chancery_interop_tests::mesh::{Mesh, id};
use chancery_interop_tests::party::{Agent, Device, person_number};
use chancery_interop_tests::recorder::{NOBODY, Received, Recorder};
use chancery_interop_tests::rogue::{HandLink, Rogue, answer};
use chancery_interop_tests::wait::until;
use chancery_kit::status::from_status;
use chancery_kit::tls::Credentials;
use chancery_pki_core::Party;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::account_service_client::AccountServiceClient;
use chancery_proto::node::v1::blob_service_client::BlobServiceClient;
use chancery_proto::node::v1::mailbox_service_client::MailboxServiceClient;
use chancery_sdk::alarm::Alarm;
use chancery_types::Reason;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

async fn authenticate(channel: &Channel, request: wire::AuthenticateRequest) -> Result<(), Reason> {
    let mut client = AccountServiceClient::new(channel.clone());
    answer(client.authenticate(request).await).map(drop).map_err(|refusal| refusal.reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_proof_is_worth_nothing_on_another_connection() {
    let mesh = Mesh::with_nodes().await;
    let person = Device::enrol(&mesh, "regional", &person_number(1), "person").await;
    let store = person.close().await;
    let (_, captured) = Rogue::proof(&mesh, "regional", &store).await;
    let (_, other) = Rogue::proof(&mesh, "regional", &store).await;
    let replayed = authenticate(&other.channel, captured.request.clone()).await;
    assert_eq!(replayed, Err(Reason::WrongSignature));
    // Nor at another node over its own connection.
    let (_, elsewhere) = Rogue::proof(&mesh, "federal", &store).await;
    assert!(authenticate(&elsewhere.channel, captured.request.clone()).await.is_err());
    authenticate(&captured.channel, captured.request).await.unwrap();
    authenticate(&other.channel, other.request).await.unwrap();
}

/// How often a node said what it knows of a person's device.
fn greetings(recorder: &Recorder) -> usize {
    let is_greeting = |received: &&Received| {
        !received.call
            && received.receiver == NOBODY
            && received.method == "/chancery.node.v1.AccountService/Authenticate"
            && wire::AuthenticateResponse::decode(&*received.bytes)
                .is_ok_and(|answer| !answer.incarnation.is_empty())
    };
    recorder.received().iter().filter(is_greeting).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_greets_its_home_once_on_each_connection() {
    let recorder = Recorder::default();
    let mut mesh = Mesh::recorded(recorder.clone()).await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let _ = Agent::start(&mut mesh, "regional").await;
    let mut client = agent::connect(&federal.address).await;
    let to = person_number(1);
    let mut device = Device::enrol(&mesh, "regional", &to, "device").await;
    for connections in 1..=3 {
        device = device.live();
        let id = agent::request_id(connections as u128);
        client.send(agent::request(&id, &to, "To whom it concerns")).await.unwrap();
        device.inbox(connections).await;
        assert_eq!(greetings(&recorder), connections);
        device = device.reopened_at(&mesh.nodes["regional"].address).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_meant_for_a_store_of_before_acknowledges_nothing() {
    let mesh = Mesh::with_nodes().await;
    let rogue = Rogue::new(&mesh, "federal").await;
    let mut mailbox = MailboxServiceClient::new(rogue.channel.clone());
    let mut acknowledge = async |incarnation: &'static [u8]| {
        let (alias, incarnation) = (rogue.alias.to_wire(), incarnation.into());
        let request = wire::AcknowledgeRequest { alias, incarnation, ..Default::default() };
        answer(mailbox.acknowledge(request).await).map(drop).map_err(|refusal| refusal.reason)
    };
    assert_eq!(acknowledge(&[9; 16]).await, Err(Reason::NotAuthenticated));
    assert_eq!(acknowledge(&[]).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_line_died_gives_way_to_the_next() {
    let mesh = Mesh::with_nodes().await;
    let rogue = Rogue::new(&mesh, "federal").await;
    let mut client = BlobServiceClient::new(rogue.channel.clone());
    let (blob, half) = (vec![7; 4096], 2048);
    let blob_id = Bytes::copy_from_slice(&Sha256::digest(&blob));
    let piece = |offset: usize, data: &[u8]| wire::WriteBlobRequest {
        blob_id: blob_id.clone(),
        size: 4096,
        offset: offset as u64,
        expires_at_ms: mesh.clock.now().after(Duration::from_hours(1)).millis(),
        data: Bytes::copy_from_slice(data),
    };
    // One half, and then nothing.
    let first = tokio_stream::once(piece(0, &blob[..half])).chain(tokio_stream::pending());
    let mut abandoned = client.clone();
    let abandoned = tokio::spawn(async move { answer(abandoned.write_blob(first).await) });
    let stat = wire::StatBlobRequest { blob_id: blob_id.clone() };
    until("half of the blob is there", async || {
        client.clone().stat_blob(stat.clone()).await.unwrap().into_inner().stored == half as u64
    })
    .await;
    client.write_blob(tokio_stream::once(piece(half, &blob[half..]))).await.unwrap();
    assert!(client.stat_blob(stat).await.unwrap().into_inner().complete);
    assert_eq!(abandoned.await.unwrap().err().unwrap().reason, Reason::WrongOffset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_device_is_out_at_once() {
    let mesh = Mesh::with_nodes().await;
    let first = Device::enrol(&mesh, "regional", &person_number(1), "first").await.live();
    let lost = first.link(&mesh, "lost").await;
    let lost_store = lost.close().await;
    let lost = Rogue::from_store(&mesh, "regional", &lost_store).await;
    let mut mailbox = MailboxServiceClient::new(lost.channel.clone());
    let subscribe = wire::SubscribeRequest { alias: lost.alias.to_wire(), after: 0 };
    let mut items = mailbox.subscribe(subscribe.clone()).await.unwrap().into_inner();

    let first = Rogue::from_store(&mesh, "regional", &first.close().await).await;
    let remove = wire::RemoveDeviceRequest { device_id: lost.device.to_wire() };
    AccountServiceClient::new(first.channel.clone()).remove_device(remove).await.unwrap();

    let end = loop {
        match items.message().await {
            Ok(item) => assert!(item.is_some(), "the end has a reason"),
            Err(status) => break from_status(&status).reason,
        }
    };
    assert_eq!(end, Reason::NotAuthenticated);
    // Neither the open connection nor a new one is of any use.
    let again = answer(mailbox.subscribe(subscribe).await).map(drop).unwrap_err();
    assert_eq!(again.reason, Reason::NotAuthenticated);
    let (_, proof) = Rogue::proof(&mesh, "regional", &lost_store).await;
    assert!(authenticate(&proof.channel, proof.request).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_follows_a_log_that_went_back_or_forked() {
    let mut mesh = Mesh::with_nodes().await;
    let person = Device::enrol(&mesh, "federal", &person_number(1), "person").await;
    mesh.back_up_directory("backup");
    let island = mesh.certify(&Party::Node(id("island"))).await;
    mesh.admit("island", "127.0.0.1:1", &island, [].into()).await;
    drop(HandLink::of_new_member(&mesh, "federal", &island).await);
    person.endpoint.refresh_directory().await.unwrap();

    mesh.restore_directory("backup").await;
    // Connections to the directory that was may last a moment longer.
    let refused = async || person.endpoint.refresh_directory().await.err().map(|refusal| refusal.reason);
    until("the restored directory answers", async || {
        refused().await.is_some_and(|reason| reason != Reason::DirectoryUnreachable)
    })
    .await;
    a_stranger_changes_nothing(&mesh, &island).await;

    // It grows beyond what was seen, on another branch.
    for name in ["other", "another"] {
        let member = mesh.certify(&Party::Node(id(name))).await;
        mesh.admit(name, "127.0.0.1:1", &member, [].into()).await;
    }
    a_stranger_changes_nothing(&mesh, &island).await;
    assert_eq!(refused().await, Some(Reason::DirectoryMisbehaved));
    let raised = person.endpoint.alarms_after(0, 9).await.unwrap();
    assert!(raised.iter().any(|raised| raised.alarm == Alarm::DirectoryForked));
}

/// A stranger makes the node ask the directory, at most once a second; by what
/// the directory says now, the island would be a stranger, too.
async fn a_stranger_changes_nothing(mesh: &Mesh, island: &Arc<Credentials>) {
    let asked = mesh.clock.now();
    until("the node may ask again", async || mesh.clock.now() > asked.after(Duration::from_secs(1))).await;
    let stranger = mesh.certify(&Party::Node(id("stranger"))).await;
    let refused = HandLink::open(mesh, "federal", stranger).await.map(drop).unwrap_err();
    assert_eq!(refused.reason, Reason::NotAMember);
    HandLink::open(mesh, "federal", Arc::clone(island)).await.map(drop).unwrap();
}
