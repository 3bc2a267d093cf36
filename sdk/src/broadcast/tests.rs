//! An agent and residents' devices without a network: what one queues for home nodes the others
//! take, as a home node would bring it; and what nobody must be able to do.

mod changes;
mod kept_back;
mod refused;

use super::chain::Chain;
use super::reader::{self, Taken};
use super::sender::{Order, State};
use super::{ContentKey, audience, blob, cell, handover, received, schedule, seat, sender};
use crate::alarm::Alarm;
use crate::credential::AgentName;
use crate::error::EndpointError;
use crate::harness::{Device, FEDERATION};
use crate::identity::{Identity, Leaf};
use crate::mls::Suite;
use crate::store::Tx;
use chancery_directory_core::channel::{Channel, JoinRule, Suite as ChannelSuite, Text};
use chancery_directory_core::manifest::SignedManifest;
use chancery_proto::content::v1::CellKey;
use chancery_proto::directory::v1 as directory;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as wire;
use chancery_types::{ChannelId, NodeId, Reason, SeatId, Timestamp};
use ed25519_dalek::SigningKey;
use openmls::prelude::LeafNodeParameters;
use prost::Message as _;
use std::collections::BTreeMap;
use std::time::Duration;
use wire::cell_item::Item;

const CHANNEL: ChannelId = ChannelId::from_bytes([7; 16]);

fn channel(agent: &Identity, history: u32) -> Channel {
    let text = Text { name: "News".to_owned(), description: String::new() };
    Channel {
        federation: FEDERATION.to_owned(),
        id: CHANNEL,
        version: 1,
        administration: "north".parse().unwrap(),
        agent: "desk".parse().unwrap(),
        texts: BTreeMap::from([("en".to_owned(), text)]),
        join_rule: JoinRule::Open,
        category: 1,
        contact: "https://north.example/news".to_owned(),
        suite: ChannelSuite::Classical,
        cell_size: 4,
        emergency: false,
        history,
        agent_alias: agent.alias,
        closed: false,
        for_residents: false,
    }
}

/// A channel, its agent, and what a home node keeps of it.
struct Scene {
    agent: Device,
    identity: Identity,
    channel: Channel,
    items: Vec<Item>,
}

/// A resident's device with its seat.
struct Resident {
    device: Device,
    seat: SeatId,
    /// Number of its cell; `None`: it is in none.
    cell: Option<u32>,
    /// How much of the home node's it has been brought.
    read: usize,
}

impl Scene {
    async fn new(history: u32) -> Self {
        let (agent, identity) = Device::agent(1).await;
        let channel = channel(&identity, history);
        let published = channel.clone();
        agent
            .run(move |tx| {
                let key = crate::identity::key(tx, crate::identity::OwnKey::Credential)?;
                audience::publish(tx, &published.sign(&key), &CHANNEL)
            })
            .await;
        Self { agent, identity, channel, items: Vec::new() }
    }

    /// A device that asks for a seat.
    async fn resident(&self, seed: u64) -> Resident {
        let (device, _) = Device::person(seed).await;
        device.lists(&self.identity).await;
        let channel = self.channel.clone();
        device.run(move |tx| seat::subscribe(tx, &channel, None)).await;
        let (seat, request) = device.run(|tx| seat::to_tell(tx)).await.remove(0);
        let request = request.unwrap();
        device.run(move |tx| seat::told(tx, &seat)).await;
        let joining = federation::JoiningSeat {
            seat_id: request.seat_id,
            key_package: request.key_package,
            invitation: request.invitation,
        };
        self.tell(vec![joining], Vec::new()).await;
        Resident { device, seat, cell: None, read: self.items.len() }
    }

    async fn tell(&self, joining: Vec<federation::JoiningSeat>, leaving: Vec<SeatId>) {
        let list = federation::SeatList {
            federation: FEDERATION.to_owned(),
            channel_id: CHANNEL.to_wire(),
            node: "south".to_owned(),
            joining,
            leaving: leaving.iter().map(SeatId::to_wire).collect(),
            counts: Vec::new(),
        };
        self.agent.run(move |tx| audience::ask(tx, &list)).await;
    }

    /// The agent does what is to be done about its cells, and the home node gets it.
    async fn settle(&mut self) {
        while self.agent.run(audience::admit).await
            || self.agent.run(audience::remove).await
            || self.agent.run(audience::retire).await
        {}
        while let Some(waiting) = self.agent.run(|tx| handover::waiting(tx)).await {
            let (node, through) = (waiting.node, waiting.through);
            self.items.extend(waiting.items.into_iter().filter_map(|item| item.item));
            self.agent.run(move |tx| handover::done(tx, &node, through)).await;
        }
    }

