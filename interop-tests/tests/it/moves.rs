//! An account moves to another node while letters flow: none is lost, none comes
//! twice, and no sender does anything.

use chancery_interop_tests::mesh::{FEDERATION, Mesh, Place, id};
use chancery_interop_tests::party::{Agent, Device, person_number};
use chancery_interop_tests::wait::{success, until};
use chancery_sdk::alarm::Alarm;
use chancery_sdk::content::{Body, Letter, room_uri, sender_uri};
use chancery_sdk::endpoint::{Endpoint, RecordCheck, SendOrder, Sent, To};
use chancery_sdk::event::EventKind;
use chancery_sdk::request::{self, Order};
use chancery_types::{GroupId, Identifier, Reason, Refusal};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Letters of each sender while the account moves, at least.
const LETTERS: u32 = 30;

fn order(endpoint: &Endpoint, name: u8, number: u32, to: To) -> SendOrder {
    let letter = Letter { markdown: format!("{name} {number:04}"), ..Letter::default() };
    let mut request_id = [name; 16];
    request_id[..4].copy_from_slice(&number.to_be_bytes());
    let order = Order {
        request_id,
        digest: [0; 32],
        compose: request::letter(letter),
        expires: endpoint.now().after(Duration::from_secs(86_400)),
        wants_events: true,
    };
    SendOrder { to, order }
}

/// Sends letters one after the other until told to stop; gives how many, and their thread.
async fn send_on(
    endpoint: Endpoint,
    name: u8,
    to: Identifier,
    stop: Arc<AtomicBool>,
) -> Result<(u32, GroupId), Refusal> {
    let mut number = 0;
    loop {
        let Sent { thread, .. } =
            endpoint.send(order(&endpoint, name, number, To::Identifier(to.clone()))).await?;
        number += 1;
        if number >= LETTERS && stop.load(Ordering::Relaxed) {
            return Ok((number, thread));
        }
    }
}

/// The letters' texts by their thread, in order.
async fn received(device: &Device, count: usize) -> HashMap<GroupId, Vec<String>> {
    let mut threads: HashMap<GroupId, Vec<String>> = HashMap::new();
    for item in device.inbox(count).await {
        let (sender, room) = (sender_uri(FEDERATION, &item.sender), room_uri(FEDERATION, &item.thread));
        let opened = Body::open(&item.body, &sender, &room).unwrap();
        let Body::Letter { letter, .. } = opened.body else { panic!("no letter") };
        threads.entry(item.thread).or_default().push(letter.markdown);
    }
    threads
}

async fn alarms(endpoint: &Endpoint) -> Vec<Alarm> {
    endpoint.alarms_after(0, 100).await.unwrap().iter().map(|raised| raised.alarm).collect()
}

/// How often each thing was said about the letters sent from here.
async fn events(endpoint: &Endpoint) -> BTreeMap<String, usize> {
    let (mut counts, mut after) = (BTreeMap::new(), 0);
    loop {
        let events = endpoint.events_after(after, 500).await.unwrap();
        let Some(last) = events.last() else { return counts };
        after = last.position;
        for event in events {
            *counts.entry(format!("{:?}", event.kind)).or_default() += 1;
        }
    }
}

