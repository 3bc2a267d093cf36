//! Seats and cells: what an agent brings counts once, is for the residents of its own channels
//! alone, and is read in the order in which keys and broadcasts belong together.

use super::*;
use crate::store::seat::{self, Channel, Position};
use crate::store::{cell, count};
use bytes::Bytes;
use chancery_node_core::cell::{Announcement, CellChange, CellItem, Closed, Count, Joining, Wraps};
use chancery_types::{ChannelId, SeatId};
use node::read_seats_response::Item;

const NEWS: ChannelId = ChannelId::from_bytes([8; 16]);
const SEAT: SeatId = SeatId::from_bytes([1; 16]);

/// A node with a device that has asked for a seat in the channel of `owner`.
async fn resident() -> Side {
    let side = side("home", ANNA, &[10]).await;
    side.take_seat(SEAT, "owner").await.unwrap();
    side
}

impl Side {
    async fn take_seat(&self, seat: SeatId, owner: &str) -> Result<(), chancery_types::Refusal> {
        let channel = Channel { owner: name(owner), id: NEWS, agent: BERT };
        let joining = Joining::new(&seat.to_wire(), Bytes::from_static(b"package"), Bytes::new()).unwrap();
        let input = Arc::new((channel, joining));
        self.store
            .change("take", move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { seat::take(tx, device(10), &input.0, &input.1).await })
            })
            .await
            .unwrap()
    }

    async fn bring(&self, owner: &str, items: Vec<CellItem>) {
        let input = Arc::new((name(owner), items));
        self.store
            .change("bring", move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { cell::take(tx, &input.0, &input.1).await })
            })
            .await
            .unwrap();
    }

    /// What the seat has not seen from `at` on, in words.
    async fn reads(&self, at: &mut Position) -> Vec<String> {
        let items = cell::read(&self.store, device(10), at).await.unwrap();
        let words = items.into_iter().map(|item| match item {
            Item::Admission(admission) => format!("in at {}", admission.sequence),
            Item::Step(step) => format!("step {} for {}", step.sequence, step.first_broadcast),
            Item::Broadcast(broadcast) if broadcast.wrap.is_empty() => format!("none {}", broadcast.sequence),
            Item::Broadcast(broadcast) => format!("{} by {}", broadcast.sequence, broadcast.wrap[0]),
            Item::Ended(_) => "ended".to_owned(),
        });
        words.collect()
    }

    async fn rows(&self, table: &str) -> i64 {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(sql).fetch_one(self.store.readers()).await.unwrap()
    }
}

fn start() -> Position {
    Position { seat: SEAT, change: 0, broadcast: 0 }
}

fn change(sequence: u64, first_broadcast: u64) -> CellChange {
    CellChange {
        channel: NEWS,
        cell: 2,
        sequence,
        first_broadcast,
        commit: Bytes::from_static(b"commit"),
        key: Bytes::from_static(b"key"),
        admitted: Vec::new(),
        tree: Bytes::new(),
        removed: Vec::new(),
        expires_at: Timestamp::from_millis(5_000_000),
    }
}

fn step(sequence: u64, first_broadcast: u64) -> CellItem {
    CellItem::Change(Box::new(change(sequence, first_broadcast)))
}

fn admits(sequence: u64, first_broadcast: u64) -> CellItem {
    CellItem::Change(Box::new(CellChange {
        admitted: vec![(SEAT, Bytes::from_static(b"welcome"))],
        tree: Bytes::from_static(b"tree"),
        ..change(sequence, first_broadcast)
    }))
}

/// A broadcast whose wraps are filled with the number of the cell.
fn broadcast(sequence: u64, cells: u8) -> [CellItem; 2] {
    let wraps = (0..cells).flat_map(|cell| [cell; 56]).collect();
    [
        CellItem::Announcement(Announcement {
            channel: NEWS,
            sequence,
            logged_manifest: Bytes::from_static(b"manifest"),
            expires_at: Timestamp::from_millis(3_000_000),
        }),
        CellItem::Wraps(Wraps { channel: NEWS, sequence, row: 0, wraps }),
    ]
}