    /// Broadcasts; gives the manifest as it was logged, and the sealed content.
    async fn say(&mut self, text: &str) -> (SignedManifest, Vec<u8>) {
        let mut request_id = [0; 16];
        request_id.iter_mut().zip(text.bytes()).for_each(|(byte, letter)| *byte = letter);
        let content = text.as_bytes().to_vec();
        self.agent
            .run(move |tx| {
                let expires = tx.now().after(Duration::from_hours(24));
                let order = Order {
                    request_id,
                    digest: [0; 32],
                    channel: CHANNEL,
                    content,
                    emergency: false,
                    about: None,
                    expires,
                    begins: None,
                };
                sender::begin(tx, &order)
            })
            .await;
        let due = self.agent.run(|tx| sender::due(tx)).await.unwrap();
        let (manifest, blob) = (due.manifest.clone(), due.blob.unwrap());
        let signed = self
            .agent
            .run(move |tx| {
                let key = crate::identity::key(tx, crate::identity::OwnKey::Credential)?;
                let signed = due.manifest.sign(&key);
                let proof =
                    directory::LoggedManifest { manifest: Some(signed.clone()), ..Default::default() };
                let sequence = due.manifest.sequence;
                sender::uploaded(tx, &CHANNEL, sequence)?;
                sender::logged(tx, (&CHANNEL, sequence), &proof)?;
                sender::wrap(tx, &CHANNEL, sequence)?;
                Ok(signed)
            })
            .await;
        self.settle().await;
        let signed = SignedManifest::try_from(signed).unwrap();
        assert_eq!(*signed.manifest(), manifest);
        (signed, blob.to_vec())
    }

    fn agent_name(&self) -> AgentName {
        AgentName::parse(self.identity.agent.as_deref().unwrap()).unwrap()
    }
}

impl Resident {
    /// Takes what the home node has, but for broadcasts that it withholds; gives what came of it.
    async fn read(&mut self, scene: &Scene, withheld: &[u64]) -> Vec<Taken> {
        let mut taken = Vec::new();
        for item in scene.items[self.read..].iter().cloned() {
            let (id, agent) = (self.seat, scene.agent_name());
            let what = match item {
                Item::Change(change) => {
                    let admitted =
                        change.admitted.iter().any(|seat| seat.seat_id == id.as_bytes().as_slice());
                    if admitted {
                        self.cell = Some(change.cell);
                    }
                    if self.cell != Some(change.cell) {
                        continue;
                    }
                    self.device
                        .run(move |tx| match admitted {
                            true => reader::admitted(tx, &id, &agent, &admission(&change)),
                            false => reader::step(tx, &id, &step(&change)),
                        })
                        .await
                }
                Item::Wraps(wraps) if !withheld.contains(&wraps.sequence) => {
                    let Some(cell) = self.cell else { continue };
                    let signed = manifest(scene, wraps.sequence);
                    let wrap = wrap_of(&wraps.wraps, cell).unwrap_or_default().to_vec();
                    self.device.run(move |tx| reader::take(tx, &id, &signed, &wrap)).await
                }
                _ => continue,
            };
            taken.push(what);
        }
        self.read = scene.items.len();
        taken
    }

    /// Takes other seats where they are to be taken.
    async fn fill(&self, channel: &Channel) {
        for vacancy in self.device.run(|tx| seat::vacancies(tx)).await {
            let channel = channel.clone();
            self.device.run(move |tx| seat::fill(tx, &vacancy, Some(&channel))).await;
        }
    }

    async fn open(&self, blob: Vec<u8>) {
        let missing = self.device.run(|tx| received::missing(tx, 10)).await;
        let position = missing.last().unwrap().position;
        self.device.run(move |tx| received::fetched(tx, position, blob)).await;
    }

    async fn texts(&self) -> Vec<String> {
        let received = self.device.run(|tx| received::after(tx, 0, 100)).await;
        received.into_iter().map(|received| String::from_utf8(received.content).unwrap()).collect()
    }

    async fn has_none(&self) -> bool {
        self.device.run(|tx| received::missing(tx, 10)).await.is_empty()
    }
}

/// The manifest that was announced under a sequence.
fn manifest(scene: &Scene, sequence: u64) -> SignedManifest {
    let announced = scene.items.iter().find_map(|item| match item {
        Item::Announcement(new) if new.sequence == sequence => Some(new.logged_manifest.clone()),
        _ => None,
    });
    let logged = directory::LoggedManifest::decode(announced.unwrap()).unwrap();
    logged.manifest.unwrap().try_into().unwrap()
}

