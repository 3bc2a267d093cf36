//! Governance statements and the proofs about the log.

use crate::mesh::{Backend, FEDERATION, Setting, on_both, refusal};
use chancery_directory::governance;
use chancery_directory_core::ceremony::{Party, Plan};
use chancery_directory_core::statement::{Decision, DirectoryKeys};
use chancery_proto::directory::v1 as wire;
use chancery_types::Reason;

on_both!(
    a_statement_is_logged_once_and_replaces_the_last,
    what_is_not_governed_is_refused,
    checkpoints_extend_each_other
);

fn keys(bits: u32) -> Decision {
    Decision::DirectoryKeys(DirectoryKeys { hpke_public_key: [7; 32], lookup_prefix_bits: bits })
}

fn submit(statement: wire::SignedStatement) -> wire::SubmitStatementRequest {
    wire::SubmitStatementRequest { statement: Some(statement) }
}

async fn a_statement_is_logged_once_and_replaces_the_last(backend: Backend) {
    let setting = Setting::new(backend).await;
    let mut client = setting.client.clone();
    let statement = setting.mesh.sign(keys(12));
    let first = client.submit_statement(submit(statement.clone())).await.unwrap().into_inner();
    let again = client.submit_statement(submit(statement)).await.unwrap().into_inner();
    assert_eq!((first.index, again.index), (5, 5));
    let listed = client.list_statements(wire::ListStatementsRequest { start: 0 }).await.unwrap().into_inner();
    let (checkpoint, state) = setting.trust.verify_statements(listed).unwrap();
    assert_eq!(checkpoint.size(), 6);
    assert_eq!(state.in_force(), [1, 2, 3, 5], "the keys at 4 were replaced");
    assert_eq!(state.lookup_prefix_bits(), 12);
    // As an operator hands it in, without a certificate.
    let statement = setting.mesh.sign(keys(13));
    for _ in 0..2 {
        let (endpoint, credentials) = (&setting.directory.endpoint, setting.mesh.anonymous());
        let index = governance::submit(statement.clone(), endpoint, credentials, &setting.trust).await;
        assert_eq!(index.unwrap(), 6);
    }
    let later = client.list_statements(wire::ListStatementsRequest { start: 3 }).await.unwrap().into_inner();
    assert_eq!(later.statements.len(), 2);
}

async fn what_is_not_governed_is_refused(backend: Backend) {
    let setting = Setting::new(backend).await;
    let mut client = setting.client.clone();
    let mut refused = async |statement| refusal(client.submit_statement(submit(statement)).await).reason;
    let one = [&setting.mesh.governors[0]];
    let entropy = &*setting.mesh.entropy;
    assert_eq!(refused(governance::decide(FEDERATION, keys(8), &one, entropy)).await, Reason::NotGoverned);
    let both: Vec<_> = setting.mesh.governors.iter().collect();
    let foreign = governance::decide("other.example", keys(8), &both, entropy);
    assert_eq!(refused(foreign).await, Reason::InvalidField);
    let parties = vec![Party {
        index: 2,
        evaluator: "e1".parse().unwrap(),
        key: setting.state.evaluators().unwrap().evaluators[0].key,
        endpoints: vec!["localhost:1".to_owned()],
        tls_key_pin: [9; 32],
    }];
    let plan = Plan { key_epoch: 1, generation: 2, threshold: 1, parties };
    assert_eq!(refused(setting.mesh.sign(Decision::CeremonyPlan(plan))).await, Reason::InvalidField);
    let checkpoint = client.fetch_checkpoint(wire::FetchCheckpointRequest {}).await.unwrap().into_inner();
    assert_eq!(setting.trust.verify_checkpoint(&checkpoint.checkpoint).unwrap().size(), 5);
    let none = wire::SubmitStatementRequest { statement: None };
    assert_eq!(refusal(client.submit_statement(none).await).reason, Reason::InvalidField);
}

async fn checkpoints_extend_each_other(backend: Backend) {
    let setting = Setting::new(backend).await;
    let mut client = setting.client.clone();
    let mut heads = Vec::new();
    for bits in 9..14 {
        let answer = client.submit_statement(submit(setting.mesh.sign(keys(bits)))).await.unwrap();
        heads.push(setting.trust.verify_checkpoint(&answer.into_inner().checkpoint).unwrap());
    }
    for (position, newer) in heads.iter().enumerate() {
        for older in &heads[..=position] {
            let sizes = wire::ProveConsistencyRequest { old_size: older.size(), new_size: newer.size() };
            let path = client.prove_consistency(sizes).await.unwrap().into_inner().path;
            newer.extends(older, &path).unwrap();
        }
    }
    for (old_size, new_size) in [(0, 5), (6, 5), (5, 100), (u64::MAX, u64::MAX)] {
        let sizes = wire::ProveConsistencyRequest { old_size, new_size };
        assert_eq!(refusal(client.prove_consistency(sizes).await).reason, Reason::InvalidField);
    }
    let beyond = wire::ListEntriesRequest { start: u64::MAX, limit: u32::MAX };
    assert!(client.list_entries(beyond).await.unwrap().into_inner().entries.is_empty());
}
