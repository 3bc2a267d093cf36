//! Threads: an MLS group between two aliases, with all devices of both
//! accounts. Here: the thread's row and its members; the verbs are in the
//! submodules. Queues and received content belong to [`crate::outbox`] and
//! [`crate::inbox`].

pub(crate) mod admit;
pub(crate) mod commit;
pub(crate) mod encrypt;
#[cfg(test)]
mod hostile_tests;
pub(crate) mod join;
pub(crate) mod open;
pub(crate) mod receive;
#[cfg(test)]
mod tests;

pub use chancery_sdk_core::receive::{Processed, receive};
pub use open::open;

use crate::credential::VerifiedDevice;
use crate::error::EndpointError;
use crate::mls::Suite;
use crate::store::{StoreError, Tx};
use chancery_sdk_core::{Progress, Stand};
use chancery_types::{Alias, DeviceId, GroupId, MessageId, Timestamp};
use rusqlite::{OptionalExtension as _, Row, params};
use std::ops::{Deref, DerefMut};

/// A thread.
#[derive(Clone)]
pub struct Thread {
    /// How far it has come.
    pub progress: Progress,
    /// Its cipher suite.
    pub suite: Suite,
    /// `request_id` of the latest letter sent to it by identifier.
    pub request_id: Option<[u8; 16]>,
}

impl Deref for Thread {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.progress
    }
}

impl DerefMut for Thread {
    fn deref_mut(&mut self) -> &mut Progress {
        &mut self.progress
    }
}

const COLUMNS: &str = "group_id, peer, suite, state, epoch, pending_commit, request_id, head_sequence, \
                       delivered_sequence, root, opened_at_ms";

/// As in the column `state`.
const fn code(stand: Stand) -> u8 {
    match stand {
        Stand::Open => 0,
        Stand::Closed => 1,
        Stand::Ended => 2,
        Stand::Failing => 3,
        Stand::Broken => 4,
    }
}

fn stand(code: u8) -> Stand {
    let all = [Stand::Open, Stand::Ended, Stand::Failing, Stand::Broken];
    all.into_iter().find(|stand| self::code(*stand) == code).unwrap_or(Stand::Closed)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<(Thread, u16)> {
    let suite: u16 = row.get(2)?;
    let thread = Thread {
        progress: Progress {
            id: GroupId::from_bytes(row.get(0)?),
            root: GroupId::from_bytes(row.get(9)?),
            peer: Alias::from_bytes(row.get(1)?),
            stand: stand(row.get(3)?),
            opened: Timestamp::from_millis(row.get(10)?),
            epoch: row.get(4)?,
            pending_commit: row.get::<_, Option<[u8; 16]>>(5)?.map(MessageId::from_bytes),
            head_sequence: row.get(7)?,
            delivered_sequence: row.get(8)?,
        },
        // Checked by `checked` below; the row is not used otherwise.
        suite: Suite::from_code(suite).unwrap_or(Suite::Classical),
        request_id: row.get(6)?,
    };
    Ok((thread, suite))
}

fn checked(row: Option<(Thread, u16)>) -> Result<Option<Thread>, EndpointError> {
    match row {
        Some((_, suite)) if Suite::from_code(suite).is_none() => {
            Err(StoreError::Row { table: "threads", column: "suite" }.into())
        }
        row => Ok(row.map(|(thread, _)| thread)),
    }
}

/// A thread by its group.
///
/// # Errors
/// The store's.
pub fn find(tx: &Tx<'_>, id: &GroupId) -> Result<Option<Thread>, EndpointError> {
    let sql = format!("SELECT {COLUMNS} FROM threads WHERE group_id = ?1");
    checked(tx.sql().prepare_cached(&sql)?.query_row([id.as_bytes()], from_row).optional()?)
}

/// Where letters of a thread go: behind those that wait in a group that is over, or to the
/// group that is open, or to one that another one will take the place of.
///
/// # Errors
/// The store's.
pub fn current(tx: &Tx<'_>, root: &GroupId) -> Result<Option<Thread>, EndpointError> {
    latest(tx, "root = ?1", root.as_bytes())
}

/// The same of the latest thread with `peer`.
///
/// # Errors
/// The store's.
pub fn find_by_peer(tx: &Tx<'_>, peer: Alias) -> Result<Option<Thread>, EndpointError> {
    latest(tx, "peer = ?1 AND state <> 1", peer.as_bytes())
}

fn latest(tx: &Tx<'_>, which: &str, key: &[u8]) -> Result<Option<Thread>, EndpointError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM threads WHERE {which} \
         ORDER BY threads.state > 1 AND EXISTS (SELECT 1 FROM outbox WHERE outbox.group_id = threads.group_id \
           AND outbox.state < 3) DESC, threads.state = 0 DESC, successor IS NULL DESC, opened_at_ms DESC LIMIT 1"
    );
    checked(tx.sql().prepare_cached(&sql)?.query_row([key], from_row).optional()?)
}

