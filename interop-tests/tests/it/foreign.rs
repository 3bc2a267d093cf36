//! Another language, without generated code: Python with grpcio and the
//! agent's reflection alone (`foreign/letter.py`), and with the protocol's page alone
//! (`foreign/broadcast.py`).

use chancery_interop_tests::mesh::Mesh;
use chancery_interop_tests::party::{Agent, Device, person_number};
use chancery_interop_tests::program::{self, Program};
use chancery_interop_tests::{agent, letterbox};
use chancery_types::Identifier;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Python with the packages that `foreign/requirements.txt` names.
fn python() -> PathBuf {
    let python = std::env::var_os("CHANCERY_TEST_PYTHON").map(PathBuf::from);
    let python = python.unwrap_or_else(|| root().join("target/venv/bin/python"));
    assert!(
        python.is_file(),
        "{} is missing: `python3 -m venv target/venv && \
         target/venv/bin/pip install -r interop-tests/foreign/requirements.txt`, or name another in CHANCERY_TEST_PYTHON",
        python.display()
    );
    python
}

/// Runs the script; what it printed.
fn letter(address: &str, to: &Identifier, request_id: &str, more: &[&str]) -> Value {
    let output = std::process::Command::new(python())
        .arg(root().join("interop-tests/foreign/letter.py"))
        .args([address, to.scheme().as_str(), to.value(), request_id])
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What holds for every run of the script.
fn check(seen: &Value, to: &Identifier) {
    assert_eq!(seen["services"], json!(["chancery.agent.v1.AgentService", "grpc.health.v1.Health",]));
    // SERVING, REACHABILITY_REACHABLE
    assert_eq!((&seen["health"], &seen["reachability"]), (&json!(1), &json!(1)));
    assert_eq!(seen["same_again"], json!(true));
    let wrong = &seen["bad_identifier"];
    assert_eq!((&wrong["code"], &wrong["infos"]), (&json!("INVALID_ARGUMENT"), &json!(1)));
    assert_eq!((&wrong["reason"], &wrong["domain"]), (&json!("INVALID_IDENTIFIER"), &json!("chancery")));
    assert_eq!(wrong["metadata"], json!({"fault": "caller", "retry": "never"}));
    let reused = &seen["reused"];
    assert_eq!((&reused["code"], &reused["reason"]), (&json!("ALREADY_EXISTS"), &json!("REQUEST_ID_REUSED")));
    for refusal in [wrong, reused] {
        let message = refusal["message"].as_str().unwrap();
        assert!(!message.contains(to.value()) && !message.contains("85073003329"), "{message}");
    }
}

#[test]
fn pythons_reading_of_the_protocol_gives_the_vectors_of_broadcasts() {
    let script = root().join("interop-tests/foreign/broadcast.py");
    let output = std::process::Command::new(python()).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "33 values agree\n");
}

fn kinds(seen: &Value) -> Vec<&str> {
    seen["events"].as_array().unwrap().iter().map(|kind| kind.as_str().unwrap()).collect()
}

#[test]
fn python_writes_to_a_resident_of_a_running_federation() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("federation");
    let dir = folder.to_str().unwrap();
    let mut program = Program::start(&["up", "--residents", "12", "--port", "0", "--dir", dir]);
    program.wait_for("stays up");
    // The first resident of `deploy/local/recipients.csv`.
    let list = std::fs::read_to_string(root().join("deploy/local/recipients.csv")).unwrap();
    let row: Vec<&str> = list.lines().nth(1).unwrap().split(',').collect();
    let to = Identifier::parse(row[1], row[2]).unwrap();
    let address = program::address(&folder, "agent-federal");

    let seen = letter(&address, &to, &agent::request_id(1), &[]);
    check(&seen, &to);
    // Each goes its own way: they come in any order.
    let kinds: BTreeSet<&str> = kinds(&seen).into_iter().collect();
    let expected = ["ACCEPTED", "RELAYED", "DELIVERED", "READ"].map(|kind| format!("EVENT_KIND_{kind}"));
    assert_eq!(kinds, expected.iter().map(String::as_str).collect());
    // Two of twelve residents answered the mailing.
    let inbox = seen["inbox"].as_array().unwrap();
    assert_eq!(inbox.len(), 2);
    for answer in inbox {
        assert!(answer["markdown"].as_str().unwrap().starts_with("Thank you"));
        assert_eq!(answer["has_in_reply_to"], json!(true));
    }
    assert!(inbox.iter().any(|answer| answer["request_id"] == json!(agent::request_id(1))));

    assert!(program.is_up());
    assert!(program.interrupt().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn python_gets_the_answer_to_its_own_letter() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let _regional = Agent::start(&mut mesh, "regional").await;
    let to = person_number(1);
    let person = Device::enrol(&mesh, "regional", &to, "person").await.live();

    let (address, id) = (federal.address.clone(), agent::request_id(7));
    let script =
        tokio::task::spawn_blocking(move || (letter(&address, &to, &id, &["--wait-for-answer"]), to));
    let item = person.inbox(1).await.remove(0);
    let letter = letterbox::open_letter(&person.endpoint, &item);
    assert!(letter.markdown.starts_with("# From a stranger"));
    assert_eq!(letter.attachments[0].media_type, "image/svg+xml");
    assert_eq!(letter.attachments[0].plaintext_size(), 6000);
    person.endpoint.mark_read(vec![item.message_id], true).await.unwrap();
    person.answer(&item, "Understood, stranger.").await;

    let (seen, to) = script.await.unwrap();
    check(&seen, &to);
    let answer = json!({
        "markdown": "Understood, stranger.",
        "request_id": agent::request_id(7),
        "answers_ours": true,
        "has_in_reply_to": true,
    });
    assert_eq!(seen["inbox"], json!([answer]));
    for kind in ["ACCEPTED", "DELIVERED", "READ", "ANSWERED"] {
        assert!(kinds(&seen).contains(&&*format!("EVENT_KIND_{kind}")), "{:?}", kinds(&seen));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_asked_for_by_service() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", federal.address)).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let mut check = async |service: &str| health.check(HealthCheckRequest { service: service.into() }).await;
    for service in ["", "chancery.agent.v1.AgentService"] {
        assert_eq!(check(service).await.unwrap().into_inner().status, 1, "{service:?} does not serve");
    }
    let unknown = check("chancery.node.v1.MailboxService").await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
}