fn wraps(scene: &Scene, sequence: u64) -> Vec<u8> {
    let wraps = scene.items.iter().find_map(|item| match item {
        Item::Wraps(wraps) if wraps.sequence == sequence => Some(wraps.wraps.to_vec()),
        _ => None,
    });
    wraps.unwrap()
}

/// A cell's wrap, as its home node finds it.
fn wrap_of(wraps: &[u8], cell: u32) -> Option<&[u8]> {
    let wrap = wraps.chunks(56).nth(cell as usize)?;
    wrap.iter().any(|byte| *byte != 0).then_some(wrap)
}

fn admission(change: &federation::CellChange) -> wire::Admission {
    wire::Admission {
        sequence: change.sequence,
        first_broadcast: change.first_broadcast,
        welcome: change.welcome.clone(),
        tree: change.tree.clone(),
        key: change.key.clone(),
    }
}

fn step(change: &federation::CellChange) -> wire::CellStep {
    wire::CellStep {
        sequence: change.sequence,
        first_broadcast: change.first_broadcast,
        commit: change.commit.clone(),
        key: change.key.clone(),
    }
}

#[tokio::test]
async fn everybody_in_a_cell_opens_what_its_agent_says() {
    let mut scene = Scene::new(0).await;
    let (mut anna, mut bert) = (scene.resident(10).await, scene.resident(11).await);
    scene.settle().await;
    let (_, blob) = scene.say("flood at the river").await;
    for resident in [&mut anna, &mut bert] {
        assert_eq!(resident.read(&scene, &[]).await, [Taken::Done, Taken::Broadcast]);
        resident.open(blob.clone()).await;
        assert_eq!(resident.texts().await, ["flood at the river"]);
    }
    // A third one comes into the same cell, and reads what comes after.
    let mut carl = scene.resident(12).await;
    scene.settle().await;
    let (_, blob) = scene.say("it has gone down").await;
    for resident in [&mut anna, &mut bert, &mut carl] {
        assert_eq!(resident.read(&scene, &[]).await, [Taken::Done, Taken::Broadcast]);
        resident.open(blob.clone()).await;
        assert_eq!(resident.texts().await.last().unwrap(), "it has gone down");
        assert!(resident.device.alarms().await.is_empty());
    }
    assert_eq!(carl.texts().await, ["it has gone down"]);
    assert_eq!(scene.agent.run(|tx| audience::count(tx, &CHANNEL)).await, (3, 1));
}

#[tokio::test]
async fn late_joiners_read_what_the_channel_grants() {
    let mut scene = Scene::new(1).await;
    let mut anna = scene.resident(10).await;
    scene.settle().await;
    let mut blobs = Vec::new();
    for text in ["one", "two"] {
        blobs.push(scene.say(text).await.1);
    }
    let mut bert = scene.resident(11).await;
    scene.settle().await;
    assert_eq!(bert.read(&scene, &[]).await, [Taken::Reread], "from the second one on");
    let at = bert.device.run(|tx| seat::read_for(tx)).await.remove(0);
    assert_eq!((at.change, at.broadcast), (2, 1));
    let (second, seat) = (manifest(&scene, 2), bert.seat);
    assert_eq!(bert.device.run(move |tx| reader::take(tx, &seat, &second, &[])).await, Taken::Broadcast);
    bert.open(blobs[1].clone()).await;
    assert_eq!(bert.texts().await, ["two"]);
    anna.read(&scene, &[]).await;
    assert!(anna.device.alarms().await.is_empty() && bert.device.alarms().await.is_empty());
}

#[tokio::test]
async fn who_was_removed_opens_nothing_that_comes_later() {
    let mut scene = Scene::new(0).await;
    let (mut anna, mut bert) = (scene.resident(10).await, scene.resident(11).await);
    scene.settle().await;
    scene.say("one").await;
    anna.read(&scene, &[]).await;
    bert.read(&scene, &[]).await;
    // All that Bert's device holds before it hears of anything.
    let before = bert.device.copy();
    scene.tell(Vec::new(), vec![bert.seat]).await;
    scene.agent.clock.advance(Duration::from_hours(25));
    scene.settle().await;
    assert_eq!(scene.agent.run(|tx| audience::count(tx, &CHANNEL)).await, (1, 1));
    let (signed, _) = scene.say("two").await;
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Done, Taken::Broadcast]);
    assert_eq!(bert.read(&scene, &[]).await, [Taken::Seats, Taken::Done]);
    assert!(bert.device.run(|tx| seat::read_for(tx)).await.is_empty());
    // With the store of before, and everything that nodes have: the commit takes it out, and the
    // chain that it still has opens no wrap of the new epoch.
    bert.device.restore(&before).await;
    let (seat, wraps) = (bert.seat, wraps(&scene, 2));
    let taken = bert.device.run(move |tx| reader::take(tx, &seat, &signed, &wraps[..56])).await;
    assert_eq!(taken, Taken::Done);
    assert_eq!(bert.device.alarms().await, [Alarm::FalseBroadcast]);
    assert_eq!(bert.device.run(|tx| received::missing(tx, 10)).await.len(), 1, "the first one alone");
}

