//! Records put, changed, found; and what is refused, by the directory or by
//! those who ask it.

use crate::mesh::{BITS, Backend, Owner, Setting, on_both, refusal};
use bytes::Bytes;
use chancery_directory_core::attestation::{Attestation, SchemeName};
use chancery_directory_core::note::CheckpointSigner;
use chancery_directory_core::rules::RE_ENROLMENT_WAIT;
use chancery_directory_core::statement::{Decision, ErasedRecord};
use chancery_directory_core::{Error, Prefix, VerifiedRecord, keys};
use chancery_proto::directory::v1 as wire;
use chancery_types::{Clock as _, Handle, Identifier, Reason, Scheme};
use prost::Message as _;
use sqlx::ConnectOptions as _;
use std::time::Duration;

on_both!(
    from_identifier_to_address,
    changes_and_repeated_requests,
    many_at_once_are_logged_once_each,
    what_breaks_the_rules_is_refused_each_for_its_reason,
    a_relay_learns_nothing_and_garbage_does_not_open,
    lookups_have_limits,
    a_directory_that_lies_is_caught,
    a_closed_record_stands_as_a_tombstone,
    a_re_enrolment_waits_for_the_owners_veto,
    a_record_changes_twenty_times_a_day,
    an_erased_record_is_gone_and_the_log_goes_on
);

fn scheme() -> SchemeName {
    Scheme::E164.into()
}

async fn find(setting: &Setting, owner: &Owner) -> Option<VerifiedRecord> {
    setting.verified(&[owner.handle]).await.find(&owner.handle, &scheme(), &setting.state).unwrap()
}

async fn refused(setting: &Setting, record: wire::SignedRecord) -> Reason {
    setting.publish(record).await.unwrap_err().reason
}

async fn from_identifier_to_address(backend: Backend) {
    let setting = Setting::new(backend).await;
    let identifier = Identifier::parse("e164", "+32470123456").unwrap();
    let (handle, record_key) = setting.evaluate(&identifier).await;
    let owner = setting.owner_of(handle, record_key);
    assert!(find(&setting, &owner).await.is_none());
    let published = setting.publish(setting.draft(&owner, 1, None).sign(&owner.account)).await.unwrap();

    // A sender, who knows the identifier alone.
    let (handle, record_key) = setting.evaluate(&identifier).await;
    let lookup = setting.verified(&[handle]).await;
    let found = lookup.find(&handle, &scheme(), &setting.state).unwrap().unwrap();
    assert_eq!(found.index, published.index);
    assert_eq!(found.open(&record_key).unwrap(), owner.address);
}

async fn changes_and_repeated_requests(backend: Backend) {
    let setting = Setting::new(backend).await;
    let mut owner = setting.owner();
    let first = setting.draft(&owner, 1, None).sign(&owner.account);
    let index = setting.publish(first.clone()).await.unwrap().index;
    assert_eq!(setting.publish(first.clone()).await.unwrap().index, index);

    owner.address.node = "regional".parse().unwrap();
    let change = setting.draft(&owner, 2, Some(index)).sign(&owner.account);
    let changed = setting.publish(change.clone()).await.unwrap();
    let found = find(&setting, &owner).await.unwrap();
    assert_eq!(
        (found.index, found.record.version(), found.record.previous_index()),
        (changed.index, 2, Some(index))
    );
    assert_eq!(found.open(&owner.record_key).unwrap(), owner.address);

    // The same again gets the same answer while it stands; what was replaced is gone.
    let size = size(&setting).await;
    assert_eq!(setting.publish(change).await.unwrap(), changed);
    assert_eq!(refused(&setting, first).await, Reason::RecordVersionConflict);
    let stale = setting.draft(&owner, 2, Some(index)).sign(&owner.account);
    assert_eq!(refused(&setting, stale).await, Reason::RecordVersionConflict);
    assert_eq!(self::size(&setting).await, size, "nothing was logged");
}

