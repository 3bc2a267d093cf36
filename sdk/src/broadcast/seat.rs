//! A device's seats: asked for, told to the home node, given up, lost and replaced. What comes to
//! them is [`super::reader`]'s.

use super::cell;
use super::invitation::Invitation;
use crate::alarm::{self, Alarm};
use crate::error::EndpointError;
use crate::mls::Suite;
use crate::store::{StoreError, Tx};
use chancery_directory_core::channel::{Channel, JoinRule};
use chancery_proto::node::v1 as wire;
use chancery_types::{ChannelId, GroupId, NodeId, Reason, Refusal, SeatId, Timestamp};
use prost::Message as _;
use prost::bytes::Bytes;
use rusqlite::params;
use std::collections::BTreeMap;
use std::time::Duration;

/// A seat that is in no cell after so long is given up for another.
const PATIENCE: Duration = Duration::from_hours(24);
/// States of a seat that is no more, as in the table.
const GIVEN_UP: u8 = 3;
const LOST: u8 = 4;

/// A seat in a channel.
#[derive(Clone)]
pub struct Seat {
    /// Its id.
    pub id: SeatId,
    /// The channel.
    pub channel: ChannelId,
    /// Administration that owns it.
    pub owner: NodeId,
    /// Name of the owner's agent that speaks on the channel.
    pub agent: NodeId,
    /// Sequence of the cell's last change that was taken.
    pub change: u64,
    /// Sequence of the last broadcast that was seen.
    pub broadcast: u64,
    /// Its cell is being merged: it is given up once another one is in a cell.
    pub moves: bool,
    /// Sequence of the first broadcast of its cell; `None`: it is in none yet.
    pub(super) first: Option<u64>,
    pub(super) group: Option<GroupId>,
}

impl Seat {
    /// Whether the agent has brought it into a cell.
    pub const fn is_in_a_cell(&self) -> bool {
        self.group.is_some()
    }
}

/// Takes a seat in a channel, unless this device has one: the home node is to be asked.
///
/// # Errors
/// The store's, or MLS's; that an invitation is missing.
pub fn subscribe(
    tx: &Tx<'_>,
    channel: &Channel,
    invitation: Option<&Invitation>,
) -> Result<(), EndpointError> {
    tx.sql().execute("DELETE FROM left_channels WHERE channel = ?1", [channel.id.as_bytes()])?;
    if of_channel(tx, &channel.id)?.is_empty() { take(tx, channel, invitation) } else { Ok(()) }
}

fn take(tx: &Tx<'_>, channel: &Channel, invitation: Option<&Invitation>) -> Result<(), EndpointError> {
    if channel.closed {
        return Err(
            Refusal::new(Reason::ChannelClosed, "nothing is broadcast on the channel any more").into()
        );
    }
    if channel.join_rule == JoinRule::Invitation && invitation.is_none() {
        return Err(EndpointError::Invalid("the channel is by invitation"));
    }
    let (id, request) = request(tx, channel, invitation)?;
    tx.sql().execute(
        "INSERT INTO seats (seat, channel, owner, agent, state, request, invitation, asked_at_ms, change, \
         broadcast) VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, 0, 0)",
        params![
            id.as_bytes(),
            channel.id.as_bytes(),
            channel.administration.as_str(),
            channel.agent.as_str(),
            request.encode_to_vec(),
            invitation.map(|held| held.as_bytes().as_slice()),
            tx.now().millis()
        ],
    )?;
    Ok(())
}

/// A new seat, and what asks a home node for it: its KeyPackage's private part is in the store.
///
/// # Errors
/// The store's, or MLS's.
pub fn request(
    tx: &Tx<'_>,
    channel: &Channel,
    invitation: Option<&Invitation>,
) -> Result<(SeatId, wire::TakeSeatRequest), EndpointError> {
    let id = SeatId::random(tx.entropy());
    let request = wire::TakeSeatRequest {
        seat_id: id.to_wire(),
        channel_id: channel.id.to_wire(),
        owner: channel.administration.to_string(),
        agent_alias: channel.agent_alias.to_wire(),
        key_package: cell::seat_key_package(tx, Suite::of_channel(channel.suite), id)?.into(),
        invitation: invitation.map(|held| held.prove(&channel.id, &id)).unwrap_or_default().into(),
    };
    Ok((id, request))
}

