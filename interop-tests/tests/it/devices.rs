//! Devices and agents under all that may befall them: an old device beside a
//! new one, two devices of one person, an agent that crashes, letters and files
//! as large as they may be, lines that are cut.

use bytes::Bytes;
use chancery_interop_tests::agent;
use chancery_interop_tests::letterbox;
use chancery_interop_tests::mesh::Mesh;
use chancery_interop_tests::party::{Agent, Device, person_number, reason};
use chancery_interop_tests::rogue::answer;
use chancery_interop_tests::wait::until;
use chancery_proto::agent::v1 as wire;
use chancery_proto::agent::v1::EventKind;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use chancery_sdk::attachment::{ExternalFile, Resume, Spool, download};
use chancery_sdk::mls::Suite;
use chancery_types::{Alias, Reason};
use futures::stream;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// A mesh with the federal agent and a node for the persons.
async fn mesh() -> (Mesh, Agent) {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let _ = Agent::start(&mut mesh, "regional").await;
    (mesh, federal)
}

/// A node forgets the hybrid KeyPackages of an alias: the device is one that
/// never had any.
fn make_old(mesh: &Mesh, node: &str, alias: Alias) {
    let store = rusqlite::Connection::open(mesh.path(&format!("node-{node}/node.db"))).unwrap();
    store.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let sql = "DELETE FROM key_package WHERE alias = ?1 AND cipher_suite = ?2";
    let forgotten = store.execute(sql, (alias.as_bytes(), Suite::Hybrid.code())).unwrap();
    assert_eq!(forgotten, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hybrid_suite_where_both_have_it_and_the_classical_one_otherwise() {
    let (mesh, federal) = mesh().await;
    let mut client = agent::connect(&federal.address).await;
    let new = Device::enrol(&mesh, "regional", &person_number(1), "new").await;
    let old = Device::enrol(&mesh, "regional", &person_number(2), "old").await;
    make_old(&mesh, "regional", old.endpoint.identity().alias);
    for (number, device, suite) in [(1, new, Suite::Hybrid), (2, old, Suite::Classical)] {
        let id = agent::request_id(number.into());
        client.send(agent::request(&id, &person_number(number), "To whom it concerns")).await.unwrap();
        let device = device.live();
        let item = device.inbox(1).await.remove(0);
        for endpoint in [&device.endpoint, &federal.endpoint] {
            assert_eq!(endpoint.thread(item.thread).await.unwrap().unwrap().suite, suite);
        }
        device.answer(&item, "Got it").await;
        agent::reached(&mut client, &id, EventKind::Answered).await;
    }
    let answers = agent::inbox(&mut client).await;
    assert_eq!(answers.iter().filter(|answer| answer.markdown == "Got it").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_of_one_account_see_the_same() {
    let (mesh, federal) = mesh().await;
    let mut client = agent::connect(&federal.address).await;
    let to = person_number(1);
    let first = Device::enrol(&mesh, "regional", &to, "first").await.live();
    client.send(agent::request(&agent::request_id(1), &to, "Before")).await.unwrap();
    first.inbox(1).await;

    let second = first.link(&mesh, "second").await.live();
    assert_eq!(first.endpoint.admit_devices().await.unwrap(), 1);
    // The thread's next letter is for both, once the second one is in.
    let thread = first.inbox(1).await[0].thread;
    until("the second device is in", async || second.endpoint.thread(thread).await.unwrap().is_some()).await;
    client.send(agent::request(&agent::request_id(2), &to, "After")).await.unwrap();
    let on_first = first.inbox(2).await.remove(1);
    let on_second = second.inbox(1).await.remove(0);
    assert_eq!(on_first.message_id, on_second.message_id);

    let answer = second.answer(&on_second, "From the second device").await;
    let mut seen = None;
    until("the first device has the answer, too", async || {
        seen = first.endpoint.letter(answer).await.unwrap();
        seen.is_some()
    })
    .await;
    let seen = seen.unwrap();
    assert_eq!(seen.sender, first.endpoint.identity().alias, "it comes from the account itself");
    assert_eq!(letterbox::open_letter(&first.endpoint, &seen).markdown, "From the second device");
    agent::reached(&mut client, &agent::request_id(2), EventKind::Answered).await;
    assert_eq!(agent::inbox(&mut client).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_crashes_in_a_bulk_send_sends_nothing_twice() {
    const PERSONS: u64 = 12;
    let (mesh, mut federal) = mesh().await;
    let mut persons = Vec::new();
    for number in 1..=PERSONS {
        let device = Device::enrol(&mesh, "regional", &person_number(number), &format!("p{number}")).await;
        persons.push(device);
    }
    let requests = || -> Vec<_> {
        let letter = |number: u64| {
            let text = format!("Letter {number}");
            let send = agent::request(&agent::request_id(number.into()), &person_number(number), &text);
            wire::SendBulkRequest { send: Some(send) }
        };
        (1..=PERSONS).map(letter).collect()
    };
    // First when one letter is accepted, then when one is delivered.
    let mut client = agent::connect(&federal.address).await;
    let mut answers = client.send_bulk(stream::iter(requests())).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(matches!(answer.result, Some(wire::send_bulk_response::Result::Accepted(_))));
    federal = federal.crash_and_restart().await;

    let mut client = agent::connect(&federal.address).await;
    let mut answers = client.send_bulk(stream::iter(requests())).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    persons = persons.into_iter().map(Device::live).collect();
    agent::events_until(&mut client, 0, |event| event.kind() == EventKind::Delivered).await;
    federal = federal.crash_and_restart().await;

    let mut client = agent::connect(&federal.address).await;
    let mut answers = client.send_bulk(stream::iter(requests())).await.unwrap().into_inner();
    let mut accepted = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(matches!(answer.result, Some(wire::send_bulk_response::Result::Accepted(_))));
        accepted += 1;
    }
    assert_eq!(accepted, PERSONS);
    let mut delivered = 0;
    agent::events_until(&mut client, 0, |event| {
        delivered += u64::from(event.kind() == EventKind::Delivered);
        delivered == PERSONS
    })
    .await;
    for (number, person) in (1..).zip(&persons) {
        person.inbox(1).await;
        assert_eq!(letterbox::read(&person.endpoint).await[0].markdown, format!("Letter {number}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_of_64_kib_arrives_whole_and_a_byte_more_is_refused() {
    let (mesh, federal) = mesh().await;
    let mut client = agent::connect(&federal.address).await;
    let to = person_number(1);
    let person = Device::enrol(&mesh, "regional", &to, "person").await.live();
    let text = "Größe zählt: ".repeat(64 * 1024 / 17);
    let text = format!("{text}{}", "x".repeat(64 * 1024 - text.len()));
    assert_eq!(text.len(), 64 * 1024);
    let more = agent::request(&agent::request_id(1), &to, &format!("{text}x"));
    assert_eq!(reason(answer(client.send(more).await)), Reason::TooLarge);
    client.send(agent::request(&agent::request_id(2), &to, &text)).await.unwrap();
    person.inbox(1).await;
    assert!(letterbox::read(&person.endpoint).await[0].markdown == text);
}

const FILE: usize = 50 * 1000 * 1000;
const PIECE: usize = 64 * 1024;
const ATTACHMENT: &str = "11111111-2222-4333-8444-555555555555";

/// Bytes that no compression or repetition could bring about.
fn file() -> Vec<u8> {
    let mut block: [u8; 32] = Sha256::digest(b"a file").into();
    let mut file = Vec::with_capacity(FILE + 32);
    while file.len() < FILE {
        file.extend_from_slice(&block);
        block = Sha256::digest(block).into();
    }
    file.truncate(FILE);
    file
}

fn pieces(file: &Bytes, offset: usize) -> impl Iterator<Item = wire::PutAttachmentRequest> + use<> {
    let file = file.clone();
    (offset..file.len()).step_by(PIECE).map(move |at| wire::PutAttachmentRequest {
        attachment_id: ATTACHMENT.to_owned(),
        size: FILE as u64,
        offset: offset as u64,
        data: file.slice(at..file.len().min(at + PIECE)),
    })
}

async fn stored(client: &mut AgentServiceClient<Channel>) -> (u64, bool) {
    let request = wire::StatAttachmentRequest { attachment_id: ATTACHMENT.to_owned() };
    let stat = client.stat_attachment(request).await.unwrap().into_inner();
    (stat.stored, stat.complete)
}

/// Uploads the file in two calls: the first is cut when part of it is there.
async fn put(client: &mut AgentServiceClient<Channel>, file: &Bytes) {
    let (sender, receiver) = mpsc::channel(8);
    let mut caller = client.clone();
    let call = tokio::spawn(async move { caller.put_attachment(ReceiverStream::new(receiver)).await });
    for piece in pieces(file, 0).take(FILE / PIECE / 2) {
        sender.send(piece).await.unwrap();
    }
    until("10 MB are there", async || stored(client).await.0 >= 10_000_000).await;
    call.abort();
    assert!(call.await.is_err_and(|end| end.is_cancelled()), "the first call was not cut");
    // What was on the line when it was cut may still come in: the contract says to ask and go on.
    let sha256 = loop {
        let (there, complete) = stored(client).await;
        assert!(there < FILE as u64 && !complete);
        let rest: Vec<_> = pieces(file, usize::try_from(there).unwrap()).collect();
        match answer(client.put_attachment(stream::iter(rest)).await) {
            Ok(put) => break put.sha256,
            Err(refusal) => assert_eq!(refusal.reason, Reason::WrongOffset, "{refusal}"),
        }
    };
    assert_eq!(sha256, Sha256::digest(file).as_slice());
    assert_eq!(stored(client).await, (FILE as u64, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_50_mb_is_resumed_on_its_way_in_and_on_its_way_out() {
    let (mesh, federal) = mesh().await;
    let mut client = agent::connect(&federal.address).await;
    let to = person_number(1);
    let person = Device::enrol(&mesh, "regional", &to, "person").await.live();
    let file = Bytes::from(file());
    put(&mut client, &file).await;
    let mut request = agent::request(&agent::request_id(1), &to, "The plans are attached.");
    request.letter.as_mut().unwrap().attachments.push(wire::Attachment {
        file_name: "plans.tar".to_owned(),
        media_type: "application/x-tar".to_owned(),
        source: Some(wire::attachment::Source::AttachmentId(ATTACHMENT.to_owned())),
    });
    client.send(request).await.unwrap();
    person.inbox(1).await;
    let letter = letterbox::read(&person.endpoint).await.remove(0);
    let [external] = letter.attachments.as_slice() else { panic!("not one attachment") };
    assert_eq!(external.plaintext_size(), FILE as u64);
    let spool = Arc::new(Spool::open(mesh.path("spool"), 200_000_000).unwrap());
    let resume = Resume::new(&*mesh.entropy);
    let reached = cut_download(&person, external, &spool, &resume).await;
    assert!(reached < FILE as u64);

    let begun = AtomicU64::new(u64::MAX);
    let blobs = person.endpoint.node().blobs().await.unwrap();
    let progress = |done, _| {
        begun.fetch_min(done, Ordering::Relaxed);
    };
    download(&blobs, &spool, external, &resume, &progress).await.unwrap();
    let begun = begun.load(Ordering::Relaxed);
    assert!(begun > 20_000_000, "it began again at {begun}");
    assert!(person.fetch(external, &spool, &resume).await == file);
}

/// A node was killed when a blob's last byte had come but before it counted, or
/// its part holds what is not of the blob.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_left_behind_is_finished_or_begun_anew() {
    let (mesh, federal) = mesh().await;
    let mut client = agent::connect(&federal.address).await;
    let to = person_number(1);
    let person = Device::enrol(&mesh, "regional", &to, "person").await.live();
    let mut request = agent::request(&agent::request_id(1), &to, "Two plans are attached.");
    let attachments = [b'a', b'b'].map(|byte| wire::Attachment {
        file_name: "plan".to_owned(),
        media_type: "application/octet-stream".to_owned(),
        source: Some(wire::attachment::Source::Data(vec![byte; 300_000].into())),
    });
    request.letter.as_mut().unwrap().attachments.extend(attachments);
    client.send(request).await.unwrap();
    person.inbox(1).await;
    let letter = letterbox::read(&person.endpoint).await.remove(0);
    let [whole, spoilt] = letter.attachments.as_slice() else { panic!("not two attachments") };
    for (file, more) in [(whole, &b""[..]), (spoilt, b"more than there is")] {
        let name = hex::encode(file.blob.id.as_bytes());
        let mut bytes = std::fs::read(mesh.path(&format!("node-federal/blobs/{name}"))).unwrap();
        bytes.extend_from_slice(more);
        std::fs::write(mesh.path(&format!("node-regional/blobs/{name}.part")), bytes).unwrap();
    }
    let spool = Arc::new(Spool::open(mesh.path("spool"), 200_000_000).unwrap());
    let resume = Resume::new(&*mesh.entropy);
    assert!(person.fetch(whole, &spool, &resume).await == [b'a'; 300_000]);
    assert!(person.fetch(spoilt, &spool, &resume).await == [b'b'; 300_000]);
}

/// Begins a download and drops it after 20 MB; gives how far it was.
async fn cut_download(person: &Device, file: &ExternalFile, spool: &Arc<Spool>, resume: &Resume) -> u64 {
    let blobs = person.endpoint.node().blobs().await.unwrap();
    let (enough, reached) = (Notify::new(), AtomicU64::new(0));
    let progress = |done, _| {
        reached.store(done, Ordering::Relaxed);
        if done > 20_000_000 {
            enough.notify_one();
        }
    };
    tokio::select! {
        biased;
        () = enough.notified() => {}
        _ = download(&blobs, spool, file, resume, &progress) => panic!("it was not cut"),
    }
    reached.load(Ordering::Relaxed)
}
