//! Who may put, change, close and re-enrol a record.

use super::*;
use crate::attestation::Attestation;
use crate::keys::{self, Purpose, SigningKey};
use crate::record::RecordDraft;
use crate::testing::{self, NOW, World};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::Handle;
use chancery_types::entropy::SeededEntropy;

fn world() -> World {
    World::new(&SeededEntropy::new(7))
}

fn accept(world: &World, draft: RecordDraft, held: &Held) -> Result<AcceptedRecord, Error> {
    match judge(draft.sign(&world.account).try_into()?, held, &world.state, NOW)? {
        Judgement::Accepted(accepted) => Ok(*accepted),
        Judgement::Repeated(_) => panic!("it was logged before"),
    }
}

/// What stands after the owner's first record, logged at 40.
fn first(world: &World) -> Held {
    accept(world, world.draft(1, None), &Held::default()).unwrap().logged_at(40, NOW, Held::default())
}

#[test]
fn first_records_and_changes_are_accepted() {
    let world = world();
    let accepted = accept(&world, world.draft(1, None), &Held::default()).unwrap();
    let change = accepted.change(&[5; 32]);
    assert_eq!(change.handle_prefix, world.handle.as_bytes()[..4]);
    assert_eq!(change.commitment, crate::entry::commitment(&[5; 32], accepted.record().wire()));
    assert!(!change.pending && change.ends_index.is_none());
    let held = first(&world);
    let second = accept(&world, world.draft(2, Some(40)), &held).unwrap();
    assert_eq!(second.change(&[5; 32]).previous_index, Some(40));
    assert_eq!(second.changes(), 2);
}

#[test]
fn the_same_again_is_not_logged_again() {
    let world = world();
    let record = world.first_record(1);
    let put = |held: &Held| judge(record.clone().try_into().unwrap(), held, &world.state, NOW);
    let Ok(Judgement::Accepted(accepted)) = put(&Held::default()) else { panic!("not accepted") };
    let held = accepted.logged_at(40, NOW, Held::default());
    assert!(matches!(put(&held), Ok(Judgement::Repeated(40))));
    let next = accept(&world, world.draft(2, Some(40)), &held).unwrap().logged_at(41, NOW, held);
    assert_eq!(put(&next).map(drop), Err(Error::VersionConflict));
}

#[test]
fn versions_and_previous_entries_must_fit() {
    let world = world();
    let conflict = |draft, held: &Held| {
        assert_eq!(accept(&world, draft, held).map(drop), Err(Error::VersionConflict));
    };
    conflict(world.draft(2, None), &Held::default());
    conflict(world.draft(1, Some(3)), &Held::default());
    let held = first(&world);
    // Another first record, a skipped version, the wrong previous entry.
    conflict(world.draft(1, None), &held);
    conflict(world.draft(3, Some(40)), &held);
    conflict(world.draft(2, Some(39)), &held);
    conflict(world.draft(2, None), &held);
}

#[test]
fn only_the_account_key_signs() {
    let world = world();
    let stranger = testing::signing_keys(&world.entropy, 1).remove(0);
    let mut forged = world.first_record(1);
    forged.signature = Bytes::copy_from_slice(&keys::sign(Purpose::Record, &forged.record, &stranger));
    let wrong = Error::Record("the record's signature is wrong");
    let judged = judge(forged.try_into().unwrap(), &Held::default(), &world.state, NOW);
    assert_eq!(judged.map(drop), Err(wrong));
    // The stranger names its own key: the attestation does not.
    let taken = world.draft(1, None).sign(&stranger);
    assert!(matches!(SignedRecord::try_from(taken), Err(Error::Record(_))));
}

#[test]
fn attestations_are_checked_against_the_log() {
    let mut world = world();
    let with = |world: &World, change: &dyn Fn(&mut Attestation)| {
        let mut attestation = world.attestation();
        change(&mut attestation);
        let mut draft = world.draft(1, None);
        draft.attestation = attestation.sign(&world.authority);
        accept(world, draft, &Held::default()).map(drop)
    };
    assert_eq!(with(&world, &|_| {}), Ok(()));
    assert_eq!(with(&world, &|a| a.scheme = "de-stid".parse().unwrap()), Err(Error::AuthorityNotAdmitted));
    assert_eq!(with(&world, &|a| a.authority = "other".parse().unwrap()), Err(Error::AuthorityNotAdmitted));
    assert_eq!(with(&world, &|a| a.expires_at = NOW), Err(Error::AttestationExpired));
    let ahead = |by| move |a: &mut Attestation| a.issued_at = NOW.after(by);
    assert_eq!(with(&world, &ahead(Duration::from_secs(301))), Err(Error::AttestationExpired));
    assert_eq!(with(&world, &ahead(Duration::from_secs(299))), Ok(()));
    assert_eq!(with(&world, &|a| a.key_epoch = 2), Err(Error::WrongKeyEpoch));
    assert!(matches!(with(&world, &|a| a.handle = Handle::from_bytes([0; 32])), Err(Error::Record(_))));

    let mut draft = world.draft(1, None);
    draft.attestation = world.attestation().sign(&world.account);
    let wrong = Error::Record("the attestation's signature is wrong");
    assert_eq!(accept(&world, draft, &Held::default()).map(drop), Err(wrong));

    let key = world.authority.clone();
    world.withdraw_authority("enrol", &key, NOW);
    assert_eq!(with(&world, &|_| {}), Err(Error::AuthorityNotAdmitted));
}