/// What a store holds after a broadcast does not open the one before: device and agent.
#[tokio::test]
async fn keys_of_before_are_in_no_store() {
    let mut scene = Scene::new(0).await;
    let mut anna = scene.resident(10).await;
    scene.settle().await;
    let (first, blob) = scene.say("one").await;
    anna.read(&scene, &[]).await;
    anna.open(blob).await;
    scene.say("two").await;
    anna.read(&scene, &[]).await;
    let wrap: [u8; 56] = wraps(&scene, 1)[..56].try_into().unwrap();
    // The chains as they stand, turned back by hand.
    let device = anna.device.run(|tx| {
        Ok(tx.sql().query_row("SELECT epoch, key FROM seats", [], |row| Ok((row.get(0)?, row.get(1)?)))?)
    });
    let (epoch, key): (u64, [u8; 32]) = device.await;
    let agent: Vec<u8> = scene
        .agent
        .run(|tx| Ok(tx.sql().query_row("SELECT keys FROM cell_keys", [], |row| row.get(0))?))
        .await;
    assert_eq!(agent[8..40], key, "both ends stand at the same key");
    let mut turned_back = Chain::new(epoch, 1, key);
    assert!(turned_back.take(&first).unwrap().open(&wrap).is_err());
    let kept = |tx: &mut Tx<'_>, of: &str| -> Result<i64, crate::error::EndpointError> {
        Ok(tx.sql().query_row(of, [], |row| row.get(0))?)
    };
    let of = "SELECT (SELECT count(*) FROM skipped_keys) + (SELECT count(*) FROM broadcasts \
              WHERE sequence = 1 AND content_key IS NOT NULL)";
    assert_eq!(anna.device.run(move |tx| kept(tx, of)).await, 0);
    let of = "SELECT count(*) FROM own_broadcasts WHERE content_key IS NOT NULL OR blob IS NOT NULL";
    assert_eq!(scene.agent.run(move |tx| kept(tx, of)).await, 0);
}

/// A valid resident knows the cell's keys: it wraps another content key for a genuine manifest.
#[tokio::test]
async fn a_rewrapped_broadcast_is_refused_and_reported() {
    let mut scene = Scene::new(0).await;
    let (mut anna, mut bert) = (scene.resident(10).await, scene.resident(11).await);
    scene.settle().await;
    anna.read(&scene, &[]).await;
    bert.read(&scene, &[]).await;
    let chain = bert.device.run(|tx| {
        let sql = "SELECT epoch, next, key FROM seats";
        Ok(tx.sql().query_row(sql, [], |row| Ok(Chain::new(row.get(0)?, row.get(1)?, row.get(2)?)))?)
    });
    let (mut chain, other) = (chain.await, ContentKey::from_bytes([9; 32]));
    let (genuine, _) = scene.say("one").await;
    let wrap = chain.take(&genuine).unwrap().committing_to(&other).wrap(&other).unwrap();
    let (signed, seat) = (genuine.clone(), anna.seat);
    assert_eq!(anna.device.run(move |tx| reader::take(tx, &seat, &signed, &wrap)).await, Taken::Done);
    assert_eq!(anna.device.alarms().await, [Alarm::FalseBroadcast]);
    assert!(anna.has_none().await);
    // The chain has not gone on: the next genuine one opens.
    let (_, blob) = scene.say("two").await;
    assert_eq!(anna.read(&scene, &[1]).await, [Taken::Broadcast]);
    anna.open(blob).await;
    assert_eq!(anna.texts().await, ["two"]);
    // And the genuine one still does.
    let (wrap, seat) = (wraps(&scene, 1)[..56].to_vec(), anna.seat);
    let taken = anna.device.run(move |tx| reader::take(tx, &seat, &genuine, &wrap)).await;
    assert_eq!(taken, Taken::Broadcast, "the genuine one opens when it comes");
    // A blob that is another one than the manifest names is none.
    let mut anna = scene.resident(12).await;
    scene.settle().await;
    let (signed, _) = scene.say("three").await;
    anna.read(&scene, &[]).await;
    let said = signed.manifest();
    let another = blob::seal(b"something else", &ContentKey::from_bytes([9; 32]), &CHANNEL, said.sequence);
    anna.open(another.unwrap().bytes).await;
    assert_eq!(anna.device.alarms().await, [Alarm::FalseBroadcast]);
    assert!(anna.texts().await.is_empty() && anna.has_none().await);
}

