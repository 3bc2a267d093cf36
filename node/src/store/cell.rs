//! Cells of broadcast channels whose residents are at home here: their changes, broadcasts and
//! wraps as the channels' agents bring them, and what of it a seat has not seen yet.

use super::seat::Position;
use super::{NodeStore, Tx, sql};
use chancery_node_core::cell::{Announcement, CellChange, CellItem, Closed, ROW, Wraps, wrap_of};
use chancery_proto::node::v1 as wire;
use chancery_types::{DeviceId, NodeId};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _};
use std::collections::VecDeque;
use std::time::Duration;
use wire::read_seats_response::Item;

/// Rows of one kind that are read for a seat at once.
const AT_ONCE: usize = 32;
/// Rows of a kind that one transaction forgets.
const SLICE: usize = 64;
/// How long a broadcast keeps its place once it has expired: a device that was away for longer is in
/// no cell any more, because each cell changes within 240 days and changes are kept for 89.
const PLACE_KEPT: Duration = Duration::from_hours(400 * 24);

/// Takes what a channel's owner has for cells, in order; what is there already changes nothing.
pub(crate) async fn take(tx: &mut Tx<'_>, owner: &NodeId, items: &[CellItem]) -> Result<(), sqlx::Error> {
    for item in items {
        match item {
            CellItem::Change(change) => take_change(tx, owner, change).await?,
            CellItem::Announcement(announcement) => announce(tx, owner, announcement).await?,
            CellItem::Wraps(wraps) => take_wraps(tx, owner, wraps).await?,
            CellItem::Closed(closed) => close(tx, owner, closed).await?,
        }
        tx.after.channels.insert((owner.clone(), item.channel()));
    }
    Ok(())
}

async fn take_change(tx: &mut Tx<'_>, owner: &NodeId, change: &CellChange) -> Result<(), sqlx::Error> {
    let id: Option<i64> = sqlx::query_scalar(
        "INSERT INTO cell_change (owner, channel_id, cell, sequence, first_broadcast, commit_message,
           key_message, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(owner.as_str())
    .bind(change.channel.as_bytes().as_slice())
    .bind(i64::from(change.cell))
    .bind(sql::signed(change.sequence))
    .bind(sql::signed(change.first_broadcast))
    .bind(change.commit.as_ref())
    .bind(change.key.as_ref())
    .bind(change.expires_at.millis())
    .fetch_optional(&mut *tx.tables.connection)
    .await?;
    let Some(id) = id else { return Ok(()) };
    if !change.tree.is_empty() {
        sqlx::query("INSERT INTO cell_tree (change_id, tree) VALUES ($1, $2)")
            .bind(id)
            .bind(change.tree.as_ref())
            .execute(&mut *tx.tables.connection)
            .await?;
    }
    for (seat, welcome) in &change.admitted {
        // Only a seat in this channel that is in no cell; one that was given up meanwhile is not.
        sqlx::query(
            "UPDATE seat SET state = 2, cell = $4, sequence = $5, welcome = $6
             WHERE seat_id = $1 AND owner = $2 AND channel_id = $3 AND state < 2",
        )
        .bind(seat.as_bytes().as_slice())
        .bind(owner.as_str())
        .bind(change.channel.as_bytes().as_slice())
        .bind(i64::from(change.cell))
        .bind(sql::signed(change.sequence))
        .bind(welcome.as_ref())
        .execute(&mut *tx.tables.connection)
        .await?;
    }
    for seat in &change.removed {
        sqlx::query("DELETE FROM seat WHERE seat_id = $1 AND owner = $2 AND channel_id = $3")
            .bind(seat.as_bytes().as_slice())
            .bind(owner.as_str())
            .bind(change.channel.as_bytes().as_slice())
            .execute(&mut *tx.tables.connection)
            .await?;
    }
    Ok(())
}

/// Whoever sits in a cell has no seat any more; what its cells had is for nobody.
async fn close(tx: &mut Tx<'_>, owner: &NodeId, closed: &Closed) -> Result<(), sqlx::Error> {
    let counts = sqlx::query(
        "INSERT INTO cell_closing (owner, channel_id, closing_id) VALUES ($1, $2, $3)
         ON CONFLICT (owner, channel_id) DO UPDATE SET closing_id = excluded.closing_id
         WHERE cell_closing.closing_id <> excluded.closing_id",
    )
    .bind(owner.as_str())
    .bind(closed.channel.as_bytes().as_slice())
    .bind(closed.closing.as_slice())
    .execute(&mut *tx.tables.connection)
    .await?;
    if counts.rows_affected() == 0 {
        return Ok(());
    }
    for text in [
        "DELETE FROM seat WHERE owner = $1 AND channel_id = $2 AND state = 2",
        "DELETE FROM cell_tree WHERE change_id IN
           (SELECT id FROM cell_change WHERE owner = $1 AND channel_id = $2)",
        "DELETE FROM cell_change WHERE owner = $1 AND channel_id = $2",
    ] {
        sqlx::query(text)
            .bind(owner.as_str())
            .bind(closed.channel.as_bytes().as_slice())
            .execute(&mut *tx.tables.connection)
            .await?;
    }
    Ok(())
}

async fn announce(tx: &mut Tx<'_>, owner: &NodeId, new: &Announcement) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO broadcast (owner, channel_id, sequence, logged_manifest, expires_at, came_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(owner.as_str())
    .bind(new.channel.as_bytes().as_slice())
    .bind(sql::signed(new.sequence))
    .bind(new.logged_manifest.as_ref())
    .bind(new.expires_at.millis())
    .bind(tx.now.millis())
    .execute(&mut *tx.tables.connection)
    .await
    .map(drop)
}

/// Wraps of what was not announced, or has expired, are for nobody.
async fn take_wraps(tx: &mut Tx<'_>, owner: &NodeId, wraps: &Wraps) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO broadcast_wraps (broadcast_id, row, wraps)
         SELECT id, $4, $5 FROM broadcast
         WHERE owner = $1 AND channel_id = $2 AND sequence = $3 AND is_over = 0
         ON CONFLICT DO NOTHING",
    )
    .bind(owner.as_str())
    .bind(wraps.channel.as_bytes().as_slice())
    .bind(sql::signed(wraps.sequence))
    .bind(i64::from(wraps.row))
    .bind(wraps.wraps.as_ref())
    .execute(&mut *tx.tables.connection)
    .await
    .map(drop)
}

