//! A directory that lies about what governs, or about what it logged.

use super::*;
use crate::keys;
use crate::note::CheckpointSigner;
use crate::testing::{FEDERATION, Log, NOW, World};
use bytes::Bytes;
use chancery_types::Timestamp;
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
    assert_eq!(
        [admitted(NOW), admitted(NOW.before(std::time::Duration::from_millis(1)))],
        [Some(0), Some(1)]
    );
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
fn an_answer_is_an_index_or_a_reason() {
    use wire::record_operation_result::Result as Outcome;
    let read = |result| read_publication(wire::RecordOperationResult { result, padding: Bytes::new() });
    let logged = wire::LoggedOperation { index: 7, pending: true };
    assert_eq!(read(Some(Outcome::Logged(logged))), Ok(Publication { index: 7, pending: true }));
    let refused = |reason: &str| {
        let refusal = wire::RecordRefusal { reason: reason.to_owned(), message: "no".repeat(400) };
        let refusal = read(Some(Outcome::Refusal(refusal))).unwrap_err();
        assert_eq!(refusal.message.len(), 500);
        refusal.reason
    };
    assert_eq!(refused("ATTESTATION_EXPIRED"), Reason::AttestationExpired);
    assert_eq!(refused("NEW_TO_US"), Reason::DirectoryMisbehaved);
    assert_eq!(read(None).unwrap_err().reason, Reason::DirectoryMisbehaved);
}
