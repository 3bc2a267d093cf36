//! Broadcasts that have no place in their channel: those that are to begin later, whose content waits
//! here and nobody hears of it, and those that were refused.

use super::sender::{self, Begun, Order, State};
use crate::error::EndpointError;
use crate::store::Tx;
use chancery_directory_core::manifest::About;
use chancery_types::{ChannelId, Reason, Refusal, Timestamp};
use rusqlite::{OptionalExtension as _, params};

/// Most that may wait in one channel.
const MOST: u32 = 1_000;

/// Keeps a broadcast until its time has come. It was checked.
///
/// # Errors
/// TOO_MANY, or the store's.
pub(super) fn put(tx: &Tx<'_>, order: &Order, begins: Timestamp) -> Result<Begun, EndpointError> {
    let waiting = "SELECT count(*) FROM scheduled_broadcasts WHERE channel = ?1 AND refused IS NULL";
    let waiting: u32 = tx.sql().query_row(waiting, [order.channel.as_bytes()], |row| row.get(0))?;
    if waiting >= MOST {
        return Err(EndpointError::Invalid("at most 1,000 broadcasts of a channel wait for their time"));
    }
    insert(tx, order, begins)?;
    Ok(WAITS)
}

fn insert(tx: &Tx<'_>, order: &Order, begins: Timestamp) -> Result<(), EndpointError> {
    let (corrects, recalls) = match order.about {
        Some(About::Corrects(sequence)) => (Some(sequence), None),
        Some(About::Recalls(sequence)) => (None, Some(sequence)),
        None => (None, None),
    };
    tx.sql().execute(
        "INSERT INTO scheduled_broadcasts (request_id, digest, channel, content, emergency, corrects, recalls, \
         expires_at_ms, begins_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            order.request_id,
            order.digest,
            order.channel.as_bytes(),
            order.content,
            order.emergency,
            corrects,
            recalls,
            order.expires.millis(),
            begins.millis()
        ],
    )?;
    Ok(())
}

const WAITS: Begun = Begun { sequence: 0, state: State::Scheduled, cells: 0 };

