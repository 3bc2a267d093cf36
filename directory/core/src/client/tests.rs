//! A directory that lies is caught by those who ask it.

use super::*;
use crate::keys;
use crate::merkle::{self, Hash};
use crate::note::CheckpointSigner;
use crate::statement::{Authority, Decision};
use crate::testing::{FEDERATION, NOW, World};
use chancery_types::entropy::SeededEntropy;

/// A naive log of a few leaves.
struct Log {
    leaves: Vec<Leaf>,
    signer: CheckpointSigner,
}

impl Log {
    fn inclusion(&self, index: usize) -> wire::InclusionProof {
        let hashes: Vec<_> = self.leaves.iter().map(Leaf::hash).collect();
        let path = path(&hashes, index).iter().map(|h| Bytes::copy_from_slice(h)).collect();
        wire::InclusionProof { index: index as u64, path }
    }

    fn checkpoint(&self) -> VerifiedCheckpoint {
        let hashes: Vec<_> = self.leaves.iter().map(Leaf::hash).collect();
        self.signer.sign(hashes.len() as u64, &root(&hashes)).unwrap()
    }
}

fn root(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => merkle::empty_root(),
        [one] => *one,
        _ => {
            let (left, right) = hashes.split_at(hashes.len().next_power_of_two() / 2);
            merkle::node_hash(&root(left), &root(right))
        }
    }
}

fn path(hashes: &[Hash], index: usize) -> Vec<Hash> {
    if hashes.len() == 1 {
        return vec![];
    }
    let middle = hashes.len().next_power_of_two() / 2;
    let (left, right) = hashes.split_at(middle);
    let (mut rest, sibling) = if index < middle {
        (path(left, index), root(right))
    } else {
        (path(right, index - middle), root(left))
    };
    rest.push(sibling);
    rest
}

/// What governs the world in a log, then one record.
struct Setting {
    world: World,
    log: Log,
    trust: Trust,
    lookup: wire::LookupResponse,
    prefix: Prefix,
}

const BITS: u32 = 8;

fn setting() -> Setting {
    let world = World::new(&SeededEntropy::new(11));
    let signer = CheckpointSigner::new(&note::origin(FEDERATION), keys::generate(&world.entropy)).unwrap();
    let trust = Trust::new(FEDERATION, world.governance.clone(), &signer.vkey()).unwrap();
    let events = world.log.iter().cloned();
    let record: SignedRecord = world.first_record(1).try_into().unwrap();
    let change = RecordChange::new(record.handle(), None, &[6; 32], record.wire());
    let events = events.chain([Event::RecordChange(change)]);
    let leaves = events.map(|event| Leaf::new(&Entry { sequenced_at: NOW, event }).unwrap()).collect();
    let log = Log { leaves, signer };
    let logged = wire::LoggedRecord {
        record: Some(record.wire().clone()),
        salt: Bytes::from_static(&[6; 32]),
        sequenced_at_ms: NOW.millis(),
        inclusion: Some(log.inclusion(3)),
    };
    let lookup = wire::LookupResponse {
        buckets: vec![wire::Bucket { records: vec![logged] }],
        checkpoint: log.checkpoint().note().clone(),
    };
    let prefix = Prefix::of(&world.handle, BITS);
    Setting { world, log, trust, lookup, prefix }
}

impl Setting {
    fn find(&self, lookup: wire::LookupResponse) -> Result<Option<VerifiedRecord>, Error> {
        let verified = self.trust.verify_lookup(lookup, &[self.prefix], BITS)?;
        verified.find(&self.world.handle, &"be-nn".parse().unwrap(), &self.world.state)
    }

    fn spoilt(&self, change: impl Fn(&mut wire::LoggedRecord)) -> Error {
        let mut lookup = self.lookup.clone();
        change(&mut lookup.buckets[0].records[0]);
        self.find(lookup).unwrap_err()
    }

    fn statements(&self) -> wire::ListStatementsResponse {
        let logged = |(i, leaf): (usize, &Leaf)| wire::LoggedStatement {
            entry: leaf.bytes().clone(),
            inclusion: Some(self.log.inclusion(i)),
        };
        wire::ListStatementsResponse {
            statements: self.log.leaves.iter().take(3).enumerate().map(logged).collect(),
            checkpoint: self.log.checkpoint().note().clone(),
        }
    }
}

#[test]
fn an_honest_answer_opens() {
    let setting = setting();
    let found = setting.find(setting.lookup.clone()).unwrap().unwrap();
    assert_eq!(found.open(&setting.world.record_key).unwrap(), setting.world.address);
    assert_eq!((found.version, found.index, found.previous_index), (1, 3, None));
    assert_eq!(found.open(&RecordKey::from_bytes([0; 32])), Err(Error::CannotOpen));
}