/// A valid resident is a member of the cell's MLS group: by itself it may commit and speak there.
#[tokio::test]
async fn nobody_but_the_agent_commits_or_speaks_in_a_cell() {
    let mut scene = Scene::new(0).await;
    let mut anna = scene.resident(10).await;
    let (mut mallory, _) = Device::person(13).await;
    mallory.lists(&scene.identity).await;
    let leaf = |seat| Leaf::of_seat(SigningKey::from_bytes(&[seat; 32]), vec![seat; 16]);
    let key_package = mallory.run(move |tx| cell::key_package(tx, Suite::Classical, &leaf(5))).await;
    let guest = mallory.run(move |tx| cell::key_package(tx, Suite::Classical, &leaf(4))).await;
    let joining = federation::JoiningSeat {
        seat_id: vec![5; 16].into(),
        key_package: key_package.into(),
        ..Default::default()
    };
    scene.tell(vec![joining], Vec::new()).await;
    scene.settle().await;
    anna.read(&scene, &[]).await;
    let before = anna.device.copy();
    let Some(Item::Change(change)) = scene.items.first().cloned() else { panic!("no change") };
    // What the agent would say first in an epoch; a commit with a path, and one without.
    let (agent, untouched) = (scene.agent_name(), mallory.copy());
    for adds in [false, true] {
        mallory.restore(&untouched).await;
        let (agent, change, guest) = (agent.clone(), change.clone(), guest.clone());
        let made = mallory.run(move |tx| {
            let joined = cell::join(tx, &agent, &change.welcome, &change.tree);
            let Ok(Some((_, mut group))) = joined else { panic!("not joined") };
            let (leaf, provider) = (leaf(5), tx.provider());
            let says = CellKey { first_broadcast: 1, key: vec![7; 32].into(), ..CellKey::default() };
            let says = says.encode_to_vec();
            let key = group.create_message(&provider, &leaf, &says).unwrap().to_bytes().unwrap();
            let commit = if adds {
                let guest = crate::mls::key_package::open(tx, &guest)?.0;
                group.add_members_without_update(&provider, &leaf, &[guest]).unwrap().0
            } else {
                let updated = group.self_update(&provider, &leaf, LeafNodeParameters::default());
                updated.unwrap().into_commit()
            };
            group.merge_pending_commit(&provider).unwrap();
            let next_key = group.create_message(&provider, &leaf, &says).unwrap();
            Ok((key, commit.to_bytes().unwrap(), next_key.to_bytes().unwrap()))
        });
        let (key, commit, next_key) = made.await;
        for (commit, key) in [(commit, next_key), (key.clone(), key)] {
            anna.device.restore(&before).await;
            let seat = anna.seat;
            let step =
                wire::CellStep { sequence: 2, first_broadcast: 1, commit: commit.into(), key: key.into() };
            assert_eq!(anna.device.run(move |tx| reader::step(tx, &seat, &step)).await, Taken::Seats);
            assert_eq!(anna.device.alarms().await, [Alarm::ForbiddenInCell]);
            // Another seat is to be taken.
            assert_eq!(anna.device.run(|tx| seat::vacancies(tx)).await.len(), 1);
        }
    }
    // Whoever opens a cell of its own is not the channel's agent, however it calls itself.
    let (stranger, identity) = Device::agent(14).await;
    let published = scene.channel.clone();
    stranger
        .run(move |tx| {
            let key = crate::identity::key(tx, crate::identity::OwnKey::Credential)?;
            audience::publish(tx, &published.sign(&key), &CHANNEL)
        })
        .await;
    let mut theirs = Scene { agent: stranger, identity, channel: scene.channel.clone(), items: Vec::new() };
    let mut bert = theirs.resident(15).await;
    bert.device.lists(&scene.identity).await;
    theirs.settle().await;
    assert_eq!(bert.read(&theirs, &[]).await, [Taken::Seats]);
    assert_eq!(bert.device.alarms().await, [Alarm::ForbiddenInCell]);
}