async fn size(setting: &Setting) -> u64 {
    let answer = setting.client.clone().fetch_checkpoint(wire::FetchCheckpointRequest {}).await.unwrap();
    setting.trust.verify_checkpoint(&answer.into_inner().checkpoint).unwrap().size()
}

async fn many_at_once_are_logged_once_each(backend: Backend) {
    let setting = Setting::new(backend).await;
    let owners: Vec<_> = (0..40).map(|_| setting.owner()).collect();
    let publish = |owner: &Owner| {
        let record = setting.draft(owner, 1, None).sign(&owner.account);
        let other = setting.draft(owner, 1, None).sign(&owner.account);
        let setting = &setting;
        // One twice, and another of the same version.
        async move {
            let (a, b, c) = tokio::join!(
                setting.publish(record.clone()),
                setting.publish(record),
                setting.publish(other),
            );
            let indices: Vec<_> = [&a, &b, &c].into_iter().flatten().map(|p| p.index).collect();
            let refusals: Vec<_> = [a, b, c].into_iter().filter_map(Result::err).map(|r| r.reason).collect();
            assert!(indices.windows(2).all(|pair| pair[0] == pair[1]));
            assert!(refusals.iter().all(|r| *r == Reason::RecordVersionConflict), "{refusals:?}");
            assert!(!indices.is_empty());
            indices[0]
        }
    };
    let indices = futures::future::join_all(owners.iter().map(publish)).await;
    assert_eq!(indices.iter().collect::<std::collections::BTreeSet<_>>().len(), 40);
    let handles: Vec<_> = owners.iter().map(|o| o.handle).collect();
    let lookup = setting.verified(&handles).await;
    for owner in &owners {
        assert!(lookup.find(&owner.handle, &scheme(), &setting.state).unwrap().is_some());
    }
}

async fn what_breaks_the_rules_is_refused_each_for_its_reason(backend: Backend) {
    let setting = Setting::new(backend).await;
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
    assert_eq!(refused(&setting, forged).await, Reason::InvalidRecord);
    let false_word = record(with(&|_| {}), Some(&stranger));
    assert_eq!(refused(&setting, false_word).await, Reason::InvalidRecord);
    // Its key is right, the scheme is not one it was admitted for.
    let now = &*setting.mesh.clock;
    let key = (&owner.account).into();
    let mut draft = setting.draft(&owner, 1, None);
    draft.attestation = setting.mesh.authority.attest(Scheme::BeNn, owner.handle, key, 1, now.now());
    assert_eq!(refused(&setting, draft.sign(&owner.account)).await, Reason::AuthorityNotAdmitted);
    let mut draft = setting.draft(&owner, 1, None);
    draft.attestation = setting.mesh.authority.attest(Scheme::E164, owner.handle, key, 2, now.now());
    assert_eq!(refused(&setting, draft.sign(&owner.account)).await, Reason::WrongKeyEpoch);
    let unknown = record(with(&|a| a.authority = "other".parse().unwrap()), Some(&stranger));
    assert_eq!(refused(&setting, unknown).await, Reason::AuthorityNotAdmitted);
    let skipped = setting.draft(&owner, 2, None).sign(&owner.account);
    assert_eq!(refused(&setting, skipped).await, Reason::RecordVersionConflict);
    let large = wire::SignedRecord { record: vec![0; 9_000].into(), signature: vec![0; 64].into() };
    assert_eq!(refused(&setting, large).await, Reason::TooLarge);

    let record = setting.draft(&owner, 1, None).sign(&owner.account);
    setting.mesh.clock.advance(chancery_directory_core::enrolment::VALIDITY);
    assert_eq!(refused(&setting, record).await, Reason::AttestationExpired);
    assert!(find(&setting, &owner).await.is_none());

    // What was refused may be put right.
    let record = setting.draft(&owner, 1, None).sign(&owner.account);
    setting.publish(record).await.unwrap();
    assert!(find(&setting, &owner).await.is_some());
}