#[test]
fn absence_is_said_of_what_was_asked_alone() {
    let setting = setting();
    let mut lookup = setting.lookup.clone();
    lookup.buckets[0].records.clear();
    assert!(setting.find(lookup.clone()).unwrap().is_none());
    let verified = setting.trust.verify_lookup(lookup, &[setting.prefix], BITS).unwrap();
    let mut elsewhere = *setting.world.handle.as_bytes();
    elsewhere[0] ^= 1;
    let scheme = "be-nn".parse().unwrap();
    let asked = verified.find(&Handle::from_bytes(elsewhere), &scheme, &setting.world.state);
    assert!(matches!(asked, Err(Error::Field(_))));
}

#[test]
fn tampering_is_caught() {
    let setting = setting();
    let is_proof = |error: Error| matches!(error, Error::Proof(_));
    assert!(is_proof(setting.spoilt(|r| r.salt = Bytes::from_static(&[7; 32]))));
    assert!(is_proof(setting.spoilt(|r| r.sequenced_at_ms += 1)));
    assert!(is_proof(setting.spoilt(|r| r.inclusion = None)));
    assert!(is_proof(setting.spoilt(|r| r.inclusion.as_mut().unwrap().index = 2)));
    assert!(is_proof(setting.spoilt(|r| drop(r.inclusion.as_mut().unwrap().path.pop()))));
    assert!(is_proof(setting.spoilt(|r| r.record = None)));
    // Another record of the same owner, never logged.
    let mut draft = setting.world.draft(1, None);
    draft.changed_at = Timestamp::from_millis(1);
    let unlogged = draft.sign(&setting.world.account);
    assert!(is_proof(setting.spoilt(|r| r.record = Some(unlogged.clone()))));
    // The signature belongs to the commitment, too.
    let other = Bytes::from_static(&[1; 64]);
    assert!(is_proof(setting.spoilt(|r| r.record.as_mut().unwrap().signature = other.clone())));
}

#[test]
fn buckets_are_ordered_and_under_their_prefix() {
    let setting = setting();
    let verify = |lookup: wire::LookupResponse, prefix| {
        setting.trust.verify_lookup(lookup, &[prefix], BITS).map(drop).unwrap_err()
    };
    let mut twice = setting.lookup.clone();
    let record = twice.buckets[0].records[0].clone();
    twice.buckets[0].records.push(record.clone());
    assert!(matches!(verify(twice, setting.prefix), Error::Proof(_)));
    let mut elsewhere = setting.prefix.to_bytes();
    elsewhere[0] ^= 1;
    let elsewhere = Prefix::from_wire(&elsewhere, BITS).unwrap();
    assert!(matches!(verify(setting.lookup.clone(), elsewhere), Error::Proof(_)));
    let mut many = setting.lookup.clone();
    many.buckets[0].records = vec![record; MAX_BUCKET + 1];
    assert!(matches!(verify(many, setting.prefix), Error::Proof(_)));
    let mut none = setting.lookup.clone();
    none.buckets.clear();
    assert!(matches!(verify(none, setting.prefix), Error::Proof(_)));
}

#[test]
fn a_checkpoint_of_another_key_or_log_is_refused() {
    let setting = setting();
    let mut lookup = setting.lookup.clone();
    let other = CheckpointSigner::new(&note::origin(FEDERATION), keys::generate(&setting.world.entropy));
    let checkpoint = setting.log.checkpoint();
    lookup.checkpoint = other.unwrap().sign(checkpoint.size(), checkpoint.root()).unwrap().note().clone();
    assert!(matches!(setting.find(lookup), Err(Error::Proof(_))));
    let vkey = setting.log.signer.vkey();
    assert!(Trust::new("other.example", setting.world.governance, &vkey).is_err());
}

