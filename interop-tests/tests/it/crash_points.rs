//! An endpoint dies at each record that it sends or gets, one after the other, and comes
//! back on what it had committed: what was under way goes on, and counts once.

use crate::broadcasts::{channel, is_in, order, texts};
use chancery_directory_core::channel::Suite;
use chancery_interop_tests::agent;
use chancery_interop_tests::cut::Cut;
use chancery_interop_tests::letterbox;
use chancery_interop_tests::mesh::Mesh;
use chancery_interop_tests::party::{Agent, Device, person_number};
use chancery_interop_tests::recorder::Recorder;
use chancery_interop_tests::wait::until;
use chancery_proto::agent::v1::EventKind;
use chancery_proto::node::v1::{SubmitCellsRequest, cell_item};
use chancery_sdk::inbox::InboxItem;
use prost::Message as _;
use std::collections::HashMap;
use std::future::Future;

/// Works until done, or until the line ends; whether it was done.
async fn until_cut(cut: &Cut, work: impl Future<Output = ()>) -> bool {
    tokio::select! {
        () = work => true,
        () = cut.ended() => false,
    }
}

async fn mesh() -> (Mesh, Agent) {
    recorded_mesh(Recorder::default()).await
}

async fn recorded_mesh(recorder: Recorder) -> (Mesh, Agent) {
    let mut mesh = Mesh::recorded(recorder).await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let _ = Agent::start(&mut mesh, "regional").await;
    (mesh, federal)
}

