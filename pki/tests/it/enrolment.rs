//! First certificates and renewal.

use crate::world::{DAY, HOUR, World, init, node, reason, refused};
use chancery_kit::tls::enrol;
use chancery_kit::tls::files::{CHAIN, CRLS, CSR, KEY};
use chancery_pki::{Authority, AuthorityError};
use chancery_pki_core::profile::new_key_and_csr;
use chancery_pki_core::{LeafNames, Party};
use chancery_proto::pki::v1::{EnrolRequest, FetchRevocationsRequest, RenewRequest};
use chancery_types::{Clock as _, Reason, SystemEntropy};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

#[tokio::test]
async fn a_party_enrols_and_everything_is_private() {
    let world = World::new().await;
    let token = world.token(&node("federal")).await;
    let own = world.try_enrol("federal", &token).await.unwrap();
    assert_eq!(own.party(), &node("federal"));
    assert_eq!(own.not_after(), world.clock.now().after(DAY * 7));
    let credentials = world.open("federal");
    assert_eq!(credentials.own().unwrap(), own);

    let mut files = Vec::new();
    for folder in ["federal", "pki", "pki/identity"] {
        let path = world.folder.path().join(folder);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700, "{folder}");
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let mode = entry.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
                files.push(entry.path());
            }
        }
    }
    for file in [KEY, CSR, CHAIN, CRLS] {
        assert!(files.contains(&world.identity("federal").path().join(file)), "{file}");
    }
    // The token is kept as a hash only; a party's private key (its second line is
    // within the secret) is nowhere but with the party.
    let key = std::fs::read(world.identity("federal").path().join(KEY)).unwrap();
    for path in files.iter().filter(|path| !path.starts_with(world.identity("federal").path())) {
        let content = std::fs::read(path).unwrap();
        for secret in [token.as_bytes(), key.get(93..113).unwrap()] {
            assert!(!content.windows(secret.len()).any(|window| window == secret), "{path:?}");
        }
    }
}

#[tokio::test]
async fn a_token_gives_the_same_request_the_same_answer_and_no_other() {
    let world = World::new().await;
    let token = world.token(&node("federal")).await;
    let first = world.try_enrol("federal", &token).await.unwrap();
    let folder = world.identity("federal");
    let chain = folder.read(CHAIN).unwrap().unwrap();

    // A crash before the chain was written: key and request are still there.
    std::fs::remove_file(folder.path().join(CHAIN)).unwrap();
    std::fs::remove_file(folder.path().join(CRLS)).unwrap();
    // Even after the token has run out, as long as it was spent in time.
    world.clock.advance(DAY * 2);
    assert_eq!(world.try_enrol("federal", &token).await.unwrap(), first);
    assert_eq!(folder.read(CHAIN).unwrap().unwrap(), chain);
    assert!(folder.read(CRLS).unwrap().is_some());
    // With a chain that holds, no token is needed.
    assert_eq!(world.try_enrol("federal", "").await.unwrap(), first);

    assert_eq!(refused(world.try_enrol("mallory", &token).await), Reason::JoinTokenSpent);
    // A refusal spends nothing and leaves no chain behind.
    assert!(world.identity("mallory").read(CHAIN).unwrap().is_none());
    let own = world.token(&node("mallory")).await;
    assert_eq!(world.try_enrol("mallory", &own).await.unwrap().party(), &node("mallory"));
}

#[tokio::test]
async fn unknown_and_expired_tokens_are_refused() {
    let world = World::new().await;
    let token = world.token(&node("federal")).await;
    for wrong in ["", "x", &"x".repeat(257), token.get(1..).unwrap()] {
        assert_eq!(refused(world.try_enrol("federal", wrong).await), Reason::JoinTokenInvalid);
    }
    world.clock.advance(DAY + HOUR);
    assert_eq!(refused(world.try_enrol("federal", &token).await), Reason::JoinTokenInvalid);
}

#[tokio::test]
async fn bad_requests_are_refused_and_spend_nothing() {
    let world = World::new().await;
    let token = world.token(&node("federal")).await;
    let mut client = world.client(world.anonymous()).await;
    let (_, good) = new_key_and_csr().unwrap();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    for (csr, expected) in [
        (Vec::new(), Reason::InvalidCsr),
        (vec![0x30; 100], Reason::InvalidCsr),
        (forged, Reason::InvalidCsr),
        (vec![0x30; 8 * 1024 + 1], Reason::TooLarge),
    ] {
        let request = EnrolRequest { csr_der: csr.into(), join_token: token.clone() };
        assert_eq!(reason(&client.enrol(request).await.err().unwrap()), expected);
    }
    let huge = EnrolRequest { csr_der: vec![0; 100_000].into(), join_token: token.clone() };
    assert!(client.enrol(huge).await.is_err());
    let request = EnrolRequest { csr_der: good.into(), join_token: token };
    assert_eq!(client.enrol(request).await.unwrap().into_inner().chain_der.len(), 2);
    // Lists are open to everyone: root and issuing CA.
    let lists = client.fetch_revocations(FetchRevocationsRequest {}).await.unwrap().into_inner();
    assert_eq!(lists.crls_der.len(), 2);
}

