//! Enrolling with an authority, and migrating to a new key epoch by its receipt.

use chancery_directory_core::statement::Decision;
use chancery_interop_tests::mesh::Mesh;
use chancery_interop_tests::party::{Agent, Device, Registry, person_number};
use chancery_interop_tests::wait::until;
use chancery_sdk::content::Letter;
use chancery_sdk::endpoint::{RecordChange, RecordCheck, SendOrder, To};
use chancery_sdk::request::{self, Order};
use chancery_types::{Identifier, Reason};
use std::path::Path;
use std::time::Duration;

async fn device(mesh: &Mesh, name: &str) -> Device {
    let device = Device::open(mesh, "federal", name).await;
    device.endpoint.register().await.unwrap();
    device
}

/// What somebody sees who has never looked before: whether the record is stale.
async fn seen(mesh: &Mesh, name: &str, identifier: &Identifier) -> Result<bool, Reason> {
    let sender = device(mesh, name).await;
    let found = sender.endpoint.resolve(std::slice::from_ref(identifier)).await.unwrap().remove(0);
    found.map(|found| found.stale).map_err(|refusal| refusal.reason)
}

async fn letter(agent: &Agent, number: u8, to: &Identifier) {
    let order = Order {
        request_id: [number; 16],
        digest: [0; 32],
        compose: request::letter(Letter { markdown: "a letter".to_owned(), ..Letter::default() }),
        expires: agent.endpoint.now().after(Duration::from_secs(86_400)),
        wants_events: true,
    };
    agent.endpoint.send(SendOrder { to: To::Identifier(to.clone()), order }).await.unwrap();
}

/// Shares that an evaluator keeps.
fn shares(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("share-"));
    names.sort();
    names
}

#[tokio::test]
async fn a_code_enrols_one_account() {
    let mut mesh = Mesh::new().await;
    let agent = Agent::start(&mut mesh, "federal").await;
    let registry = Registry::start(&mesh, "federal").await;
    let (number, other) = (person_number(1), person_number(2));
    let code = registry.invite(&number).await;
    let person = device(&mesh, "person").await.live();
    let wrong = async |device: &Device, identifier: &Identifier, code: &str| {
        let refused = device.endpoint.enrol(&registry.address, identifier, code).await.unwrap_err();
        assert_eq!(refused.reason, Reason::EnrolmentRefused);
    };
    wrong(&person, &other, &code).await;
    wrong(&person, &number, "00000-00000-00000-00000").await;
    let first = person.endpoint.enrol(&registry.address, &number, &code).await.unwrap();
    let again = person.endpoint.enrol(&registry.address, &number, &code).await.unwrap();
    assert!(again.index > first.index && !again.pending, "the next version of the same account");
    let thief = device(&mesh, "thief").await;
    wrong(&thief, &number, &code).await;
    letter(&agent, 1, &number).await;
    person.inbox(1).await;
}