/// Gives the seat in a channel up: what comes later is for others.
///
/// # Errors
/// The store's.
pub fn unsubscribe(tx: &Tx<'_>, channel: &ChannelId) -> Result<(), EndpointError> {
    for seat in of_channel(tx, channel)? {
        give_up(tx, &seat)?;
    }
    tx.sql().execute("INSERT INTO left_channels VALUES (?1) ON CONFLICT DO NOTHING", [channel.as_bytes()])?;
    Ok(())
}

/// Takes a seat in a channel that is for all residents, unless this device has one or its owner has
/// left the channel; whether it did.
///
/// # Errors
/// The store's, or MLS's.
pub fn join(tx: &Tx<'_>, channel: &Channel) -> Result<bool, EndpointError> {
    let left = "SELECT EXISTS (SELECT 1 FROM left_channels WHERE channel = ?1)";
    let has_left: bool = tx.sql().query_row(left, [channel.id.as_bytes()], |row| row.get(0))?;
    let joins = !has_left && of_channel(tx, &channel.id)?.is_empty();
    if joins {
        take(tx, channel, None)?;
    }
    Ok(joins)
}

fn give_up(tx: &Tx<'_>, seat: &Seat) -> Result<(), EndpointError> {
    leave_cell(tx, seat, GIVEN_UP)
}

/// Forgets all keys of a seat.
fn leave_cell(tx: &Tx<'_>, seat: &Seat, state: u8) -> Result<(), EndpointError> {
    if let Some(group) = seat.group {
        cell::forget(tx, &group)?;
    }
    tx.sql().execute("DELETE FROM skipped_keys WHERE seat = ?1", [seat.id.as_bytes()])?;
    tx.sql().execute(
        "UPDATE seats SET state = ?2, request = NULL, group_id = NULL, epoch = NULL, key = NULL WHERE seat = ?1",
        params![seat.id.as_bytes(), state],
    )?;
    Ok(())
}

/// Seats that the home node is to hear of: to be taken, with the request, or given up.
///
/// # Errors
/// The store's.
pub fn to_tell(tx: &Tx<'_>) -> Result<Vec<(SeatId, Option<wire::TakeSeatRequest>)>, EndpointError> {
    let mut statement = tx.sql().prepare_cached("SELECT seat, request FROM seats WHERE state IN (0, 3)")?;
    let rows = statement
        .query_map([], |row| Ok((SeatId::from_bytes(row.get(0)?), row.get::<_, Option<Vec<u8>>>(1)?)))?;
    let unreadable = |_| StoreError::Row { table: "seats", column: "request" };
    rows.map(|row| {
        let (seat, request) = row?;
        let request = request.map(|bytes| wire::TakeSeatRequest::decode(Bytes::from(bytes)));
        Ok((seat, request.transpose().map_err(unreadable)?))
    })
    .collect()
}

/// The home node has heard of a seat.
///
/// # Errors
/// The store's.
pub fn told(tx: &Tx<'_>, seat: &SeatId) -> Result<(), EndpointError> {
    tx.sql().execute("DELETE FROM seats WHERE seat = ?1 AND state = 3", [seat.as_bytes()])?;
    tx.sql().execute(
        "UPDATE seats SET state = 1, request = NULL WHERE seat = ?1 AND state = 0",
        [seat.as_bytes()],
    )?;
    Ok(())
}

/// Seats that the home node is read for.
///
/// # Errors
/// The store's.
pub fn read_for(tx: &Tx<'_>) -> Result<Vec<Seat>, EndpointError> {
    all(tx, "state IN (1, 2)", params![])
}

/// This device's seats in a channel: one, or two while its cell is being merged.
///
/// # Errors
/// The store's.
pub fn of_channel(tx: &Tx<'_>, channel: &ChannelId) -> Result<Vec<Seat>, EndpointError> {
    all(tx, "channel = ?1 AND state <> 3", params![channel.as_bytes()])
}

