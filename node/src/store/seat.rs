//! Seats of this node's devices: asked for, handed over to the channel's agent, given up. What
//! comes back for their cells is in `cell`.

use super::{NodeStore, Tx, count, sql};
use chancery_node_core::cell::{Joining, MAX_JOINING, MAX_LEAVING, MAX_LIST, check_seats};
use chancery_node_core::mailbox::{self, Item};
use chancery_node_core::parcel::{MAX_LIFE, MAX_SKEW};
use chancery_node_core::tables::{Seen, Tables as _};
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, ChannelId, DeviceId, NodeId, Reason, Refusal, SeatId};
use sha2::{Digest as _, Sha256};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _};

/// Most seats of a device.
pub(crate) const MAX_OF_DEVICE: usize = 64;

/// A channel, and where its agent reads.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Channel {
    pub(crate) owner: NodeId,
    pub(crate) id: ChannelId,
    pub(crate) agent: Alias,
}

/// A seat in a cell, and how far its device is.
#[derive(Clone, Copy)]
pub(crate) struct Position {
    pub(crate) seat: SeatId,
    pub(crate) change: u64,
    pub(crate) broadcast: u64,
}

/// Notes a seat that a device asks for.
pub(crate) async fn take(
    tx: &mut Tx<'_>,
    device: DeviceId,
    channel: &Channel,
    joining: &Joining,
) -> Result<Result<(), Refusal>, sqlx::Error> {
    let standing = sqlx::query("SELECT device_id, owner, channel_id FROM seat WHERE seat_id = $1")
        .bind(joining.seat.as_bytes().as_slice())
        .fetch_optional(&mut *tx.tables.connection)
        .await?;
    if let Some(row) = standing {
        let same = row.try_get::<Vec<u8>, _>(0)? == device.as_bytes()
            && row.try_get::<String, _>(1)? == channel.owner.as_str()
            && row.try_get::<Vec<u8>, _>(2)? == channel.id.as_bytes();
        let taken = || Refusal::new(Reason::AlreadyTaken, "the seat id is taken; choose another");
        return Ok(if same { Ok(()) } else { Err(taken()) });
    }
    let held: i64 = sqlx::query_scalar("SELECT count(*) FROM seat WHERE device_id = $1")
        .bind(device.as_bytes().as_slice())
        .fetch_one(&mut *tx.tables.connection)
        .await?;
    if sql::unsigned(held) >= MAX_OF_DEVICE as u64 {
        return Ok(Err(Refusal::new(Reason::QuotaExceeded, "a device has at most 64 seats")));
    }
    sqlx::query(
        "INSERT INTO seat (seat_id, device_id, owner, channel_id, agent_alias, state, key_package, invitation)
         VALUES ($1, $2, $3, $4, $5, 0, $6, $7)",
    )
    .bind(joining.seat.as_bytes().as_slice())
    .bind(device.as_bytes().as_slice())
    .bind(channel.owner.as_str())
    .bind(channel.id.as_bytes().as_slice())
    .bind(channel.agent.as_bytes().as_slice())
    .bind(joining.key_package.as_ref())
    .bind(joining.invitation.as_ref())
    .execute(&mut *tx.tables.connection)
    .await?;
    Ok(Ok(()))
}

/// A device gives a seat up. One that nobody has heard of is gone at once.
pub(crate) async fn leave(tx: &mut Tx<'_>, device: DeviceId, seat: SeatId) -> Result<(), sqlx::Error> {
    for text in [
        "DELETE FROM seat WHERE seat_id = $1 AND device_id = $2 AND state = 0",
        "UPDATE seat SET state = 3, welcome = NULL WHERE seat_id = $1 AND device_id = $2",
    ] {
        sqlx::query(text)
            .bind(seat.as_bytes().as_slice())
            .bind(device.as_bytes().as_slice())
            .execute(&mut *tx.tables.connection)
            .await?;
    }
    Ok(())
}

/// A device is gone: so are its seats.
pub(crate) async fn leave_all(tx: &mut Tx<'_>, device: DeviceId) -> Result<(), sqlx::Error> {
    let seats: Vec<Vec<u8>> = sqlx::query_scalar("SELECT seat_id FROM seat WHERE device_id = $1")
        .bind(device.as_bytes().as_slice())
        .fetch_all(&mut *tx.tables.connection)
        .await?;
    for seat in seats {
        leave(tx, device, sql::column(seat, "seat.seat_id")?).await?;
    }
    Ok(())
}

/// Channels whose agents are to hear of seats, or of what became of a broadcast.
pub(crate) async fn to_hand_over(store: &NodeStore) -> Result<Vec<Channel>, sqlx::Error> {
    let [never, once, twice, thrice] = count::due_before(store.now());
    let rows = sqlx::query(
        "SELECT owner, channel_id, agent_alias FROM (
           SELECT DISTINCT owner, channel_id, agent_alias FROM seat WHERE state IN (0, 3) LIMIT 64)
         UNION SELECT owner, channel_id, (SELECT agent_alias FROM seat s
             WHERE s.owner = due.owner AND s.channel_id = due.channel_id LIMIT 1)
           FROM (SELECT DISTINCT owner, channel_id FROM broadcast b WHERE told < 4 AND came_at <= $1
             AND came_at <= CASE told WHEN 0 THEN $1 WHEN 1 THEN $2 WHEN 2 THEN $3 ELSE $4 END
             AND (is_over = 1 OR EXISTS (SELECT 1 FROM broadcast_wraps w WHERE w.broadcast_id = b.id))
             AND EXISTS (SELECT 1 FROM seat s WHERE s.owner = b.owner AND s.channel_id = b.channel_id)
             LIMIT 64) due",
    )
    .bind(never)
    .bind(once)
    .bind(twice)
    .bind(thrice)
    .fetch_all(store.readers())
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Channel {
                owner: sql::column(row.try_get::<String, _>(0)?, "seat.owner")?,
                id: sql::column(row.try_get::<Vec<u8>, _>(1)?, "seat.channel_id")?,
                agent: sql::column(row.try_get::<Vec<u8>, _>(2)?, "seat.agent_alias")?,
            })
        })
        .collect()
}

