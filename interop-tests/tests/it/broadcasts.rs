//! Broadcasts over a whole federation: residents of two nodes take seats in a channel, its agent
//! brings them into cells and broadcasts, and everybody has each broadcast once.

use chancery_directory_core::channel::{Channel, JoinRule, Suite, Text};
use chancery_directory_core::manifest::About;
use chancery_interop_tests::mesh::{FEDERATION, Mesh, Place, id};
use chancery_interop_tests::party::{Agent, Device, reason};
use chancery_interop_tests::wait::until;
use chancery_kit::status::from_status;
use chancery_proto::agent::v1 as wire;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use chancery_sdk::broadcast::received::Received;
use chancery_sdk::broadcast::sender::Order;
use chancery_sdk::content::Body;
use chancery_sdk::endpoint::Endpoint;
use chancery_types::{ChannelId, Reason};
use std::collections::BTreeMap;
use std::time::Duration;

/// A channel of the agent's, open to all.
pub(crate) fn channel(agent: &Agent, suite: Suite) -> Channel {
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
        for_residents: false,
    }
}

/// Something to be broadcast on it.
pub(crate) fn order(mesh: &Mesh, text: &str, about: Option<About>) -> Order {
    Order {
        request_id: mesh.entropy.array(),
        digest: [0; 32],
        channel: ChannelId::from_bytes([7; 16]),
        content: text.as_bytes().to_vec(),
        emergency: false,
        about,
        expires: mesh.clock.now().after(Duration::from_hours(24)),
        begins: None,
    }
}

/// Waits until the agent has so many residents in cells.
async fn seated(agent: &Endpoint, residents: u64) {
    let channel = ChannelId::from_bytes([7; 16]);
    until("residents are in cells", async || agent.audience(channel).await.unwrap().0 == residents).await;
}

/// Waits until a device has so many broadcasts, and gives their texts.
pub(crate) async fn texts(device: &Device, count: usize) -> Vec<String> {
    until("broadcasts come in", async || received(device).await.len() >= count).await;
    let text = |received: Received| String::from_utf8(received.content).unwrap();
    received(device).await.into_iter().map(text).collect()
}

/// A device at home with the channel's owner, in a cell of it.
pub(crate) async fn subscriber(mesh: &Mesh, channel: &Channel) -> Device {
    let device = Device::open(mesh, "federal", "device").await;
    device.endpoint.register().await.unwrap();
    device.endpoint.subscribe(channel, None).await.unwrap();
    let device = device.live();
    until("the device is in a cell", async || is_in(&device).await).await;
    device
}

/// Whether the device is in a cell of the channel.
pub(crate) async fn is_in(device: &Device) -> bool {
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

/// An agent that crashes wherever it is goes on where it was, and its cells with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_crashes_broadcasts_once() {
    let mut mesh = Mesh::new().await;
    let mut federal = Agent::start(&mut mesh, "federal").await;
    let channel = channel(&federal, Suite::Hybrid);
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let mut devices = Vec::new();
    for number in 0..4 {
        let device = Device::open(&mesh, "federal", &format!("device-{number}")).await;
        device.endpoint.register().await.unwrap();
        device.endpoint.subscribe(&channel, None).await.unwrap();
        devices.push(device.live());
        // In the middle of whatever it does about the seats so far.
        federal = federal.crash_and_restart().await;
    }
    seated(&federal.endpoint, 4).await;
    let mut expected = Vec::new();
    for number in 0..4 {
        let order = order(&mesh, &format!("broadcast {number}"), None);
        expected.push(format!("broadcast {number}"));
        federal.endpoint.broadcast(order.clone()).await.unwrap();
        federal = federal.crash_and_restart().await;
        let again = federal.endpoint.broadcast(order).await.unwrap();
        assert_eq!(again.sequence, number + 1);
    }
    for device in &devices {
        assert_eq!(texts(device, 4).await, expected);
        assert!(device.endpoint.alarms_after(0, 10).await.unwrap().is_empty());
    }
}

/// Nobody could be reached for as long as it was good.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_expires_before_it_is_logged_holds_up_no_other() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let channel = channel(&federal, Suite::Classical);
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let device = subscriber(&mesh, &channel).await;
    let (nobody, address) = (Place::free().await, mesh.nodes["federal"].address.clone());
    let federal = federal.crash_and_restart_at(&nobody.address).await;
    let expires = mesh.clock.now().after(Duration::from_secs(2));
    let short = Order { expires, ..order(&mesh, "the bridge is closed for a minute", None) };
    let long = order(&mesh, "the bridge is open", None);
    for (order, sequence) in [(&short, 1), (&long, 2)] {
        assert_eq!(federal.endpoint.broadcast(order.clone()).await.unwrap().sequence, sequence);
    }
    until("the first one has expired", async || mesh.clock.now() > expires).await;
    let federal = federal.crash_and_restart_at(&address).await;
    assert_eq!(texts(&device, 1).await, ["the bridge is open"]);
    assert_eq!(federal.endpoint.broadcast(long).await.unwrap().sequence, 1);
    let refused = federal.endpoint.broadcast_state(short.request_id, short.digest).await;
    assert_eq!(reason(refused), Reason::Expired);
    assert!(device.endpoint.alarms_after(0, 10).await.unwrap().is_empty());
}