/// What a seat has not seen, oldest first, and where it stands then; nothing: it has all.
pub(crate) async fn read(
    store: &NodeStore,
    device: DeviceId,
    at: &mut Position,
) -> Result<Vec<Item>, sqlx::Error> {
    let seat = sqlx::query(
        "SELECT owner, channel_id, cell, sequence, welcome FROM seat
         WHERE seat_id = $1 AND device_id = $2 AND state < 3",
    )
    .bind(at.seat.as_bytes().as_slice())
    .bind(device.as_bytes().as_slice())
    .fetch_optional(store.readers())
    .await?;
    let Some(seat) = seat else { return Ok(vec![Item::Ended(true)]) };
    let Some(cell) = seat.try_get::<Option<i64>, _>("cell")? else { return Ok(Vec::new()) };
    let place = Place {
        owner: seat.try_get("owner")?,
        channel: seat.try_get("channel_id")?,
        cell,
        joined: sql::unsigned(seat.try_get("sequence")?),
    };
    if at.change < place.joined {
        let Some(admission) = admission(store, &place, &seat).await? else {
            return Ok(vec![Item::Ended(true)]);
        };
        at.change = place.joined;
        at.broadcast = at.broadcast.max(admission.first_broadcast.saturating_sub(1));
        return Ok(vec![Item::Admission(admission)]);
    }
    let changes = changes(store, &place, at.change).await?;
    let broadcasts = broadcasts(store, &place, at.broadcast).await?;
    Ok(merge(at, changes, broadcasts))
}

/// Keys come before the broadcasts that are wrapped with them, and behind all others. The agent
/// brings both in this order, so a change that is there comes after every broadcast before it.
fn merge(
    at: &mut Position,
    mut changes: VecDeque<Change>,
    mut broadcasts: VecDeque<wire::BroadcastItem>,
) -> Vec<Item> {
    let more_broadcasts = broadcasts.len() == AT_ONCE;
    let mut items = Vec::with_capacity(changes.len() + broadcasts.len());
    loop {
        let due = match (changes.front(), broadcasts.front()) {
            (Some(change), Some(next)) => change.first_broadcast <= next.sequence,
            (Some(_), None) => !more_broadcasts,
            (None, _) => false,
        };
        if due {
            let Some(change) = changes.pop_front() else { return items };
            // A cell does not jump: something of it is missing here.
            if change.sequence != at.change + 1 {
                items.push(Item::Ended(true));
                return items;
            }
            at.change = change.sequence;
            items.push(Item::Step(wire::CellStep {
                sequence: change.sequence,
                first_broadcast: change.first_broadcast,
                commit: change.commit.into(),
                key: change.key.into(),
            }));
        } else {
            let Some(broadcast) = broadcasts.pop_front() else { return items };
            at.broadcast = broadcast.sequence;
            items.push(Item::Broadcast(broadcast));
        }
    }
}

/// A cell, as rows name it, and with which of its changes a seat came in.
struct Place {
    owner: String,
    channel: Vec<u8>,
    cell: i64,
    joined: u64,
}

struct Change {
    sequence: u64,
    first_broadcast: u64,
    commit: Vec<u8>,
    key: Vec<u8>,
}

