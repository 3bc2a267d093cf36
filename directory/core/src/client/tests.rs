//! A directory that lies about what governs, or about what it logged.

use super::*;
use crate::entry::SALT_LENGTH;
use crate::keys;
use crate::note::CheckpointSigner;
use crate::testing::{FEDERATION, Log, NOW, World};
use bytes::Bytes;
use chancery_types::entropy::SeededEntropy;

fn setting() -> (World, Log, Trust) {
    let world = World::new(&SeededEntropy::new(11));
    let log = Log::new(&world);
    let trust = log.trust(&world);
    (world, log, trust)
}

#[test]
fn a_checkpoint_of_another_key_or_log_is_refused() {
    let (world, log, trust) = setting();
    let checkpoint = log.checkpoint();
    assert_eq!(trust.verify_checkpoint(checkpoint.note()).unwrap(), checkpoint);
    let other = CheckpointSigner::new(&note::origin(FEDERATION), keys::generate(&world.entropy)).unwrap();
    let forged = other.sign(checkpoint.size(), checkpoint.root()).unwrap();
    assert!(matches!(trust.verify_checkpoint(forged.note()), Err(Error::Proof(_))));
    assert!(Trust::new("other.example", world.governance, &log.signer.vkey()).is_err());
}

#[test]
fn statements_are_verified_one_by_one() {
    let (mut world, mut log, trust) = setting();
    let withdrawn = world.authority.clone();
    world.withdraw_authority("enrol", &withdrawn, NOW);
    log.append(NOW, world.log[3].clone());
    let root = log.append(NOW, Event::MapRoot(crate::map::Sum { items: 0, hash: [0; 32] }));
    let good = wire::ListStatementsResponse {
        statements: (0..4).map(|index| log.entry(index)).collect(),
        checkpoint: log.checkpoint().note().clone(),
    };
    let (checkpoint, state) = trust.verify_statements(good.clone()).unwrap();
    assert_eq!(checkpoint.size(), 5);
    // What was decided about an authority stays listed.
    assert_eq!(state.in_force(), [0, 1, 2, 3]);
    assert_eq!(state.evaluators(), world.state.evaluators());
    let admitted = |at| state.authority(&"enrol".parse().unwrap(), at).map(|a| a.schemes.len());
    assert_eq!([admitted(NOW), admitted(NOW.before(std::time::Duration::from_millis(1)))], [Some(0), Some(1)]);
    assert_eq!(admitted(Timestamp::from_millis(0)), None);

    let refused = |change: &dyn Fn(&mut wire::ListStatementsResponse)| {
        let mut response = good.clone();
        change(&mut response);
        trust.verify_statements(response).unwrap_err()
    };
    assert!(matches!(refused(&|r| r.statements.swap(0, 1)), Error::Proof(_)));
    assert!(matches!(refused(&|r| r.statements[1].inclusion = None), Error::Proof(_)));
    assert!(matches!(refused(&|r| r.statements[1].entry = log.entry(root).entry), Error::Proof(_)));
    assert!(matches!(refused(&|r| r.statements.push(log.entry(root))), Error::Proof(_)));
    assert!(matches!(refused(&|r| r.checkpoint = Bytes::new()), Error::Proof(_)));

    // Logged by the directory itself, without governance.
    let Event::Statement(statement) = world.log[0].clone() else { panic!("no statement") };
    let verified = governance::verify(&statement, FEDERATION, &world.governance).unwrap();
    let own = governance::sign(&verified.into_statement(), &[&keys::generate(&world.entropy)]);
    log.leaves.clear();
    log.append(NOW, Event::Statement(own));
    let response = wire::ListStatementsResponse {
        statements: vec![log.entry(0)],
        checkpoint: log.checkpoint().note().clone(),
    };
    assert!(matches!(trust.verify_statements(response), Err(Error::NotGoverned { .. })));
}

#[test]
fn a_publication_is_what_was_sent() {
    use wire::record_operation_result::Result as Outcome;
    let (world, mut log, trust) = setting();
    let sent = world.first_record(1);
    let salt = [6; SALT_LENGTH];
    let change = RecordChange::new(&world.handle, None, &salt, &sent);
    let index = log.append(NOW, Event::RecordChange(RecordChange { pending: true, ..change }));
    let logged = wire::LoggedRecord {
        body: Some(wire::RecordBody { record: Some(sent.clone()), salt: salt.to_vec().into() }),
        sequenced_at_ms: NOW.millis(),
        inclusion: log.entry(index).inclusion,
        pending: true,
        ends_index: None,
    };
    let verify = |logged: wire::LoggedRecord, sent: &wire::SignedRecord| {
        let checkpoint = log.checkpoint().note().clone();
        let result = Some(Outcome::Logged(logged));
        let result = wire::RecordOperationResult { result, checkpoint, padding: Bytes::new() };
        trust.verify_publication(result, sent).map_err(|refusal| refusal.reason)
    };
    let published = verify(logged.clone(), &sent).unwrap();
    assert_eq!((published.index, published.pending), (index, true));
    let lie = |change: &dyn Fn(&mut wire::LoggedRecord)| {
        let mut logged = logged.clone();
        change(&mut logged);
        assert!(verify(logged, &sent).is_err());
    };
    lie(&|l| l.pending = false);
    lie(&|l| l.ends_index = Some(1));
    lie(&|l| l.sequenced_at_ms += 1);
    lie(&|l| l.inclusion = None);
    lie(&|l| l.body.as_mut().unwrap().salt = Bytes::new());
    let other = world.draft(1, Some(2)).sign(&world.account);
    assert_eq!(verify(logged, &other).unwrap_err(), Reason::InvalidProof);

    let refused = wire::RecordRefusal { reason: "ATTESTATION_EXPIRED".to_owned(), message: "no".to_owned() };
    let result =
        wire::RecordOperationResult { result: Some(Outcome::Refusal(refused)), ..Default::default() };
    assert_eq!(trust.verify_publication(result, &sent).unwrap_err().reason, Reason::AttestationExpired);
}
