//! Records over the whole mesh: who left, who claims to be whom, and what goes on
//! while the directory is down.

use chancery_directory_core::AccountKey;
use chancery_interop_tests::mesh::{Mesh, Place};
use chancery_interop_tests::party::{Device, person_number};
use chancery_interop_tests::wait::until;
use chancery_kit::status::from_status;
use chancery_proto::directory::v1 as directory;
use chancery_proto::node::v1 as node;
use chancery_proto::node::v1::relay_service_client::RelayServiceClient;
use chancery_sdk::alarm::Alarm;
use chancery_sdk::endpoint::{Publication, RecordChange, RecordCheck, Words};
use chancery_types::{Alias, Identifier, Reason, Refusal};
use std::collections::BTreeMap;

async fn resolve(device: &Device, identifier: &Identifier) -> Result<Alias, Reason> {
    let mut resolved = device.endpoint.resolve(std::slice::from_ref(identifier)).await.unwrap();
    resolved.remove(0).map(|found| found.peer.alias).map_err(|refusal| refusal.reason)
}

async fn alarms(device: &Device) -> Vec<Alarm> {
    device.endpoint.alarms_after(0, 100).await.unwrap().iter().map(|raised| raised.alarm).collect()
}

/// Somebody with a word for an identifier publishes it.
async fn claim(mesh: &Mesh, device: &Device, identifier: &Identifier) -> Result<Publication, Refusal> {
    let handle = device.endpoint.handle(identifier).await.unwrap();
    let account = AccountKey::try_from(device.endpoint.account_key().await.unwrap().as_slice()).unwrap();
    let attestation = mesh.authority.attest(identifier.scheme(), handle, account, 1, mesh.clock.now());
    device.endpoint.publish_record(identifier, Words { attestation, second: None }).await
}

#[tokio::test]
async fn senders_see_that_somebody_left() {
    let mesh = Mesh::with_nodes().await;
    let identifier = person_number(1);
    let person = Device::enrol(&mesh, "regional", &identifier, "person").await;
    let before = Device::open(&mesh, "regional", "before").await;
    before.endpoint.register().await.unwrap();
    assert_eq!(resolve(&before, &identifier).await, Ok(person.endpoint.identity().alias));
    assert_eq!(resolve(&before, &person_number(2)).await, Err(Reason::RecipientAbsent));

    person.endpoint.change_record(RecordChange::Close).await.unwrap();
    assert_eq!(person.endpoint.check_record().await, Ok(RecordCheck::AsPublished));
    let after = Device::open(&mesh, "federal", "after").await;
    after.endpoint.register().await.unwrap();
    assert_eq!(resolve(&after, &identifier).await, Err(Reason::RecipientClosed));
    let again = person.endpoint.change_record(RecordChange::Renew).await.unwrap_err();
    assert_eq!(again.reason, Reason::RecipientClosed);
}

#[tokio::test]
async fn an_owner_hears_of_a_re_enrolment_and_ends_it() {
    let mesh = Mesh::with_nodes().await;
    let identifier = person_number(1);
    let person = Device::enrol(&mesh, "regional", &identifier, "person").await;
    let alias = person.endpoint.identity().alias;
    assert_eq!(person.endpoint.check_record().await, Ok(RecordCheck::AsPublished));
    let claimant = Device::open(&mesh, "federal", "claimant").await;
    claimant.endpoint.register().await.unwrap();
    assert_eq!(claimant.endpoint.check_record().await, Ok(RecordCheck::Unpublished));
    let claimed = claim(&mesh, &claimant, &identifier).await.unwrap();
    assert!(claimed.pending);
    // Handed in again it is where it was: the days are not over.
    assert_eq!(claim(&mesh, &claimant, &identifier).await, Ok(claimed));

    // The node hands out what it kept for a few seconds.
    for _ in 0..2 {
        let seen = async || person.endpoint.check_record().await == Ok(RecordCheck::ReEnrolment);
        until("the owner sees it", seen).await;
    }
    assert_eq!(alarms(&person).await, [Alarm::ReEnrolment], "once");
    let sender = Device::open(&mesh, "federal", "sender").await;
    sender.endpoint.register().await.unwrap();
    assert_eq!(resolve(&sender, &identifier).await, Ok(alias), "senders keep to the owner");

    person.endpoint.change_record(RecordChange::Renew).await.unwrap();
    assert_eq!(person.endpoint.check_record().await, Ok(RecordCheck::AsPublished));
    let refused = claim(&mesh, &claimant, &identifier).await.unwrap_err();
    assert_eq!(refused.reason, Reason::RecordVersionConflict);

    // An owner that wants two authorities is not re-enrolled by one.
    person.endpoint.change_record(RecordChange::TwoAuthorities(true)).await.unwrap();
    let refused = async || claim(&mesh, &claimant, &identifier).await.unwrap_err().reason;
    until("one word is too little", async || refused().await == Reason::InvalidRecord).await;
}

