//! Callers that send rubbish, too much of it, or do not say who they are: to
//! every method of every service that the contract knows.

use bytes::Bytes;
use chancery_interop_tests::agent;
use chancery_interop_tests::mesh::{Mesh, id};
use chancery_interop_tests::party::{Agent, Device, Registry, person_number, reason};
use chancery_interop_tests::raw::{self, Method};
use chancery_interop_tests::rogue::{Rogue, answer};
use chancery_kit::serve::REFUSALS;
use chancery_kit::tls::connect;
use chancery_pki_core::Party;
use chancery_proto::agent::v1 as wire;
use chancery_proto::directory::v1 as directory;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_proto::directory::v1::evaluator_service_client::EvaluatorServiceClient;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as node;
use chancery_proto::node::v1::mailbox_service_client::MailboxServiceClient;
use chancery_proto::pki::v1::EnrolRequest;
use chancery_proto::pki::v1::enrolment_service_client::EnrolmentServiceClient;
use chancery_types::entropy::SeededEntropy;
use chancery_types::{Entropy, GroupId, Reason};
use futures::stream::{self, StreamExt as _};
use std::collections::BTreeMap;
use tonic::Code;
use tonic::transport::Channel;

/// Calls at the same time.
const AT_ONCE: usize = 16;

/// Where the services are, each with a caller that gets as far as it can.
async fn channels(mesh: &Mesh, federal: &Agent, registry: &Registry) -> BTreeMap<&'static str, Channel> {
    let regional = &mesh.nodes["regional"].credentials;
    let to = async |address: &str, party: Party| connect(address, party, regional.clone()).await.unwrap().0;
    let agent = tonic::transport::Endpoint::from_shared(format!("http://{}", federal.address)).unwrap();
    BTreeMap::from([
        ("chancery.agent", agent.connect().await.unwrap()),
        ("chancery.directory.v1.DirectoryService", to(&mesh.directory_address, Party::Directory).await),
        (
            "chancery.directory.v1.EvaluatorService",
            to(&mesh.evaluators[0].1, Party::Evaluator(id("e1"))).await,
        ),
        (
            "chancery.directory.v1.CeremonyService",
            to(&mesh.evaluators[0].1, Party::Evaluator(id("e1"))).await,
        ),
        ("chancery.directory.v1.EnrolmentService", to(&registry.address.endpoint, registry.party()).await),
        ("chancery.federation", mesh.channel("federal", regional.clone()).await),
        ("chancery.node", Rogue::new(mesh, "federal").await.channel),
        ("chancery.pki", to(&mesh.pki_address, Party::Pki).await),
    ])
}

fn channel_of<'a>(channels: &'a BTreeMap<&'static str, Channel>, method: &Method) -> &'a Channel {
    let found = channels.iter().find(|(service, _)| method.service.starts_with(**service));
    found.unwrap_or_else(|| panic!("nobody serves {}", method.service)).1
}