async fn admission(
    store: &NodeStore,
    place: &Place,
    seat: &SqliteRow,
) -> Result<Option<wire::Admission>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT c.first_broadcast, c.key_message, t.tree FROM cell_change c
         JOIN cell_tree t ON t.change_id = c.id
         WHERE c.owner = $1 AND c.channel_id = $2 AND c.cell = $3 AND c.sequence = $4",
    )
    .bind(&place.owner)
    .bind(&place.channel)
    .bind(place.cell)
    .bind(sql::signed(place.joined))
    .fetch_optional(store.readers())
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(wire::Admission {
        sequence: place.joined,
        first_broadcast: sql::unsigned(row.try_get(0)?),
        key: row.try_get::<Vec<u8>, _>(1)?.into(),
        tree: row.try_get::<Vec<u8>, _>(2)?.into(),
        welcome: seat.try_get::<Vec<u8>, _>("welcome")?.into(),
    }))
}

async fn changes(store: &NodeStore, place: &Place, after: u64) -> Result<VecDeque<Change>, sqlx::Error> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT sequence, first_broadcast, commit_message, key_message FROM cell_change
         WHERE owner = $1 AND channel_id = $2 AND cell = $3 AND sequence > $4
         ORDER BY sequence LIMIT {AT_ONCE}"
    )))
    .bind(&place.owner)
    .bind(&place.channel)
    .bind(place.cell)
    .bind(sql::signed(after))
    .fetch_all(store.readers())
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Change {
                sequence: sql::unsigned(row.try_get(0)?),
                first_broadcast: sql::unsigned(row.try_get(1)?),
                commit: row.try_get(2)?,
                key: row.try_get(3)?,
            })
        })
        .collect()
}

async fn broadcasts(
    store: &NodeStore,
    place: &Place,
    after: u64,
) -> Result<VecDeque<wire::BroadcastItem>, sqlx::Error> {
    // The wrap alone is cut out: a row of them has 57 KB. Of what was broadcast before the seat came in
    // there need be none: its agent grants what may be read of it. What has expired keeps its place
    // alone. Of all else it is on its way.
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT b.sequence, b.logged_manifest, substr(w.wraps, $5, 56) FROM broadcast b
         LEFT JOIN broadcast_wraps w ON w.broadcast_id = b.id AND w.row = $6 AND b.expires_at > $4
         WHERE b.owner = $1 AND b.channel_id = $2 AND b.sequence > $3
           AND (w.id IS NOT NULL OR b.expires_at <= $4 OR b.sequence < (SELECT first_broadcast
             FROM cell_change WHERE owner = $1 AND channel_id = $2 AND cell = $7 AND sequence = $8))
         ORDER BY b.sequence LIMIT {AT_ONCE}"
    )))
    .bind(&place.owner)
    .bind(&place.channel)
    .bind(sql::signed(after))
    .bind(store.now().millis())
    .bind(place.cell % i64::from(ROW) * 56 + 1)
    .bind(place.cell / i64::from(ROW))
    .bind(place.cell)
    .bind(sql::signed(place.joined))
    .fetch_all(store.readers())
    .await?;
    let mut found = VecDeque::with_capacity(rows.len());
    for row in &rows {
        let wrap = row.try_get::<Option<Vec<u8>>, _>(2)?.unwrap_or_default();
        found.push_back(wire::BroadcastItem {
            sequence: sql::unsigned(row.try_get(0)?),
            logged_manifest: row.try_get::<Vec<u8>, _>(1)?.into(),
            // None for this cell: its residents still learn that there was a broadcast.
            wrap: wrap_of(&wrap, 0).map(bytes::Bytes::copy_from_slice).unwrap_or_default(),
        });
    }
    Ok(found)
}

/// Forgets a slice of what has expired; whether there may be more.
pub(crate) async fn expire(tx: &mut Tx<'_>) -> Result<bool, sqlx::Error> {
    let mut rows = 0;
    for (head, which, beside) in [
        (
            "UPDATE broadcast SET is_over = 1",
            "FROM broadcast WHERE is_over = 0 AND expires_at <= $1",
            "DELETE FROM broadcast_wraps WHERE broadcast_id",
        ),
        (
            "DELETE FROM cell_change",
            "FROM cell_change WHERE expires_at <= $1",
            "DELETE FROM cell_tree WHERE change_id",
        ),
    ] {
        let text =
            format!("{head} WHERE id IN (SELECT id {which} ORDER BY expires_at LIMIT {SLICE}) RETURNING id");
        let gone: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(text))
            .bind(tx.now.millis())
            .fetch_all(&mut *tx.tables.connection)
            .await?;
        rows = rows.max(gone.len());
        sql::select_in(&mut *tx.tables.connection, beside, "", gone).await?;
    }
    let places = sqlx::query(AssertSqlSafe(format!(
        "DELETE FROM broadcast WHERE id IN
           (SELECT id FROM broadcast WHERE is_over = 1 AND expires_at <= $1 ORDER BY expires_at LIMIT {SLICE})"
    )))
    .bind(tx.now.before(PLACE_KEPT).millis())
    .execute(&mut *tx.tables.connection)
    .await?;
    Ok(rows.max(usize::try_from(places.rows_affected()).unwrap_or(SLICE)) == SLICE)
}