#[test]
fn an_owner_may_change_after_the_attestation_expired() {
    let world = world();
    let held = first(&world);
    let late = NOW.after(Duration::from_secs(1_000_000));
    let mut draft = world.draft(2, Some(40));
    let judged = |draft: RecordDraft| {
        judge(draft.sign(&world.account).try_into().unwrap(), &held, &world.state, late).map(drop)
    };
    assert_eq!(judged(draft.clone()), Ok(()));
    // A new attestation, however, must be current.
    let mut attestation = world.attestation();
    attestation.issued_at = NOW;
    draft.attestation = attestation.sign(&world.authority);
    assert_eq!(judged(draft), Err(Error::AttestationExpired));
}

#[test]
fn a_record_changes_twenty_times_a_day() {
    let world = world();
    let mut held = first(&world);
    for version in 2..=u64::from(CHANGES_PER_DAY) {
        let index = 38 + version;
        let change = accept(&world, world.draft(version, Some(index)), &held).unwrap();
        held = change.logged_at(index + 1, NOW, held);
    }
    let next = world.draft(21, Some(59));
    assert_eq!(accept(&world, next.clone(), &held).map(drop), Err(Error::ChangeLimit));
    let tomorrow = NOW.after(Duration::from_hours(24));
    let judged = judge(next.sign(&world.account).try_into().unwrap(), &held, &world.state, tomorrow);
    assert!(matches!(judged, Ok(Judgement::Accepted(accepted)) if accepted.changes() == 1));
}

#[test]
fn closed_is_final_for_the_account_key() {
    let world = world();
    let held = first(&world);
    let mut closing = world.draft(2, Some(40));
    closing.sealed_part = Bytes::new();
    let held = accept(&world, closing, &held).unwrap().logged_at(41, NOW, held);
    assert_eq!(accept(&world, world.draft(3, Some(41)), &held).map(drop), Err(Error::Closed));
    // Whoever comes back enrols anew, at once.
    let returned = Claimant::new(&world);
    let accepted = returned.accept(&world, returned.draft(&world, 3, 41), &held, NOW).unwrap();
    assert!(!accepted.change(&[0; 32]).pending);
}

/// Somebody else with a word for the handle.
struct Claimant(SigningKey);

impl Claimant {
    fn new(world: &World) -> Self {
        Self(keys::generate(&world.entropy))
    }

    fn word(&self, world: &World, authority: &str, key: &SigningKey) -> wire::SignedAttestation {
        let mut attestation = world.attestation();
        attestation.account_key = (&self.0).into();
        attestation.authority = authority.parse().unwrap();
        attestation.issued_at = NOW;
        attestation.sign(key)
    }

    fn draft(&self, world: &World, version: u64, previous: u64) -> RecordDraft {
        let mut draft = world.draft(version, Some(previous));
        draft.attestation = self.word(world, "enrol", &world.authority);
        draft
    }

    fn accept(
        &self,
        world: &World,
        draft: RecordDraft,
        held: &Held,
        now: Timestamp,
    ) -> Result<AcceptedRecord, Error> {
        match judge(draft.sign(&self.0).try_into()?, held, &world.state, now)? {
            Judgement::Accepted(accepted) => Ok(*accepted),
            Judgement::Repeated(_) => panic!("it was logged before"),
        }
    }
}

#[test]
fn a_re_enrolment_waits_and_then_counts() {
    let world = world();
    let held = first(&world);
    let claimant = Claimant::new(&world);
    let draft = claimant.draft(&world, 2, 40);
    let accepted = claimant.accept(&world, draft.clone(), &held, NOW).unwrap();
    let change = accepted.change(&[0; 32]);
    assert!(change.pending && change.previous_index == Some(40));
    let held = accepted.logged_at(41, NOW, held);
    assert_eq!(held.standing.as_ref().unwrap().index, 40);
    let again = |now| judge(draft.clone().sign(&claimant.0).try_into().unwrap(), &held, &world.state, now);
    let early = NOW.after(RE_ENROLMENT_WAIT).before(Duration::from_millis(1));
    assert!(matches!(again(early), Ok(Judgement::Repeated(41))));
    let Ok(Judgement::Accepted(accepted)) = again(NOW.after(RE_ENROLMENT_WAIT)) else { panic!("no") };
    let change = accepted.change(&[0; 32]);
    assert_eq!((change.pending, change.previous_index, change.ends_index), (false, Some(40), Some(41)));
    let held = accepted.logged_at(42, NOW, held);
    assert!(held.pending.is_none());
    assert_eq!(*held.standing.unwrap().record.account_key(), (&claimant.0).into());
}

