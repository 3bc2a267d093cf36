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
    pub(super) group: Option<GroupId>,
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
    if of_channel(tx, &channel.id)?.is_some() {
        return Ok(());
    }
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
    if let Some(seat) = of_channel(tx, channel)? {
        give_up(tx, &seat)?;
    }
    Ok(())
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

/// This device's seat in a channel.
///
/// # Errors
/// The store's.
pub fn of_channel(tx: &Tx<'_>, channel: &ChannelId) -> Result<Option<Seat>, EndpointError> {
    Ok(all(tx, "channel = ?1 AND state <> 3", params![channel.as_bytes()])?.pop())
}

/// Channels that this device has a seat in, and whether it is in a cell.
///
/// # Errors
/// The store's.
pub fn subscriptions(tx: &Tx<'_>) -> Result<Vec<(ChannelId, bool)>, EndpointError> {
    Ok(all(tx, "state <> 3", params![])?.iter().map(|seat| (seat.channel, seat.group.is_some())).collect())
}

/// Gives up seats that have been in no cell for long, or whose cell is no more; another one is to be
/// taken in their channels, by the same invitation.
///
/// # Errors
/// The store's.
pub fn lost(tx: &Tx<'_>) -> Result<Vec<(ChannelId, Option<Invitation>)>, EndpointError> {
    let before = tx.now().before(PATIENCE).millis();
    let lost = all(tx, "state = 4 OR (state = 1 AND asked_at_ms <= ?1)", params![before])?;
    let mut channels = Vec::with_capacity(lost.len());
    for seat in &lost {
        let invitation: Option<Vec<u8>> = tx.sql().query_row(
            "SELECT invitation FROM seats WHERE seat = ?1",
            [seat.id.as_bytes()],
            |row| row.get(0),
        )?;
        let invitation = invitation.and_then(|bytes| bytes.try_into().ok()).map(Invitation::from_bytes);
        channels.push((seat.channel, invitation));
    }
    Ok(channels)
}

/// Takes another seat in the place of one that was lost; `None`: the channel is closed.
///
/// # Errors
/// The store's, or MLS's.
pub fn replace(
    tx: &Tx<'_>,
    id: &ChannelId,
    channel: Option<&Channel>,
    invitation: Option<&Invitation>,
) -> Result<(), EndpointError> {
    unsubscribe(tx, id)?;
    match channel.filter(|channel| !channel.closed) {
        Some(channel) => subscribe(tx, channel, invitation),
        None => Ok(()),
    }
}

/// The directory's map shows this broadcast as the latest of a channel. One that has not come for as
/// long as `grace` raises an alarm, once.
///
/// # Errors
/// The store's.
pub fn compare(tx: &Tx<'_>, channel: &ChannelId, latest: u64, grace: Duration) -> Result<(), EndpointError> {
    let Some(seat) = of_channel(tx, channel)?.filter(|seat| seat.group.is_some()) else { return Ok(()) };
    let (missed, since): (Option<u64>, Option<i64>) = tx.sql().query_row(
        "SELECT missed, missed_at_ms FROM seats WHERE seat = ?1",
        [seat.id.as_bytes()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let (missed, since) = match (missed.filter(|missed| *missed > seat.broadcast), since) {
        (None, _) if latest <= seat.broadcast => (None, None),
        (Some(missed), Some(since)) if tx.now().since(Timestamp::from_millis(since)) >= grace => {
            alarm::raise(tx, Alarm::BroadcastWithheld, None)?;
            (Some(missed), None)
        }
        (Some(missed), Some(since)) => (Some(missed), Some(since)),
        // The alarm was raised for this one; a later one has its own.
        (Some(missed), None) if latest <= missed => (Some(missed), None),
        (Some(_), None) | (None, _) => (Some(latest), Some(tx.now().millis())),
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
    let sql =
        format!("SELECT seat, channel, owner, agent, change, broadcast, group_id FROM seats WHERE {which}");
    let mut statement = tx.sql().prepare_cached(&sql)?;
    let rows = statement.query_map(by, |row| {
        let ids =
            (row.get::<_, [u8; 16]>(0)?, row.get::<_, [u8; 16]>(1)?, row.get::<_, Option<[u8; 32]>>(6)?);
        Ok((ids, (row.get::<_, String>(2)?, row.get::<_, String>(3)?), row.get(4)?, row.get(5)?))
    })?;
    rows.map(|row| {
        let ((seat, channel, group), (owner, agent), change, broadcast) = row?;
        Ok(Seat {
            id: SeatId::from_bytes(seat),
            channel: ChannelId::from_bytes(channel),
            owner: owner.parse().map_err(|_| StoreError::Row { table: "seats", column: "owner" })?,
            agent: agent.parse().map_err(|_| StoreError::Row { table: "seats", column: "agent" })?,
            change,
            broadcast,
            group: group.map(GroupId::from_bytes),
        })
    })
    .collect()
}
