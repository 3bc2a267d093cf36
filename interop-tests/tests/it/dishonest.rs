//! Nodes and agents that treat some residents otherwise than others: what a node keeps back or brings
//! late, and two texts under one sequence.

use crate::broadcasts::{channel, is_in, order, texts};
use chancery_directory_core::SigningKey;
use chancery_directory_core::channel::{Channel, Suite};
use chancery_directory_core::manifest::Manifest;
use chancery_interop_tests::mesh::{Mesh, Place};
use chancery_interop_tests::party::{Agent, Device, reason};
use chancery_interop_tests::wait::until;
use chancery_proto::directory::v1 as directory;
use chancery_sdk::alarm::Alarm;
use chancery_types::clock::ManualClock;
use chancery_types::{BlobId, Reason};
use prost::Message as _;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A federation in which `regional` has a resident in a channel of `federal`'s agent.
struct Scene {
    mesh: Mesh,
    federal: Agent,
    channel: Channel,
    device: Device,
    clock: ManualClock,
    /// What the resident's node keeps, for its dishonest operator.
    store: Connection,
}

impl Scene {
    async fn new() -> Self {
        let mut mesh = Mesh::new().await;
        let federal = Agent::start(&mut mesh, "federal").await;
        mesh.start_node("regional", Place::free().await, BTreeMap::new()).await;
        let channel = channel(&federal, Suite::Classical);
        federal.endpoint.publish_channel(&channel).await.unwrap();
        let clock = ManualClock::new(mesh.clock.now());
        let device = Device::open_by(&mesh, "regional", "device", Arc::new(clock.clone())).await;
        device.endpoint.register().await.unwrap();
        device.endpoint.subscribe(&channel, None).await.unwrap();
        let device = device.live();
        until("the device is in a cell", async || is_in(&device).await).await;
        let store = Connection::open(mesh.path("node-regional/node.db")).unwrap();
        store.busy_timeout(Duration::from_secs(30)).unwrap();
        Self { mesh, federal, channel, device, clock, store }
    }

    /// Broadcasts, and waits until the resident's node has it.
    async fn broadcast(&self, text: &str) -> u64 {
        let begun = self.federal.endpoint.broadcast(order(&self.mesh, text, None)).await.unwrap();
        until("the node has it", async || self.has(begun.sequence)).await;
        begun.sequence
    }

    fn has(&self, sequence: u64) -> bool {
        let has = "SELECT count(*) FROM broadcast_wraps w JOIN broadcast b ON b.id = w.broadcast_id \
                   WHERE b.sequence = ?1";
        self.store.query_row(has, [sequence], |row| row.get::<_, u64>(0)).unwrap() == 1
    }

    async fn away(mut self) -> Self {
        self.device = {
            let address = self.mesh.nodes["regional"].address.clone();
            self.device.reopened_at(&address).await
        };
        self
    }