async fn a_relay_learns_nothing_and_garbage_does_not_open(backend: Backend) {
    let setting = Setting::new(backend).await;
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
    for version in [5, 1] {
        let record = setting.draft(&owner, version, None).sign(&owner.account);
        let (request, _) = chancery_directory_core::operation::seal(record, &directory).unwrap();
        lengths.push(client.publish(request).await.unwrap().into_inner().ciphertext.len());
    }
    assert!(find(&setting, &owner).await.is_some());
    assert_eq!(lengths[0], lengths[1]);
}

async fn lookups_have_limits(backend: Backend) {
    let setting = Setting::new(backend).await;
    let owner = setting.owner();
    setting.publish(setting.draft(&owner, 1, None).sign(&owner.account)).await.unwrap();
    let every: Vec<_> = (0..=255_u8).map(|first| Handle::from_bytes([first; 32])).collect();
    let response = setting.lookup(&every).await;
    assert_eq!((response.places.len(), response.roots.len()), (256, 1));
    let prefixes: Vec<_> = every.iter().map(|h| Prefix::of(h, BITS)).collect();
    let verified = setting.trust.verify_lookup(response, &prefixes, BITS, setting.mesh.clock.now()).unwrap();
    assert!(verified.find(&owner.handle, &scheme(), &setting.state).unwrap().is_some());

    let mut client = setting.client.clone();
    let mut ask =
        async |prefixes: Vec<Bytes>| refusal(client.lookup(wire::LookupRequest { prefixes }).await).reason;
    assert_eq!(ask(vec![Bytes::from_static(&[0; 4]); 257]).await, Reason::InvalidField);
    assert_eq!(ask(vec![]).await, Reason::InvalidField);
    assert_eq!(ask(vec![Bytes::from_static(&[0; 3])]).await, Reason::InvalidField);
    assert_eq!(ask(vec![Bytes::from_static(&[0, 1, 0, 0])]).await, Reason::InvalidField);
}

async fn a_directory_that_lies_is_caught(backend: Backend) {
    let setting = Setting::new(backend).await;
    let owner = setting.owner();
    let absent = setting.lookup(&[owner.handle]).await;
    setting.publish(setting.draft(&owner, 1, None).sign(&owner.account)).await.unwrap();
    let honest = setting.lookup(&[owner.handle]).await;
    let prefix = Prefix::of(&owner.handle, BITS);
    let caught = |change: &dyn Fn(&mut wire::LookupResponse)| {
        let mut response = honest.clone();
        change(&mut response);
        let verified = setting.trust.verify_lookup(response, &[prefix], BITS, setting.mesh.clock.now());
        verified.and_then(|v| v.find(&owner.handle, &scheme(), &setting.state)).map(drop)
    };
    assert_eq!(caught(&|_| {}), Ok(()));
    let is_proof = |result| matches!(result, Err(Error::Proof(_)));
    fn edit(response: &mut wire::LookupResponse, change: impl FnOnce(&mut wire::MapItems)) {
        let mut items = wire::MapItems::decode(response.places[0].items.clone()).unwrap();
        change(&mut items);
        response.places[0].items = items.encode_to_vec().into();
    }
    fn body(response: &mut wire::LookupResponse, change: impl FnOnce(&mut wire::RecordBody)) {
        edit(response, |items| match &mut items.items[0].content {
            Some(wire::map_item::Content::Body(body)) => change(body),
            _ => panic!("no body"),
        });
    }
    // A record dropped, withheld, changed; its own key inserted; an old root for it.
    assert!(is_proof(caught(&|r| edit(r, |items| items.items.clear()))));
    assert!(is_proof(caught(&|r| edit(r, |items| items.items[0].content = None))));
    let own = setting.draft(&owner, 1, None).sign(&keys::generate(&*setting.mesh.entropy));
    assert!(caught(&|r| body(r, |b| b.record = Some(own.clone()))).is_err());
    let unlogged = setting.draft(&owner, 1, None).sign(&owner.account);
    assert!(is_proof(caught(&|r| body(r, |b| b.record = Some(unlogged.clone())))));
    assert!(is_proof(caught(&|r| body(r, |b| b.salt = vec![0; 32].into()))));
    assert!(is_proof(caught(&|r| r.roots = absent.roots.clone())));
    // A checkpoint under another key.
    let signer =
        CheckpointSigner::new("mesh.example/directory", keys::generate(&*setting.mesh.entropy)).unwrap();
    let real = setting.trust.verify_checkpoint(&honest.roots[0].checkpoint).unwrap();
    let forged = signer.sign(real.size(), real.root()).unwrap();
    assert!(is_proof(caught(&|r| r.roots[0].checkpoint = forged.note().clone())));
}

