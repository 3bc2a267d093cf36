//! Records put, changed, found; and what is refused, by the directory or by
//! those who ask it.

use crate::mesh::{BITS, Owner, Setting, refusal};
use bytes::Bytes;
use chancery_directory_core::attestation::{Attestation, SchemeName};
use chancery_directory_core::note::CheckpointSigner;
use chancery_directory_core::{Error, Prefix, VerifiedRecord, keys};
use chancery_proto::directory::v1 as wire;
use chancery_types::{Clock as _, Handle, Identifier, Reason, Scheme};
use std::time::Duration;

fn scheme() -> SchemeName {
    Scheme::E164.into()
}

async fn find(setting: &Setting, owner: &Owner) -> Option<VerifiedRecord> {
    setting.verified(&[owner.handle]).await.find(&owner.handle, &scheme(), &setting.state).unwrap()
}

async fn refused(setting: &Setting, id: u8, record: wire::SignedRecord) -> Reason {
    setting.publish([id; 16], record).await.unwrap_err().reason
}

#[tokio::test]
async fn from_identifier_to_address() {
    let setting = Setting::new().await;
    let identifier = Identifier::parse("e164", "+32470123456").unwrap();
    let (handle, record_key) = setting.evaluate(&identifier).await;
    let owner = setting.owner_of(handle, record_key);
    assert!(find(&setting, &owner).await.is_none());
    let published =
        setting.publish([1; 16], setting.draft(&owner, 1, None).sign(&owner.account)).await.unwrap();

    // A sender, who knows the identifier alone.
    let (handle, record_key) = setting.evaluate(&identifier).await;
    let lookup = setting.verified(&[handle]).await;
    let found = lookup.find(&handle, &scheme(), &setting.state).unwrap().unwrap();
    assert_eq!(found.index, published.index);
    assert_eq!(found.open(&record_key).unwrap(), owner.address);
}

#[tokio::test]
async fn changes_and_repeated_requests() {
    let setting = Setting::new().await;
    let mut owner = setting.owner();
    let first = setting.draft(&owner, 1, None).sign(&owner.account);
    let published = setting.publish([1; 16], first.clone()).await.unwrap();
    let (index, size) = (published.index, published.checkpoint.size());

    owner.address.node = "regional".parse().unwrap();
    let change = setting.draft(&owner, 2, Some(index)).sign(&owner.account);
    let changed = setting.publish([2; 16], change.clone()).await.unwrap();
    assert_eq!((changed.index, changed.checkpoint.size()), (size, size + 1));
    let found = find(&setting, &owner).await.unwrap();
    assert_eq!((found.version, found.previous_index), (2, Some(index)));
    assert_eq!(found.open(&owner.record_key).unwrap(), owner.address);

    // The same ids again: the same answers, even for the version that no longer stands.
    assert_eq!(setting.publish([1; 16], first.clone()).await.unwrap().index, index);
    assert_eq!(setting.publish([2; 16], change.clone()).await.unwrap().index, changed.index);
    assert_eq!(refused(&setting, 1, change.clone()).await, Reason::RequestIdReused);
    // Replays under other ids, and changes of what no longer stands.
    assert_eq!(refused(&setting, 3, first).await, Reason::RecordVersionConflict);
    assert_eq!(refused(&setting, 4, change).await, Reason::RecordVersionConflict);
    let stale = setting.draft(&owner, 2, Some(index)).sign(&owner.account);
    assert_eq!(refused(&setting, 5, stale).await, Reason::RecordVersionConflict);
    assert_eq!(setting.verified(&[owner.handle]).await.checkpoint().size(), size + 1, "nothing was logged");
}

#[tokio::test]
async fn many_at_once_are_logged_once_each() {
    let setting = Setting::new().await;
    let owners: Vec<_> = (0..40).map(|_| setting.owner()).collect();
    let publish = |(i, owner): (u8, &Owner)| {
        let record = setting.draft(owner, 1, None).sign(&owner.account);
        let setting = &setting;
        // Each twice: under one id, and under another.
        async move {
            let (a, b, c) = tokio::join!(
                setting.publish([i; 16], record.clone()),
                setting.publish([i; 16], record.clone()),
                setting.publish([i + 100; 16], record.clone()),
            );
            let indices: Vec<_> = [&a, &b, &c].into_iter().flatten().map(|p| p.index).collect();
            let refusals: Vec<_> = [a, b, c].into_iter().filter_map(Result::err).map(|r| r.reason).collect();
            assert!(indices.windows(2).all(|pair| pair[0] == pair[1]));
            assert!(refusals.iter().all(|r| *r == Reason::RecordVersionConflict), "{refusals:?}");
            assert!(!indices.is_empty());
            indices[0]
        }
    };
    let mut indices = futures::future::join_all((0..).zip(&owners).map(publish)).await;
    indices.sort_unstable();
    assert_eq!(indices, (4..44).collect::<Vec<u64>>());
    let handles: Vec<_> = owners.iter().map(|o| o.handle).collect();
    let lookup = setting.verified(&handles).await;
    for owner in &owners {
        assert!(lookup.find(&owner.handle, &scheme(), &setting.state).unwrap().is_some());
    }
}

