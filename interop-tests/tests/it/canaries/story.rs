//! What people do in a mesh, and the secrets that it must not spread: each is told by
//! what it is and whose.

use crate::broadcasts::{channel, is_in, order, texts};
use bytes::Bytes;
use chancery_directory_core::channel::{JoinRule, Suite};
use chancery_interop_tests::agent;
use chancery_interop_tests::letterbox;
use chancery_interop_tests::mesh::{Mesh, Place, id};
use chancery_interop_tests::party::{Agent, Device, Registry, person_number, reason};
use chancery_interop_tests::rogue::answer;
use chancery_interop_tests::search::{Secret, copy};
use chancery_interop_tests::wait::until;
use chancery_proto::agent::v1 as wire;
use chancery_proto::agent::v1::EventKind;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use chancery_sdk::attachment::{Resume, Spool};
use chancery_sdk::endpoint::RecordChange;
use chancery_types::{Identifier, Reason};
use futures::stream;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::transport::Channel;

/// What letters say: a heading, and with what is told apart in UTF-8, UTF-16 and JSON.
const SUBJECT: &str = "Grundsteuerbescheid 4711 für Frau Überfluss";
const BODY: &str = "Bitte zahlen Sie bis zum Fälligkeitstag 815,47 Euro";
const ANSWER: &str = "Ich habe längst gezahlt, am dritten Märztag";
const FILE_NAME: &str = "Bescheid Überfluss 4711.pdf";
const FILE: &str = "Im Anhang steht die ganze Berechnung für Überfluss";
const NOTICE: &str = "Wegen der Überschwemmung bleibt das Amt am Fährweg zu";
/// The same telephone number as people write it.
const PHONE: &str = "+32 470 12 34 56";
/// A number whose check digits are wrong.
const MISTYPED: &str = "85073000199";

/// An identifier in all forms, and its hashes.
fn identifier(whose: &str, identifier: &Identifier, written: &[&str]) -> [Secret; 5] {
    let (kind, value) = (format!("{whose} itself"), identifier.value());
    let hash = |of: &[u8]| Secret::hash(&format!("{whose} hashed"), of);
    let scheme = identifier.scheme().as_str();
    [
        Secret::digits(&kind, value, written),
        hash(value.as_bytes()),
        hash(format!("{scheme}:{value}").as_bytes()),
        hash(format!("{scheme}{value}").as_bytes()),
        hash(&identifier.oprf_input()),
    ]
}

/// The key of a handle's record, as an endpoint's store keeps it.
fn record_key(mesh: &Mesh, endpoint: &str, handle: &[u8; 32]) -> [u8; 32] {
    let (store, _folder) = copy(&mesh.path(&format!("{endpoint}/endpoint.db")));
    let sql = "SELECT record_key FROM handles WHERE handle = ?1";
    store.query_row(sql, [handle], |row| row.get(0)).unwrap()
}

/// All secret keys of an endpoint.
fn secret_keys(mesh: &Mesh, endpoint: &str) -> Vec<Secret> {
    let (store, _folder) = copy(&mesh.path(&format!("{endpoint}/endpoint.db")));
    let sql = "SELECT auth_seed FROM identity UNION SELECT seed FROM leaf_keys \
               UNION SELECT account_seed FROM identity WHERE account_seed IS NOT NULL \
               UNION SELECT credential_seed FROM identity WHERE credential_seed IS NOT NULL";
    let mut statement = store.prepare(sql).unwrap();
    let seeds = statement.query_map([], |row| row.get::<_, [u8; 32]>(0)).unwrap();
    let kind = format!("secret keys of {endpoint}");
    let keys: Vec<_> = seeds.map(|seed| Secret::bytes(&kind, &seed.unwrap())).collect();
    assert!(keys.len() >= 3, "{endpoint}");
    keys
}

/// The handle of an identifier with what belongs to it.
async fn handle(mesh: &Mesh, whose: &str, agent: &Agent, name: &str, identifier: &Identifier) -> [Secret; 2] {
    let handle = agent.endpoint.handle(identifier).await.unwrap();
    let key = record_key(mesh, name, handle.as_bytes());
    [
        Secret::bytes(&format!("{whose} as a handle"), handle.as_bytes()),
        Secret::bytes(&format!("key of the record of {whose}"), &key),
    ]
}

