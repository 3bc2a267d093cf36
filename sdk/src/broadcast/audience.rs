//! Who is in the cells of an agent's channels. Home nodes bring seats; the agent puts them into
//! cells, one commit for as many as have come, and takes out those that were given up. Each change
//! is one transaction: MLS, the cell's keys, the residents' rows, and what its home node gets.

use super::cell::{self, Joiner, NewEpoch};
use super::chain::Chain;
use super::{counts, handover, invitation, keys, sender};
use crate::error::EndpointError;
use crate::inbox;
use crate::mls::Suite;
use crate::restored::STORE_COUNT;
use crate::store::{StoreError, Tx};
use chancery_directory_core::channel::{Channel, SignedChannel};
use chancery_proto::content::v1::CellKey;
use chancery_proto::directory::v1 as directory;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as node;
use chancery_types::{ChannelId, GroupId, NodeId, SeatId};
use openmls::group::MlsGroup;
use prost::Message as _;
use prost::bytes::Bytes;
use rusqlite::{OptionalExtension as _, params};
use std::time::Duration;

/// Most seats that come in with one change: its commit and tree must fit into one parcel.
const AT_ONCE: u32 = 256;
/// How long a home node keeps a change for residents that are away.
const KEPT: Duration = Duration::from_hours(89 * 24);
/// How long given-up seats of a channel that is open to all wait for others: a removal costs
/// as much for ten as for one, and each resident's device all of the tree.
const REMOVED_AFTER: Duration = Duration::from_hours(24);

/// How long residents come into a cell: they verify the agent's credential, which is of when the cell was
/// made, and would not after a year.
const OPEN_FOR: Duration = Duration::from_hours(180 * 24);
/// So many days later at most it is merged into younger ones: not all of one day at once.
const SPREAD: i64 = 60;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// This agent speaks on a channel, or its publication has changed.
///
/// # Errors
/// The store's.
pub fn publish(tx: &Tx<'_>, signed: &directory::SignedChannel, id: &ChannelId) -> Result<(), EndpointError> {
    tx.sql().execute(
        "INSERT INTO own_channels (channel, published, sequence, manifest_hash, wrapped) \
         VALUES (?1, ?2, 0, ?3, 0) ON CONFLICT (channel) DO UPDATE SET published = excluded.published",
        params![id.as_bytes(), signed.encode_to_vec(), [0_u8; 32]],
    )?;
    Ok(())
}

/// A channel of this agent's; `None`: it is not.
///
/// # Errors
/// The store's.
pub fn own(tx: &Tx<'_>, id: &ChannelId) -> Result<Option<Channel>, EndpointError> {
    let published: Option<Vec<u8>> = tx
        .sql()
        .prepare_cached("SELECT published FROM own_channels WHERE channel = ?1")?
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()?;
    let unreadable = StoreError::Row { table: "own_channels", column: "published" };
    published
        .map(|bytes| {
            let signed = directory::SignedChannel::decode(Bytes::from(bytes)).ok();
            let signed = signed.and_then(|signed| SignedChannel::try_from(signed).ok());
            Ok(signed.ok_or(unreadable)?.channel().clone())
        })
        .transpose()
}