    /// What the device raised, but that its own clock, which the test turns, is ahead of the directory's.
    async fn alarms(&self) -> Vec<Alarm> {
        let raised = self.device.endpoint.alarms_after(0, 100).await.unwrap();
        raised.iter().map(|raised| raised.alarm).filter(|alarm| *alarm != Alarm::DirectoryStale).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_keeps_back_its_resident_misses_and_what_comes_late_it_reads() {
    let mut scene = Scene::new().await.away().await;
    for text in ["first", "second", "third"] {
        scene.broadcast(text).await;
    }
    // The node turns the first two around and keeps the last one back.
    for (from, to) in [(1, 1001), (2, 1000)] {
        for table in
            ["broadcast_wraps SET broadcast_id = ?2 WHERE broadcast_id", "broadcast SET id = ?2 WHERE id"]
        {
            scene.store.execute(&format!("UPDATE {table} = ?1"), [from, to]).unwrap();
        }
    }
    scene.store.execute("UPDATE broadcast SET channel_id = x'00' WHERE sequence = 3", []).unwrap();
    scene.device = scene.device.live();
    let mut read = texts(&scene.device, 2).await;
    read.sort();
    assert_eq!(read, ["first", "second"]);
    // The map shows three. An hour is time enough.
    scene.device.endpoint.check_broadcasts().await.unwrap();
    assert_eq!(scene.alarms().await, []);
    scene.clock.advance(Duration::from_mins(61));
    scene.device.endpoint.check_broadcasts().await.unwrap();
    assert_eq!(scene.alarms().await, [Alarm::BroadcastWithheld]);
    scene.device.endpoint.check_broadcasts().await.unwrap();

    let id = scene.channel.id;
    scene.store.execute("UPDATE broadcast SET channel_id = ?1 WHERE sequence = 3", [id.as_bytes()]).unwrap();
    let mut scene = scene.away().await;
    scene.device = scene.device.live();
    assert_eq!(texts(&scene.device, 3).await[2], "third");
    assert_eq!(scene.alarms().await, [Alarm::BroadcastWithheld], "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_leaves_out_or_forges_is_noticed_with_the_next() {
    let mut scene = Scene::new().await.away().await;
    for text in ["first", "second"] {
        scene.broadcast(text).await;
    }
    // The node has the second one only, and in the place of a later one something of its own.
    for change in [
        "DELETE FROM broadcast WHERE sequence = 1",
        "INSERT INTO broadcast (owner, channel_id, sequence, logged_manifest, expires_at) \
         SELECT owner, channel_id, 1000000, x'00', expires_at FROM broadcast WHERE sequence = 2",
        "INSERT INTO broadcast_wraps (broadcast_id, row, wraps) \
         SELECT b.id, w.row, w.wraps FROM broadcast b, broadcast_wraps w WHERE b.sequence = 1000000 LIMIT 1",
    ] {
        assert!(scene.store.execute(change, []).unwrap() > 0, "{change}");
    }
    scene.device = scene.device.live();
    assert_eq!(texts(&scene.device, 1).await, ["second"]);
    until("both are noticed", async || scene.alarms().await.len() == 2).await;
    assert_eq!(scene.alarms().await, [Alarm::BroadcastWithheld, Alarm::ForgedBroadcast]);
    // The forgery hides nothing that comes later.
    scene.broadcast("third").await;
    let mut scene = scene.away().await;
    scene.device = scene.device.live();
    assert_eq!(texts(&scene.device, 2).await, ["second", "third"]);
    assert_eq!(scene.alarms().await.len(), 2);
}

/// The key under which an agent speaks, from a copy of its store.
fn key_of(store: &Path, copy: &Path) -> SigningKey {
    for end in ["", "-wal"] {
        let file = |path: &Path| format!("{}{end}", path.display());
        std::fs::copy(file(store), file(copy)).unwrap();
    }
    let store = Connection::open(copy).unwrap();
    let seed = store.query_row("SELECT credential_seed FROM identity", [], |row| row.get::<_, [u8; 32]>(0));
    SigningKey::from_bytes(&seed.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_tells_one_region_something_else_is_found() {
    let mut scene = Scene::new().await.away().await;
    let sequence = scene.broadcast("the bridge is open").await;
    let genuine: Vec<u8> = scene
        .store
        .query_row("SELECT logged_manifest FROM broadcast WHERE sequence = ?1", [sequence], |row| row.get(0))
        .unwrap();
    // Another blob under the same sequence, signed like the first.
    let mut logged = directory::LoggedManifest::decode(&*genuine).unwrap();
    let manifest = logged.manifest.clone().unwrap().manifest;
    let first = Manifest::try_from(directory::Manifest::decode(manifest).unwrap()).unwrap();
    let other = Manifest { blob: BlobId::from_bytes([9; 32]), ..first };
    let key = key_of(&scene.mesh.path("agent-federal/endpoint.db"), &scene.mesh.path("copy.db"));
    logged.manifest = Some(other.sign(&key));
    let tell = |manifest: Vec<u8>| {
        let change = "UPDATE broadcast SET logged_manifest = ?1 WHERE sequence = ?2";
        scene.store.execute(change, rusqlite::params![manifest, sequence]).unwrap();
    };
    tell(logged.encode_to_vec());

    // The directory logs no second one.
    let conflict = scene.federal.endpoint.log_manifest(&other).await;
    assert_eq!(reason(conflict.map(drop)), Reason::ChannelConflict);
    // The region's residents read nothing that is not in the log, and say so.
    let device = scene.device.live();
    until("the alarm is raised", async || !device.endpoint.alarms_after(0, 10).await.unwrap().is_empty())
        .await;
    assert!(device.endpoint.broadcasts_after(0, 10).await.unwrap().is_empty());
    scene.device = device;
    assert_eq!(scene.alarms().await, [Alarm::ForgedBroadcast]);
    // And the map shows everybody that there was another one.
    scene.device.endpoint.check_broadcasts().await.unwrap();
}