#[test]
fn a_logged_record_is_still_judged() {
    // The directory logs a record whose signature is wrong: included, not believed.
    let mut setting = setting();
    let mut record = setting.world.first_record(1);
    record.signature = Bytes::from_static(&[1; 64]);
    setting.relog(record);
    let error = setting.find(setting.lookup.clone()).unwrap_err();
    assert_eq!(error, Error::Record("the record's signature is wrong"));

    // An authority for one scheme does not vouch for the scheme addressed.
    let mut setting = self::setting();
    let both = Authority {
        authority: "enrol".parse().unwrap(),
        key: (&setting.world.authority).into(),
        schemes: ["be-nn".parse().unwrap(), "e164".parse().unwrap()].into(),
    };
    setting.world.decide(Decision::Authority(both));
    let mut attestation = setting.world.attestation();
    attestation.scheme = "e164".parse().unwrap();
    let mut draft = setting.world.draft(1, None);
    draft.attestation = attestation.sign(&setting.world.authority);
    setting.relog(draft.sign(&setting.world.account));
    assert_eq!(setting.find(setting.lookup.clone()).unwrap_err(), Error::AuthorityNotAdmitted);

    // An attestation that had expired when the record was logged.
    let mut setting = self::setting();
    let mut attestation = setting.world.attestation();
    attestation.expires_at = NOW;
    let mut draft = setting.world.draft(1, None);
    draft.attestation = attestation.sign(&setting.world.authority);
    setting.relog(draft.sign(&setting.world.account));
    assert_eq!(setting.find(setting.lookup.clone()).unwrap_err(), Error::AttestationExpired);
}

impl Setting {
    /// Puts another record in the place of the logged one.
    fn relog(&mut self, record: wire::SignedRecord) {
        let change = RecordChange::new(&self.world.handle, None, &[6; 32], &record);
        let leaf = Leaf::new(&Entry { sequenced_at: NOW, event: Event::RecordChange(change) }).unwrap();
        self.log.leaves[3] = leaf;
        let logged = &mut self.lookup.buckets[0].records[0];
        logged.record = Some(record);
        logged.inclusion = Some(self.log.inclusion(3));
        self.lookup.checkpoint = self.log.checkpoint().note().clone();
    }
}

#[test]
fn statements_are_verified_one_by_one() {
    let setting = setting();
    let good = setting.statements();
    let (checkpoint, state) = setting.trust.verify_statements(good.clone()).unwrap();
    assert_eq!(checkpoint.size(), 4);
    assert_eq!(state.in_force(), [0, 1, 2]);
    assert_eq!(state.evaluators(), setting.world.state.evaluators());

    let refused = |change: &dyn Fn(&mut wire::ListStatementsResponse)| {
        let mut response = good.clone();
        change(&mut response);
        setting.trust.verify_statements(response).unwrap_err()
    };
    let record_entry = setting.log.leaves[3].bytes().clone();
    assert!(matches!(refused(&|r| r.statements.swap(0, 1)), Error::Proof(_)));
    assert!(matches!(refused(&|r| r.statements[1].inclusion = None), Error::Proof(_)));
    assert!(matches!(refused(&|r| r.statements[1].entry = record_entry.clone()), Error::Proof(_)));
    assert!(matches!(refused(&|r| r.checkpoint = Bytes::new()), Error::Proof(_)));

    // Logged by the directory itself, without governance.
    let Event::Statement(statement) = setting.world.log[0].clone() else { panic!("no statement") };
    let own = crate::governance::sign(
        &crate::governance::verify(&statement, FEDERATION, &setting.world.governance)
            .unwrap()
            .into_statement(),
        &[&keys::generate(&setting.world.entropy)],
    );
    let mut log = Log { leaves: vec![], signer: setting.log.signer };
    let entry = Entry { sequenced_at: NOW, event: Event::Statement(own) };
    log.leaves.push(Leaf::new(&entry).unwrap());
    let response = wire::ListStatementsResponse {
        statements: vec![wire::LoggedStatement {
            entry: log.leaves[0].bytes().clone(),
            inclusion: Some(log.inclusion(0)),
        }],
        checkpoint: log.checkpoint().note().clone(),
    };
    assert!(matches!(setting.trust.verify_statements(response), Err(Error::NotGoverned { .. })));
}

#[test]
fn a_publication_is_what_was_sent() {
    use wire::record_operation_result::Result as Outcome;
    let setting = setting();
    let logged = setting.lookup.buckets[0].records[0].clone();
    let sent = logged.record.clone().unwrap();
    let result = wire::RecordOperationResult {
        result: Some(Outcome::Logged(logged)),
        checkpoint: setting.lookup.checkpoint.clone(),
        padding: Bytes::new(),
    };
    assert_eq!(setting.trust.verify_publication(result.clone(), &sent).unwrap().index, 3);
    let other = setting.world.draft(1, Some(9)).sign(&setting.world.account);
    let refusal = setting.trust.verify_publication(result, &other).unwrap_err();
    assert_eq!(refusal.reason, Reason::InvalidProof);
    let refused = wire::RecordRefusal { reason: "ATTESTATION_EXPIRED".to_owned(), message: "no".to_owned() };
    let result =
        wire::RecordOperationResult { result: Some(Outcome::Refusal(refused)), ..Default::default() };
    let refusal = setting.trust.verify_publication(result, &sent).unwrap_err();
    assert_eq!(refusal.reason, Reason::AttestationExpired);
}