#[tokio::test]
async fn keys_come_before_the_broadcasts_that_they_open() {
    let side = resident().await;
    let mut at = start();
    assert!(side.reads(&mut at).await.is_empty(), "it is in no cell yet");
    side.bring("owner", vec![step(1, 1), admits(2, 3)]).await;
    // The first two are of before; the third is wrapped for the cell, the fourth is not.
    for item in [1, 2, 3].map(|sequence| broadcast(sequence, 3)).into_iter().chain([broadcast(4, 2)]) {
        side.bring("owner", item.to_vec()).await;
    }
    side.bring("owner", vec![step(3, 5)]).await;
    side.bring("owner", broadcast(5, 3).to_vec()).await;
    assert_eq!(side.reads(&mut at).await, ["in at 2"]);
    assert_eq!(side.reads(&mut at).await, ["3 by 2", "none 4", "step 3 for 5", "5 by 2"]);
    assert!(side.reads(&mut at).await.is_empty());
    // From where a device stands.
    let mut at = Position { change: 2, broadcast: 4, ..start() };
    assert_eq!(side.reads(&mut at).await, ["step 3 for 5", "5 by 2"]);
    // Something that is missing here is missing for ever.
    side.bring("owner", vec![step(5, 6)]).await;
    assert_eq!(side.reads(&mut at).await, ["ended"]);
}

#[tokio::test]
async fn what_is_brought_again_counts_once_and_what_strangers_bring_not_at_all() {
    let side = resident().await;
    let [new, wraps] = broadcast(1, 3);
    for _ in 0..2 {
        side.bring("owner", vec![admits(1, 1), new.clone(), wraps.clone()]).await;
    }
    // Wraps of what was not announced are for nobody; another's words are of channels of its own.
    side.bring("owner", vec![broadcast(9, 3)[1].clone()]).await;
    side.bring("stranger", vec![step(2, 2), broadcast(2, 3)[0].clone(), broadcast(2, 3)[1].clone()]).await;
    let closing = CellItem::Closed(Closed { channel: NEWS, closing: [1; 16] });
    side.bring("stranger", vec![closing]).await;
    let mut at = start();
    assert_eq!(side.reads(&mut at).await, ["in at 1"]);
    assert_eq!(side.reads(&mut at).await, ["1 by 2"]);
    assert!(side.reads(&mut at).await.is_empty());
    assert_eq!((side.rows("broadcast").await, side.rows("broadcast_wraps").await), (2, 2));

    // A seat of another channel's is not the owner's to fill, nor one that is in a cell.
    let other = SeatId::from_bytes([2; 16]);
    side.take_seat(other, "stranger").await.unwrap();
    let mut false_one = change(1, 1);
    false_one.cell = 3;
    false_one.admitted = vec![(other, Bytes::new()), (SEAT, Bytes::from_static(b"another"))];
    side.bring("owner", vec![CellItem::Change(Box::new(false_one))]).await;
    assert!(side.reads(&mut Position { seat: other, ..start() }).await.is_empty());
    assert_eq!(side.reads(&mut start()).await, ["in at 1"]);
    // Nobody else's device reads the seat.
    let items = cell::read(&side.store, device(11), &mut start()).await.unwrap();
    assert!(matches!(items[..], [Item::Ended(true)]));
}

#[tokio::test]
async fn seats_are_handed_over_once_and_given_up() {
    let side = resident().await;
    side.take_seat(SEAT, "owner").await.unwrap();
    let refused = side.take_seat(SEAT, "another").await.unwrap_err();
    assert_eq!(refused.reason, Reason::AlreadyTaken);
    let hand_over = async || {
        let channels = seat::to_hand_over(&side.store).await.unwrap();
        let mut told = Vec::new();
        for channel in channels {
            let channel = Arc::new(channel);
            let lists = side.store.change("hand over", move |tx| {
                let channel = Arc::clone(&channel);
                Box::pin(async move { seat::hand_over(tx, &channel).await })
            });
            let (joining, leaving) = lists.await.unwrap();
            told.push((joining.len(), leaving.len()));
        }
        told
    };
    let leave = async |seat| {
        side.store.change("leave", move |tx| Box::pin(seat::leave(tx, device(10), seat))).await.unwrap();
    };
    assert_eq!(hand_over().await, [(1, 0)]);
    assert!(hand_over().await.is_empty());
    leave(SEAT).await;
    assert_eq!(hand_over().await, [(0, 1)]);
    assert!(hand_over().await.is_empty());
    assert_eq!(side.reads(&mut start()).await, ["ended"]);
    // One that nobody has heard of is nobody's business.
    let unheard = SeatId::from_bytes([3; 16]);
    side.take_seat(unheard, "owner").await.unwrap();
    leave(unheard).await;
    assert!(hand_over().await.is_empty());
    // A device has at most so many.
    for number in 0..64 {
        side.take_seat(SeatId::from_bytes([100 + number; 16]), "owner").await.unwrap();
    }
    let refused = side.take_seat(SeatId::from_bytes([99; 16]), "owner").await.unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaExceeded);
}

