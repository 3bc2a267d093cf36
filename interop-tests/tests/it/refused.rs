//! What the mesh refuses, each with its own reason; each time the refusal is
//! counted and the next honest call goes through.

use bytes::Bytes;
use chancery_directory_core::client::read_publication;
use chancery_directory_core::record::RecordDraft;
use chancery_directory_core::{Address, handle, keys, operation};
use chancery_interop_tests::agent;
use chancery_interop_tests::mesh::{Mesh, id};
use chancery_interop_tests::party::{Agent, Device, person_number, reason};
use chancery_interop_tests::rogue::{HandLink, Rogue, answer, delivery};
use chancery_interop_tests::wait::until;
use chancery_kit::serve::REFUSALS;
use chancery_kit::tls::{Credentials, connect};
use chancery_pki::authority::Revoke;
use chancery_pki_core::Party;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use chancery_proto::directory::v1 as directory;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1::relay_service_client::RelayServiceClient;
use chancery_proto::node::v1::{self as node, submit_result};
use chancery_sdk::mls::Suite;
use chancery_types::{Alias, GroupId, Identifier, Reason, Refusal, Scheme};
use std::error::Error;
use std::sync::Arc;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Says afterwards that the process refused for `reason` more often than before.
struct Counted(Reason, u64);

impl Counted {
    fn new(reason: Reason) -> Self {
        Self(reason, REFUSALS.count(reason))
    }

    /// A refused handshake is counted only after its alert has left.
    async fn check(self) {
        until("the refusal is counted", async || REFUSALS.count(self.0) > self.1).await;
    }
}

async fn administrations() -> (Mesh, Agent, Agent) {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let regional = Agent::start(&mut mesh, "regional").await;
    (mesh, federal, regional)
}

