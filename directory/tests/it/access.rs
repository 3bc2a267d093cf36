//! Who may call what.

use crate::mesh::{Backend, Setting, client, refusal};
use bytes::Bytes;
use chancery_kit::tls::connect;
use chancery_pki_core::Party;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::evaluator_service_client::EvaluatorServiceClient;
use chancery_types::Reason;
use std::sync::Arc;

fn lookup() -> wire::LookupRequest {
    wire::LookupRequest { prefixes: vec![Bytes::from_static(&[0; 4])] }
}

fn publish() -> wire::PublishRequest {
    wire::PublishRequest { encapsulated_key: Bytes::new(), ciphertext: Bytes::new() }
}

#[tokio::test]
async fn records_are_for_member_nodes_under_their_pinned_keys() {
    let setting = Setting::new(Backend::Sqlite).await;
    let mesh = &setting.mesh;
    let node = |name: &str| Party::Node(name.parse().unwrap());
    let agent = Party::Agent { administration: "federal".parse().unwrap(), name: "letters".parse().unwrap() };
    let callers = [
        (mesh.anonymous(), Reason::NotAuthenticated),
        (mesh.certify(&agent).credentials, Reason::WrongIdentity),
        (mesh.certify(&node("stranger")).credentials, Reason::NotAMember),
        (mesh.certify(&node("federal")).credentials, Reason::WrongNodeKey),
    ];
    for (credentials, reason) in callers {
        let mut client = client(&setting.directory, credentials).await;
        assert_eq!(refusal(client.lookup(lookup()).await).reason, reason);
        assert_eq!(refusal(client.publish(publish()).await).reason, reason);
    }
    setting.client.clone().lookup(lookup()).await.unwrap();

    // Governance pins the new key: the node that shows it is let in.
    let renewed = mesh.certify(&node("federal"));
    let statement = Some(mesh.sign(mesh.member("federal", &renewed)));
    setting.client.clone().submit_statement(wire::SubmitStatementRequest { statement }).await.unwrap();
    client(&setting.directory, renewed.credentials).await.lookup(lookup()).await.unwrap();
    assert_eq!(refusal(setting.client.clone().lookup(lookup()).await).reason, Reason::WrongNodeKey);
}

#[tokio::test]
async fn anyone_may_audit() {
    let setting = Setting::new(Backend::Sqlite).await;
    let mut auditor = client(&setting.directory, setting.mesh.anonymous()).await;
    let checkpoint = auditor.fetch_checkpoint(wire::FetchCheckpointRequest {}).await.unwrap().into_inner();
    let checkpoint = setting.trust.verify_checkpoint(&checkpoint.checkpoint).unwrap();
    assert_eq!(checkpoint.size(), 5);
    let entries = auditor.list_entries(wire::ListEntriesRequest { start: 1, limit: 2 }).await.unwrap();
    assert_eq!(entries.into_inner().entries.len(), 2);
    auditor.list_statements(wire::ListStatementsRequest { start: 0 }).await.unwrap();
    auditor.prove_consistency(wire::ProveConsistencyRequest { old_size: 1, new_size: 4 }).await.unwrap();
}

#[tokio::test]
async fn evaluations_are_for_nodes() {
    let setting = Setting::new(Backend::Sqlite).await;
    let party = Party::Evaluator("e1".parse().unwrap());
    let call = async |credentials, request: wire::EvaluateRequest| {
        let (channel, _) = connect(&setting.evaluator.endpoint, party.clone(), credentials).await.unwrap();
        refusal(EvaluatorServiceClient::new(channel).evaluate(request).await).reason
    };
    let request = |epoch, element: &[u8]| wire::EvaluateRequest {
        key_epoch: epoch,
        generation: 1,
        blinded_elements: vec![Bytes::copy_from_slice(element)],
    };
    assert_eq!(call(setting.mesh.anonymous(), request(1, &[0; 32])).await, Reason::NotAuthenticated);
    let directory = setting.mesh.certify(&Party::Directory).credentials;
    assert_eq!(call(directory, request(1, &[0; 32])).await, Reason::WrongIdentity);
    let federal = || Arc::clone(&setting.federal.credentials);
    assert_eq!(call(federal(), request(2, &[0; 32])).await, Reason::WrongKeyEpoch);
    assert_eq!(call(federal(), request(1, &[0; 32])).await, Reason::InvalidElement);
    assert_eq!(call(federal(), request(1, &[0xff; 32])).await, Reason::InvalidElement);
    let many = wire::EvaluateRequest {
        key_epoch: 1,
        generation: 1,
        blinded_elements: vec![Bytes::from_static(&[1; 32]); 1_001],
    };
    assert_eq!(call(federal(), many).await, Reason::TooLarge);
}
