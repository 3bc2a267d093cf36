//! The statements beside the simulation's tables in memory: whatever a transaction
//! does, both answer it alike. What the simulation finds of one holds for the other.

use super::*;
use chancery_node_core::hub::Group;
use chancery_node_core::mailbox::Item;
use chancery_node_core::outbox::{Ended, Kept, Kind, Outgoing};
use chancery_node_core::tables::{Expired, Gone, Known, Note, Seen, Tables, Untaken};
use chancery_simulation::Disk;
use chancery_types::Entropy;
use std::collections::HashSet;
use std::sync::Mutex;

/// Tables of which every method asks both.
struct Both<'c> {
    sql: Sql<'c>,
    disk: &'c mut Disk,
}

/// Both answers, of which the first goes on. Where the order says nothing it is not compared.
macro_rules! both {
    ($($kind:ident $name:ident($($argument:ident: $type:ty),*) -> $out:ty;)*) => {$(
        async fn $name(&mut self, $($argument: $type),*) -> Result<$out, sqlx::Error> {
            let one = self.sql.$name($($argument),*).await?;
            let Ok(other) = Tables::$name(&mut &mut *self.disk, $($argument),*).await;
            assert!($kind(&one, &other), stringify!($name));
            Ok(one)
        }
    )*};
}

fn alike<T: PartialEq>(one: &T, other: &T) -> bool {
    one == other
}

fn as_many<T: PartialEq>(one: &[T], other: &[T]) -> bool {
    one.len() == other.len() && one.iter().all(|item| other.contains(item))
}

impl Tables for Both<'_> {
    type Error = sqlx::Error;

    both! {
        alike groups(ids: &HashSet<GroupId>) -> HashMap<GroupId, Group>;
        alike save_groups(groups: &[(GroupId, Group)]) -> ();
        alike add_members(joined: &[(GroupId, Alias, NodeId)]) -> ();
        alike remove_member(group: GroupId, alias: Alias) -> ();
        alike relocate(alias: Alias, from: &NodeId, to: &NodeId) -> ();
        alike routes(ids: &HashSet<GroupId>) -> HashMap<(GroupId, Alias), NodeId>;
        alike add_routes(routes: &[(GroupId, Alias, NodeId)]) -> ();
        alike devices(aliases: &HashSet<Alias>) -> HashMap<Alias, u32>;
        alike homes(aliases: &HashSet<Alias>) -> HashMap<Alias, NodeId>;
        as_many departed(hub: &NodeId) -> Vec<(Alias, NodeId)>;
        alike submissions(ids: &[MessageId]) -> HashMap<(MessageId, Alias), Known>;
        alike note_submissions(notes: &[Note]) -> ();
        alike conclude(
            hub: &NodeId, message_id: MessageId, sender: Alias, outcome: &wire::Outcome
        ) -> bool;
        alike forget_undecided(message_id: MessageId, sender: Alias) -> bool;
        alike submitter(message_id: MessageId, hub: &NodeId) -> Option<Alias>;
        alike first_time(peer: &NodeId, seen: &[Seen]) -> Vec<bool>;
        alike put(items: &[Item]) -> ();
        alike untaken(alias: Alias, device: DeviceId, through: u64, most: usize) -> Vec<Untaken>;
        alike take(positions: &HashSet<u64>) -> ();
        alike raise_cursors(cursors: &[((Alias, DeviceId), u64)]) -> ();
        as_many forget(aliases: &HashSet<Alias>) -> Vec<Gone>;
        as_many expired_items(now: Timestamp, most: usize) -> Vec<Expired>;
        alike replace_item(
            position: u64, item: &node::subscribe_response::Item, expires_at: Timestamp
        ) -> ();
        alike remove_items(positions: &[u64]) -> ();
        alike push(parcels: &[Outgoing]) -> ();
        as_many acknowledged(ids: &[i64]) -> Vec<Kept>;
        alike dead(id: i64, reason: &str) -> Option<Ended>;
        alike delivery(peer: &NodeId, message_id: MessageId, part: u32) -> Option<(i64, bool, Kept)>;
        alike release(id: i64, rest: &[Alias]) -> ();
        alike drop_submission(peer: &NodeId, message_id: MessageId) -> ();
        alike forget_news(hub: &NodeId, alias: Alias) -> ();
        as_many expired_parcels(now: Timestamp, kept_until: Timestamp, most: usize) -> Vec<Ended>;
        as_many silent_submissions(since: Timestamp, good_until: Timestamp, most: usize) -> Vec<Ended>;
        alike silent_from(peer: &NodeId, now: Timestamp) -> ();
        alike replace_parcel(id: i64, kind: Kind, parcel: &wire::Parcel, expires_at: Timestamp) -> ();
        alike remove_parcels(ids: &[i64]) -> ();
        alike expire_notes(now: Timestamp, most: usize) -> u64;
        alike greet(peer: &NodeId, incarnation: Incarnation) -> Option<Incarnation>;
        alike replay(peer: &NodeId) -> ();
    }
}

/// A node with both.
struct Twin {
    side: Side,
    disk: Arc<Mutex<Disk>>,
}

impl Twin {
    async fn new(name: &str, alias: Alias, devices: &[u8]) -> Self {
        let mut disk = Disk::default();
        devices.iter().for_each(|byte| disk.add_device(alias, device(*byte)));
        Self { side: side(name, alias, devices).await, disk: Arc::new(Mutex::new(disk)) }
    }

