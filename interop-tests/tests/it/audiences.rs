//! Who gets a broadcast, over a whole federation: residents who join by themselves, those whose cells
//! are merged, those for whom it is, and what waits until it is to begin.

use crate::broadcasts::{channel, is_in, order, subscriber, texts};
use chancery_directory_core::channel::{Channel, JoinRule, Suite};
use chancery_interop_tests::mesh::{Mesh, Place};
use chancery_interop_tests::party::{Agent, Device};
use chancery_interop_tests::wait::until;
use chancery_proto::agent::v1 as wire;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use chancery_proto::content::v1::{Condition, Profile};
use chancery_types::ChannelId;
use std::collections::BTreeMap;
use std::time::Duration;

const SCHEDULED: i32 = wire::BroadcastStage::Scheduled as i32;

#[tokio::test(flavor = "multi_thread")]
async fn residents_join_the_channels_of_their_administration_and_may_leave() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    mesh.start_node("regional", Place::free().await, BTreeMap::new()).await;
    let first = Channel { for_residents: true, ..channel(&federal, Suite::Classical) };
    let index = federal.endpoint.publish_channel(&first).await.unwrap();
    federal.endpoint.channel(&first.id, index).await.unwrap();
    let [resident, other] = [("resident", "federal"), ("other", "regional")];
    let resident = Device::open(&mesh, resident.1, resident.0).await;
    let other = Device::open(&mesh, other.1, other.0).await;
    for device in [&resident, &other] {
        device.endpoint.register().await.unwrap();
    }
    let (resident, other) = (resident.live(), other.live());
    for device in [&resident, &other] {
        device.endpoint.join_for_residents().await.unwrap();
    }
    until("the resident is in a cell", async || is_in(&resident).await).await;
    federal.endpoint.broadcast(order(&mesh, "to our residents", None)).await.unwrap();
    assert_eq!(texts(&resident, 1).await, ["to our residents"]);

    // Who has left is not brought back, though another channel is joined.
    resident.endpoint.unsubscribe(first.id).await.unwrap();
    let second = Channel { id: ChannelId::from_bytes([8; 16]), ..first };
    let index = federal.endpoint.publish_channel(&second).await.unwrap();
    federal.endpoint.channel(&second.id, index).await.unwrap();
    resident.endpoint.join_for_residents().await.unwrap();
    let joined = [(second.id, true)];
    until("the second one is joined", async || resident.endpoint.subscriptions().await.unwrap() == joined)
        .await;
    assert!(other.endpoint.subscriptions().await.unwrap().is_empty(), "it lives elsewhere");
}

/// What was broadcast before a node had any resident in the channel.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_resident_of_a_node_reads_what_the_channel_grants() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    mesh.start_node("regional", Place::free().await, BTreeMap::new()).await;
    let channel = Channel { history: 2, ..channel(&federal, Suite::Classical) };
    federal.endpoint.publish_channel(&channel).await.unwrap();
    for text in ["first", "second", "third"] {
        federal.endpoint.broadcast(order(&mesh, text, None)).await.unwrap();
    }
    let mut expected = vec!["second", "third"];
    for (node, text) in [("regional", "fourth"), ("federal", "fifth")] {
        let device = Device::open(&mesh, node, node).await;
        device.endpoint.register().await.unwrap();
        device.endpoint.subscribe(&channel, None).await.unwrap();
        let device = device.live();
        until("the device is in a cell", async || is_in(&device).await).await;
        assert_eq!(texts(&device, 2).await, expected);
        federal.endpoint.broadcast(order(&mesh, text, None)).await.unwrap();
        assert_eq!(texts(&device, 3).await[2], text);
        expected = vec!["third", text];
        assert!(device.endpoint.alarms_after(0, 10).await.unwrap().is_empty());
    }
}