/// Reads the last of some letters, answers it, and hears that the answer arrived.
async fn answer(device: &Device, letters: usize) -> InboxItem {
    let item = device.inbox(letters).await.pop().unwrap();
    let mut events = device.endpoint.event_changes();
    let answered = device.answer(&item, &format!("answer {letters}")).await;
    loop {
        events.mark_unchanged();
        let told = device.endpoint.events_after(0, 10_000).await.unwrap();
        if told.iter().any(|event| event.message_id == answered && event.kind.code() == 3) {
            return item;
        }
        events.changed().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_dies_anywhere_reads_and_answers_once() {
    let (mesh, federal) = mesh().await;
    let mut client = agent::connect(&federal.address).await;
    let (to, node) = (person_number(1), mesh.nodes["regional"].address.clone());
    let mut device = Device::enrol(&mesh, "regional", &to, "device").await;
    let mut points = 0;
    loop {
        let letters = points + 1;
        let id = agent::request_id(letters as u128);
        client.send(agent::request(&id, &to, &format!("letter {letters}"))).await.unwrap();
        let cut = Cut::after(points, &node).await;
        device = device.reopened_at(&cut.address).await.live();
        let done = until_cut(&cut, async { drop(answer(&device, letters).await) }).await;
        device = device.reopened_at(&node).await.live();
        let item = answer(&device, letters).await;
        assert_eq!(letterbox::open_letter(&device.endpoint, &item).markdown, format!("letter {letters}"));
        agent::reached(&mut client, &id, EventKind::Answered).await;
        let answers = agent::inbox(&mut client).await;
        let answers: Vec<_> = answers.iter().map(|answer| answer.markdown.clone()).collect();
        let expected: Vec<_> = (1..=letters).map(|number| format!("answer {number}")).collect();
        assert_eq!(answers, expected);
        if done {
            break;
        }
        points += 1;
    }
    println!("{points} points");
    assert!(points > 30, "there are more records than {points} in this");
    assert!(device.endpoint.alarms_after(0, 100).await.unwrap().is_empty());
    assert!(federal.endpoint.alarms_after(0, 100).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_anywhere_opens_a_thread_and_writes_once() {
    let (mesh, mut federal) = mesh().await;
    let node = mesh.nodes["federal"].address.clone();
    let mut points = 0;
    loop {
        let (to, name) = (person_number(points as u64 + 1), format!("device-{points}"));
        let device = Device::enrol(&mesh, "regional", &to, &name).await.live();
        let (id, text) = (agent::request_id(points as u128), format!("letter {points}"));
        let cut = Cut::after(points, &node).await;
        let write = async |federal: &Agent| {
            let mut client = agent::connect(&federal.address).await;
            client.send(agent::request(&id, &to, &text)).await.map(drop)
        };
        federal = federal.crash_and_restart_at(&cut.address).await;
        let done = until_cut(&cut, async {
            // It may be refused for what it could not reach: asked again, it is sent.
            let _ = write(&federal).await;
            let mut client = agent::connect(&federal.address).await;
            agent::reached(&mut client, &id, EventKind::Delivered).await;
        })
        .await;
        federal = federal.crash_and_restart_at(&node).await;
        write(&federal).await.unwrap();
        let mut client = agent::connect(&federal.address).await;
        let kinds = agent::reached(&mut client, &id, EventKind::Delivered).await;
        assert_eq!(kinds.iter().filter(|kind| **kind == EventKind::Delivered).count(), 1);
        let item = device.inbox(1).await.remove(0);
        assert_eq!(letterbox::open_letter(&device.endpoint, &item).markdown, text);
        assert!(device.endpoint.alarms_after(0, 100).await.unwrap().is_empty());
        device.close().await;
        if done {
            break;
        }
        points += 1;
    }
    println!("{points} points");
    assert!(points > 30, "there are more records than {points} in this");
    assert!(federal.endpoint.alarms_after(0, 100).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_dies_anywhere_has_each_broadcast_once() {
    let (mesh, federal) = mesh().await;
    let node = mesh.nodes["regional"].address.clone();
    let channel = channel(&federal, Suite::Classical);
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let mut device = Device::open(&mesh, "regional", "device").await;
    device.endpoint.register().await.unwrap();
    let mut expected = Vec::new();
    loop {
        let points = expected.len();
        expected.push(format!("broadcast {points}"));
        let order = order(&mesh, &expected[points], None);
        // It comes into a cell, reads, and goes.
        let listen = async |device: &Device| {
            device.endpoint.subscribe(&channel, None).await.unwrap();
            until("the device is in a cell", async || is_in(device).await).await;
            federal.endpoint.broadcast(order.clone()).await.unwrap();
            assert_eq!(texts(device, expected.len()).await, expected);
            device.endpoint.unsubscribe(channel.id).await.unwrap();
        };
        let cut = Cut::after(points, &node).await;
        device = device.reopened_at(&cut.address).await.live();
        let done = until_cut(&cut, listen(&device)).await;
        device = device.reopened_at(&node).await.live();
        listen(&device).await;
        if done {
            println!("{points} points");
            assert!(points > 20, "there are more records than {points} in this");
            break;
        }
    }
    assert!(device.endpoint.alarms_after(0, 100).await.unwrap().is_empty());
    assert!(federal.endpoint.alarms_after(0, 100).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_at_an_even_record_brings_a_resident_in_and_broadcasts_once() {
    an_agent_dies_at_every_second_record_from(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_at_an_odd_record_brings_a_resident_in_and_broadcasts_once() {
    an_agent_dies_at_every_second_record_from(1).await;
}

/// Each key of a cell, which its epoch and a broadcast's sequence name, wraps one content, however often it comes; gives
/// how many keys there were.
fn each_key_wraps_one_content(recorder: &Recorder) -> usize {
    let mut wrapped = HashMap::new();
    for received in recorder.received() {
        if !received.call || received.method != "/chancery.node.v1.BroadcastService/SubmitCells" {
            continue;
        }
        let request = SubmitCellsRequest::decode(&*received.bytes).unwrap_or_default();
        for item in request.items {
            let Some(cell_item::Item::Wraps(wraps)) = item.item else { continue };
            for (cell, wrap) in wraps.wraps.chunks(56).enumerate().filter(|(_, wrap)| *wrap != [0; 56]) {
                let key = (request.node.clone(), wraps.row, cell, wrap[..8].to_vec(), wraps.sequence);
                let before = wrapped.insert(key, wrap.to_vec());
                assert!(before.is_none_or(|before| before == wrap), "one key, two contents");
            }
        }
    }
    wrapped.len()
}

async fn an_agent_dies_at_every_second_record_from(first: usize) {
    let recorder = Recorder::default();
    let (mesh, mut federal) = recorded_mesh(recorder.clone()).await;
    let node = mesh.nodes["federal"].address.clone();
    let channel = channel(&federal, Suite::Classical);
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let mut points = first;
    loop {
        let device = Device::open(&mesh, "regional", &format!("device-{points}")).await;
        device.endpoint.register().await.unwrap();
        let device = device.live();
        let order = order(&mesh, &format!("broadcast {points}"), None);
        let speak = async |federal: &Agent| {
            device.endpoint.subscribe(&channel, None).await.unwrap();
            until("the device is in a cell", async || is_in(&device).await).await;
            federal.endpoint.broadcast(order.clone()).await.unwrap();
            assert_eq!(texts(&device, 1).await, [format!("broadcast {points}")]);
        };
        let cut = Cut::after(points, &node).await;
        federal = federal.crash_and_restart_at(&cut.address).await;
        let done = until_cut(&cut, speak(&federal)).await;
        federal = federal.crash_and_restart_at(&node).await;
        speak(&federal).await;
        assert!(device.endpoint.alarms_after(0, 100).await.unwrap().is_empty());
        device.close().await;
        if done {
            println!("{points} points");
            assert!(points > 20, "there are more records than {points} in this");
            break;
        }
        points += 2;
    }
    assert!(each_key_wraps_one_content(&recorder) > points / 2);
    assert!(federal.endpoint.alarms_after(0, 100).await.unwrap().is_empty());
}