#[tokio::test]
async fn people_migrate_to_a_new_key_epoch() {
    let mut mesh = Mesh::new().await;
    let agent = Agent::start(&mut mesh, "federal").await;
    let registry = Registry::start(&mesh, "federal").await;
    let (anna, bert, nobody) = (person_number(1), person_number(2), person_number(3));
    let mut devices = Vec::new();
    for (name, number) in [("anna", &anna), ("bert", &bert)] {
        let device = device(&mesh, name).await.live();
        let code = registry.invite(number).await;
        device.endpoint.enrol(&registry.address, number, &code).await.unwrap();
        devices.push(device);
    }
    assert_eq!(seen(&mesh, "before", &anna).await, Ok(false));
    letter(&agent, 1, &bert).await;
    devices[1].inbox(1).await;

    mesh.hold_ceremony(2, 1).await;
    for (nth, person) in [&anna, &bert].into_iter().enumerate() {
        assert_eq!(seen(&mesh, &format!("between-{nth}"), person).await, Ok(true), "stale, not absent");
    }
    assert_eq!(seen(&mesh, "nobody", &nobody).await, Err(Reason::RecipientAbsent));
    letter(&agent, 2, &bert).await;
    devices[1].inbox(2).await;
    // Its own record stands as it put it, and can be changed.
    assert_eq!(devices[1].endpoint.check_record().await, Ok(RecordCheck::AsPublished));

    devices[0].endpoint.refresh_directory().await.unwrap();
    devices[0].endpoint.migrate_record().await.unwrap();
    devices[0].endpoint.migrate_record().await.unwrap();
    assert_eq!(seen(&mesh, "after", &anna).await, Ok(false));
    assert_eq!(seen(&mesh, "after-bert", &bert).await, Ok(true));
    letter(&agent, 3, &anna).await;
    devices[0].inbox(1).await;
    assert_eq!(devices[0].endpoint.check_record().await, Ok(RecordCheck::AsPublished));

    // Shares of the new key are dealt anew beside the former one's.
    mesh.hold_ceremony(2, 2).await;
    assert_eq!(seen(&mesh, "dealt-anew", &anna).await, Ok(false));
    assert_eq!(seen(&mesh, "dealt-anew-bert", &bert).await, Ok(true));
    let folders: Vec<_> = mesh.evaluators.iter().map(|(name, _)| mesh.path(name)).collect();
    assert!(folders.iter().all(|folder| shares(folder) == ["share-1.toml", "share-2.toml"]));

    mesh.decide(Decision::KeyEpochEnd(1)).await;
    assert_eq!(seen(&mesh, "ended", &anna).await, Ok(false));
    assert_eq!(seen(&mesh, "ended-bert", &bert).await, Err(Reason::RecipientAbsent));
    let erased = async || folders.iter().all(|folder| shares(folder) == ["share-2.toml"]);
    until("the former shares are erased", erased).await;
    // Who comes too late proves again who they are.
    devices[1].endpoint.refresh_directory().await.unwrap();
    assert_eq!(devices[1].endpoint.check_record().await, Ok(RecordCheck::Lapsed));
    let refused = devices[1].endpoint.migrate_record().await.unwrap_err();
    assert_eq!(refused.reason, Reason::EnrolmentRefused);
    let code = registry.invite(&bert).await;
    devices[1].endpoint.enrol(&registry.address, &bert, &code).await.unwrap();
    assert_eq!(seen(&mesh, "late-bert", &bert).await, Ok(false));
}

#[tokio::test]
async fn who_left_or_was_replaced_does_not_come_back_with_a_key_epoch() {
    let mut mesh = Mesh::new().await;
    let _agent = Agent::start(&mut mesh, "federal").await;
    let registry = Registry::start(&mesh, "federal").await;
    let (anna, bert, carl) = (person_number(1), person_number(2), person_number(3));
    let enrol = async |name: &str, number: &Identifier| {
        let device = device(&mesh, name).await;
        let code = registry.invite(number).await;
        let put = device.endpoint.enrol(&registry.address, number, &code).await.unwrap();
        (device, put.pending)
    };
    let (lost, _) = enrol("lost", &anna).await;
    lost.endpoint.change_record(RecordChange::Close).await.unwrap();
    let (found, pending) = enrol("found", &anna).await;
    assert!(!pending, "over a closed record it counts at once");
    let (left, _) = enrol("left", &bert).await;
    left.endpoint.change_record(RecordChange::Close).await.unwrap();
    let (owner, _) = enrol("owner", &carl).await;
    let (claimant, pending) = enrol("claimant", &carl).await;
    assert!(pending, "over a live record it waits");

    mesh.hold_ceremony(2, 1).await;
    for device in [&lost, &found, &left, &owner, &claimant] {
        device.endpoint.refresh_directory().await.unwrap();
    }
    // Who left does not ask; whom the owner has not let in is not attested.
    for device in [&lost, &left] {
        device.endpoint.migrate_record().await.unwrap();
    }
    let refused = claimant.endpoint.migrate_record().await.unwrap_err();
    assert_eq!(refused.reason, Reason::EnrolmentRefused);
    owner.endpoint.migrate_record().await.unwrap();
    assert_eq!(seen(&mesh, "after-carl", &carl).await, Ok(false));
    found.endpoint.change_record(RecordChange::TwoAuthorities(true)).await.unwrap();
    found.endpoint.migrate_record().await.unwrap();
    assert_eq!(seen(&mesh, "after", &anna).await, Ok(false));
    assert_eq!(seen(&mesh, "after-left", &bert).await, Err(Reason::RecipientClosed));
    let again = found.endpoint.change_record(RecordChange::Renew).await.unwrap();
    assert!(!again.pending);
}