#[tokio::test]
async fn an_account_moves_while_letters_flow() {
    let mut mesh = Mesh::new().await;
    // At home elsewhere, where the account is, and where it goes: three hubs.
    let mut senders = Vec::new();
    for (name, administration) in [(1, "federal"), (2, "regional"), (3, "local")] {
        senders.push((name, Agent::start(&mut mesh, administration).await));
    }
    let late = Agent::start(&mut mesh, "late").await;
    let number = person_number(1);
    let person = Device::enrol(&mesh, "regional", &number, "person").await.live();
    // Knows the address from before, and writes for the first time after.
    late.endpoint.resolve(std::slice::from_ref(&number)).await.unwrap().remove(0).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let sending: Vec<_> = senders
        .iter()
        .map(|(name, agent)| {
            let (endpoint, to, stop) = (agent.endpoint.clone(), number.clone(), Arc::clone(&stop));
            tokio::spawn(send_on(endpoint, *name, to, stop))
        })
        .collect();
    until("letters flow", async || person.endpoint.inbox_after(0, 100).await.unwrap().len() > 10).await;
    assert_eq!(person.endpoint.home(), id("regional"));
    person.endpoint.move_to(id("local")).await.unwrap();
    assert_eq!(person.endpoint.home(), id("local"));
    person.endpoint.move_to(id("local")).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let mut sent = 0;
    let mut threads = Vec::new();
    for (sending, (name, _)) in sending.into_iter().zip(&senders) {
        let (count, thread) = sending.await.unwrap().unwrap();
        threads.push((*name, count, thread));
        sent += count;
    }
    let first = order(&late.endpoint, 9, 0, To::Identifier(number.clone()));
    threads.push((9, 1, late.endpoint.send(first).await.unwrap().thread));
    sent += 1;

    let letters = received(&person, sent as usize).await;
    for (name, count, thread) in &threads {
        let expected: Vec<_> = (0..*count).map(|number| format!("{name} {number:04}")).collect();
        assert_eq!(letters[thread], expected, "in order, each once");
    }
    // Answers go out through the new home.
    for (name, _, thread) in &threads {
        person.endpoint.send(order(&person.endpoint, 100 + name, 0, To::Thread(*thread))).await.unwrap();
    }
    for ((name, agent), (_, count, _)) in senders.iter().zip(&threads) {
        let endpoint = &agent.endpoint;
        let answered = async || endpoint.inbox_after(0, 10).await.unwrap().len() == 1;
        until("the answer is there", answered).await;
        let delivered = format!("{:?}", EventKind::Delivered);
        let told = async || events(endpoint).await.get(&delivered) == Some(&(*count as usize));
        until("each letter's delivery is signed", told).await;
        let told = events(endpoint).await;
        assert!(!told.contains_key(&format!("{:?}", EventKind::Failed)), "{name}: {told:?}");
        assert_eq!(alarms(endpoint).await, []);
    }
    assert_eq!(alarms(&person.endpoint).await, []);
    assert_eq!(person.endpoint.check_record().await, Ok(RecordCheck::AsPublished));

    // The device starts again with what it was first configured with.
    let config = Device::config(&mesh, "regional", "person");
    person.close().await;
    let again = success("the store is free", async || Endpoint::open(config.clone()).await).await;
    assert_eq!(again.home(), id("local"));
}

#[tokio::test]
async fn all_devices_of_an_account_move() {
    let mut mesh = Mesh::new().await;
    let agent = Agent::start(&mut mesh, "federal").await;
    for administration in ["regional", "local"] {
        mesh.start_node(administration, Place::free().await, BTreeMap::new()).await;
    }
    let number = person_number(1);
    let first = Device::enrol(&mesh, "regional", &number, "first").await.live();
    let second = first.link(&mesh, "second").await.live();
    let send = async |nth| {
        agent.endpoint.send(order(&agent.endpoint, 1, nth, To::Identifier(number.clone()))).await.unwrap();
    };
    send(0).await;
    for device in [&first, &second] {
        device.inbox(1).await;
    }
    let refused = second.endpoint.move_to(id("local")).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Unsupported, "the first device moves the account");
    first.endpoint.move_to(id("local")).await.unwrap();
    until("the other one follows", async || second.endpoint.home() == id("local")).await;
    send(1).await;
    for device in [&first, &second] {
        device.inbox(2).await;
        assert_eq!(alarms(&device.endpoint).await, []);
    }
}

#[tokio::test]
async fn a_move_that_was_cut_off_ends_by_itself() {
    let mut mesh = Mesh::new().await;
    let agent = Agent::start(&mut mesh, "federal").await;
    for administration in ["regional", "local"] {
        mesh.start_node(administration, Place::free().await, BTreeMap::new()).await;
    }
    let number = person_number(1);
    let person = Device::enrol(&mesh, "regional", &number, "person").await;
    // Cut off in the middle: everything is prepared, the record cannot be changed.
    mesh.stop_directory().await;
    let cut = person.endpoint.move_to(id("local")).await.unwrap_err();
    assert_eq!(cut.reason, Reason::DirectoryUnreachable);
    assert_eq!(person.endpoint.home(), id("regional"));
    mesh.start_directory("directory").await;
    let person = person.live();
    until("the move has ended", async || person.endpoint.home() == id("local")).await;
    agent.endpoint.send(order(&agent.endpoint, 1, 0, To::Identifier(number.clone()))).await.unwrap();
    person.inbox(1).await;
    assert_eq!(alarms(&person.endpoint).await, []);
}