/// Removals of a channel by invitation are made at once, so that nobody has to wait for a day.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_empty_cell_is_merged_while_broadcasts_come() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    mesh.start_node("regional", Place::free().await, BTreeMap::new()).await;
    let channel = Channel { join_rule: JoinRule::Invitation, ..channel(&federal, Suite::Classical) };
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let mut devices = Vec::new();
    for number in 0..5 {
        let device = Device::open(&mesh, "regional", &format!("device-{number}")).await;
        device.endpoint.register().await.unwrap();
        let invitation = federal.endpoint.invite(channel.id).await.unwrap();
        device.endpoint.subscribe(&channel, Some(invitation)).await.unwrap();
        let device = device.live();
        until("the device is in a cell", async || is_in(&device).await).await;
        devices.push(device);
    }
    let audience = async || federal.endpoint.audience(channel.id).await.unwrap();
    assert_eq!(audience().await, (5, 2), "cells of three");
    federal.endpoint.broadcast(order(&mesh, "first", None)).await.unwrap();
    for device in &devices {
        texts(device, 1).await;
    }
    for device in &devices[..2] {
        device.endpoint.unsubscribe(channel.id).await.unwrap();
    }
    federal.endpoint.broadcast(order(&mesh, "second", None)).await.unwrap();
    until("all are in one cell", async || audience().await == (3, 1)).await;
    federal.endpoint.broadcast(order(&mesh, "third", None)).await.unwrap();
    for device in &devices[2..] {
        assert_eq!(texts(device, 3).await, ["first", "second", "third"]);
        until("it has one seat", async || is_in(device).await).await;
        assert!(device.endpoint.alarms_after(0, 10).await.unwrap().is_empty());
    }
    assert!(federal.endpoint.alarms_after(0, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_waits_for_its_time_and_each_device_judges_for_whom_it_is() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let channel = channel(&federal, Suite::Classical);
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let device = subscriber(&mesh, &channel).await;

    let mut client = AgentServiceClient::connect(format!("http://{}", federal.address)).await.unwrap();
    let mut stages = async |request: &wire::BroadcastRequest| {
        let mut stream = client.broadcast(request.clone()).await.unwrap().into_inner();
        let mut stages = Vec::new();
        while let Some(answer) = stream.message().await.unwrap() {
            stages.push((answer.sequence, answer.stage));
        }
        stages
    };
    let body = wire::Letter { markdown: "Winter help".to_owned(), ..wire::Letter::default() };
    let request = |name: u8, begins: Duration| wire::BroadcastRequest {
        request_id: uuid::Uuid::from_bytes([name; 16]).to_string(),
        channel_id: uuid::Uuid::from_bytes(*channel.id.as_bytes()).to_string(),
        bodies: vec![body.clone()],
        begins_at_ms: mesh.clock.now().after(begins).millis(),
        condition: Some(Condition { areas: vec!["BE2".to_owned()], min_age: 65, ..Condition::default() }),
        ..wire::BroadcastRequest::default()
    };
    let (never, later) = (request(2, Duration::from_hours(24)), request(3, Duration::from_hours(25)));
    for waits in [&never, &later] {
        assert_eq!(stages(waits).await, [(0, SCHEDULED)]);
    }
    let mut other = AgentServiceClient::connect(format!("http://{}", federal.address)).await.unwrap();
    let listed = other.list_channels(wire::ListChannelsRequest {}).await.unwrap().into_inner();
    let waiting: Vec<_> = listed.channels[0].scheduled.iter().map(|waits| &*waits.request_id).collect();
    assert_eq!(waiting, [&*never.request_id, &*later.request_id]);
    let cancel = wire::CancelBroadcastRequest { request_id: never.request_id.clone() };
    assert!(other.cancel_broadcast(cancel.clone()).await.unwrap().into_inner().cancelled);
    assert!(!other.cancel_broadcast(cancel).await.unwrap().into_inner().cancelled);
    let soon = request(1, Duration::from_secs(5));
    assert_eq!(stages(&soon).await, [(0, SCHEDULED)]);

    let read = async || device.endpoint.broadcasts_after(0, 10).await.unwrap();
    until("its time has come", async || read().await.len() == 1).await;
    assert!(read().await[0].manifest.created_at.millis() >= soon.begins_at_ms);
    assert_eq!(stages(&soon).await.last(), Some(&(1, wire::BroadcastStage::HandedOver as i32)));
    assert!(read().await[0].is_for_owner, "whoever might be meant is told");
    for (area, birth_date, is_meant) in
        [("BE211", "1950-01-31", true), ("FR", "1950-01-31", false), ("BE211", "2000-01-31", false)]
    {
        let profile =
            Profile { areas: vec![area.to_owned()], birth_date: birth_date.to_owned(), ..Profile::default() };
        device.endpoint.set_profile(profile).await.unwrap();
        assert_eq!(read().await[0].is_for_owner, is_meant, "{area} {birth_date}");
    }
}

/// Of three residents a node tells no more than that it has the broadcast.
#[tokio::test(flavor = "multi_thread")]
async fn devices_report_and_an_agent_hears_sums_alone() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    mesh.start_node("regional", Place::free().await, BTreeMap::new()).await;
    let channel = channel(&federal, Suite::Classical);
    federal.endpoint.publish_channel(&channel).await.unwrap();
    let mut devices = Vec::new();
    for number in 0..3 {
        let device = Device::open(&mesh, "regional", &format!("device-{number}")).await;
        device.endpoint.register().await.unwrap();
        device.endpoint.subscribe(&channel, None).await.unwrap();
        let device = device.live();
        until("the device is in a cell", async || is_in(&device).await).await;
        devices.push(device);
    }
    let mut client = AgentServiceClient::connect(format!("http://{}", federal.address)).await.unwrap();
    let request = wire::BroadcastRequest {
        request_id: uuid::Uuid::from_bytes([1; 16]).to_string(),
        channel_id: uuid::Uuid::from_bytes(*channel.id.as_bytes()).to_string(),
        bodies: vec![wire::Letter { markdown: "Winter help".to_owned(), ..wire::Letter::default() }],
        follow: true,
        ..wire::BroadcastRequest::default()
    };
    let mut stream = client.broadcast(request).await.unwrap().into_inner();
    let mut last = wire::BroadcastResponse::default();
    while let Some(answer) = stream.message().await.unwrap() {
        last = answer;
    }
    assert!((last.stage(), last.homes, last.accepted) == (wire::BroadcastStage::Accepted, 1, 1));
    for device in &devices {
        until("it comes in", async || device.endpoint.broadcasts_after(0, 1).await.unwrap().len() == 1).await;
        let position = device.endpoint.broadcasts_after(0, 1).await.unwrap()[0].position;
        for _ in 0..2 {
            device.endpoint.count_as_read(position).await.unwrap();
            device.endpoint.report_broadcasts().await.unwrap();
        }
    }
    let store = rusqlite::Connection::open(mesh.path("node-regional/node.db")).unwrap();
    store.busy_timeout(Duration::from_secs(30)).unwrap();
    let sums = "SELECT delivered, read FROM broadcast";
    let sums = store.query_row(sums, [], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?)));
    assert_eq!(sums.unwrap(), (3, 3));
    // An hour later, when somebody else takes a seat.
    store.execute("UPDATE broadcast SET came_at = came_at - 3600000", []).unwrap();
    let late = Device::open(&mesh, "regional", "late").await;
    late.endpoint.register().await.unwrap();
    late.endpoint.subscribe(&channel, None).await.unwrap();
    let _late = late.live();
    let request = wire::BroadcastCountsRequest {
        channel_id: uuid::Uuid::from_bytes(*channel.id.as_bytes()).to_string(),
        sequence: 1,
    };
    let told = "SELECT told FROM broadcast";
    until("the node tells", async || store.query_row(told, [], |row| row.get::<_, u64>(0)).unwrap() == 2)
        .await;
    let told = client.broadcast_counts(request.clone()).await.unwrap().into_inner();
    assert_eq!((told.delivered, told.read, &*told.nodes[0].administration), (0, 0, "regional"));
}
