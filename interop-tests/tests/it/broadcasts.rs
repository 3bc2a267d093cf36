//! Broadcasts over a whole federation: residents of two nodes take seats in a channel, its agent
//! brings them into cells and broadcasts, and everybody has each broadcast once.

use chancery_directory_core::channel::{Channel, JoinRule, Suite, Text};
use chancery_directory_core::manifest::About;
use chancery_interop_tests::mesh::{FEDERATION, Mesh, Place, id};
use chancery_interop_tests::party::{Agent, Device};
use chancery_interop_tests::wait::until;
use chancery_sdk::broadcast::received::Received;
use chancery_sdk::broadcast::sender::Order;
use chancery_sdk::endpoint::Endpoint;
use chancery_types::ChannelId;
use std::collections::BTreeMap;
use std::time::Duration;

fn channel(agent: &Agent, suite: Suite) -> Channel {
    let text = Text { name: "News".to_owned(), description: String::new() };
    Channel {
        federation: FEDERATION.to_owned(),
        id: ChannelId::from_bytes([7; 16]),
        version: 1,
        administration: id("federal"),
        agent: id("letters"),
        texts: BTreeMap::from([("en".to_owned(), text)]),
        join_rule: JoinRule::Open,
        category: 1,
        contact: "https://federal.example/news".to_owned(),
        suite,
        cell_size: 3,
        emergency: false,
        history: 0,
        agent_alias: agent.endpoint.identity().alias,
        closed: false,
    }
}

fn order(mesh: &Mesh, text: &str, about: Option<About>) -> Order {
    Order {
        request_id: mesh.entropy.array(),
        digest: [0; 32],
        channel: ChannelId::from_bytes([7; 16]),
        content: text.as_bytes().to_vec(),
        emergency: false,
        about,
        expires: mesh.clock.now().after(Duration::from_hours(24)),
    }
}

/// Waits until the agent has so many residents in cells.
async fn seated(agent: &Endpoint, residents: u64) {
    let channel = ChannelId::from_bytes([7; 16]);
    until("residents are in cells", async || agent.audience(channel).await.unwrap().0 == residents).await;
}

/// Waits until a device has so many broadcasts, and gives their texts.
async fn texts(device: &Device, count: usize) -> Vec<String> {
    let read = async || device.endpoint.broadcasts_after(0, 100).await.unwrap();
    until("broadcasts come in", async || read().await.len() >= count).await;
    let text = |received: Received| String::from_utf8(received.content).unwrap();
    read().await.into_iter().map(text).collect()
}

async fn is_in(device: &Device) -> bool {
    device.endpoint.subscriptions().await.unwrap() == [(ChannelId::from_bytes([7; 16]), true)]
}

#[tokio::test(flavor = "multi_thread")]
async fn residents_of_two_nodes_have_each_broadcast_once() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    mesh.start_node("regional", Place::free().await, BTreeMap::new()).await;
    let channel = channel(&federal, Suite::Classical);
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let mut devices = Vec::new();
    for number in 0..8 {
        let node = if number % 2 == 0 { "federal" } else { "regional" };
        let device = Device::open(&mesh, node, &format!("device-{number}")).await;
        device.endpoint.register().await.unwrap();
        device.endpoint.subscribe(&channel, None).await.unwrap();
        devices.push(device.live());
    }
    seated(&federal.endpoint, 8).await;
    for device in &devices {
        until("the device is in a cell", async || is_in(device).await).await;
    }
    let first = order(&mesh, "first", None);
    let begun = federal.endpoint.broadcast(first.clone()).await.unwrap();
    assert_eq!(federal.endpoint.broadcast(first).await.unwrap().sequence, begun.sequence);
    federal.endpoint.broadcast(order(&mesh, "second", None)).await.unwrap();
    for device in &devices {
        assert_eq!(texts(device, 2).await, ["first", "second"]);
    }

    // Who comes later reads what comes after.
    let late = Device::open(&mesh, "regional", "late").await;
    late.endpoint.register().await.unwrap();
    late.endpoint.subscribe(&channel, None).await.unwrap();
    let late = late.live();
    until("the late one is in a cell", async || is_in(&late).await).await;
    federal.endpoint.broadcast(order(&mesh, "third", Some(About::Corrects(1)))).await.unwrap();
    assert_eq!(texts(&late, 1).await, ["third"]);
    for device in &devices {
        assert_eq!(texts(device, 3).await, ["first", "second", "third"]);
        let all = device.endpoint.broadcasts_after(0, 100).await.unwrap();
        let superseded: Vec<_> = all.iter().map(|received| received.superseded_by).collect();
        assert_eq!(superseded, [Some(3), None, None]);
        assert!(device.endpoint.alarms_after(0, 10).await.unwrap().is_empty());
    }
    assert!(federal.endpoint.alarms_after(0, 10).await.unwrap().is_empty());
}