async fn enrol(
    mesh: &Mesh,
    registry: &Registry,
    node: &str,
    name: &str,
    as_: &Identifier,
) -> (Device, [Secret; 2]) {
    let device = Device::open(mesh, node, name).await;
    device.endpoint.register().await.unwrap();
    let code = registry.invite(as_).await;
    let wrong = device.endpoint.enrol(&registry.address, as_, "00000-00000-00000-00000").await;
    assert_eq!(reason(wrong), Reason::EnrolmentRefused);
    device.endpoint.enrol(&registry.address, as_, &code).await.unwrap();
    let codes = [Secret::text("code", &code), Secret::text("code", &code.replace('-', ""))];
    (device.live(), codes)
}

fn letter(number: u128, to: &Identifier) -> wire::SendRequest {
    agent::request(&agent::request_id(number), to, &format!("# {SUBJECT}\n\n{BODY}\n"))
}

/// Why an agent does not send.
async fn refused(client: &mut AgentServiceClient<Channel>, request: wire::SendRequest) -> Reason {
    reason(answer(client.send(request).await))
}

/// A letter with a file that is uploaded before.
async fn letter_with_file(client: &mut AgentServiceClient<Channel>, to: &Identifier) -> wire::SendRequest {
    let file = FILE.repeat(500);
    let id = agent::request_id(99);
    let put = wire::PutAttachmentRequest {
        attachment_id: id.clone(),
        size: file.len() as u64,
        offset: 0,
        data: Bytes::from(file),
    };
    client.put_attachment(stream::iter([put])).await.unwrap();
    let mut request = letter(1, to);
    request.letter.as_mut().unwrap().attachments.push(wire::Attachment {
        file_name: FILE_NAME.to_owned(),
        media_type: "application/pdf".to_owned(),
        source: Some(wire::attachment::Source::AttachmentId(id)),
    });
    request
}