/// Channels that this device has a seat in, and whether it is in a cell.
///
/// # Errors
/// The store's.
pub fn subscriptions(tx: &Tx<'_>) -> Result<Vec<(ChannelId, bool)>, EndpointError> {
    let mut channels = BTreeMap::new();
    for seat in all(tx, "state <> 3", params![])? {
        *channels.entry(seat.channel).or_insert(false) |= seat.is_in_a_cell();
    }
    Ok(channels.into_iter().collect())
}

/// A channel in which another seat is to be taken, by the same invitation.
#[derive(Clone)]
pub struct Vacancy {
    /// The channel.
    pub channel: ChannelId,
    seat: SeatId,
    invitation: Option<Invitation>,
    /// The seat is kept until the other is in a cell.
    is_kept: bool,
}

/// Where another seat is to be taken: for one that has been in no cell for long, whose cell is no
/// more, or whose cell is being merged.
///
/// # Errors
/// The store's.
pub fn vacancies(tx: &Tx<'_>) -> Result<Vec<Vacancy>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT seat, channel, invitation, state = 2 FROM seats AS s \
         WHERE state = 4 OR (state = 1 AND asked_at_ms <= ?1) OR (state = 2 AND moves = 1 AND NOT EXISTS \
         (SELECT 1 FROM seats WHERE channel = s.channel AND state < 3 AND moves = 0))",
    )?;
    let rows = statement.query_map([tx.now().before(PATIENCE).millis()], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get::<_, Option<Vec<u8>>>(2)?, row.get(3)?))
    })?;
    rows.map(|row| {
        let (seat, channel, invitation, is_kept) = row?;
        Ok(Vacancy {
            channel: ChannelId::from_bytes(channel),
            seat: SeatId::from_bytes(seat),
            invitation: invitation.and_then(|bytes| bytes.try_into().ok()).map(Invitation::from_bytes),
            is_kept,
        })
    })
    .collect()
}

/// Takes another seat in the place of one, or beside it; `None`: the channel is gone.
///
/// # Errors
/// The store's, or MLS's.
pub fn fill(tx: &Tx<'_>, vacancy: &Vacancy, channel: Option<&Channel>) -> Result<(), EndpointError> {
    let Some(seat) = all(tx, "seat = ?1 AND state <> 3", params![vacancy.seat.as_bytes()])?.pop() else {
        return Ok(());
    };
    if !vacancy.is_kept {
        give_up(tx, &seat)?;
    }
    let is_alone = all(tx, "channel = ?1 AND state < 3 AND moves = 0", params![seat.channel.as_bytes()])?;
    match channel.filter(|channel| !channel.closed && is_alone.is_empty()) {
        Some(channel) => take(tx, channel, vacancy.invitation.as_ref()),
        None => Ok(()),
    }
}

/// The agent merges the seat's cell into others.
///
/// # Errors
/// The store's.
pub(super) fn moves(tx: &Tx<'_>, seat: &Seat) -> Result<(), EndpointError> {
    tx.sql().execute("UPDATE seats SET moves = 1 WHERE seat = ?1", [seat.id.as_bytes()])?;
    Ok(())
}

/// Gives up seats whose cell is being merged, once the device has all from there that comes before
/// what it gets in another cell; whether there was any.
///
/// # Errors
/// The store's.
pub(super) fn moved(tx: &Tx<'_>, channel: &ChannelId) -> Result<bool, EndpointError> {
    let moved = all(
        tx,
        "channel = ?1 AND state = 2 AND moves = 1 AND broadcast + 1 >= \
         (SELECT min(first) FROM seats WHERE channel = ?1 AND state = 2 AND moves = 0)",
        params![channel.as_bytes()],
    )?;
    for seat in &moved {
        give_up(tx, seat)?;
    }
    Ok(!moved.is_empty())
}