async fn a_closed_record_stands_as_a_tombstone(backend: Backend) {
    let setting = Setting::new(backend).await;
    let owner = setting.owner();
    let index = setting.publish(setting.draft(&owner, 1, None).sign(&owner.account)).await.unwrap().index;
    let mut closing = setting.draft(&owner, 2, Some(index));
    closing.sealed_part = Bytes::new();
    let closed = setting.publish(closing.sign(&owner.account)).await.unwrap().index;
    let found = find(&setting, &owner).await.unwrap();
    assert_eq!(found.open(&owner.record_key), Err(Error::Closed));
    let reopening = setting.draft(&owner, 3, Some(closed)).sign(&owner.account);
    assert_eq!(refused(&setting, reopening).await, Reason::RecipientClosed);
    // Whoever comes back has a new account key and a new word.
    let returned = Owner { account: keys::generate(&*setting.mesh.entropy), ..owner };
    let record = setting.draft(&returned, 3, Some(closed)).sign(&returned.account);
    assert!(!setting.publish(record).await.unwrap().pending);
    assert_eq!(find(&setting, &returned).await.unwrap().record.account_key(), &(&returned.account).into());
}

async fn a_re_enrolment_waits_for_the_owners_veto(backend: Backend) {
    let mut setting = Setting::new(backend).await;
    let owner = setting.owner();
    let index = setting.publish(setting.draft(&owner, 1, None).sign(&owner.account)).await.unwrap().index;
    let claimant = owner.with_account(keys::generate(&*setting.mesh.entropy));
    let claim = setting.draft(&claimant, 2, Some(index)).sign(&claimant.account);
    let pending = setting.publish(claim.clone()).await.unwrap();
    assert!(pending.pending);
    assert_eq!(find(&setting, &owner).await.unwrap().index, index, "senders keep to the record");
    let lookup = setting.verified(&[owner.handle]).await;
    let seen = lookup.pending(&owner.handle, &setting.state).unwrap().unwrap();
    assert_eq!((seen.index, seen.record.account_key()), (pending.index, &(&claimant.account).into()));
    // The owner's next change ends it, and its word is spent.
    setting.mesh.clock.advance(Duration::from_secs(1));
    let veto = setting.draft(&owner, 2, Some(index)).sign(&owner.account);
    let vetoed = setting.publish(veto).await.unwrap().index;
    assert_eq!(refused(&setting, claim).await, Reason::RecordVersionConflict);
    let lookup = setting.verified(&[owner.handle]).await;
    assert!(lookup.pending(&owner.handle, &setting.state).unwrap().is_none());

    // Without a veto it counts after seven days, across a restart.
    setting.mesh.clock.advance(Duration::from_secs(1));
    let claim = setting.draft(&claimant, 3, Some(vetoed)).sign(&claimant.account);
    let pending = setting.publish(claim.clone()).await.unwrap();
    setting.restart().await;
    setting.mesh.clock.advance(RE_ENROLMENT_WAIT - Duration::from_secs(1));
    assert_eq!(setting.publish(claim.clone()).await.unwrap(), pending);
    setting.mesh.clock.advance(Duration::from_secs(1));
    let settled = setting.publish(claim).await.unwrap();
    assert!(!settled.pending && settled.index > pending.index);
    let found = find(&setting, &claimant).await.unwrap();
    assert_eq!((found.index, found.record.account_key()), (settled.index, &(&claimant.account).into()));
    let again = setting.draft(&owner, 4, Some(settled.index)).sign(&owner.account);
    assert!(setting.publish(again).await.unwrap().pending, "the old key is now the claimant");
}