#[tokio::test]
async fn cells_that_are_given_up_are_gone_and_numbers_begin_anew() {
    let side = resident().await;
    side.bring("owner", vec![admits(1, 1)]).await;
    let closing = |byte| CellItem::Closed(Closed { channel: NEWS, closing: [byte; 16] });
    side.bring("owner", vec![closing(1)]).await;
    assert_eq!(side.reads(&mut start()).await, ["ended"]);
    let again = SeatId::from_bytes([2; 16]);
    side.take_seat(again, "owner").await.unwrap();
    let mut anew = change(1, 1);
    (anew.admitted, anew.tree) = (vec![(again, Bytes::from_static(b"welcome"))], Bytes::from_static(b"tree"));
    // The link broke before the acknowledgement: the same comes again.
    for _ in 0..2 {
        side.bring("owner", vec![closing(1), CellItem::Change(Box::new(anew.clone()))]).await;
    }
    assert_eq!(side.reads(&mut Position { seat: again, ..start() }).await, ["in at 1"]);
    side.bring("owner", vec![closing(2)]).await;
    assert_eq!(side.reads(&mut Position { seat: again, ..start() }).await, ["ended"]);
    assert_eq!((side.rows("cell_change").await, side.rows("cell_tree").await), (0, 0));
}

#[tokio::test]
async fn what_has_expired_is_forgotten() {
    let side = resident().await;
    side.bring("owner", vec![admits(1, 1)]).await;
    side.bring("owner", broadcast(1, 3).to_vec()).await;
    let expire = async || side.store.change("expire", |tx| Box::pin(cell::expire(tx))).await.unwrap();
    assert!(!expire().await);
    assert_eq!(side.rows("broadcast_wraps").await, 1);
    side.clock.advance(Duration::from_secs(2_500));
    let mut at = start();
    side.reads(&mut at).await;
    assert_eq!(side.reads(&mut at).await, ["none 1"], "nobody is served what has expired");
    expire().await;
    assert_eq!((side.rows("broadcast").await, side.rows("broadcast_wraps").await), (1, 0));
    assert_eq!(side.rows("cell_change").await, 1);
    // It keeps its place, whatever comes, and so does one that expired on its way.
    side.bring("owner", [broadcast(1, 3), broadcast(2, 3)].concat()).await;
    at.broadcast = 0;
    assert_eq!(side.reads(&mut at).await, ["none 1", "none 2"]);
    expire().await;
    assert_eq!(side.rows("broadcast_wraps").await, 0);
    side.clock.advance(Duration::from_secs(2_500));
    expire().await;
    assert_eq!((side.rows("cell_change").await, side.rows("cell_tree").await), (0, 0));
    assert_eq!(side.reads(&mut start()).await, ["ended"], "who was away for so long takes another seat");
    assert_eq!(side.rows("broadcast").await, 2);
    side.clock.advance(Duration::from_hours(400 * 24));
    expire().await;
    assert_eq!(side.rows("broadcast").await, 0);
}

/// How much is counted at each of the ages at which the channel's agent is told.
async fn told(side: &Side) -> Vec<Count> {
    let channel = Channel { owner: name("owner"), id: NEWS, agent: BERT };
    let input = Arc::new((channel, side.store.clone()));
    side.store
        .change("tell", move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move { count::tell(tx, &input.0, input.1.entropy()).await })
        })
        .await
        .unwrap()
}

async fn report(side: &Side, seat: SeatId, first: u64, reports: &[(u64, bool)]) -> Result<(), Reason> {
    let reports =
        reports.iter().map(|(sequence, read)| node::BroadcastReport { sequence: *sequence, read: *read });
    let input = Arc::new(reports.collect::<Vec<_>>());
    let reported = side.store.change("report", move |tx| {
        let input = Arc::clone(&input);
        Box::pin(async move { count::report(tx, device(10), seat, first, &input).await })
    });
    reported.await.unwrap().map_err(|refusal| refusal.reason)
}