/// The channels of this agent.
///
/// # Errors
/// The store's.
pub fn own_ids(tx: &Tx<'_>) -> Result<Vec<ChannelId>, EndpointError> {
    let mut statement = tx.sql().prepare_cached("SELECT channel FROM own_channels")?;
    let rows = statement.query_map([], |row| Ok(ChannelId::from_bytes(row.get(0)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How many residents of a channel are in cells, and in how many.
///
/// # Errors
/// The store's.
pub fn count(tx: &Tx<'_>, channel: &ChannelId) -> Result<(u64, u64), EndpointError> {
    let sql = "SELECT coalesce(sum(seats), 0), count(*) FROM cells WHERE channel = ?1 AND seats > 0";
    Ok(tx.sql().query_row(sql, [channel.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// Seats that a home node's residents want or give up, and what became of broadcasts at all of them. Its
/// signature was checked.
///
/// # Errors
/// The store's.
pub fn ask(tx: &Tx<'_>, list: &federation::SeatList) -> Result<(), EndpointError> {
    let Ok(channel) = ChannelId::try_from(&list.channel_id) else { return Ok(()) };
    // Seats in a channel by invitation, or in none of this agent's, stay empty.
    let Some(published) = own(tx, &channel)? else { return Ok(()) };
    let mut insert = tx.sql().prepare_cached(
        "INSERT INTO residents (seat, channel, node, cell, key_package, leaves, asked_at_ms) \
         VALUES (?1, ?2, ?3, NULL, ?4, 0, ?5) ON CONFLICT DO NOTHING",
    )?;
    for seat in &list.joining {
        let Ok(id) = SeatId::try_from(&seat.seat_id) else { continue };
        if invitation::admits(tx, &published, &id, &seat.invitation)? {
            insert.execute(params![
                id.as_bytes(),
                channel.as_bytes(),
                list.node,
                seat.key_package.as_ref(),
                tx.now().millis()
            ])?;
        }
    }
    counts::told(tx, &channel, &list.node, &list.counts)?;
    for seat in list.leaving.iter().filter_map(|seat| SeatId::try_from(seat).ok()) {
        let place = params![seat.as_bytes(), channel.as_bytes(), list.node];
        let is = "seat = ?1 AND channel = ?2 AND node = ?3";
        tx.sql()
            .prepare_cached(&format!("DELETE FROM residents WHERE {is} AND cell IS NULL"))?
            .execute(place)?;
        tx.sql()
            .prepare_cached(&format!("UPDATE residents SET leaves = 1, asked_at_ms = ?4 WHERE {is}"))?
            .execute(params![seat.as_bytes(), channel.as_bytes(), list.node, tx.now().millis()])?;
    }
    Ok(())
}

/// A cell of a channel of this agent's.
struct Cell {
    id: i64,
    channel: ChannelId,
    node: NodeId,
    number: u32,
    group: GroupId,
    change: u64,
    seats: u32,
    /// Its residents are on their way into others.
    merges: bool,
}

/// Brings some who wait into one cell; whether there was anybody.
///
/// # Errors
/// The store's, or MLS's.
pub fn admit(tx: &mut Tx<'_>) -> Result<bool, EndpointError> {
    let waiting: Option<([u8; 16], String)> = tx
        .sql()
        .prepare_cached("SELECT channel, node FROM residents WHERE cell IS NULL LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((channel, node)) = waiting else { return Ok(false) };
    let channel = ChannelId::from_bytes(channel);
    let node = node.parse().map_err(|_| StoreError::Row { table: "residents", column: "node" })?;
    let published =
        own(tx, &channel)?.ok_or(EndpointError::NotPossible("the channel is not this agent's"))?;
    let suite = Suite::of_channel(published.suite);
    let (mut cell, mut group) = match with_room(tx, &channel, &node, published.cell_size)? {
        Some(cell) => {
            let group = tx.take_group(&cell.group)?;
            (cell, group)
        }
        None => open(tx, &published, node)?,
    };
    let room = (published.cell_size - cell.seats).min(AT_ONCE);
    let joiners = joiners(tx, suite, &cell, room)?;
    if joiners.is_empty() {
        return Ok(true);
    }
    let seats: Vec<SeatId> = joiners.iter().map(|joiner| joiner.seat).collect();
    change(tx, suite, &published, &mut cell, &mut group, (joiners, &[]))?;
    let mut seat_in =
        tx.sql().prepare_cached("UPDATE residents SET cell = ?2, key_package = NULL WHERE seat = ?1")?;
    for seat in &seats {
        seat_in.execute(params![seat.as_bytes(), cell.id])?;
    }
    Ok(true)
}

/// Takes those who gave their seats up out of one cell; whether there was any to be done now.
///
/// # Errors
/// The store's, or MLS's.
pub fn remove(tx: &mut Tx<'_>) -> Result<bool, EndpointError> {
    let before = tx.now().before(REMOVED_AFTER).millis();
    // A cell that was merged into others goes when the last has left it: that is no commit.
    let mut due = tx.sql().prepare_cached(
        "SELECT r.cell, r.channel, min(r.asked_at_ms) <= ?1 OR (c.merges = 1 AND count(*) = c.seats) \
         FROM residents r JOIN cells c ON c.id = r.cell \
         WHERE r.leaves = 1 AND r.cell IS NOT NULL GROUP BY r.cell ORDER BY min(r.asked_at_ms)",
    )?;
    let due: Vec<(i64, [u8; 16], bool)> = due
        .query_map([before], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    for (id, channel, is_late) in due {
        let channel = ChannelId::from_bytes(channel);
        let Some(published) = own(tx, &channel)? else { continue };
        let at_once = published.emergency
            || published.join_rule == chancery_directory_core::channel::JoinRule::Invitation;
        if at_once || is_late {
            remove_from(tx, &published, id)?;
            return Ok(true);
        }
    }
    Ok(false)
}

fn remove_from(tx: &mut Tx<'_>, published: &Channel, id: i64) -> Result<(), EndpointError> {
    let suite = Suite::of_channel(published.suite);
    let leavers: Vec<SeatId> = tx
        .sql()
        .prepare_cached("DELETE FROM residents WHERE cell = ?1 AND leaves = 1 RETURNING seat")?
        .query_map([id], |row| Ok(SeatId::from_bytes(row.get(0)?)))?
        .collect::<Result<_, _>>()?;
    let Some(mut cell) = find(tx, "id = ?1", params![id])? else { return Ok(()) };
    let left = cell.seats.saturating_sub(u32::try_from(leavers.len()).unwrap_or(u32::MAX));
    if cell.merges && left == 0 {
        return dissolve(tx, &cell);
    }
    cell.merges = cell.merges || fits_elsewhere(tx, &cell, left, published.cell_size)?;
    let mut group = tx.take_group(&cell.group)?;
    change(tx, suite, published, &mut cell, &mut group, (Vec::new(), &leavers))
}

/// Begins to merge one cell that has become old into younger ones; whether there was any.
///
/// # Errors
/// The store's, or MLS's.
pub fn retire(tx: &mut Tx<'_>) -> Result<bool, EndpointError> {
    let which = format!(
        "merges = 0 AND seats > 0 AND made_at_ms <= ?1 - id % {SPREAD} * {DAY_MS} ORDER BY made_at_ms LIMIT 1"
    );
    let before = tx.now().before(OPEN_FOR).millis();
    let Some(mut cell) = find(tx, &which, params![before])? else { return Ok(false) };
    let published =
        own(tx, &cell.channel)?.ok_or(EndpointError::NotPossible("the channel is not this agent's"))?;
    cell.merges = true;
    let mut group = tx.take_group(&cell.group)?;
    let suite = Suite::of_channel(published.suite);
    change(tx, suite, &published, &mut cell, &mut group, (Vec::new(), &[]))?;
    Ok(true)
}

/// Whether a cell is half empty and those who are left in it find room in others at their home:
/// each cell costs as much as a full one.
fn fits_elsewhere(tx: &Tx<'_>, cell: &Cell, left: u32, size: u32) -> Result<bool, EndpointError> {
    let room: u64 = tx
        .sql()
        .prepare_cached(
            "SELECT coalesce(sum(?4 - seats), 0) FROM cells \
             WHERE channel = ?1 AND node = ?2 AND id <> ?3 AND merges = 0 AND seats BETWEEN 1 AND ?4 \
             AND made_at_ms > ?5",
        )?
        .query_row(
            params![
                cell.channel.as_bytes(),
                cell.node.as_str(),
                cell.id,
                size,
                tx.now().before(OPEN_FOR).millis()
            ],
            |row| row.get(0),
        )?;
    Ok(left > 0 && left * 2 <= size && u64::from(left) <= room)
}

/// Ends a cell in which nobody is any more. Its number is not used again.
fn dissolve(tx: &Tx<'_>, of: &Cell) -> Result<(), EndpointError> {
    cell::forget(tx, &of.group)?;
    keys::put(tx, (&of.channel, &of.node, of.number), None)?;
    tx.sql().execute("UPDATE cells SET seats = 0 WHERE id = ?1", [of.id])?;
    Ok(())
}

/// Gives up all cells at `nodes`, which are all members': after this store was restored from a
/// copy their groups may have gone on without it, and keys may have been used. Who is in one takes
/// another seat.
///
/// # Errors
/// The store's.
pub fn close_all(tx: &Tx<'_>, nodes: &[NodeId]) -> Result<(), EndpointError> {
    // What was to go out before is of those cells.
    for table in ["cell_outbox", "cells", "residents", "cell_keys"] {
        tx.sql().execute(&format!("DELETE FROM {table}"), [])?;
    }
    for channel in own_ids(tx)? {
        for node in nodes {
            let closed = federation::CellsClosed {
                channel_id: channel.to_wire(),
                closing_id: tx.entropy().array::<16>().to_vec().into(),
            };
            handover::queue(tx, node, node::cell_item::Item::Closed(closed))?;
        }
    }
    Ok(())
}

/// Seats that fit into a cell, each checked. One that does not hold is forgotten: its device asks
/// again after a while.
fn joiners(tx: &Tx<'_>, suite: Suite, cell: &Cell, room: u32) -> Result<Vec<Joiner>, EndpointError> {
    let waiting: Vec<([u8; 16], Vec<u8>)> = tx
        .sql()
        .prepare_cached(
            "SELECT seat, coalesce(key_package, x'') FROM residents \
             WHERE channel = ?1 AND node = ?2 AND cell IS NULL ORDER BY asked_at_ms LIMIT ?3",
        )?
        .query_map(params![cell.channel.as_bytes(), cell.node.as_str(), room], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<Result<_, _>>()?;
    let mut joiners = Vec::with_capacity(waiting.len());
    for (seat, key_package) in waiting {
        match cell::check(tx, suite, SeatId::from_bytes(seat), &key_package) {
            Ok(joiner) => joiners.push(joiner),
            Err(EndpointError::Store(error)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "endpoint.seat.reject");
                tx.sql().execute("DELETE FROM residents WHERE seat = ?1", [seat])?;
            }
        }
    }
    Ok(joiners)
}

/// One commit of a cell, and all that follows from it.
fn change(
    tx: &mut Tx<'_>,
    suite: Suite,
    published: &Channel,
    cell: &mut Cell,
    group: &mut MlsGroup,
    (joiners, leavers): (Vec<Joiner>, &[SeatId]),
) -> Result<(), EndpointError> {
    let first = sender::wrapped(tx, &cell.channel)? + 1;
    let earlier = if joiners.is_empty() { Vec::new() } else { sender::history(tx, published)? };
    let (joined, entropy) = (u32::try_from(joiners.len()).unwrap_or(u32::MAX), tx.entropy());
    let mut chain = Chain::random(0, first, entropy);
    let epoch = cell::commit(tx, suite, group, joiners, leavers, |epoch| {
        chain = Chain::new(epoch, first, *chain.key());
        CellKey { first_broadcast: first, key: chain.key().to_vec().into(), earlier, merges: cell.merges }
    })?;
    let NewEpoch { epoch, commit, welcome, admitted, tree, key } = epoch;
    inbox::count_up(tx, STORE_COUNT)?;
    cell.change += 1;
    cell.seats = (cell.seats + joined).saturating_sub(u32::try_from(leavers.len()).unwrap_or(u32::MAX));
    keys::put(tx, (&cell.channel, &cell.node, cell.number), Some(&chain))?;
    tx.sql()
        .prepare_cached("UPDATE cells SET change = ?2, seats = ?3, merges = ?4 WHERE id = ?1")?
        .execute(params![cell.id, cell.change, cell.seats, cell.merges])?;
    let change = federation::CellChange {
        channel_id: cell.channel.to_wire(),
        cell: cell.number,
        sequence: cell.change,
        group_id: cell.group.to_wire(),
        epoch,
        first_broadcast: first,
        commit: commit.into(),
        key: key.into(),
        welcome: welcome.into(),
        admitted,
        tree: tree.into(),
        removed: leavers.iter().map(SeatId::to_wire).collect(),
        expires_at_ms: tx.now().after(KEPT).millis(),
    };
    handover::queue(tx, &cell.node, node::cell_item::Item::Change(change))
}

fn open(tx: &mut Tx<'_>, published: &Channel, node: NodeId) -> Result<(Cell, MlsGroup), EndpointError> {
    let (suite, channel) = (Suite::of_channel(published.suite), published.id);
    let number: u32 = tx
        .sql()
        .prepare_cached("SELECT coalesce(max(number) + 1, 0) FROM cells WHERE channel = ?1 AND node = ?2")?
        .query_row(params![channel.as_bytes(), node.as_str()], |row| row.get(0))?;
    if number == 0 {
        sender::announce_earlier(tx, published, &node)?;
    }
    let (id, group) = cell::create(tx, suite)?;
    tx.sql()
        .prepare_cached(
            "INSERT INTO cells (channel, node, number, group_id, change, seats, made_at_ms) \
             VALUES (?1, ?2, ?3, ?4, 0, 0, ?5)",
        )?
        .execute(params![channel.as_bytes(), node.as_str(), number, id.as_bytes(), tx.now().millis()])?;
    let row = tx.sql().last_insert_rowid();
    Ok((Cell { id: row, channel, node, number, group: id, change: 0, seats: 0, merges: false }, group))
}

fn with_room(
    tx: &Tx<'_>,
    channel: &ChannelId,
    node: &NodeId,
    size: u32,
) -> Result<Option<Cell>, EndpointError> {
    // The fullest one: half-empty cells cost as much as full ones.
    find(
        tx,
        "channel = ?1 AND node = ?2 AND merges = 0 AND seats < ?3 AND made_at_ms > ?4 \
         ORDER BY seats DESC LIMIT 1",
        params![channel.as_bytes(), node.as_str(), size, tx.now().before(OPEN_FOR).millis()],
    )
}

fn find(tx: &Tx<'_>, which: &str, by: &[&dyn rusqlite::ToSql]) -> Result<Option<Cell>, EndpointError> {
    Ok(all(tx, which, by)?.pop())
}

fn all(tx: &Tx<'_>, which: &str, by: &[&dyn rusqlite::ToSql]) -> Result<Vec<Cell>, EndpointError> {
    let sql =
        format!("SELECT id, channel, node, number, group_id, change, seats, merges FROM cells WHERE {which}");
    let mut statement = tx.sql().prepare_cached(&sql)?;
    let rows = statement.query_map(by, |row| {
        let node: String = row.get(2)?;
        let cell = (row.get(0)?, row.get::<_, [u8; 16]>(1)?, row.get(3)?, row.get::<_, [u8; 32]>(4)?);
        Ok((cell, node, row.get(5)?, row.get(6)?, row.get(7)?))
    })?;
    rows.map(|row| {
        let ((id, channel, number, group), node, change, seats, merges) = row?;
        Ok(Cell {
            id,
            channel: ChannelId::from_bytes(channel),
            node: node.parse().map_err(|_| StoreError::Row { table: "cells", column: "node" })?,
            number,
            group: GroupId::from_bytes(group),
            change,
            seats,
            merges,
        })
    })
    .collect()
}