#[tokio::test]
async fn what_a_node_keeps_resolves_while_the_directory_is_down() {
    let mut mesh = Mesh::with_nodes().await;
    let identifier = person_number(1);
    let person = Device::enrol(&mesh, "regional", &identifier, "person").await;
    let [first, second] = ["first", "second"];
    let first = Device::open(&mesh, "federal", first).await;
    let second = Device::open(&mesh, "federal", second).await;
    for device in [&first, &second] {
        device.endpoint.register().await.unwrap();
        device.endpoint.refresh_directory().await.unwrap();
    }
    assert_eq!(resolve(&first, &identifier).await, Ok(person.endpoint.identity().alias));
    mesh.stop_directory().await;
    assert_eq!(resolve(&second, &identifier).await, Ok(person.endpoint.identity().alias));
    // Of another place the node has nothing: that is said, not that nobody is there.
    let other = second.endpoint.resolve(&[person_number(2)]).await.map(drop);
    assert_eq!(other.unwrap_err().reason, Reason::DirectoryUnreachable);
}

#[tokio::test]
async fn a_mirror_answers_a_nodes_lookups_without_the_directory() {
    let mut mesh = Mesh::new().await;
    mesh.start_mirror().await;
    for administration in ["federal", "regional"] {
        mesh.start_node(administration, Place::free().await, BTreeMap::new()).await;
    }
    let persons = [person_number(1), person_number(2)];
    let device = Device::enrol(&mesh, "regional", &persons[0], "person").await;
    let other = Device::enrol(&mesh, "federal", &persons[1], "other").await;
    other.endpoint.refresh_directory().await.unwrap();
    // The mirror has all that the directory has.
    until("the mirror has followed", async || {
        mesh.mirror_shows(&device.endpoint.handle(&persons[0]).await.unwrap()).await
    })
    .await;
    mesh.stop_directory().await;
    // Nobody on this node has asked for that place before.
    let alias = device.endpoint.identity().alias;
    assert_eq!(resolve(&other, &persons[0]).await, Ok(alias));
    // Its disk holds handles, and nothing that leads from a person to one or back.
    let disk: Vec<u8> = std::fs::read_dir(mesh.path("mirror"))
        .unwrap()
        .flat_map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    let holds = |bytes: &[u8]| disk.windows(bytes.len()).any(|window| window == bytes);
    assert!(holds(device.endpoint.handle(&persons[0]).await.unwrap().as_bytes()));
    assert!(!holds(persons[0].value().as_bytes()) && !holds(alias.as_bytes()));
}

#[tokio::test]
async fn a_device_publishes_through_another_node_than_its_home() {
    let mesh = Mesh::with_nodes().await;
    // The home node passes nothing on any more.
    let channel = mesh.channel("regional", mesh.anonymous()).await;
    let garbage = || node::PublishRequest {
        request: Some(directory::PublishRequest {
            encapsulated_key: vec![9; 32].into(),
            ciphertext: vec![1; 100].into(),
        }),
    };
    until("the quota of its home is used up", async || {
        let mut calls: Vec<_> = Vec::new();
        for _ in 0..200 {
            let mut client = RelayServiceClient::new(channel.clone());
            calls.push(
                async move { from_status(&client.publish(garbage()).await.map(drop).unwrap_err()).reason },
            );
        }
        futures::future::join_all(calls).await.contains(&Reason::QuotaExceeded)
    })
    .await;
    let identifier = person_number(1);
    let person = Device::enrol(&mesh, "regional", &identifier, "person").await;
    assert_eq!(person.endpoint.check_record().await, Ok(RecordCheck::AsPublished));
}

#[tokio::test]
async fn what_was_begun_ends_before_something_else_begins() {
    let mut mesh = Mesh::with_nodes().await;
    let identifier = person_number(1);
    let person = Device::enrol(&mesh, "regional", &identifier, "person").await;
    assert_eq!(person.endpoint.check_record().await, Ok(RecordCheck::AsPublished));
    mesh.stop_directory().await;
    let cut = person.endpoint.change_record(RecordChange::TwoAuthorities(true)).await;
    assert_eq!(cut.unwrap_err().reason, Reason::DirectoryUnreachable);
    mesh.start_directory("directory").await;
    let before = mesh.log_size().await;
    // Asked for again it is the same, and what is asked for then is another.
    let close = async || person.endpoint.change_record(RecordChange::Close).await;
    until("the directory is reached again", async || close().await.is_ok()).await;
    assert_eq!(person.endpoint.check_record().await, Ok(RecordCheck::AsPublished));
    let sender = Device::open(&mesh, "federal", "sender").await;
    sender.endpoint.register().await.unwrap();
    assert_eq!(resolve(&sender, &identifier).await, Err(Reason::RecipientClosed));
    // Two changes, a root with each, and perhaps one more root.
    assert!((before + 2..=before + 5).contains(&mesh.log_size().await));
    assert!(alarms(&person).await.is_empty());
}

#[tokio::test]
async fn a_call_that_is_cut_off_alarms_nobody() {
    let mesh = Mesh::with_nodes().await;
    let person = Device::enrol(&mesh, "regional", &person_number(1), "person").await;
    for two in [true, false, true] {
        let before = mesh.log_size().await;
        let logged = until("the change is logged", async || mesh.log_size().await > before);
        tokio::select! {
            biased;
            () = logged => {}
            changed = person.endpoint.change_record(RecordChange::TwoAuthorities(two)) => {
                changed.unwrap();
            }
        }
        let fresh = async || person.endpoint.check_record().await == Ok(RecordCheck::AsPublished);
        until("the map shows it", fresh).await;
    }
    assert!(alarms(&person).await.is_empty());
    let again = person.endpoint.change_record(RecordChange::TwoAuthorities(true)).await.unwrap();
    assert!(!again.pending);
}