/// A node with so many seats in the cell of a channel in which something was broadcast.
async fn crowd(seats: u8) -> Side {
    let side = side("home", ANNA, &[10]).await;
    for number in 1..=seats {
        side.take_seat(SeatId::from_bytes([number; 16]), "owner").await.unwrap();
    }
    let admitted =
        (1..=seats).map(|number| (SeatId::from_bytes([number; 16]), Bytes::from_static(b"welcome")));
    let change =
        CellChange { admitted: admitted.collect(), tree: Bytes::from_static(b"tree"), ..change(1, 1) };
    let [new, wraps] = broadcast(1, 3);
    side.bring("owner", vec![CellItem::Change(Box::new(change)), new, wraps]).await;
    side
}

#[tokio::test]
async fn what_devices_report_counts_once_and_is_told_three_times_as_sums() {
    let side = crowd(60).await;
    for number in 1..=60 {
        let seat = SeatId::from_bytes([number; 16]);
        let reports = if number <= 30 { &[(1, false), (1, true)][..] } else { &[(1, false)] };
        for _ in 0..2 {
            report(&side, seat, 0, reports).await.unwrap();
        }
        assert_eq!(report(&side, seat, 3, reports).await, Err(Reason::InvalidField), "some are missing");
    }
    assert_eq!(report(&side, SeatId::from_bytes([99; 16]), 0, &[]).await, Err(Reason::ChannelUnknown));
    let sums = "SELECT delivered, read FROM broadcast";
    let sums: (i64, i64) = sqlx::query_as(sums).fetch_one(side.store.readers()).await.unwrap();
    assert_eq!(sums, (60, 30));

    assert_eq!(told(&side).await, [Count { sequence: 1, delivered: 0, read: 0 }], "it is here, and no more");
    let channels = async || seat::to_hand_over(&side.store).await.unwrap().len();
    for age in count::AGES.into_iter().skip(1) {
        assert!(told(&side).await.is_empty(), "it is told when it is old enough");
        side.clock.advance(age);
        assert_eq!(channels().await, 1);
        let [count] = told(&side).await[..] else { panic!("one is due") };
        assert_eq!(count.sequence, 1);
        // With noise, which the seed draws.
        assert!(count.delivered.abs_diff(60) <= 10 && count.read.abs_diff(30) <= 10, "{count:?}");
    }
    side.clock.advance(count::AGES[3]);
    assert!(told(&side).await.is_empty(), "three times and no more");
    assert_eq!(channels().await, 0);
}

#[tokio::test]
async fn sums_are_told_of_what_has_expired_and_not_of_channels_without_seats() {
    let side = crowd(60).await;
    for number in 1..=60 {
        report(&side, SeatId::from_bytes([number; 16]), 0, &[(1, false)]).await.unwrap();
    }
    told(&side).await;
    // Channels of which everybody has given the seat up hold up no other.
    for number in 0..64 {
        let [new, wraps] = broadcast(1, 3);
        side.bring(&format!("another-{number}"), vec![new, wraps]).await;
    }
    side.clock.advance(count::AGES[2]);
    side.store.change("expire", |tx| Box::pin(cell::expire(tx))).await.unwrap();
    assert_eq!(seat::to_hand_over(&side.store).await.unwrap().len(), 1);
    let [count] = told(&side).await[..] else { panic!("one is due") };
    assert!(count.delivered.abs_diff(60) <= 10, "{count:?}");
}

#[tokio::test]
async fn of_few_residents_nothing_is_told() {
    let side = crowd(19).await;
    for number in 1..=19 {
        report(&side, SeatId::from_bytes([number; 16]), 0, &[(1, false), (1, true)]).await.unwrap();
    }
    for age in count::AGES {
        side.clock.advance(age);
        assert_eq!(told(&side).await, [Count { sequence: 1, delivered: 0, read: 0 }]);
    }
}

#[tokio::test]
async fn an_announcement_waits_for_its_wraps() {
    let side = resident().await;
    // What was before the seat came in needs none.
    let [earlier, _] = broadcast(1, 3);
    side.bring("owner", vec![earlier, admits(1, 2)]).await;
    let mut at = Position { change: 1, broadcast: 0, ..start() };
    assert_eq!(side.reads(&mut at).await, ["none 1"]);
    let [new, wraps] = broadcast(2, 3);
    side.bring("owner", vec![new]).await;
    assert!(side.reads(&mut at).await.is_empty());
    side.bring("owner", vec![wraps]).await;
    assert_eq!(side.reads(&mut at).await, ["2 by 2"]);
}