async fn send(
    client: &mut AgentServiceClient<Channel>,
    number: u128,
    to: &Identifier,
) -> Result<(), Refusal> {
    answer(client.send(agent::request(&agent::request_id(number), to, "A letter")).await).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_key_package_is_caught_by_the_sender() {
    let (mesh, federal, _regional) = administrations().await;
    let mut client = agent::connect(&federal.address).await;
    let to = person_number(1);
    let person = Device::enrol(&mesh, "regional", &to, "person").await;
    let stranger = Device::open(&mesh, "regional", "stranger").await;
    stranger.endpoint.register().await.unwrap();
    let stranger_alias = stranger.endpoint.identity().alias;
    let hybrid = u32::from(Suite::Hybrid.code());
    let rogue = Rogue::from_store(&mesh, "regional", &person.close().await).await;
    // Takes the true ones away and puts a stranger's in their place.
    for _ in 0..2 {
        rogue.take_key_packages("regional", rogue.alias, hybrid).await.unwrap();
    }
    let foreign = rogue.take_key_packages("regional", stranger_alias, hybrid).await.unwrap();
    assert_eq!(foreign.len(), 1);
    rogue.publish_key_packages(rogue.alias, foreign).await.unwrap();

    let counted = Counted::new(Reason::FalseKeyPackage);
    assert_eq!(reason(send(&mut client, 1, &to).await), Reason::FalseKeyPackage);
    counted.check().await;
    // It is spent; what the node hands out next is the person's own again.
    send(&mut client, 2, &to).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_a_wrong_signature_is_not_logged() {
    let mesh = Mesh::with_nodes().await;
    let rogue = Rogue::new(&mesh, "regional").await;
    let account = keys::generate(&*mesh.entropy);
    let (handle, record_key) = handle::split(&mesh.entropy.array()).unwrap();
    let address = Address {
        node: id("regional"),
        alias: rogue.alias,
        credential_key: (&keys::generate(&*mesh.entropy)).into(),
    };
    let record = RecordDraft {
        handle,
        version: 1,
        previous_index: None,
        attestation: mesh.authority.attest(Scheme::BeNn, handle, (&account).into(), 1, mesh.clock.now()),
        second_attestation: None,
        sealed_part: address.seal(&record_key, &handle, 1, &*mesh.entropy).unwrap(),
        two_authorities: false,
        changed_at: mesh.clock.now(),
    }
    .sign(&account);
    let hpke = mesh.state().await.directory().unwrap().hpke_public_key;
    let publish = async |record: directory::SignedRecord| {
        let (sealed, key) = operation::seal(record, &hpke).unwrap();
        let request = node::PublishRequest { request: Some(sealed) };
        let answered = RelayServiceClient::new(rogue.channel.clone()).publish(request).await;
        let result = key.open(&answered.unwrap().into_inner().response.unwrap()).unwrap();
        read_publication(result)
    };

    let counted = Counted::new(Reason::InvalidRecord);
    let mut signature = record.signature.to_vec();
    signature[40] ^= 1;
    let false_one = directory::SignedRecord { signature: signature.into(), ..record.clone() };
    assert_eq!(reason(publish(false_one).await), Reason::InvalidRecord);
    // Signed by somebody else than the account that the authority attested.
    let other = directory::SignedRecord {
        signature: Bytes::copy_from_slice(&keys::sign(
            keys::Purpose::Record,
            &record.record,
            &keys::generate(&*mesh.entropy),
        )),
        ..record.clone()
    };
    assert_eq!(reason(publish(other).await), Reason::InvalidRecord);
    counted.check().await;
    assert_eq!(publish(record).await.unwrap().index, 6, "the refused ones left nothing in the log");
}

/// A thread between the federal agent and a person on the regional node.
struct Written {
    mesh: Mesh,
    client: AgentServiceClient<Channel>,
    _agents: [Agent; 2],
    person: Device,
    to: Identifier,
    thread: GroupId,
    alias: Alias,
}

async fn written(home: &str) -> Written {
    let (mesh, federal, regional) = administrations().await;
    let mut client = agent::connect(&federal.address).await;
    let to = person_number(1);
    let person = Device::enrol(&mesh, home, &to, "person").await.live();
    send(&mut client, 1, &to).await.unwrap();
    let thread = person.inbox(1).await[0].thread;
    let alias = person.endpoint.identity().alias;
    Written { mesh, client, _agents: [federal, regional], person, to, thread, alias }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_from_a_peer_with_the_wrong_identity_goes_nowhere() {
    let mut written = written("regional").await;
    let mesh = &written.mesh;
    let island = mesh.certify(&Party::Node(id("island"))).await;
    mesh.admit("island", "127.0.0.1:1", &island, [].into()).await;

    // A member, but not the hub of the group.
    let counted = Counted::new(Reason::WrongHub);
    let mut link = HandLink::of_new_member(mesh, "regional", &island).await;
    let parcel = federation::parcel::Parcel::Delivery(delivery(mesh, written.thread, written.alias));
    assert_eq!(link.hand_over(parcel).await.unwrap().as_deref(), Some("WRONG_HUB"));
    counted.check().await;

    // A member, but not the home of the alias that it submits for.
    let counted = Counted::new(Reason::NotInGroup);
    let mut link = HandLink::of_new_member(mesh, "federal", &island).await;
    let stranger = Rogue::new(mesh, "regional").await;
    let forged = federation::Submission {
        sender: written.alias.to_wire(),
        ..stranger.submission(mesh, written.thread, 1)
    };
    assert_eq!(link.hand_over(federation::parcel::Parcel::Submission(forged)).await.unwrap(), None);
    counted.check().await;

    // The thread is as it was.
    send(&mut written.client, 2, &written.to).await.unwrap();
    written.person.inbox(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_for_admitted_members_under_their_pinned_key() {
    let (mesh, federal, _regional) = administrations().await;
    let agent = Party::Agent { administration: id("regional"), name: id("letters") };
    for (credentials, expected) in [
        (mesh.certify(&agent).await, Reason::WrongIdentity),
        (mesh.certify(&Party::Directory).await, Reason::WrongIdentity),
        (mesh.certify(&Party::Node(id("stranger"))).await, Reason::NotAMember),
        (mesh.certify(&Party::Node(id("regional"))).await, Reason::WrongNodeKey),
        (mesh.anonymous(), Reason::NotAuthenticated),
    ] {
        let counted = Counted::new(expected);
        assert_eq!(reason(HandLink::open(&mesh, "federal", credentials).await), expected);
        counted.check().await;
    }
    let to = person_number(1);
    let person = Device::enrol(&mesh, "regional", &to, "person").await.live();
    send(&mut agent::connect(&federal.address).await, 1, &to).await.unwrap();
    person.inbox(1).await;
}

/// Asks a node for its health; gives what became of the connection.
async fn health(mesh: &Mesh, credentials: Arc<Credentials>) -> Result<(), String> {
    let address = &mesh.nodes["federal"].address;
    let connected = connect(address, Party::Node(id("federal")), credentials).await;
    let (channel, _) = connected.map_err(|error| chain(&error))?;
    let request = HealthCheckRequest { service: String::new() };
    HealthClient::new(channel).check(request).await.map(drop).map_err(|status| chain(&status))
}

/// Calls until the caller hears the TLS alert; a call that is cut off before
/// the alert is read hears less.
async fn told(mesh: &Mesh, credentials: &Arc<Credentials>, alert: &str) {
    let told = async || health(mesh, Arc::clone(credentials)).await.unwrap_err().contains(alert);
    until("the alert says why", told).await;
}

fn chain(error: &(dyn Error + 'static)) -> String {
    match error.source() {
        Some(cause) => format!("{error:?} <- {}", chain(cause)),
        None => format!("{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_and_revoked_certificates_are_told_so() {
    let mesh = Mesh::with_nodes().await;
    let island = Party::Node(id("island"));
    let expired = mesh.certify_expired(&island).await;
    let counted = Counted::new(Reason::WrongCertificate);
    told(&mesh, &expired, "CertificateExpired").await;
    counted.check().await;

    let revoked = mesh.certify(&island).await;
    health(&mesh, Arc::clone(&revoked)).await.unwrap();
    assert_eq!(
        mesh.pki.revoke(Revoke::Party(island)).await.unwrap(),
        1,
        "the expired one needs no revocation"
    );
    mesh.fetch_revocations("federal").await;
    let counted = Counted::new(Reason::WrongCertificate);
    told(&mesh, &revoked, "CertificateRevoked").await;
    counted.check().await;

    health(&mesh, mesh.anonymous()).await.unwrap();
    health(&mesh, mesh.certify(&Party::Node(id("other"))).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_epoch_is_refused_with_the_current_one() {
    let Written { mesh, mut client, person, to, thread, _agents, .. } = written("federal").await;
    let store = person.close().await;
    let rogue = Rogue::from_store(&mesh, "federal", &store).await;
    let outcome = async |rogue: &Rogue, submission: federation::Submission| match rogue
        .submit(submission)
        .await
        .unwrap()
    {
        submit_result::Result::Outcome(outcome) => match outcome.decision.unwrap() {
            federation::outcome::Decision::Refused(refused) => (refused.reason, refused.current_epoch),
            federation::outcome::Decision::Accepted(_) => panic!("accepted"),
        },
        submit_result::Result::Queued(_) => panic!("not decided"),
    };
    for epoch in [0, 2, u64::MAX] {
        let counted = Counted::new(Reason::StaleEpoch);
        let refused = outcome(&rogue, rogue.submission(&mesh, thread, epoch)).await;
        assert_eq!(refused, ("STALE_EPOCH".to_owned(), Some(1)));
        counted.check().await;
    }
    let unknown = rogue.submission(&mesh, GroupId::from_bytes([1; 32]), 1);
    assert_eq!(outcome(&rogue, unknown).await, ("GROUP_UNKNOWN".to_owned(), None));
    let other = Rogue::new(&mesh, "federal").await;
    let (refused, _) = outcome(&other, other.submission(&mesh, thread, 1)).await;
    assert_eq!(refused, "NOT_IN_GROUP");
    // Another's alias, another's device.
    let own = other.submission(&mesh, thread, 1);
    let alias = federation::Submission { sender: rogue.alias.to_wire(), ..own.clone() };
    assert_eq!(reason(other.submit(alias).await), Reason::NotYourAlias);
    let device = federation::Submission { sender_device: rogue.device.to_wire(), ..own };
    assert_eq!(reason(other.submit(device).await), Reason::WrongIdentity);

    let person = Device::open(&mesh, "federal", "person").await.live();
    send(&mut client, 2, &to).await.unwrap();
    person.inbox(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_request_id_and_a_wrong_identifier_have_their_reasons() {
    let Written { mut client, to, _agents, mesh: _mesh, person: _person, .. } = written("regional").await;
    let counted = Counted::new(Reason::RequestIdReused);
    let other = answer(client.send(agent::request(&agent::request_id(1), &to, "Another letter")).await);
    assert_eq!(reason(other), Reason::RequestIdReused);
    counted.check().await;
    assert_eq!(reason(send(&mut client, 2, &person_number(2)).await), Reason::RecipientAbsent);
    send(&mut client, 1, &to).await.unwrap();
}