/// Through the agent's API, as callers in other languages have it; and each device reads the language
/// of its owner.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_publishes_a_channel_and_broadcasts_in_two_languages() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let mut client = AgentServiceClient::connect(format!("http://{}", federal.address)).await.unwrap();
    let text = |name: &str| wire::ChannelText { name: name.to_owned(), description: String::new() };
    let put = wire::PutChannelRequest {
        channel_id: "07070707-0707-0707-0707-070707070707".to_owned(),
        texts: BTreeMap::from([("nl".to_owned(), text("Nieuws"))]),
        contact: "https://federal.example/news".to_owned(),
        ..wire::PutChannelRequest::default()
    };
    assert_eq!(client.put_channel(put.clone()).await.unwrap().into_inner().version, 1);
    assert_eq!(client.put_channel(put.clone()).await.unwrap().into_inner().version, 1, "nothing changed");
    let changed = wire::PutChannelRequest { category: 2, ..put.clone() };
    let changed = client.put_channel(changed).await.unwrap().into_inner();
    assert_eq!(changed.version, 2);
    let refused = client.put_channel(wire::PutChannelRequest { cell_size: 1, ..put.clone() }).await;
    assert_eq!(from_status(&refused.map(drop).unwrap_err()).reason, Reason::InvalidField);

    let device = Device::open(&mesh, "federal", "device").await;
    device.endpoint.register().await.unwrap();
    let id = ChannelId::from_bytes([7; 16]);
    let found = device.endpoint.channel(&id, changed.index).await.unwrap().unwrap();
    device.endpoint.subscribe(found.channel.channel(), None).await.unwrap();
    let device = device.live();
    until("the device is in a cell", async || is_in(&device).await).await;

    let body = |language: &str, markdown: &str| wire::Letter {
        markdown: markdown.to_owned(),
        language: language.to_owned(),
        ..wire::Letter::default()
    };
    let request = wire::BroadcastRequest {
        request_id: "7f1f0a52-6b0e-4d0e-9a1c-2d1c7b9e0c11".to_owned(),
        channel_id: put.channel_id.clone(),
        bodies: vec![body("nl-BE", "Maandag gesloten"), body("fr", "Fermé lundi")],
        ..wire::BroadcastRequest::default()
    };
    let answers = async |client: &mut AgentServiceClient<_>, request: &wire::BroadcastRequest| {
        let mut stream = client.broadcast(request.clone()).await?.into_inner();
        let mut answers = Vec::new();
        while let Some(answer) = stream.message().await? {
            answers.push(answer);
        }
        Ok::<_, tonic::Status>(answers)
    };
    let preview = wire::BroadcastRequest { preview: true, ..request.clone() };
    let shown = answers(&mut client, &preview).await.unwrap().remove(0);
    assert_eq!((shown.sequence, shown.residents, shown.preview.unwrap().category), (1, 1, 2));
    let told = answers(&mut client, &request).await.unwrap();
    let last = told.last().unwrap();
    assert!((last.sequence, last.stage(), last.cells) == (1, wire::BroadcastStage::HandedOver, 1));
    let again = answers(&mut client, &request).await.unwrap();
    assert_eq!(again.last().unwrap().sequence, 1);
    let other = wire::BroadcastRequest { emergency: true, ..request.clone() };
    let refused = answers(&mut client, &other).await.map(drop).unwrap_err();
    assert_eq!(from_status(&refused).reason, Reason::RequestIdReused);
    let another = "7f1f0a52-6b0e-4d0e-9a1c-2d1c7b9e0c12".to_owned();
    let alarm = wire::BroadcastRequest { request_id: another, ..other };
    let refused = answers(&mut client, &alarm).await.map(drop).unwrap_err();
    assert_eq!(from_status(&refused).reason, Reason::NotAccredited);

    until("the broadcast comes in", async || !received(&device).await.is_empty()).await;
    let read = received(&device).await;
    assert_eq!(read.len(), 1);
    for (languages, expected) in [
        (&["fr-BE", "nl"][..], "Fermé lundi"),
        (&["nl"], "Maandag gesloten"),
        (&["de", "en"], "Maandag gesloten"),
    ] {
        let body = Body::decode_in(&read[0].content, languages).unwrap();
        let Body::Letter { letter, .. } = body else { panic!("no letter") };
        assert_eq!(letter.markdown, expected);
    }
    let listed = client.list_channels(wire::ListChannelsRequest {}).await.unwrap().into_inner();
    assert_eq!((listed.channels[0].sequence, listed.channels[0].residents), (1, 1));
}

async fn received(device: &Device) -> Vec<Received> {
    device.endpoint.broadcasts_after(0, 100).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_leaves_and_comes_again_has_what_is_said_then() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let channel = channel(&federal, Suite::Classical);
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let device = subscriber(&mesh, &channel).await;
    federal.endpoint.broadcast(order(&mesh, "first", None)).await.unwrap();
    texts(&device, 1).await;
    device.endpoint.unsubscribe(channel.id).await.unwrap();
    assert!(device.endpoint.subscriptions().await.unwrap().is_empty());
    federal.endpoint.broadcast(order(&mesh, "second", None)).await.unwrap();
    device.endpoint.subscribe(&channel, None).await.unwrap();
    until("the device is in a cell again", async || is_in(&device).await).await;
    federal.endpoint.broadcast(order(&mesh, "third", None)).await.unwrap();
    assert_eq!(texts(&device, 2).await, ["first", "third"]);
    assert!(device.endpoint.alarms_after(0, 10).await.unwrap().is_empty());
}
