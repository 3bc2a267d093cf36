//! What became of broadcasts: devices report to their homes, which keep sums; agents get these sums
//! with noise. docs/decisions/0021.

use super::seat;
use crate::error::EndpointError;
use crate::store::Tx;
use chancery_proto::federation::v1::BroadcastCount;
use chancery_proto::node::v1 as wire;
use chancery_types::{ChannelId, NodeId, SeatId};
use rusqlite::{OptionalExtension as _, params};

/// Reports of one call.
const REPORTS: usize = 256;

/// A device has a broadcast, or its owner has read it.
///
/// # Errors
/// The store's.
pub(super) fn note(tx: &Tx<'_>, channel: &ChannelId, sequence: u64, read: bool) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached("INSERT INTO broadcast_reports (channel, sequence, read) VALUES (?1, ?2, ?3)")?
        .execute(params![channel.as_bytes(), sequence, read])?;
    Ok(())
}

/// Reports that a home has not counted.
pub struct Reports {
    /// What is to be called.
    pub request: wire::CountBroadcastsRequest,
    seat: SeatId,
    channel: ChannelId,
    through: i64,
}

/// What is to be reported next, of one channel.
///
/// # Errors
/// The store's.
pub fn next(tx: &Tx<'_>) -> Result<Option<Reports>, EndpointError> {
    for (channel, is_in) in seat::subscriptions(tx)? {
        let seats = seat::of_channel(tx, &channel)?;
        let Some(seat) = seats.into_iter().find(|seat| is_in && seat.is_in_a_cell()) else { continue };
        let mut statement = tx.sql().prepare_cached(
            "SELECT id, sequence, read FROM broadcast_reports WHERE channel = ?1 ORDER BY id LIMIT ?2",
        )?;
        let rows = statement.query_map(params![channel.as_bytes(), REPORTS], |row| {
            let report = wire::BroadcastReport { sequence: row.get(1)?, read: row.get(2)? };
            Ok((row.get::<_, i64>(0)?, report))
        })?;
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let Some((through, _)) = rows.last() else { continue };
        let (through, seat) = (*through, seat.id);
        let first = "SELECT reports FROM seats WHERE seat = ?1";
        let first = tx.sql().query_row(first, [seat.as_bytes()], |row| row.get(0))?;
        let reports = rows.into_iter().map(|(_, report)| report).collect();
        let request = wire::CountBroadcastsRequest { seat_id: seat.to_wire(), first, reports };
        return Ok(Some(Reports { request, seat, channel, through }));
    }
    Ok(None)
}

/// The home has counted them.
///
/// # Errors
/// The store's.
pub fn counted(tx: &Tx<'_>, reports: &Reports) -> Result<(), EndpointError> {
    tx.sql().execute(
        "DELETE FROM broadcast_reports WHERE channel = ?1 AND id <= ?2",
        params![reports.channel.as_bytes(), reports.through],
    )?;
    tx.sql().execute(
        "UPDATE seats SET reports = ?2 WHERE seat = ?1",
        params![reports.seat.as_bytes(), reports.request.first + reports.request.reports.len() as u64],
    )?;
    Ok(())
}

/// A broadcast's owner has read it and lets that be counted; once.
///
/// # Errors
/// The store's.
pub fn read(tx: &Tx<'_>, position: u64) -> Result<(), EndpointError> {
    let found: Option<([u8; 16], u64)> = tx
        .sql()
        .prepare_cached(
            "UPDATE broadcasts SET read = 1 WHERE position = ?1 AND content IS NOT NULL AND read = 0 \
             RETURNING channel, sequence",
        )?
        .query_row([position], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        Some((channel, sequence)) => note(tx, &ChannelId::from_bytes(channel), sequence, true),
        None => Ok(()),
    }
}

/// An agent hears what became of its broadcasts at a node.
///
/// # Errors
/// The store's.
pub(super) fn told(
    tx: &Tx<'_>,
    channel: &ChannelId,
    node: &str,
    counts: &[BroadcastCount],
) -> Result<(), EndpointError> {
    let mut put = tx.sql().prepare_cached(
        "INSERT INTO broadcast_counts (channel, sequence, node, delivered, read) VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT (channel, sequence, node) \
         DO UPDATE SET delivered = excluded.delivered, read = excluded.read",
    )?;
    for count in counts {
        let sums = [count.delivered, count.read].map(|sum| i64::try_from(sum).unwrap_or(i64::MAX));
        put.execute(params![channel.as_bytes(), count.sequence, node, sums[0], sums[1]])?;
    }
    Ok(())
}

/// What became of a broadcast, by node: devices that have it, and owners who have read it.
///
/// # Errors
/// The store's.
pub fn of(tx: &Tx<'_>, channel: &ChannelId, sequence: u64) -> Result<Vec<(NodeId, u64, u64)>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT node, delivered, read FROM broadcast_counts WHERE channel = ?1 AND sequence = ?2 ORDER BY node",
    )?;
    let rows = statement.query_map(params![channel.as_bytes(), sequence], |row| {
        Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
    })?;
    let unreadable = || crate::store::StoreError::Row { table: "broadcast_counts", column: "node" };
    rows.map(|row| {
        let (node, delivered, read) = row?;
        Ok((node.parse().map_err(|_| unreadable())?, delivered, read))
    })
    .collect()
}

/// Homes of residents that are in cells of a channel, and how many of them have a broadcast.
///
/// # Errors
/// The store's.
pub fn homes(tx: &Tx<'_>, channel: &ChannelId, sequence: u64) -> Result<(u32, u32), EndpointError> {
    let sql = "SELECT count(*), count(c.node) FROM \
               (SELECT DISTINCT node FROM cells WHERE channel = ?1 AND seats > 0) homes \
               LEFT JOIN broadcast_counts c ON c.channel = ?1 AND c.sequence = ?2 AND c.node = homes.node";
    let mut statement = tx.sql().prepare_cached(sql)?;
    Ok(statement.query_row(params![channel.as_bytes(), sequence], |row| Ok((row.get(0)?, row.get(1)?)))?)
}