/// Takes seats of a channel that are to be handed over, as many as a list holds.
pub(crate) async fn hand_over(
    tx: &mut Tx<'_>,
    channel: &Channel,
) -> Result<(Vec<Joining>, Vec<SeatId>), sqlx::Error> {
    let rows = waiting(tx, channel, 0, MAX_JOINING).await?;
    let (mut joining, mut bytes) = (Vec::new(), 0);
    for row in rows {
        let seat = Joining {
            seat: sql::column(row.try_get::<Vec<u8>, _>(0)?, "seat.seat_id")?,
            key_package: row.try_get::<Vec<u8>, _>(1)?.into(),
            invitation: row.try_get::<Vec<u8>, _>(2)?.into(),
        };
        bytes += seat.key_package.len() + seat.invitation.len() + 64;
        if bytes > MAX_LIST - 1024 && !joining.is_empty() {
            break;
        }
        joining.push(seat);
    }
    let seats = joining.iter().map(|joining| joining.seat.as_bytes().to_vec());
    let head = "UPDATE seat SET state = 1, key_package = NULL, invitation = NULL WHERE seat_id";
    sql::select_in(&mut *tx.tables.connection, head, "", seats).await?;

    let leaving = waiting(tx, channel, 3, MAX_LEAVING).await?;
    let leaving = leaving
        .iter()
        .map(|row| sql::column::<SeatId, _>(row.try_get::<Vec<u8>, _>(0)?, "seat.seat_id"))
        .collect::<Result<Vec<_>, _>>()?;
    let seats = leaving.iter().map(|seat| seat.as_bytes().to_vec());
    sql::select_in(&mut *tx.tables.connection, "DELETE FROM seat WHERE seat_id", "", seats).await?;
    Ok((joining, leaving))
}

async fn waiting(
    tx: &mut Tx<'_>,
    channel: &Channel,
    state: i64,
    most: usize,
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    sqlx::query(AssertSqlSafe(format!(
        "SELECT seat_id, coalesce(key_package, x''), coalesce(invitation, x'') FROM seat
         WHERE owner = $1 AND channel_id = $2 AND agent_alias = $3 AND state = {state} AND state IN (0, 3)
         ORDER BY rowid LIMIT {most}"
    )))
    .bind(channel.owner.as_str())
    .bind(channel.id.as_bytes().as_slice())
    .bind(channel.agent.as_bytes().as_slice())
    .fetch_all(&mut *tx.tables.connection)
    .await
}

/// Puts seats that another node's residents want into the mailbox of the channel's agent.
pub(crate) async fn receive(
    tx: &mut Tx<'_>,
    from: &NodeId,
    seats: &federation::Seats,
) -> Result<Result<(), Refusal>, sqlx::Error> {
    let agent = match check_seats(seats, from) {
        Ok(agent) => agent,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let is_agent: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM alias l JOIN account a ON a.account_id = l.account_id
           WHERE l.alias = $1 AND a.agent IS NOT NULL)",
    )
    .bind(agent.as_bytes().as_slice())
    .fetch_one(&mut *tx.tables.connection)
    .await?;
    if !is_agent {
        return Ok(Err(Refusal::new(Reason::AliasUnknown, "no agent has this alias")));
    }
    let seen = Seen {
        key: Sha256::digest(&seats.list).to_vec().into(),
        part: 0,
        expires_at: tx.now.after(MAX_LIFE).after(MAX_SKEW),
    };
    if tx.tables.first_time(from, &[seen]).await? == [true] {
        let item = node::subscribe_response::Item::Seats(seats.clone());
        mailbox::put(tx, &[Item::news(agent, item, tx.now)]).await?;
    }
    Ok(Ok(()))
}

/// Which of these seats are the device's, and in which channels.
pub(crate) async fn of_device(
    store: &NodeStore,
    device: DeviceId,
) -> Result<Vec<(SeatId, NodeId, ChannelId)>, sqlx::Error> {
    let rows = sqlx::query("SELECT seat_id, owner, channel_id FROM seat WHERE device_id = $1 AND state < 3")
        .bind(device.as_bytes().as_slice())
        .fetch_all(store.readers())
        .await?;
    rows.iter()
        .map(|row| {
            Ok((
                sql::column(row.try_get::<Vec<u8>, _>(0)?, "seat.seat_id")?,
                sql::column(row.try_get::<String, _>(1)?, "seat.owner")?,
                sql::column(row.try_get::<Vec<u8>, _>(2)?, "seat.channel_id")?,
            ))
        })
        .collect()
}