/// The directory's map shows this broadcast as the latest of a channel. One that has not come for as
/// long as `grace` raises an alarm, once; so does a cell that is said to begin behind all that there is.
///
/// # Errors
/// The store's.
pub fn compare(tx: &Tx<'_>, channel: &ChannelId, latest: u64, grace: Duration) -> Result<(), EndpointError> {
    let seats = of_channel(tx, channel)?.into_iter().filter(Seat::is_in_a_cell);
    let Some(seat) = seats.max_by_key(|seat| seat.broadcast) else { return Ok(()) };
    let (missed, since): (Option<u64>, Option<i64>) = tx.sql().query_row(
        "SELECT missed, missed_at_ms FROM seats WHERE seat = ?1",
        [seat.id.as_bytes()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    // The map says one thing and the seat another, up to there.
    let differ = |at: &u64| *at > latest.min(seat.broadcast);
    let furthest = latest.max(seat.broadcast);
    let (missed, since) = match (missed.filter(differ), since) {
        (None, _) if !differ(&furthest) => (None, None),
        (Some(missed), Some(since)) if tx.now().since(Timestamp::from_millis(since)) >= grace => {
            alarm::raise(tx, Alarm::BroadcastWithheld, None)?;
            (Some(missed), None)
        }
        (Some(missed), Some(since)) => (Some(missed), Some(since)),
        // The alarm was raised for this one; a later one has its own.
        (Some(missed), None) if furthest <= missed => (Some(missed), None),
        (Some(_), None) | (None, _) => (Some(furthest), Some(tx.now().millis())),
    };
    tx.sql().execute(
        "UPDATE seats SET missed = ?2, missed_at_ms = ?3 WHERE seat = ?1",
        params![seat.id.as_bytes(), missed, since],
    )?;
    Ok(())
}

/// Another agent of the owner's speaks on the channel from now on.
///
/// # Errors
/// The store's.
pub fn spoken_by(tx: &Tx<'_>, seat: &SeatId, agent: &NodeId) -> Result<(), EndpointError> {
    tx.sql()
        .execute("UPDATE seats SET agent = ?2 WHERE seat = ?1", params![seat.as_bytes(), agent.as_str()])?;
    Ok(())
}

/// The seat is in its cell no more: another one is to be taken.
pub(super) fn lose(tx: &Tx<'_>, seat: &Seat) -> Result<(), EndpointError> {
    leave_cell(tx, seat, LOST)
}

/// A seat that is not given up.
pub(super) fn find(tx: &Tx<'_>, seat: &SeatId) -> Result<Option<Seat>, EndpointError> {
    Ok(all(tx, "seat = ?1 AND state < 3", params![seat.as_bytes()])?.pop())
}

fn all(tx: &Tx<'_>, which: &str, by: &[&dyn rusqlite::ToSql]) -> Result<Vec<Seat>, EndpointError> {
    let sql = format!(
        "SELECT seat, channel, owner, agent, change, broadcast, group_id, moves, first FROM seats WHERE {which}"
    );
    let mut statement = tx.sql().prepare_cached(&sql)?;
    let rows = statement.query_map(by, |row| {
        let ids =
            (row.get::<_, [u8; 16]>(0)?, row.get::<_, [u8; 16]>(1)?, row.get::<_, Option<[u8; 32]>>(6)?);
        let names = (row.get::<_, String>(2)?, row.get::<_, String>(3)?);
        Ok((ids, names, (row.get(4)?, row.get(5)?, row.get(8)?), row.get(7)?))
    })?;
    rows.map(|row| {
        let ((seat, channel, group), (owner, agent), (change, broadcast, first), moves) = row?;
        Ok(Seat {
            id: SeatId::from_bytes(seat),
            channel: ChannelId::from_bytes(channel),
            owner: owner.parse().map_err(|_| StoreError::Row { table: "seats", column: "owner" })?,
            agent: agent.parse().map_err(|_| StoreError::Row { table: "seats", column: "agent" })?,
            change,
            broadcast,
            moves,
            first,
            group: group.map(GroupId::from_bytes),
        })
    })
    .collect()
}
