//! Revoked parties, replaced issuing CAs, and servers that learn of both
//! while they run.

use crate::world::{DAY, World, node, passphrase, refused};
use chancery_kit::serve::{STREAMS, add_health, serve};
use chancery_kit::tls::{Counters, Credentials, Limits, TlsError, connect, connect_lazy, enrol, incoming};
use chancery_pki::authority::root::Issuing;
use chancery_pki::{AuthorityError, Revoke};
use chancery_pki_core::{ChainError, Party, Serial};
use chancery_types::Reason;
use secrecy::SecretString;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::RoutesBuilder;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

async fn health_server(credentials: Arc<Credentials>) -> (String, Arc<Counters>, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let limits = Limits { require_certificate: true, ..Limits::default() };
    let incoming = incoming(listener, credentials, limits).unwrap();
    let counters = incoming.counters();
    let mut routes = RoutesBuilder::default();
    add_health(&mut routes, &[]).await;
    let stop = CancellationToken::new();
    tokio::spawn(serve(incoming, routes, STREAMS, stop.clone()));
    (endpoint, counters, stop.drop_guard())
}

async fn call(channel: &Channel) -> Result<(), tonic::Status> {
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.map(drop)
}

fn serial(credentials: &Credentials) -> Serial {
    Serial::try_from(credentials.own().unwrap().serial()).unwrap()
}

#[tokio::test]
async fn a_revoked_party_is_cut_off_without_restart() {
    let world = World::new().await;
    let federal = world.enrol("federal", &node("federal")).await;
    let regional = world.enrol("regional", &node("regional")).await;
    let (endpoint, counters, _stop) = health_server(Arc::clone(&federal)).await;
    let (open, _) = connect(&endpoint, node("federal"), Arc::clone(&regional)).await.unwrap();
    call(&open).await.unwrap();

    let waiting = world.token(&node("regional")).await;
    assert_eq!(world.authority.revoke(Revoke::Party(node("regional"))).await.unwrap(), 1);
    assert_eq!(world.authority.revoke(Revoke::Party(node("regional"))).await.unwrap(), 0);
    enrol::fetch_revocations(&world.endpoint, &federal).await.unwrap();
    call(&open).await.expect("what is open goes on");
    let (new, _) = connect_lazy(&endpoint, node("federal"), Arc::clone(&regional)).unwrap();
    call(&new).await.unwrap_err();
    assert!(counters.figures().certificate >= 1);

    // Nor does it get a next certificate, by renewal or by a token that waited.
    assert_eq!(refused(enrol::renew(&world.endpoint, &regional).await), Reason::WrongCertificate);
    assert_eq!(refused(world.try_enrol("again", &waiting).await), Reason::JoinTokenInvalid);
    // And once the enrolment service has its own new list, not even a connection.
    world.authority.refresh_own(&world.credentials).await.unwrap();
    assert!(enrol::renew(&world.endpoint, &regional).await.is_err());
    // The operator lets it in again.
    world.enrol("anew", &node("regional")).await;
    let (new, _) = connect(&endpoint, node("federal"), world.open("anew")).await.unwrap();
    call(&new).await.unwrap();
}

#[tokio::test]
async fn one_certificate_is_revoked_by_its_serial() {
    let world = World::new().await;
    let federal = world.enrol("federal", &node("federal")).await;
    let regional = world.enrol("regional", &node("regional")).await;
    let first = serial(&regional);
    enrol::renew(&world.endpoint, &regional).await.unwrap();
    assert_eq!(world.authority.revoke(Revoke::Serial(first)).await.unwrap(), 1);
    enrol::fetch_revocations(&world.endpoint, &federal).await.unwrap();
    let (endpoint, _, _stop) = health_server(Arc::clone(&federal)).await;
    let (channel, _) = connect(&endpoint, node("federal"), Arc::clone(&regional)).await.unwrap();
    call(&channel).await.expect("the next certificate is not revoked");

    // A revoked server is refused by its callers.
    assert_eq!(world.authority.revoke(Revoke::Serial(serial(&federal))).await.unwrap(), 1);
    enrol::fetch_revocations(&world.endpoint, &regional).await.unwrap();
    let result = connect(&endpoint, node("federal"), regional).await;
    assert!(matches!(result, Err(TlsError::Chain(ChainError::Revoked))));
}

#[tokio::test]
async fn lists_are_issued_anew_before_they_end() {
    let world = World::new().await;
    let first = world.authority.crls().await.unwrap();
    assert_eq!(world.authority.crls().await.unwrap(), first);
    world.clock.advance(DAY);
    let second = world.authority.crls().await.unwrap();
    assert_eq!(second.first(), first.first(), "the root's list needs the root's key");
    assert_ne!(second.get(1), first.get(1));
}

#[tokio::test]
async fn a_renewed_issuing_ca_disturbs_nobody() {
    let world = World::new().await;
    let federal = world.enrol("federal", &node("federal")).await;
    let wrong = SecretString::from("incorrect horse battery");
    let result = world.authority.renew_issuing(&wrong, Issuing::Renew).await;
    assert!(matches!(result, Err(AuthorityError::Passphrase)));

    world.clock.advance(DAY);
    world.authority.renew_issuing(&passphrase(), Issuing::Renew).await.unwrap();
    world.authority.refresh_own(&world.credentials).await.unwrap();
    let regional = world.enrol("regional", &node("regional")).await;
    enrol::refresh(&world.endpoint, &federal).await.unwrap();
    let (endpoint, _, _stop) = health_server(federal).await;
    let (channel, _) = connect(&endpoint, node("federal"), regional).await.unwrap();
    call(&channel).await.unwrap();
}

#[tokio::test]
async fn a_replaced_issuing_ca_takes_its_leaves_along() {
    let world = World::new().await;
    let federal = world.enrol("federal", &node("federal")).await;
    let regional = world.enrol("regional", &node("regional")).await;
    let (endpoint, counters, _stop) = health_server(Arc::clone(&federal)).await;
    world.authority.renew_issuing(&passphrase(), Issuing::Replace).await.unwrap();
    // The running service goes over to the new one by itself.
    world.authority.refresh_own(&world.credentials).await.unwrap();
    for credentials in [&federal, &regional] {
        // Its lists do not cover the service's new chain: it gets the new lists all the same.
        let before = connect(&world.endpoint, Party::Pki, Arc::clone(credentials)).await;
        assert!(matches!(before, Err(TlsError::Chain(ChainError::UnknownRevocation))));
        enrol::fetch_revocations(&world.endpoint, credentials).await.unwrap();
    }
    let result = connect(&endpoint, node("federal"), Arc::clone(&regional)).await;
    assert!(matches!(result, Err(TlsError::Chain(ChainError::Revoked))));

    // Both enrol again, with the keys they had, and go on without restart.
    for (name, credentials) in [("federal", &federal), ("regional", &regional)] {
        let pin = *credentials.own().unwrap().key_pin();
        let token = world.token(&node(name)).await;
        assert_eq!(world.try_enrol(name, &token).await.unwrap().key_pin(), &pin);
        credentials.reload().unwrap();
    }
    let (channel, _) = connect(&endpoint, node("federal"), regional).await.unwrap();
    call(&channel).await.unwrap();
    assert_eq!(counters.figures().established, 1);
}