#[tokio::test]
async fn certificates_are_renewed_at_half_life() {
    let world = World::new().await;
    let credentials = world.enrol("federal", &node("federal")).await;
    let (first, service) = (credentials.own().unwrap(), world.credentials.own().unwrap());
    world.clock.advance(DAY * 3);
    enrol::refresh(&world.endpoint, &credentials).await.unwrap();
    assert_eq!(credentials.own().unwrap(), first, "not yet");
    world.clock.advance(DAY);
    enrol::refresh(&world.endpoint, &credentials).await.unwrap();
    let second = credentials.own().unwrap();
    assert_ne!(second.serial(), first.serial());
    assert_eq!((second.party(), second.key_pin()), (first.party(), first.key_pin()));
    assert_eq!(second.not_after(), world.clock.now().after(DAY * 7));
    assert_eq!(world.open("federal").own().unwrap(), second, "it is on disk, too");

    world.authority.refresh_own(&world.credentials).await.unwrap();
    let renewed = world.credentials.own().unwrap();
    assert_ne!(renewed.serial(), service.serial());
    assert_eq!(renewed.key_pin(), service.key_pin());
    world.authority.refresh_own(&world.credentials).await.unwrap();
    assert_eq!(world.credentials.own().unwrap(), renewed);
    // Past the end of the first ones, all go on.
    world.clock.advance(DAY * 4);
    enrol::refresh(&world.endpoint, &credentials).await.unwrap();
}

#[tokio::test]
async fn whoever_slept_too_long_enrols_again() {
    let world = World::new().await;
    world.enrol("federal", &node("federal")).await;
    world.clock.advance(DAY * 12);
    let names = LeafNames::parse(&["localhost", "127.0.0.1"]).unwrap();
    world.authority.own_credentials(&names).await.unwrap();
    world.credentials.reload().unwrap();
    assert_eq!(refused(world.try_enrol("federal", "").await), Reason::JoinTokenInvalid);
    let token = world.token(&node("federal")).await;
    world.try_enrol("federal", &token).await.unwrap();
    let credentials = world.open("federal");
    enrol::refresh(&world.endpoint, &credentials).await.unwrap();
}

#[tokio::test]
async fn renewal_needs_the_certificate_and_a_nodes_own_key() {
    let world = World::new().await;
    let (_, csr) = new_key_and_csr().unwrap();
    let request = || RenewRequest { csr_der: csr.clone().into() };
    let status = world.client(world.anonymous()).await.renew(request()).await.err().unwrap();
    assert_eq!(reason(&status), Reason::NotAuthenticated);

    let federal = world.enrol("federal", &node("federal")).await;
    let status = world.client(federal).await.renew(request()).await.err().unwrap();
    assert_eq!(reason(&status), Reason::WrongNodeKey);

    // Nothing pins an agent's TLS key.
    let agent = Party::Agent { administration: "federal".parse().unwrap(), name: "letters".parse().unwrap() };
    let agent = world.enrol("agent", &agent).await;
    let renewed = world.client(agent).await.renew(request()).await.unwrap().into_inner();
    assert_eq!(renewed.chain_der.len(), 2);
}

#[tokio::test]
async fn a_party_gets_only_so_many_certificates_a_day() {
    let world = World::new().await;
    let credentials = world.enrol("federal", &node("federal")).await;
    for _ in 1..20 {
        enrol::renew(&world.endpoint, &credentials).await.unwrap();
    }
    assert_eq!(refused(enrol::renew(&world.endpoint, &credentials).await), Reason::QuotaExceeded);
    world.enrol("regional", &node("regional")).await;
    world.clock.advance(DAY + HOUR);
    enrol::renew(&world.endpoint, &credentials).await.unwrap();
}

#[tokio::test]
async fn an_authority_is_created_once_and_reopened() {
    let world = World::new().await;
    let folder = world.folder.path().join("pki");
    let again = Authority::init(
        &folder,
        world.authority.anchors().federation(),
        &crate::world::passphrase(),
        world.clock(),
        Arc::new(SystemEntropy),
    )
    .await;
    assert!(matches!(again, Err(AuthorityError::AlreadyInitialised)));
    let reopened = Authority::open(&folder, world.clock(), Arc::new(SystemEntropy)).await.unwrap();
    assert_eq!(reopened.anchors().root_der(), world.authority.anchors().root_der());
    // A token of one process counts in the other: the database is the authority.
    let token = reopened.issue_token(&node("federal"), &LeafNames::default(), DAY).await.unwrap();
    world.try_enrol("federal", &token).await.unwrap();

    let nowhere = world.folder.path().join("nowhere");
    let missing = Authority::open(&nowhere, world.clock(), Arc::new(SystemEntropy)).await;
    assert!(matches!(missing, Err(AuthorityError::NotInitialised)));
    assert!(!nowhere.exists());

    // What a crash left before the row was written does not stand in the way.
    let torn = world.folder.path().join("torn");
    std::fs::create_dir(&torn).unwrap();
    std::fs::write(torn.join("root.key.sealed"), "half").unwrap();
    init(&torn, &world.clock).await;
}