/// Bodies that no client would send: random ones, and some that parse as
/// protobuf until they do not.
fn bodies(entropy: &dyn Entropy) -> Vec<Vec<Bytes>> {
    let random = |length: usize| {
        let mut bytes = vec![0; length];
        entropy.fill(&mut bytes);
        bytes
    };
    let mut bodies = vec![
        vec![],
        vec![Bytes::new()],
        vec![Bytes::from_static(&[0xff; 11])],
        // A field that says it is 4 GiB long.
        vec![Bytes::from_static(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f])],
        // Groups without an end.
        vec![vec![0x0b; 4096].into()],
    ];
    for length in [1, 17, 300, 70_000] {
        bodies.push(vec![random(length).into()]);
    }
    for field in 1..6 {
        // One field of bytes, and that field nested.
        let inner = random(32);
        let nested = [&[field << 3 | 2, 32][..], &inner].concat();
        let outer = [&[field << 3 | 2, 34][..], &nested].concat();
        bodies.push(vec![nested.into(), outer.clone().into(), outer.into()]);
        bodies.push(vec![[&[field << 3][..], &[0xff; 9], &[1]].concat().into()]);
    }
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_to_every_method_change_nothing() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let _regional = Agent::start(&mut mesh, "regional").await;
    let to = person_number(1);
    let person = Device::enrol(&mesh, "regional", &to, "person").await.live();
    let registry = Registry::start(&mesh, "federal").await;
    let channels = channels(&mesh, &federal, &registry).await;
    let methods = raw::methods();
    assert!(methods.len() >= 35, "only {} methods", methods.len());
    let entropy = SeededEntropy::new(7);
    let calls: Vec<_> = methods
        .iter()
        .flat_map(|method| bodies(&entropy).into_iter().map(move |body| (method, body)))
        .collect();
    let calls = calls.into_iter().map(|(method, body)| {
        let channel = channel_of(&channels, method);
        async move { (method, raw::call(channel, method, body).await.1) }
    });
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    let mut codes = stream::iter(calls).buffer_unordered(AT_ONCE);
    while let Some((method, code)) = codes.next().await {
        // A method that is missing, or a server that is gone, would prove nothing.
        assert!(!matches!(code, Code::Unimplemented | Code::Unavailable), "{} {code}", method.path);
        *refused.entry(&method.path).or_default() += usize::from(code != Code::Ok);
    }
    for method in &methods {
        // What has no required field takes even rubbish that happens to parse.
        assert!(refused[method.path.as_str()] >= 3, "{} takes anything", method.path);
    }
    // Node, directory, evaluator, PKI and agent go on.
    let mut client = agent::connect(&federal.address).await;
    client.send(agent::request(&agent::request_id(1), &to, "Still here?")).await.unwrap();
    let item = person.inbox(1).await.remove(0);
    person.answer(&item, "Still here.").await;
    agent::reached(&mut client, &agent::request_id(1), wire::EventKind::Answered).await;
    let late = person_number(2);
    Device::enrol(&mesh, "regional", &late, "late").await;
    client.send(agent::request(&agent::request_id(2), &late, "Welcome")).await.unwrap();
    mesh.fetch_revocations("federal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_to_callers_who_do_not_say_who_they_are() {
    let mesh = Mesh::with_nodes().await;
    let before = REFUSALS.count(Reason::NotAuthenticated);
    let node = mesh.channel("federal", mesh.anonymous()).await;
    let directory = connect(&mesh.directory_address, Party::Directory, mesh.anonymous()).await.unwrap().0;
    let evaluator = Party::Evaluator(id("e1"));
    let evaluator = connect(&mesh.evaluators[0].1, evaluator, mesh.anonymous()).await.unwrap().0;
    let pki = connect(&mesh.pki_address, Party::Pki, mesh.anonymous()).await.unwrap().0;
    let mut asked = 0;
    for method in raw::methods() {
        let name = method.path.rsplit('/').next().unwrap();
        // Open by design: these prove who calls, read what is public, or carry their own signatures.
        let open = [
            "OpenAccount",
            "Authenticate",
            "FetchCheckpoint",
            "ListEntries",
            "ProveConsistency",
            "ListStatements",
            "ListChannels",
            "SubmitStatement",
            "SubmitCeremony",
            "SubmitEvaluationTotals",
            "Join",
            "Deal",
            "Judge",
            "Conclude",
            "Enrol",
            "FetchRevocations",
        ];
        // A record operation goes through any node, without saying whose it is.
        if method.service.starts_with("chancery.agent")
            || (open.contains(&name) && !method.service.contains("Relay"))
            || method.path == "/chancery.node.v1.RelayService/Publish"
            // Claims carry their own signatures.
            || method.service == "chancery.directory.v1.EnrolmentService"
        {
            continue;
        }
        let channel = match method.service.as_str() {
            "chancery.directory.v1.DirectoryService" => &directory,
            "chancery.directory.v1.EvaluatorService" => &evaluator,
            "chancery.pki.v1.EnrolmentService" => &pki,
            _ => &node,
        };
        let (answers, code) = raw::call(channel, &method, vec![Bytes::new()]).await;
        assert_eq!((answers, code), (0, Code::Unauthenticated), "{}", method.path);
        asked += 1;
    }
    assert!(asked >= 20, "only {asked} methods");
    assert!(REFUSALS.count(Reason::NotAuthenticated) >= before + asked);
    Rogue::new(&mesh, "federal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_fields_are_refused() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let to = person_number(1);
    let person = Device::enrol(&mesh, "federal", &to, "person").await.live();
    let before = REFUSALS.count(Reason::TooLarge);

    let rogue = Rogue::new(&mesh, "federal").await;
    let submission = rogue.submission(&mesh, GroupId::from_bytes([1; 32]), 0);
    let long = federation::Submission {
        body: Some(federation::submission::Body::Application(vec![0; 256 * 1024 + 1].into())),
        ..submission.clone()
    };
    assert_eq!(reason(rogue.submit(long).await), Reason::TooLarge);
    let many = node::SubmitRequest { submissions: vec![submission; 129], store_count: 0 };
    let mut mailbox = MailboxServiceClient::new(rogue.channel.clone());
    assert_eq!(reason(answer(mailbox.submit(many).await)), Reason::TooLarge);
    let receipts = node::AcknowledgeRequest {
        alias: rogue.alias.to_wire(),
        through: 0,
        receipts: vec![Bytes::new(); 257],
        ..Default::default()
    };
    assert_eq!(reason(answer(mailbox.acknowledge(receipts).await)), Reason::TooLarge);
    let package = [&[0, 1, 0, 5, 0, 1, 0, 1][..], &[0; 16 * 1024]].concat().into();
    assert_eq!(reason(rogue.publish_key_packages(rogue.alias, vec![package]).await), Reason::TooLarge);
    // A message over 4 MiB is not even read.
    let huge = node::AcknowledgeRequest { receipts: vec![vec![0; 5_000_000].into()], ..Default::default() };
    let Err(status) = mailbox.acknowledge(huge).await else { panic!("not refused") };
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");

    let mut client = agent::connect(&federal.address).await;
    let plain = || agent::request(&agent::request_id(1), &to, "A letter");
    let attachment = |length: usize, name: &str| wire::Attachment {
        file_name: name.to_owned(),
        media_type: "text/plain".to_owned(),
        source: Some(wire::attachment::Source::Data(vec![0; length].into())),
    };
    for (attachments, expected) in [
        (vec![attachment(1024 * 1024 + 1, "a.txt")], Reason::TooLarge),
        (vec![attachment(1, "a.txt"); 17], Reason::TooLarge),
        (vec![attachment(1, &"a".repeat(256))], Reason::InvalidField),
    ] {
        let mut request = plain();
        request.letter.as_mut().unwrap().attachments = attachments;
        assert_eq!(reason(answer(client.send(request).await)), expected);
    }
    let late = wire::SendRequest { expires_at_ms: i64::MAX, ..plain() };
    assert_eq!(reason(answer(client.send(late).await)), Reason::InvalidField);
    assert!(REFUSALS.count(Reason::TooLarge) >= before + 6);

    outer_services(&mesh).await;
    client.send(plain()).await.unwrap();
    person.inbox(1).await;
}

/// Directory, evaluator and PKI.
async fn outer_services(mesh: &Mesh) {
    let node = &mesh.nodes["federal"].credentials;
    let channel = connect(&mesh.directory_address, Party::Directory, node.clone()).await.unwrap().0;
    let lookup = directory::LookupRequest { prefixes: vec![Bytes::from_static(&[0]); 257] };
    let refused = answer(DirectoryServiceClient::new(channel.clone()).lookup(lookup).await);
    assert_eq!(reason(refused), Reason::InvalidField);
    let publish = directory::PublishRequest {
        encapsulated_key: vec![0; 32].into(),
        ciphertext: vec![0; 16 * 1024 + 1].into(),
    };
    let refused = answer(DirectoryServiceClient::new(channel).publish(publish).await);
    assert_eq!(reason(refused), Reason::TooLarge);

    let party = Party::Evaluator(id("e1"));
    let channel = connect(&mesh.evaluators[0].1, party, node.clone()).await.unwrap().0;
    let evaluate = directory::EvaluateRequest {
        key_epoch: 1,
        generation: 1,
        blinded_elements: vec![Bytes::from_static(&[0; 32]); 1001],
    };
    let refused = answer(EvaluatorServiceClient::new(channel).evaluate(evaluate).await);
    assert!(matches!(reason(refused), Reason::TooLarge | Reason::InvalidField));

    let channel = connect(&mesh.pki_address, Party::Pki, mesh.anonymous()).await.unwrap().0;
    let enrol = EnrolRequest { csr_der: vec![0x30; 8 * 1024 + 1].into(), join_token: "x".repeat(5000) };
    let refused = answer(EnrolmentServiceClient::new(channel).enrol(enrol).await);
    assert_eq!(reason(refused), Reason::TooLarge);
}