/// Anna is written to under her national number by one administration, under her
/// telephone number by another; they get answers and read receipts. She links a device,
/// moves to another node, listens to a channel by invitation, closes a record and comes back.
/// Callers make mistakes.
pub(super) async fn tell(mesh: &mut Mesh) -> Vec<Secret> {
    let federal = Agent::start(mesh, "federal").await;
    let regional = Agent::start(mesh, "regional").await;
    mesh.start_node("local", Place::free().await, BTreeMap::new()).await;
    let registry = Registry::start(mesh, "federal").await;
    let (number, nobody) = (person_number(1), person_number(2));
    let phone = Identifier::parse("e164", PHONE).unwrap();

    let (anna, codes) = enrol(mesh, &registry, "regional", "anna", &number).await;
    let mut secrets = Vec::from(codes);
    let (at_phone, codes) = enrol(mesh, &registry, "federal", "anna-phone", &phone).await;
    secrets.extend(codes);

    let mut client = agent::connect(&federal.address).await;
    let request = letter_with_file(&mut client, &number).await;
    client.send(request).await.unwrap();
    let first = anna.inbox(1).await.remove(0);
    let opened = letterbox::open_letter(&anna.endpoint, &first);
    let [file] = opened.attachments.as_slice() else { panic!("not one file") };
    let spool = Arc::new(Spool::open(mesh.path("anna/spool"), 10_000_000).unwrap());
    let fetched = anna.fetch(file, &spool, &Resume::new(&*mesh.entropy)).await;
    assert_eq!(fetched, FILE.repeat(500).as_bytes());
    anna.endpoint.mark_read(vec![first.message_id], true).await.unwrap();
    anna.answer(&first, ANSWER).await;
    agent::reached(&mut client, &agent::request_id(1), EventKind::Read).await;
    agent::reached(&mut client, &agent::request_id(1), EventKind::Answered).await;

    let second = anna.link(mesh, "anna-second").await.live();
    assert_eq!(anna.endpoint.admit_devices().await.unwrap(), 1);
    let joined = async || second.endpoint.thread(first.thread).await.unwrap().is_some();
    until("the second device is in", joined).await;
    client.send(letter(2, &number)).await.unwrap();
    second.inbox(1).await;
    anna.endpoint.move_to(id("local")).await.unwrap();
    client.send(letter(3, &number)).await.unwrap();
    anna.inbox(3).await;
    let last = second.inbox(2).await.remove(1);
    second.answer(&last, ANSWER).await;
    agent::reached(&mut client, &agent::request_id(3), EventKind::Answered).await;

    let mut channel = channel(&federal, Suite::Classical);
    channel.join_rule = JoinRule::Invitation;
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let invitation = federal.endpoint.invite(channel.id).await.unwrap();
    secrets.push(Secret::bytes("invitation", &invitation.as_bytes()[16..]));
    anna.endpoint.subscribe(&channel, Some(invitation)).await.unwrap();
    until("she is in a cell", async || is_in(&anna).await).await;
    federal.endpoint.broadcast(order(mesh, NOTICE, None)).await.unwrap();
    assert_eq!(texts(&anna, 1).await, [NOTICE]);

    let mut other = agent::connect(&regional.address).await;
    other.send(letter(4, &phone)).await.unwrap();
    let item = at_phone.inbox(1).await.remove(0);
    at_phone.answer(&item, ANSWER).await;
    agent::reached(&mut other, &agent::request_id(4), EventKind::Answered).await;
    at_phone.endpoint.change_record(RecordChange::Close).await.unwrap();
    let (again, codes) = enrol(mesh, &registry, "federal", "anna-phone-again", &phone).await;
    secrets.extend(codes);

    mesh.fetch_revocations("federal").await;
    assert_eq!(refused(&mut client, letter(5, &nobody)).await, Reason::RecipientAbsent);
    let mut mistyped = letter(6, &nobody);
    if let Some(wire::send_request::To::Recipient(to)) = &mut mistyped.to {
        to.value = MISTYPED.to_owned();
    }
    assert_eq!(refused(&mut client, mistyped).await, Reason::InvalidIdentifier);

    let value = number.value();
    let (birth, rest) = value.split_at(6);
    let spaced = format!("{birth} {} {}", &rest[..3], &rest[3..]);
    let pairs: Vec<_> = (0..3).map(|pair| &birth[2 * pair..2 * pair + 2]).collect();
    let dotted = format!("{}-{}.{}", pairs.join("."), &rest[..3], &rest[3..]);
    secrets.extend(identifier("number", &number, &[&spaced, &dotted]));
    secrets.extend(identifier("phone", &phone, &[PHONE, "0470 12 34 56", "0470123456"]));
    secrets.extend(identifier("absent person", &nobody, &[]));
    secrets.push(Secret::digits("mistyped number", MISTYPED, &[]));
    secrets.extend(handle(mesh, "number", &federal, "agent-federal", &number).await);
    secrets.extend(handle(mesh, "phone", &regional, "agent-regional", &phone).await);
    secrets.extend(handle(mesh, "absent person", &federal, "agent-federal", &nobody).await);
    for (whose, device) in [("number", &anna), ("phone", &at_phone), ("phone", &again)] {
        let alias = device.endpoint.identity().alias;
        secrets.push(Secret::bytes(&format!("alias of {whose}"), alias.as_bytes()));
    }
    for agent in [&federal, &regional] {
        secrets.push(Secret::bytes("alias of an agent", agent.endpoint.identity().alias.as_bytes()));
    }
    secrets.extend([SUBJECT, BODY, ANSWER].map(|text| Secret::text("letter", text)));
    secrets.push(Secret::text("broadcast", NOTICE));
    secrets.push(Secret::text("file name", FILE_NAME));
    secrets.push(Secret::text("file", FILE));
    secrets.push(Secret::bytes("file key", file.key.as_bytes()));
    for endpoint in ["registry", "agent-federal", "agent-regional", "anna", "anna-second", "anna-phone"] {
        secrets.extend(secret_keys(mesh, endpoint));
    }
    secrets
}