#[tokio::test]
async fn what_breaks_the_rules_is_refused_each_for_its_reason() {
    let setting = Setting::new().await;
    let owner = setting.owner();
    let with = |change: &dyn Fn(&mut Attestation)| {
        let now = setting.mesh.clock.now();
        let mut attestation = Attestation {
            authority: "enrol".parse().unwrap(),
            scheme: scheme(),
            handle: owner.handle,
            account_key: (&owner.account).into(),
            key_epoch: 1,
            issued_at: now,
            expires_at: now.after(Duration::from_secs(60)),
        };
        change(&mut attestation);
        attestation
    };
    let stranger = keys::generate(&*setting.mesh.entropy);
    let record = |attestation: Attestation, authority: Option<&chancery_directory_core::SigningKey>| {
        let mut draft = setting.draft(&owner, 1, None);
        if let Some(key) = authority {
            draft.attestation = attestation.sign(key);
        }
        draft.sign(&owner.account)
    };

    let mut forged = record(with(&|_| {}), None);
    forged.signature = Bytes::from_static(&[3; 64]);
    assert_eq!(refused(&setting, 1, forged).await, Reason::InvalidRecord);
    let false_word = record(with(&|_| {}), Some(&stranger));
    assert_eq!(refused(&setting, 2, false_word).await, Reason::InvalidRecord);
    // Its key is right, the scheme is not one it was admitted for.
    let now = &*setting.mesh.clock;
    let key = (&owner.account).into();
    let mut draft = setting.draft(&owner, 1, None);
    draft.attestation = setting.mesh.authority.attest(Scheme::BeNn, owner.handle, key, 1, now);
    assert_eq!(refused(&setting, 3, draft.sign(&owner.account)).await, Reason::AuthorityNotAdmitted);
    let mut draft = setting.draft(&owner, 1, None);
    draft.attestation = setting.mesh.authority.attest(Scheme::E164, owner.handle, key, 2, now);
    assert_eq!(refused(&setting, 4, draft.sign(&owner.account)).await, Reason::WrongKeyEpoch);
    let unknown = record(with(&|a| a.authority = "other".parse().unwrap()), Some(&stranger));
    assert_eq!(refused(&setting, 5, unknown).await, Reason::AuthorityNotAdmitted);
    let skipped = setting.draft(&owner, 2, None).sign(&owner.account);
    assert_eq!(refused(&setting, 6, skipped).await, Reason::RecordVersionConflict);
    let large = wire::SignedRecord { record: vec![0; 9_000].into(), signature: vec![0; 64].into() };
    assert_eq!(refused(&setting, 7, large).await, Reason::TooLarge);

    let record = setting.draft(&owner, 1, None).sign(&owner.account);
    setting.mesh.clock.advance(chancery_directory::authority::VALIDITY);
    assert_eq!(refused(&setting, 8, record).await, Reason::AttestationExpired);
    assert!(find(&setting, &owner).await.is_none());

    // What was refused may be put right under the same id.
    let record = setting.draft(&owner, 1, None).sign(&owner.account);
    setting.publish([8; 16], record).await.unwrap();
    assert!(find(&setting, &owner).await.is_some());
}