/// All open threads.
///
/// # Errors
/// The store's.
pub fn all_open(tx: &Tx<'_>) -> Result<Vec<Thread>, EndpointError> {
    let sql = format!("SELECT {COLUMNS} FROM threads WHERE state = 0 ORDER BY opened_at_ms");
    let mut statement = tx.sql().prepare_cached(&sql)?;
    let rows: Vec<_> = statement.query_map([], from_row)?.collect::<Result<_, _>>()?;
    rows.into_iter().filter_map(|row| checked(Some(row)).transpose()).collect()
}

/// Notes the request that last wrote to the thread by identifier.
pub(crate) fn set_request(tx: &Tx<'_>, id: &GroupId, request: &[u8; 16]) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached("UPDATE threads SET request_id = ?2 WHERE group_id = ?1")?
        .execute(params![id.as_bytes(), request])?;
    Ok(())
}

fn insert(tx: &Tx<'_>, id: GroupId, peer: Alias, suite: Suite, epoch: u64) -> Result<Thread, EndpointError> {
    tx.sql()
        .prepare_cached(
            "INSERT INTO threads (group_id, root, peer, suite, state, epoch, head_sequence, \
             delivered_sequence, opened_at_ms) VALUES (?1, ?1, ?2, ?3, 0, ?4, 0, 0, ?5)",
        )?
        .execute(params![id.as_bytes(), peer.as_bytes(), suite.code(), epoch, tx.now().millis()])?;
    let progress = Progress {
        id,
        root: id,
        peer,
        stand: Stand::Open,
        opened: tx.now(),
        epoch,
        pending_commit: None,
        head_sequence: 0,
        delivered_sequence: 0,
    };
    Ok(Thread { progress, suite, request_id: None })
}

/// A group is of the thread whose first group is `root`, unless that is somebody else's.
/// Whether it is.
pub(crate) fn set_root(tx: &Tx<'_>, thread: &mut Thread, root: &GroupId) -> Result<bool, EndpointError> {
    let changed = tx
        .sql()
        .prepare_cached(
            "UPDATE threads SET root = ?2, request_id = coalesce(request_id, (SELECT request_id FROM threads \
               WHERE root = ?2 AND request_id IS NOT NULL ORDER BY opened_at_ms DESC LIMIT 1)) \
             WHERE group_id = ?1 AND root IN (?1, ?2) \
             AND NOT EXISTS (SELECT 1 FROM threads other WHERE other.root = ?2 AND other.peer <> ?3)",
        )?
        .execute(params![thread.id.as_bytes(), root.as_bytes(), thread.peer.as_bytes()])?;
    if changed > 0 {
        thread.root = *root;
    }
    Ok(changed > 0)
}

fn set_epoch(tx: &Tx<'_>, id: &GroupId, epoch: u64, pending: Option<MessageId>) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached("UPDATE threads SET epoch = ?2, pending_commit = ?3 WHERE group_id = ?1")?
        .execute(params![id.as_bytes(), epoch, pending.as_ref().map(MessageId::as_bytes)])?;
    Ok(())
}

/// What may be done in a thread's group from now on.
pub(crate) fn set_stand(tx: &Tx<'_>, id: &GroupId, stand: Stand) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "UPDATE threads SET state = ?2, pending_commit = iif(?3, pending_commit, NULL) WHERE group_id = ?1",
        )?
        .execute(params![id.as_bytes(), code(stand), stand.reads()])?;
    if stand.is_over() {
        tx.succession_is_due();
    }
    Ok(())
}

fn add_member(tx: &Tx<'_>, id: &GroupId, device: &VerifiedDevice) -> Result<(), EndpointError> {
    insert_member(tx, id, device.alias(), device.device(), device.leaf_key())
}

fn insert_member(
    tx: &Tx<'_>,
    id: &GroupId,
    alias: Alias,
    device: DeviceId,
    leaf_key: &[u8],
) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "INSERT OR REPLACE INTO members (group_id, device, alias, leaf_key) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![id.as_bytes(), device.as_bytes(), alias.as_bytes(), leaf_key])?;
    Ok(())
}

fn remove_member(tx: &Tx<'_>, id: &GroupId, device: DeviceId) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached("DELETE FROM members WHERE group_id = ?1 AND device = ?2")?
        .execute(params![id.as_bytes(), device.as_bytes()])?;
    Ok(())
}

/// A device of a thread.
pub(crate) struct ThreadMember {
    pub(crate) device: DeviceId,
    pub(crate) alias: Alias,
    pub(crate) leaf_key: [u8; 32],
}

/// The device of a thread that has a leaf key.
fn member_by_key(tx: &Tx<'_>, id: &GroupId, key: &[u8]) -> Result<Option<ThreadMember>, EndpointError> {
    Ok(members(tx, id)?.into_iter().find(|member| member.leaf_key == key))
}

/// All devices of a thread.
pub(crate) fn members(tx: &Tx<'_>, id: &GroupId) -> Result<Vec<ThreadMember>, EndpointError> {
    let mut statement =
        tx.sql().prepare_cached("SELECT device, alias, leaf_key FROM members WHERE group_id = ?1")?;
    let rows = statement.query_map([id.as_bytes()], |row| {
        Ok(ThreadMember {
            device: DeviceId::from_bytes(row.get(0)?),
            alias: Alias::from_bytes(row.get(1)?),
            leaf_key: row.get(2)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
