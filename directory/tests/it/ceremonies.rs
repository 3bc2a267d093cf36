//! Evaluators that hold ceremonies over their own calls, are lost and replaced.

use crate::mesh::{Backend, Certified, Mesh, Server, Setting, client, refusal};
use chancery_directory::DirectoryError;
use chancery_directory_core::entry::{Event, Leaf};
use chancery_directory_core::statement::Decision;
use chancery_directory_core::totals::{EvaluationTotals, Total};
use chancery_directory_core::{Blinded, EvaluatorEpoch};
use chancery_kit::status::from_status;
use chancery_kit::tls::connect;
use chancery_pki_core::Party;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::ceremony_service_client::CeremonyServiceClient;
use chancery_proto::directory::v1::evaluator_service_client::EvaluatorServiceClient;
use chancery_types::{Handle, Identifier, Reason};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

async fn ceremonies(mesh: &Mesh, id: &str, server: &Server) -> CeremonyServiceClient<Channel> {
    let party = Party::Evaluator(id.parse().unwrap());
    CeremonyServiceClient::new(connect(&server.endpoint, party, mesh.anonymous()).await.unwrap().0)
}

/// A member's node, which asks evaluators.
struct Asker(Certified);

impl Asker {
    async fn admitted(mesh: &Mesh, directory: &Server) -> Self {
        let node = mesh.certify(&Party::Node("federal".parse().unwrap()));
        let statement = Some(mesh.sign(mesh.member("federal", &node)));
        let mut client = client(directory, mesh.anonymous()).await;
        client.submit_statement(wire::SubmitStatementRequest { statement }).await.unwrap();
        Self(node)
    }

    async fn evaluate(
        &self,
        (id, server): (&str, &Server),
        request: wire::EvaluateRequest,
    ) -> Result<wire::EvaluateResponse, Reason> {
        let party = Party::Evaluator(id.parse().unwrap());
        let (channel, _) = connect(&server.endpoint, party, Arc::clone(&self.0.credentials)).await.unwrap();
        let answer = EvaluatorServiceClient::new(channel).evaluate(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| from_status(&status).reason)
    }

    /// The handle of a number, by these evaluators.
    async fn handle(&self, mesh: &Mesh, epoch: &EvaluatorEpoch, evaluators: &[(&str, &Server)]) -> Handle {
        let identifier = Identifier::parse("e164", "+32470123456").unwrap();
        let blinded = Blinded::new(&[identifier], &*mesh.entropy).unwrap();
        let mut answers = Vec::new();
        for evaluator in evaluators {
            answers.push(self.evaluate(*evaluator, blinded.request(epoch)).await.unwrap());
        }
        blinded.finish(&answers, epoch).unwrap().remove(0).0
    }
}