/// A request that waits; `None`: it was not made, or has begun.
///
/// # Errors
/// [`EndpointError::RequestIdReused`]; why it could not begin at its time; or the store's.
pub(super) fn find(
    tx: &Tx<'_>,
    request_id: &[u8; 16],
    digest: &[u8; 32],
) -> Result<Option<Begun>, EndpointError> {
    let found: Option<([u8; 32], Option<String>)> = tx
        .sql()
        .prepare_cached("SELECT digest, refused FROM scheduled_broadcasts WHERE request_id = ?1")?
        .query_row([request_id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        None => Ok(None),
        Some((known, _)) if known != *digest => Err(EndpointError::RequestIdReused),
        Some((_, None)) => Ok(Some(WAITS)),
        Some((_, Some(reason))) => {
            let reason = Reason::from_wire(&reason).unwrap_or(Reason::Internal);
            Err(Refusal::new(reason, "the broadcast could not take its place in the channel").into())
        }
    }
}

/// Begins those whose time has come; gives the time of the next.
///
/// # Errors
/// The store's.
pub fn begin_due(tx: &Tx<'_>) -> Result<Option<Timestamp>, EndpointError> {
    while let Some(order) = due(tx)? {
        match start(tx, &order)? {
            None => cancel(tx, &order.request_id).map(drop)?,
            Some(reason) => refuse(tx, &order.request_id, reason)?,
        }
    }
    let next = "SELECT min(begins_at_ms) FROM scheduled_broadcasts WHERE refused IS NULL";
    let next: Option<i64> = tx.sql().query_row(next, [], |row| row.get(0))?;
    Ok(next.map(Timestamp::from_millis))
}

/// The directory has refused for good to log a broadcast that was begun: its place is another's. Those
/// behind it begin anew, but for those that are about a broadcast that there is not.
///
/// # Errors
/// The store's.
pub fn never_logged(
    tx: &Tx<'_>,
    (channel, sequence): (&ChannelId, u64),
    reason: Reason,
) -> Result<(), EndpointError> {
    for (place, order) in sender::take_back(tx, channel, sequence)?.into_iter().enumerate() {
        let refused = match order.about {
            _ if order.expires <= tx.now() => Some(Reason::Expired),
            _ if place == 0 => Some(reason),
            Some(About::Corrects(of) | About::Recalls(of)) if of >= sequence => Some(Reason::InvalidField),
            _ => start(tx, &order)?,
        };
        if let Some(reason) = refused {
            insert(tx, &order, tx.now())?;
            refuse(tx, &order.request_id, reason)?;
        }
    }
    Ok(())
}

/// Begins a broadcast, or gives the reason for which it cannot.
fn start(tx: &Tx<'_>, order: &Order) -> Result<Option<Reason>, EndpointError> {
    match sender::start(tx, order) {
        Ok(_) => Ok(None),
        Err(EndpointError::Refused(refusal)) => Ok(Some(refusal.reason)),
        Err(EndpointError::Invalid(_)) => Ok(Some(Reason::InvalidField)),
        Err(error) => Err(error),
    }
}

fn due(tx: &Tx<'_>) -> Result<Option<Order>, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached(
            "SELECT request_id, digest, channel, content, emergency, corrects, recalls, expires_at_ms \
             FROM scheduled_broadcasts WHERE refused IS NULL AND begins_at_ms <= ?1 \
             ORDER BY begins_at_ms LIMIT 1",
        )?
        .query_row([tx.now().millis()], |row| {
            let corrects = row.get::<_, Option<u64>>(5)?.map(About::Corrects);
            Ok(Order {
                request_id: row.get(0)?,
                digest: row.get(1)?,
                channel: ChannelId::from_bytes(row.get(2)?),
                content: row.get(3)?,
                emergency: row.get(4)?,
                about: corrects.or(row.get::<_, Option<u64>>(6)?.map(About::Recalls)),
                expires: Timestamp::from_millis(row.get(7)?),
                begins: None,
            })
        })
        .optional()?)
}

fn refuse(tx: &Tx<'_>, request_id: &[u8; 16], reason: Reason) -> Result<(), EndpointError> {
    tracing::warn!(%reason, "endpoint.broadcast.refuse");
    tx.sql().execute(
        "UPDATE scheduled_broadcasts SET refused = ?2, content = x'' WHERE request_id = ?1",
        params![request_id, reason.as_str()],
    )?;
    Ok(())
}

/// Takes back what has not begun; whether it waited.
///
/// # Errors
/// The store's.
pub fn cancel(tx: &Tx<'_>, request_id: &[u8; 16]) -> Result<bool, EndpointError> {
    Ok(tx.sql().execute("DELETE FROM scheduled_broadcasts WHERE request_id = ?1", [request_id])? > 0)
}

/// What waits in a channel, the next first: request id, and when it begins.
///
/// # Errors
/// The store's.
pub fn of_channel(tx: &Tx<'_>, channel: &ChannelId) -> Result<Vec<([u8; 16], Timestamp)>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT request_id, begins_at_ms FROM scheduled_broadcasts \
         WHERE channel = ?1 AND refused IS NULL ORDER BY begins_at_ms",
    )?;
    let rows = statement
        .query_map([channel.as_bytes()], |row| Ok((row.get(0)?, Timestamp::from_millis(row.get(1)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// After this store was restored from a copy nobody knows what has begun since: all that waits is to
/// be asked for anew.
///
/// # Errors
/// The store's.
pub(super) fn forget_all(tx: &Tx<'_>) -> Result<(), EndpointError> {
    tx.sql().execute(
        "UPDATE scheduled_broadcasts SET refused = ?1, content = x'' WHERE refused IS NULL",
        [Reason::StoreRestored.as_str()],
    )?;
    Ok(())
}
