//! What an open connection is worth: a proof counts on its own connection, and a
//! removed device is out at once.

use chancery_interop_tests::mesh::Mesh;
use chancery_interop_tests::party::{Device, person_number};
use chancery_interop_tests::rogue::{Rogue, answer};
use chancery_kit::status::from_status;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::account_service_client::AccountServiceClient;
use chancery_proto::node::v1::mailbox_service_client::MailboxServiceClient;
use chancery_types::Reason;
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
