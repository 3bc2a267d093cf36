//! Who may put and change a record.

use super::*;
use crate::statement::{Authority, Decision};
use crate::testing::{self, NOW, World};
use chancery_types::entropy::SeededEntropy;
use std::time::Duration;

fn world() -> World {
    World::new(&SeededEntropy::new(7))
}

fn put(world: &World, draft: RecordDraft, standing: Option<&Standing>) -> Result<AcceptedRecord, Error> {
    judge(draft.sign(&world.account).try_into()?, standing, &world.state, NOW)
}

#[test]
fn first_records_and_changes_are_accepted() {
    let world = world();
    let first = put(&world, world.draft(1, None), None).unwrap();
    let change = first.change(&[5; 32]);
    assert_eq!(change.handle_prefix, world.handle.as_bytes()[..4]);
    assert_eq!(change.commitment, crate::entry::commitment(&[5; 32], first.record().wire()));
    let standing = first.standing_at(40);
    let second = put(&world, world.draft(2, Some(40)), Some(&standing)).unwrap();
    assert_eq!(second.change(&[5; 32]).previous_index, Some(40));
}

#[test]
fn versions_and_previous_entries_must_fit() {
    let world = world();
    let conflict = |draft, standing: Option<&Standing>| {
        assert_eq!(put(&world, draft, standing).unwrap_err(), Error::VersionConflict);
    };
    conflict(world.draft(2, None), None);
    conflict(world.draft(1, Some(3)), None);
    let standing = put(&world, world.draft(1, None), None).unwrap().standing_at(40);
    // A replay, a skipped version, the wrong previous entry, a second first record.
    conflict(world.draft(1, None), Some(&standing));
    conflict(world.draft(3, Some(40)), Some(&standing));
    conflict(world.draft(2, Some(39)), Some(&standing));
    conflict(world.draft(2, None), Some(&standing));
}

#[test]
fn only_the_account_key_signs() {
    let world = world();
    let stranger = testing::signing_keys(&world.entropy, 1).remove(0);
    let mut forged = world.first_record(1);
    forged.signature = stranger_signature(&forged, &stranger);
    let wrong = Error::Record("the record's signature is wrong");
    assert_eq!(judge(forged.try_into().unwrap(), None, &world.state, NOW).unwrap_err(), wrong);

    // The stranger names its own key: the attestation does not.
    let taken = world.draft(1, None).sign(&stranger);
    assert!(matches!(SignedRecord::try_from(taken), Err(Error::Record(_))));

    // Even with an attestation of its own, a change does not replace the key.
    let standing = put(&world, world.draft(1, None), None).unwrap().standing_at(40);
    let mut attestation = world.attestation();
    attestation.account_key = (&stranger).into();
    let mut draft = world.draft(2, Some(40));
    draft.attestation = attestation.sign(&world.authority);
    let change = draft.sign(&stranger).try_into().unwrap();
    let error = judge(change, Some(&standing), &world.state, NOW).unwrap_err();
    assert_eq!(error, Error::Record("a change does not replace the account key"));
}

fn stranger_signature(record: &wire::SignedRecord, key: &SigningKey) -> Bytes {
    Bytes::copy_from_slice(&keys::sign(Purpose::Record, &record.record, key))
}

#[test]
fn attestations_are_checked_against_the_log() {
    let mut world = world();
    let with = |world: &World, change: &dyn Fn(&mut crate::attestation::Attestation)| {
        let mut attestation = world.attestation();
        change(&mut attestation);
        let mut draft = world.draft(1, None);
        draft.attestation = attestation.sign(&world.authority);
        put(world, draft, None).map(drop)
    };
    assert_eq!(with(&world, &|_| {}), Ok(()));
    assert_eq!(with(&world, &|a| a.scheme = "de-stid".parse().unwrap()), Err(Error::AuthorityNotAdmitted));
    assert_eq!(with(&world, &|a| a.authority = "other".parse().unwrap()), Err(Error::AuthorityNotAdmitted));
    assert_eq!(with(&world, &|a| a.expires_at = NOW), Err(Error::AttestationExpired));
    let ahead = |by| move |a: &mut crate::attestation::Attestation| a.issued_at = NOW.after(by);
    assert_eq!(with(&world, &ahead(Duration::from_secs(301))), Err(Error::AttestationExpired));
    assert_eq!(with(&world, &ahead(Duration::from_secs(299))), Ok(()));
    assert_eq!(with(&world, &|a| a.key_epoch = 2), Err(Error::WrongKeyEpoch));
    assert!(matches!(with(&world, &|a| a.handle = Handle::from_bytes([0; 32])), Err(Error::Record(_))));

    let mut draft = world.draft(1, None);
    draft.attestation = world.attestation().sign(&world.account);
    let wrong = Error::Record("the attestation's signature is wrong");
    assert_eq!(put(&world, draft, None).unwrap_err(), wrong);

    // Withdrawn: no schemes left.
    let withdrawn =
        Authority { authority: "enrol".parse().unwrap(), key: (&world.authority).into(), schemes: [].into() };
    world.decide(Decision::Authority(withdrawn));
    assert_eq!(with(&world, &|_| {}), Err(Error::AuthorityNotAdmitted));
}

#[test]
fn an_owner_may_change_after_the_attestation_expired() {
    let world = world();
    let standing = put(&world, world.draft(1, None), None).unwrap().standing_at(40);
    let late = NOW.after(Duration::from_secs(1_000_000));
    let mut draft = world.draft(2, Some(40));
    let judged =
        judge(draft.clone().sign(&world.account).try_into().unwrap(), Some(&standing), &world.state, late);
    judged.unwrap();
    // A new attestation, however, must be current.
    let mut attestation = world.attestation();
    attestation.issued_at = NOW;
    draft.attestation = attestation.sign(&world.authority);
    let judged = judge(draft.sign(&world.account).try_into().unwrap(), Some(&standing), &world.state, late);
    assert_eq!(judged.unwrap_err(), Error::AttestationExpired);
}

#[test]
fn malformed_records_are_refused() {
    let world = world();
    let good = world.first_record(1);
    let refused = |signed| SignedRecord::try_from(signed).unwrap_err();
    let long = wire::SignedRecord { record: vec![0; MAX_RECORD + 1].into(), ..good.clone() };
    assert!(matches!(refused(long), Error::TooLarge(_)));
    let short = wire::SignedRecord { signature: Bytes::new(), ..good.clone() };
    assert!(matches!(refused(short), Error::Field(_)));
    let garbage = wire::SignedRecord { record: vec![0xff; 40].into(), ..good.clone() };
    assert!(matches!(refused(garbage), Error::Field(_)));
    assert!(matches!(refused(world.first_record(0)), Error::Field(_)));
    let mut draft = world.draft(1, None);
    draft.sealed_part = vec![0; MAX_SEALED + 1].into();
    assert!(matches!(refused(draft.sign(&world.account)), Error::TooLarge(_)));
    assert_eq!(format!("{:?}", SignedRecord::try_from(good).unwrap()), "SignedRecord(version 1)");
}