#[test]
fn a_re_enrolment_does_not_outlive_its_authority() {
    let mut world = world();
    let held = first(&world);
    let claimant = Claimant::new(&world);
    let draft = claimant.draft(&world, 2, 40);
    let held = claimant.accept(&world, draft.clone(), &held, NOW).unwrap().logged_at(41, NOW, held);
    let key = world.authority.clone();
    world.withdraw_authority("enrol", &key, NOW.after(Duration::from_secs(60)));
    let late = NOW.after(RE_ENROLMENT_WAIT);
    assert_eq!(claimant.accept(&world, draft, &held, late).map(drop), Err(Error::AuthorityNotAdmitted));
}

#[test]
fn the_owner_vetoes_with_any_change_and_the_word_is_spent() {
    let world = world();
    let held = first(&world);
    let claimant = Claimant::new(&world);
    let pending = claimant.accept(&world, claimant.draft(&world, 2, 40), &held, NOW).unwrap();
    let held = pending.logged_at(41, NOW, held);
    let other = Claimant::new(&world);
    let second = other.accept(&world, other.draft(&world, 2, 40), &held, NOW).map(drop);
    assert_eq!(second, Err(Error::ReEnrolmentPending));
    let veto = accept(&world, world.draft(2, Some(40)), &held).unwrap();
    assert_eq!(veto.change(&[0; 32]).ends_index, Some(41));
    let held = veto.logged_at(42, NOW.after(Duration::from_secs(1)), held);
    assert!(held.pending.is_none());
    let again = claimant.accept(&world, claimant.draft(&world, 3, 42), &held, NOW).map(drop);
    assert_eq!(again, Err(Error::Record("the attestation is older than the record that it contests")));
}

#[test]
fn two_authorities_override_a_veto() {
    let mut world = world();
    let other = world.admit_authority("other");
    let held = first(&world);
    let (single, backed) = (Claimant::new(&world), Claimant::new(&world));
    let pending = single.accept(&world, single.draft(&world, 2, 40), &held, NOW).unwrap();
    let held = pending.logged_at(41, NOW, held);
    let mut draft = backed.draft(&world, 2, 40);
    draft.second_attestation = Some(backed.word(&world, "other", &other));
    // It takes the place of the one with a single word, and the owner cannot end it.
    let accepted = backed.accept(&world, draft.clone(), &held, NOW).unwrap();
    assert_eq!(accepted.change(&[0; 32]).ends_index, Some(41));
    let held = accepted.logged_at(42, NOW, held);
    assert_eq!(accept(&world, world.draft(2, Some(40)), &held).map(drop), Err(Error::ReEnrolmentPending));
    let late = NOW.after(RE_ENROLMENT_WAIT);
    assert!(backed.accept(&world, draft.clone(), &held, late).is_ok());

    // Independent means: another authority, under another key.
    let held = first(&world);
    draft.second_attestation = Some(backed.word(&world, "enrol", &world.authority));
    let twice = backed.accept(&world, draft.clone(), &held, NOW).map(drop);
    assert_eq!(
        twice,
        Err(Error::Record("a second attestation is by another authority, for the same scheme"))
    );
    draft.second_attestation = Some(backed.word(&world, "other", &world.authority));
    assert!(matches!(backed.accept(&world, draft, &held, NOW), Err(Error::Record(_))));
}

#[test]
fn an_owner_may_demand_two_always() {
    let mut world = world();
    let other = world.admit_authority("other");
    let mut demanding = world.draft(1, None);
    demanding.two_authorities = true;
    let held = Held::default();
    let held = accept(&world, demanding, &held).unwrap().logged_at(40, NOW, held);
    let claimant = Claimant::new(&world);
    let mut draft = claimant.draft(&world, 2, 40);
    let refused = claimant.accept(&world, draft.clone(), &held, NOW).map(drop);
    assert_eq!(refused, Err(Error::Record("the owner asks for the word of two authorities")));
    draft.second_attestation = Some(claimant.word(&world, "other", &other));
    assert!(claimant.accept(&world, draft, &held, NOW).unwrap().change(&[0; 32]).pending);
}
