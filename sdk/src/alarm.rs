//! What should never happen and somebody ought to look at.

pub use chancery_sdk_core::Alarm;

use crate::error::EndpointError;
use crate::store::{StoreError, Tx};
use chancery_types::{GroupId, Timestamp};
use rusqlite::params;
use std::time::Duration;

/// An alarm that was raised.
#[derive(Clone, Debug)]
pub struct Raised {
    /// Growing.
    pub position: u64,
    /// What is wrong.
    pub alarm: Alarm,
    /// In which thread; `None`: not about one.
    pub thread: Option<GroupId>,
    /// When.
    pub raised_at: Timestamp,
}

pub(crate) fn raise(tx: &Tx<'_>, alarm: Alarm, thread: Option<&GroupId>) -> Result<(), EndpointError> {
    tracing::warn!(alarm = alarm.as_str(), "endpoint.alarm.raise");
    tx.sql().execute(
        "INSERT INTO alarms (kind, group_id, raised_at_ms) VALUES (?1, ?2, ?3)",
        params![alarm.as_str(), thread.map(GroupId::as_bytes), tx.now().millis()],
    )?;
    Ok(())
}

/// As [`raise`], unless one of the kind was raised less than `pause` ago.
pub(crate) fn raise_after(tx: &Tx<'_>, alarm: Alarm, pause: Duration) -> Result<(), EndpointError> {
    let last: Option<i64> = tx.sql().query_row(
        "SELECT MAX(raised_at_ms) FROM alarms WHERE kind = ?1",
        [alarm.as_str()],
        |row| row.get(0),
    )?;
    match last {
        Some(last) if tx.now().since(Timestamp::from_millis(last)) < pause => Ok(()),
        _ => raise(tx, alarm, None),
    }
}

/// Alarms after a position, oldest first; at most `limit`.
///
/// # Errors
/// The store's.
pub fn after(tx: &Tx<'_>, position: u64, limit: usize) -> Result<Vec<Raised>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT position, kind, group_id, raised_at_ms FROM alarms WHERE position > ?1 \
         ORDER BY position LIMIT ?2",
    )?;
    let rows = statement.query_map(params![position, limit], |row| {
        Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, Option<[u8; 32]>>(2)?, row.get(3)?))
    })?;
    rows.map(|row| {
        let (position, kind, thread, raised_at) = row?;
        let alarm = Alarm::ALL
            .into_iter()
            .find(|alarm| alarm.as_str() == kind)
            .ok_or(StoreError::Row { table: "alarms", column: "kind" })?;
        Ok(Raised {
            position,
            alarm,
            thread: thread.map(GroupId::from_bytes),
            raised_at: Timestamp::from_millis(raised_at),
        })
    })
    .collect()
}
