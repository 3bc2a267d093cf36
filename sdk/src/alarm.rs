//! What should never happen and somebody ought to look at.

use crate::error::EndpointError;
use crate::store::{StoreError, Tx};
use chancery_types::{GroupId, Timestamp};
use rusqlite::params;
use std::time::Duration;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// The hub left out a message of a thread.
    Withheld,
    /// The hub delivered messages of a thread in another order than it numbered them.
    Reordered,
    /// The hub's hash chain does not hold, or it told another member another one.
    Forked,
    /// A commit broke a rule of the thread, which is closed now.
    ForbiddenCommit,
    /// A message does not decrypt or does not agree with its envelope.
    InvalidMessage,
    /// A delivery receipt is not signed by a device of the recipient, or is for other bytes.
    ForgedReceipt,
    /// Somebody opened a thread whose devices do not verify.
    FalseThread,
    /// The directory showed two logs of which neither contains the other.
    DirectoryForked,
    /// What the directory shows is more than an hour old.
    DirectoryStale,
    /// This account's record is not the one that this device put.
    RecordChanged,
    /// Somebody re-enrols this account's handle with another account key.
    ReEnrolment,
}

impl Alarm {
    const ALL: [Self; 11] = [
        Self::Withheld,
        Self::Reordered,
        Self::Forked,
        Self::ForbiddenCommit,
        Self::InvalidMessage,
        Self::ForgedReceipt,
        Self::FalseThread,
        Self::DirectoryForked,
        Self::DirectoryStale,
        Self::RecordChanged,
        Self::ReEnrolment,
    ];

    /// A stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Withheld => "withheld",
            Self::Reordered => "reordered",
            Self::Forked => "forked",
            Self::ForbiddenCommit => "forbidden_commit",
            Self::InvalidMessage => "invalid_message",
            Self::ForgedReceipt => "forged_receipt",
            Self::FalseThread => "false_thread",
            Self::DirectoryForked => "directory_forked",
            Self::DirectoryStale => "directory_stale",
            Self::RecordChanged => "record_changed",
            Self::ReEnrolment => "re_enrolment",
        }
    }
}

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