async fn a_record_changes_twenty_times_a_day(backend: Backend) {
    let setting = Setting::new(backend).await;
    let owner = setting.owner();
    let mut previous = None;
    for version in 1..=20 {
        let record = setting.draft(&owner, version, previous).sign(&owner.account);
        previous = Some(setting.publish(record).await.unwrap().index);
    }
    let record = setting.draft(&owner, 21, previous).sign(&owner.account);
    assert_eq!(refused(&setting, record.clone()).await, Reason::RecordChangeLimit);
    setting.mesh.clock.advance(Duration::from_hours(24));
    setting.publish(record).await.unwrap();
}

async fn an_erased_record_is_gone_and_the_log_goes_on(backend: Backend) {
    let mut setting = Setting::new(backend).await;
    let (owner, other) = (setting.owner(), setting.owner());
    let index = setting.publish(setting.draft(&owner, 1, None).sign(&owner.account)).await.unwrap().index;
    let index =
        setting.publish(setting.draft(&owner, 2, Some(index)).sign(&owner.account)).await.unwrap().index;
    setting.publish(setting.draft(&other, 1, None).sign(&other.account)).await.unwrap();
    let claimant = owner.with_account(keys::generate(&*setting.mesh.entropy));
    setting.mesh.clock.advance(Duration::from_secs(1));
    let claim = setting.draft(&claimant, 3, Some(index)).sign(&claimant.account);
    let pending = setting.publish(claim).await.unwrap().index;

    let [a, b, c, d, ..] = *owner.handle.as_bytes();
    let erased = |index| ErasedRecord { handle_prefix: [a, b, c, d], index };
    let erase = async |setting: &Setting, records: Vec<ErasedRecord>| {
        let statement = Some(setting.mesh.sign(Decision::Erasure(records)));
        setting.client.clone().submit_statement(wire::SubmitStatementRequest { statement }).await
    };
    for torn in [vec![erased(index)], vec![erased(pending)], vec![erased(index + 100), erased(pending)]] {
        assert_eq!(refusal(erase(&setting, torn).await).reason, Reason::InvalidField);
    }
    assert_eq!(stored_bodies(&setting).await, 4);
    erase(&setting, vec![erased(index), erased(pending)]).await.unwrap();
    assert_eq!(stored_bodies(&setting).await, 1, "of all versions");
    assert!(find(&setting, &owner).await.is_none());
    assert!(find(&setting, &other).await.is_some());
    setting.restart().await;
    assert!(find(&setting, &owner).await.is_none());
    // The handle is free for a first record.
    setting.publish(setting.draft(&claimant, 1, None).sign(&claimant.account)).await.unwrap();
    assert!(find(&setting, &claimant).await.is_some());
}

/// Bodies in the directory's own table.
async fn stored_bodies(setting: &Setting) -> i64 {
    const COUNT: &str = "SELECT count(*) FROM record_body";
    match &setting.mesh.postgres {
        Some(postgres) => postgres.sql(COUNT).trim().parse().unwrap(),
        None => {
            let file = setting.mesh.directory_folder().join("directory.sqlite");
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
            let mut connection = options.connect().await.unwrap();
            sqlx::query_scalar(COUNT).fetch_one(&mut connection).await.unwrap()
        }
    }
}