fn files(mesh: &Mesh, id: &str) -> Vec<String> {
    let names = std::fs::read_dir(mesh.evaluator_folder(id)).unwrap();
    let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_lost_evaluator_is_replaced_and_handles_stay() {
    let mesh = Mesh::new(Backend::Sqlite);
    let directory = mesh.directory();
    let [e1, e2, e3] = ["e1", "e2", "e3"].map(|id| mesh.evaluator(id, &directory));
    let federal = Asker::admitted(&mesh, &directory).await;
    let plan = mesh.plan((1, 1, 2), &[(1, "e1", &e1), (2, "e2", &e2), (3, "e3", &e3)]);
    let first = mesh.hold(plan.clone(), &directory).await.unwrap();
    assert_eq!((first.index, first.epoch.evaluators.len(), first.absent.len()), (2, 3, 0));
    let before = federal.handle(&mesh, &first.epoch, &[("e1", &e1), ("e2", &e2)]).await;
    assert_eq!(federal.handle(&mesh, &first.epoch, &[("e3", &e3), ("e2", &e2)]).await, before);

    e3.kill();
    let e4 = mesh.evaluator("e4", &directory);
    let plan = mesh.plan((1, 2, 2), &[(1, "e1", &e1), (2, "e2", &e2), (4, "e4", &e4)]);
    let second = mesh.hold(plan.clone(), &directory).await.unwrap();
    let absent: Vec<_> = second.absent.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!((second.index, absent), (3, vec!["e3"]));
    assert_eq!((second.epoch.generation, second.epoch.public_key), (2, first.epoch.public_key));
    assert_eq!(federal.handle(&mesh, &second.epoch, &[("e2", &e2), ("e4", &e4)]).await, before);
    assert_eq!(federal.handle(&mesh, &second.epoch, &[("e1", &e1), ("e4", &e4)]).await, before);

    // Nobody answers under the old generation any more, and its shares are gone.
    let old = wire::EvaluateRequest { key_epoch: 1, generation: 1, blinded_elements: vec![] };
    for evaluator in [("e1", &e1), ("e2", &e2), ("e4", &e4)] {
        let refused = federal.evaluate(evaluator, old.clone()).await.err();
        assert_eq!(refused, Some(Reason::WrongKeyEpoch));
        let mut files = files(&mesh, evaluator.0);
        files.retain(|name| !name.starts_with("evaluator.sqlite"));
        assert_eq!(files, ["evaluator.key", "share-1.toml"]);
        let share = std::fs::read_to_string(mesh.evaluator_folder(evaluator.0).join("share-1.toml")).unwrap();
        assert!(share.contains("generation = 2"), "{share}");
    }
    // Held again, it does not follow any more.
    let again = mesh.hold(plan, &directory).await;
    assert!(matches!(again, Err(DirectoryError::Core(_))));

    // The directory and an evaluator start again and know where they are.
    drop(e1);
    directory.kill();
    let directory = mesh.directory();
    let e1 = mesh.evaluator("e1", &directory);
    assert_eq!(federal.handle(&mesh, &second.epoch, &[("e1", &e1), ("e2", &e2)]).await, before);
}

#[tokio::test]
async fn an_evaluator_says_the_same_after_a_restart_and_deals_once() {
    let mesh = Mesh::new(Backend::Sqlite);
    let directory = mesh.directory();
    let [e1, e2, e3] = ["e1", "e2", "e3"].map(|id| mesh.evaluator(id, &directory));
    let plan = mesh.plan((1, 1, 2), &[(1, "e1", &e1), (2, "e2", &e2), (3, "e3", &e3)]);
    let mut joins = Vec::new();
    for (id, server) in [("e1", &e1), ("e2", &e2), ("e3", &e3)] {
        let request = wire::JoinRequest { plan: Some(plan.clone()) };
        let joined = ceremonies(&mesh, id, server).await.join(request).await.unwrap();
        joins.push(joined.into_inner().join.unwrap());
    }
    let id = sha2(&plan.statement);
    let deal = |joins: &[wire::SignedCeremonyMessage]| wire::DealRequest {
        ceremony: id.clone(),
        joins: joins.to_vec(),
    };
    let mut client = ceremonies(&mesh, "e1", &e1).await;
    let dealt = client.deal(deal(&joins[..2])).await.unwrap().into_inner().dealing;

    e1.kill();
    let e1 = mesh.evaluator("e1", &directory);
    let mut client = ceremonies(&mesh, "e1", &e1).await;
    assert!(client.deal(deal(&joins[..2])).await.unwrap().into_inner().dealing == dealt);
    let request = wire::JoinRequest { plan: Some(plan.clone()) };
    assert!(client.join(request).await.unwrap().into_inner().join == Some(joins[0].clone()));
    assert_eq!(refusal(client.deal(deal(&joins)).await).reason, Reason::RequestIdReused);

    // Joins that nobody signed, and a ceremony that nobody planned.
    let mut forged = joins.clone();
    forged[1].signature = forged[0].signature.clone();
    assert_eq!(refusal(client.deal(deal(&forged)).await).reason, Reason::InvalidCeremony);
    let unknown = wire::DealRequest { ceremony: vec![7; 32].into(), joins };
    assert_eq!(refusal(client.deal(unknown).await).reason, Reason::InvalidCeremony);
    let mut unsigned = plan;
    unsigned.signatures.truncate(1);
    let request = wire::JoinRequest { plan: Some(unsigned) };
    assert_eq!(refusal(client.join(request).await).reason, Reason::NotGoverned);
}

/// Somebody admitted tries numbers one after the other.
#[tokio::test]
async fn guesses_run_into_the_quota_and_the_log_shows_it() {
    const BATCH: usize = 1_000;
    let setting = Setting::new(Backend::Sqlite).await;
    let federal = Asker(setting.federal.clone());
    let epoch = setting.state.evaluators().unwrap();
    let numbers: Vec<_> = (0..BATCH)
        .map(|n| Identifier::parse("e164", &format!("+32470{:06}", 120_000 + n)).unwrap())
        .collect();
    let request = Blinded::new(&numbers, &*setting.mesh.entropy).unwrap().request(epoch);
    let mut answered = 0;
    for _ in 0..100 {
        match federal.evaluate(("e1", &setting.evaluator), request.clone()).await {
            Ok(_) => answered += BATCH,
            Err(reason) => assert_eq!(reason, Reason::QuotaExceeded),
        }
    }
    assert_eq!(answered, 10_000);

    // The day is over; started again, the evaluator hands its totals in at once.
    setting.mesh.clock.advance(Duration::from_secs(86_400));
    let Setting { mesh, directory, evaluator, mut client, state, .. } = setting;
    evaluator.kill();
    let evaluator = mesh.evaluator("e1", &directory);
    let (entry, index) = loop {
        let request = wire::ListEntriesRequest { start: 5, limit: 1 };
        let entries = client.list_entries(request).await.unwrap().into_inner().entries;
        if let Some(entry) = entries.into_iter().next() {
            break (entry, 5);
        }
        tokio::task::yield_now().await;
    };
    let Event::EvaluationTotals(signed) = Leaf::from_bytes(entry).unwrap().entry().unwrap().event else {
        panic!("entry {index} holds no totals");
    };
    let totals = EvaluationTotals::verify(&signed, &state, chancery_types::Clock::now(&*mesh.clock)).unwrap();
    let total = Total { evaluated: 10_000, refused: 90_000 };
    assert_eq!(totals.totals, [("federal".parse().unwrap(), total)].into());
    // Handed in again they are where they were; others of the day are refused.
    let submit = |totals| wire::SubmitEvaluationTotalsRequest { totals: Some(totals) };
    let again = client.submit_evaluation_totals(submit(signed.clone())).await.unwrap();
    assert_eq!(again.into_inner().index, index);
    let mut forged = signed;
    forged.signature = vec![0; 64].into();
    assert_eq!(refusal(client.submit_evaluation_totals(submit(forged)).await).reason, Reason::InvalidField);
    // A new day.
    federal.evaluate(("e1", &evaluator), request).await.unwrap();
}

fn sha2(bytes: &[u8]) -> bytes::Bytes {
    use sha2::Digest as _;
    bytes::Bytes::copy_from_slice(&sha2::Sha256::digest(bytes))
}

#[tokio::test]
async fn a_certificate_alone_makes_nobody_an_evaluator() {
    let mesh = Mesh::new(Backend::Sqlite);
    let directory = mesh.directory();
    let servers = ["e1", "e2", "e3"].map(|id| mesh.evaluator(id, &directory));
    let named: Vec<_> = (1..).zip(["e1", "e2", "e3"]).zip(&servers).map(|((i, id), s)| (i, id, s)).collect();
    let mut plan = mesh.draft_plan((1, 1, 2), &named);
    // Whoever answers for e3 has a certificate for it, and another key than governance planned.
    plan.parties[2].tls_key_pin = mesh.certify(&Party::Evaluator("e3".parse().unwrap())).key_pin;
    let held = mesh.hold(mesh.sign(Decision::CeremonyPlan(plan)), &directory).await.unwrap();
    let absent: Vec<_> = held.absent.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(absent, ["e3"]);
    assert_eq!(held.epoch.evaluators.len(), 2);
}