    /// Runs a transaction on both.
    async fn change<I, T>(&self, input: I, job: Job<I, T>) -> T
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
    {
        let (input, disk) = (Arc::new(input), Arc::clone(&self.disk));
        self.side
            .store
            .change("both", move |tx| {
                let (input, shared) = (Arc::clone(&input), Arc::clone(&disk));
                Box::pin(async move {
                    let mut disk = std::mem::take(&mut *shared.lock().unwrap());
                    let sql = Sql { connection: &mut *tx.tables.connection };
                    let tables = Both { sql, disk: &mut disk };
                    let mut both =
                        core::Tx { tables, here: tx.here.clone(), now: tx.now, after: After::default() };
                    let value = job(&mut both, &input).await;
                    drop(both);
                    *shared.lock().unwrap() = disk;
                    value
                })
            })
            .await
            .unwrap()
    }

    /// What waits for a device, as both say.
    async fn read(&self, alias: Alias, by: u8) -> Vec<node::SubscribeResponse> {
        let (items, _) =
            super::super::mailbox::read(&self.side.store, alias, device(by), 0, 100).await.unwrap();
        let other = self.disk.lock().unwrap().read((alias, device(by)), 0, 100, self.side.store.now());
        assert!(items == other, "a mailbox");
        items
    }

    /// What waits for a peer, as both say.
    async fn waiting(&self, peer: &Self) -> Vec<chancery_node_core::outbox::Waiting> {
        let peer = &peer.side.store.here;
        let waiting = super::super::outbox::next(&self.side.store, peer, 0, 16).await.unwrap();
        let other = self.disk.lock().unwrap().waiting(peer, 0, 16);
        assert!(waiting == other, "an outbox");
        waiting
    }
}

type Job<I, T> = for<'t, 'c> fn(
    &'t mut core::Tx<Both<'c>>,
    &'t I,
) -> futures::future::BoxFuture<'t, Result<T, sqlx::Error>>;

/// Draws what happens between two nodes and asks both at each step.
async fn draw(seed: u64, steps: usize) {
    let (a, b) = (Twin::new("a", ANNA, &[10, 11]).await, Twin::new("b", BERT, &[20, 21]).await);
    let entropy = SeededEntropy::new(seed);
    let entropy: &dyn Entropy = &entropy;
    let submit_all: Job<Vec<Submission>, ()> = |tx, submissions| {
        Box::pin(async move {
            let here = tx.here.clone();
            submit::submit(tx, &here, submissions).await.map(drop)
        })
    };
    a.change(vec![opening(), letter(3, ANNA, 10)], submit_all).await;
    for _ in 0..steps {
        let [which, x, y, z] = entropy.array::<4>();
        let (one, other, alias, by) =
            if x % 2 == 0 { (&a, &b, ANNA, 10 + y % 2) } else { (&b, &a, BERT, 20 + y % 2) };
        match which % 8 {
            0 | 1 => one.change(vec![letter(3 + z % 40, alias, by)], submit_all).await,
            2 | 3 => {
                let waiting = one.waiting(other).await;
                let waiting = &waiting[..waiting.len().min(usize::from(z % 8))];
                let parcels: Vec<_> =
                    waiting.iter().map(|w| wire::Parcel::decode(w.parcel.clone()).unwrap()).collect();
                let from = one.side.store.here.clone();
                other
                    .change((from, parcels), |tx, (from, parcels)| {
                        Box::pin(async move { batch::receive(tx, from, parcels).await.map(drop) })
                    })
                    .await;
                // The acknowledgement may be lost.
                if z % 3 > 0 {
                    let acked = Acked { taken: waiting.iter().map(|w| w.id).collect(), refused: Vec::new() };
                    one.change(acked, |tx, acked| Box::pin(outbox::acked(tx, acked))).await;
                }
            }
            4 | 5 => {
                let items = one.read(alias, by).await;
                let Some(last) = items.get(usize::from(z) % items.len().max(1)) else { continue };
                let receipts = (3..43).map(|n| (id(n), bytes::Bytes::from_static(b"receipt")));
                let acknowledgement = Acknowledgement {
                    alias,
                    device: device(by),
                    // An old one may come late.
                    through: if z % 5 == 0 { last.position / 2 } else { last.position },
                    receipts: receipts.filter(|_| z % 4 > 0).collect(),
                };
                one.change(vec![acknowledgement], |tx, all| {
                    Box::pin(async move { mailbox::acknowledge(tx, all).await.map(drop) })
                })
                .await;
            }
            6 => {
                one.side.clock.advance(Duration::from_millis(u64::from(z) * 1000));
                one.change((), |tx, ()| Box::pin(async move { expire(tx).await.map(drop) })).await;
            }
            _ => {
                let from = (other.side.store.here.clone(), Incarnation::from_bytes([z % 2; 16]));
                one.change(from, |tx, (from, incarnation)| {
                    Box::pin(async move { outbox::greet(tx, from, *incarnation).await.map(drop) })
                })
                .await;
            }
        }
    }
}

#[tokio::test]
async fn statements_and_tables_in_memory_answer_alike() {
    for seed in 0..20 {
        draw(seed, 150).await;
    }
}