#[tokio::test]
async fn a_relay_learns_nothing_and_garbage_does_not_open() {
    let setting = Setting::new().await;
    let mut client = setting.client.clone();
    let garbage =
        wire::PublishRequest { encapsulated_key: vec![9; 32].into(), ciphertext: vec![1; 100].into() };
    assert_eq!(refusal(client.publish(garbage).await).reason, Reason::CannotOpen);
    let long =
        wire::PublishRequest { encapsulated_key: vec![9; 32].into(), ciphertext: vec![1; 20_000].into() };
    assert_eq!(refusal(client.publish(long).await).reason, Reason::TooLarge);

    // A refusal and a success look alike from outside.
    let owner = setting.owner();
    let directory = setting.state.directory().unwrap().hpke_public_key;
    let mut lengths = Vec::new();
    for (id, version) in [(1_u8, 5), (2, 1)] {
        let record = Some(setting.draft(&owner, version, None).sign(&owner.account));
        let operation = wire::RecordOperation { request_id: vec![id; 16].into(), record };
        let (request, _) = chancery_directory_core::operation::seal(&operation, &directory).unwrap();
        lengths.push(client.publish(request).await.unwrap().into_inner().ciphertext.len());
    }
    assert!(find(&setting, &owner).await.is_some());
    assert_eq!(lengths[0], lengths[1]);
}

#[tokio::test]
async fn lookups_have_limits() {
    let setting = Setting::new().await;
    let owner = setting.owner();
    setting.publish([1; 16], setting.draft(&owner, 1, None).sign(&owner.account)).await.unwrap();
    let every: Vec<_> = (0..=255_u8).map(|first| Handle::from_bytes([first; 32])).collect();
    let response = setting.lookup(&every).await;
    assert_eq!(response.buckets.len(), 256);
    assert_eq!(response.buckets.iter().map(|b| b.records.len()).sum::<usize>(), 1);
    let prefixes: Vec<_> = every.iter().map(|h| Prefix::of(h, BITS)).collect();
    let verified = setting.trust.verify_lookup(response, &prefixes, BITS).unwrap();
    assert!(verified.find(&owner.handle, &scheme(), &setting.state).unwrap().is_some());

    let mut client = setting.client.clone();
    let mut ask =
        async |prefixes: Vec<Bytes>| refusal(client.lookup(wire::LookupRequest { prefixes }).await).reason;
    assert_eq!(ask(vec![Bytes::from_static(&[0; 4]); 257]).await, Reason::InvalidField);
    assert_eq!(ask(vec![]).await, Reason::InvalidField);
    assert_eq!(ask(vec![Bytes::from_static(&[0; 3])]).await, Reason::InvalidField);
    assert_eq!(ask(vec![Bytes::from_static(&[0, 1, 0, 0])]).await, Reason::InvalidField);
}

#[tokio::test]
async fn a_directory_that_lies_is_caught() {
    let setting = Setting::new().await;
    let (owner, other) = (setting.owner(), setting.owner());
    for (id, owner) in [(1, &owner), (2, &other)] {
        setting.publish([id; 16], setting.draft(owner, 1, None).sign(&owner.account)).await.unwrap();
    }
    let honest = setting.lookup(&[owner.handle]).await;
    let prefix = Prefix::of(&owner.handle, BITS);
    let caught = |change: &dyn Fn(&mut wire::LookupResponse)| {
        let mut response = honest.clone();
        change(&mut response);
        let verified = setting.trust.verify_lookup(response, &[prefix], BITS);
        verified.and_then(|v| v.find(&owner.handle, &scheme(), &setting.state)).map(drop)
    };
    assert_eq!(caught(&|_| {}), Ok(()));
    let is_proof = |result| matches!(result, Err(Error::Proof(_)));
    fn record(response: &mut wire::LookupResponse) -> &mut wire::LoggedRecord {
        &mut response.buckets[0].records[0]
    }
    // A record changed, exchanged, without or with another's proof.
    let own = setting.draft(&owner, 1, None).sign(&keys::generate(&*setting.mesh.entropy));
    assert!(caught(&|r| record(r).record = Some(own.clone())).is_err());
    let unlogged = setting.draft(&owner, 1, None).sign(&owner.account);
    assert!(is_proof(caught(&|r| record(r).record = Some(unlogged.clone()))));
    assert!(is_proof(caught(&|r| record(r).inclusion = None)));
    assert!(is_proof(caught(&|r| record(r).inclusion.as_mut().unwrap().path.clear())));
    assert!(is_proof(caught(&|r| record(r).inclusion.as_mut().unwrap().index += 1)));
    assert!(is_proof(caught(&|r| record(r).salt = vec![0; 32].into())));
    // A checkpoint under another key.
    let signer =
        CheckpointSigner::new("mesh.example/directory", keys::generate(&*setting.mesh.entropy)).unwrap();
    let real = setting.trust.verify_checkpoint(&honest.checkpoint).unwrap();
    let forged = signer.sign(real.size(), real.root()).unwrap();
    assert!(is_proof(caught(&|r| r.checkpoint = forged.note().clone())));
}
