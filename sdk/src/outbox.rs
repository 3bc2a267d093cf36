//! What is to be sent: the rows behind [`chancery_sdk_core::outbox`], and what goes
//! into them.

pub use chancery_sdk_core::outbox::{Batch, Due, decide, next};

use crate::content_view;
use crate::error::EndpointError;
use crate::event::{self, EventKind};
use crate::identity::{self, Identity};
use crate::inbox;
use crate::restored::STORE_COUNT;
use crate::store::{StoreError, Tx};
use crate::thread::{self, Thread};
use chancery_proto::federation::v1::{Commit, Submission, submission};
use chancery_sdk_core::outbox::{prepare, submit};
use chancery_sdk_core::{Conclusion, Item};
use chancery_types::{GroupId, MessageId, Timestamp};
use prost::Message as _;
use rusqlite::{OptionalExtension as _, Params, Row, params};
use std::time::Duration;

/// Largest body of a letter, in bytes: leaves room for padding and framing
/// within the 256 KiB of an MLSMessage.
pub const BODY_LIMIT: usize = 250 * 1024;
/// Longest time ahead that a letter may expire.
pub const LONGEST_EXPIRY: Duration = Duration::from_hours(90 * 24);
/// How long the hub may take to bring a commit to its joiners.
const COMMIT_EXPIRY: Duration = Duration::from_hours(89 * 24);
/// As in the column `state`; 0 is queued.
mod state {
    pub(super) const SUBMITTED: u8 = 1;
    pub(super) const ACCEPTED: u8 = 3;
    pub(super) const FAILED: u8 = 4;
}

/// What the hub decided, for whoever waits.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The message.
    pub message_id: MessageId,
    /// Its thread.
    pub thread: GroupId,
    /// When the hub accepted it, or the stable reason why not.
    pub result: Result<Timestamp, String>,
}

/// A letter to queue.
pub(crate) struct Letter<'a> {
    pub(crate) message_id: MessageId,
    pub(crate) body: &'a [u8],
    pub(crate) expires: Timestamp,
    pub(crate) wants_events: bool,
}

const COLUMNS: &str = "id, sent_as, group_id, commits, state, body, expires_at_ms, wants_events, \
                       needs_epoch, made_in, digest, message_id";

fn from_row(row: &Row<'_>) -> rusqlite::Result<Item> {
    Ok(Item {
        id: row.get(0)?,
        message_id: MessageId::from_bytes(row.get(1)?),
        group: GroupId::from_bytes(row.get(2)?),
        commits: row.get(3)?,
        submitted: row.get::<_, u8>(4)? == state::SUBMITTED,
        body: row.get(5)?,
        expires: Timestamp::from_millis(row.get(6)?),
        wants_events: row.get(7)?,
        needs_epoch: row.get(8)?,
        made_in: row.get::<_, Option<u64>>(9)?.unwrap_or_default(),
        digest: row.get(10)?,
        letter: MessageId::from_bytes(row.get(11)?),
    })
}

/// Items by a condition.
pub(crate) fn items(tx: &Tx<'_>, rest: &str, parameters: impl Params) -> Result<Vec<Item>, EndpointError> {
    let sql = format!("SELECT {COLUMNS} FROM outbox WHERE {rest}");
    let mut statement = tx.sql().prepare_cached(&sql)?;
    Ok(statement.query_map(parameters, from_row)?.collect::<Result<_, _>>()?)
}

/// Whether there is an item under a condition.
pub(crate) fn any(tx: &Tx<'_>, rest: &str, parameters: impl Params) -> Result<bool, EndpointError> {
    let sql = format!("SELECT EXISTS (SELECT 1 FROM outbox WHERE {rest})");
    Ok(tx.sql().prepare_cached(&sql)?.query_row(parameters, |row| row.get(0))?)
}

/// An item was encrypted: it goes to the end of what is to be submitted.
pub(crate) fn submitted(
    tx: &Tx<'_>,
    item: &Item,
    submission: &Submission,
    digest: &[u8; 32],
) -> Result<(), EndpointError> {
    let position = inbox::count_up(tx, STORE_COUNT)?;
    tx.sql()
        .prepare_cached(
            "UPDATE outbox SET state = 1, submission = ?2, digest = ?3, submitted = ?4, made_in = ?5 \
             WHERE id = ?1",
        )?
        .execute(params![item.id, submission.encode_to_vec(), digest, position, submission.epoch])?;
    Ok(())
}

/// What was submitted behind a position.
pub(crate) fn due(tx: &Tx<'_>, after: u64, most: usize) -> Result<Vec<(u64, Submission)>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT submitted, submission FROM outbox WHERE state = 1 AND submitted > ?1 \
         ORDER BY submitted LIMIT ?2",
    )?;
    let mut rows = statement.query(params![after, most])?;
    let mut due = Vec::new();
    while let Some(row) = rows.next()? {
        let submission = Submission::decode(row.get_ref(1)?.as_blob().unwrap_or_default())
            .map_err(|_| StoreError::Row { table: "outbox", column: "submission" })?;
        due.push((row.get(0)?, submission));
    }
    Ok(due)
}

/// An item waits to be encrypted anew.
pub(crate) fn requeue(tx: &Tx<'_>, item: &Item, needs_epoch: u64) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "UPDATE outbox SET state = 0, submission = NULL, digest = NULL, needs_epoch = ?2 WHERE id = ?1",
        )?
        .execute(params![item.id, needs_epoch])?;
    Ok(())
}

/// What is queued in a group is to be sent in another one; what was encrypted before, under
/// another id, because a node may know the first one.
pub(crate) fn carry_over(tx: &Tx<'_>, id: &GroupId, next: &GroupId) -> Result<(), EndpointError> {
    for item in items(tx, "group_id = ?1 AND state = 0 AND made_in > 0", [id.as_bytes()])? {
        let sent_as = tx.entropy().message_id(tx.clock());
        tx.sql()
            .prepare_cached("UPDATE outbox SET sent_as = ?2, made_in = NULL WHERE id = ?1")?
            .execute(params![item.id, sent_as.as_bytes()])?;
    }
    tx.sql()
        .prepare_cached("UPDATE outbox SET group_id = ?2, needs_epoch = 0 WHERE group_id = ?1 AND state = 0")?
        .execute([id.as_bytes(), next.as_bytes()])?;
    Ok(())
}

/// An item has ended: its plaintext goes, who waits is told.
pub(crate) fn conclude(tx: &Tx<'_>, item: &Item, conclusion: Conclusion<'_>) -> Result<(), EndpointError> {
    let (state, accepted_at, failure) = match conclusion {
        Conclusion::Accepted(at) => (state::ACCEPTED, Some(at), None),
        Conclusion::Needless => (state::ACCEPTED, None, None),
        Conclusion::Failed(reason) => (state::FAILED, None, Some(reason)),
    };
    tx.sql()
        .prepare_cached(
            "UPDATE outbox SET state = ?2, accepted_at_ms = ?3, failure = ?4, body = NULL, submission = NULL \
             WHERE id = ?1",
        )?
        .execute(params![item.id, state, accepted_at.map(Timestamp::millis), failure])?;
    let result = match conclusion {
        Conclusion::Accepted(at) => Ok(at),
        Conclusion::Failed(reason) => Err(reason.to_owned()),
        Conclusion::Needless => return Ok(()),
    };
    if !item.commits && item.wants_events {
        let (kind, at) = accepted_at.map_or((EventKind::Failed, tx.now()), |at| (EventKind::Accepted, at));
        event::note(tx, &item.letter, kind, at, failure)?;
    }
    let thread = thread::find(tx, &item.group)?.map_or(item.group, |thread| thread.root);
    tx.decided(Decided { message_id: item.letter, thread, result });
    Ok(())
}

/// Queues a letter and encrypts it at once if the thread allows.
pub(crate) fn enqueue(tx: &mut Tx<'_>, thread: &Thread, letter: &Letter<'_>) -> Result<(), EndpointError> {
    if letter.body.len() > BODY_LIMIT {
        return Err(EndpointError::Invalid("the letter is larger than 250 KiB"));
    }
    if letter.expires <= tx.now() || letter.expires > tx.now().after(LONGEST_EXPIRY) {
        return Err(EndpointError::Invalid("the expiry is not within the next 90 days"));
    }
    let identity = identity::identity(tx)?;
    let content_id = content_view::look(&identity.federation, &identity.alias, &thread.root, letter.body).id;
    tx.sql()
        .prepare_cached(
            "INSERT INTO outbox (message_id, sent_as, group_id, commits, state, body, expires_at_ms, \
             wants_events, needs_epoch, content_id) VALUES (?1, ?1, ?2, 0, 0, ?3, ?4, ?5, 0, ?6)",
        )?
        .execute(params![
            letter.message_id.as_bytes(),
            thread.id.as_bytes(),
            letter.body,
            letter.expires.millis(),
            letter.wants_events,
            content_id.map(|id| *id.as_bytes())
        ])?;
    if thread.stand.is_over() {
        tx.succession_is_due();
    }
    prepare(tx, &thread.id).map(drop)
}

/// Queues a commit; see [`crate::thread::admit`].
pub(crate) fn enqueue_commit(
    tx: &mut Tx<'_>,
    group: &GroupId,
    plan: &[u8],
) -> Result<MessageId, EndpointError> {
    let message_id = tx.entropy().message_id(tx.clock());
    tx.sql().execute(
        "INSERT INTO outbox (message_id, sent_as, group_id, commits, state, body, expires_at_ms, \
         wants_events, needs_epoch) VALUES (?1, ?1, ?2, 1, 0, ?3, ?4, 0, 0)",
        params![message_id.as_bytes(), group.as_bytes(), plan, tx.now().after(COMMIT_EXPIRY).millis()],
    )?;
    prepare(tx, group)?;
    Ok(message_id)
}

/// Queues the commit that opens a group.
pub(crate) fn submit_first_commit(
    tx: &mut Tx<'_>,
    identity: &Identity,
    group: &GroupId,
    commit: Commit,
) -> Result<(), EndpointError> {
    let message_id = tx.entropy().message_id(tx.clock());
    let expires = tx.now().after(COMMIT_EXPIRY);
    let sql = format!(
        "INSERT INTO outbox (message_id, sent_as, group_id, commits, state, expires_at_ms, \
         wants_events, needs_epoch) VALUES (?1, ?1, ?2, 1, 0, ?3, 0, 0) RETURNING {COLUMNS}"
    );
    let item = tx
        .sql()
        .prepare_cached(&sql)?
        .query_row(params![message_id.as_bytes(), group.as_bytes(), expires.millis()], from_row)?;
    submit(tx, (identity.alias, identity.device), &item, 0, submission::Body::Commit(commit))
}

/// What is known about a message that was sent from here.
///
/// # Errors
/// The store's.
pub fn decided(tx: &Tx<'_>, message_id: &MessageId) -> Result<Option<Decided>, EndpointError> {
    let read = |row: &Row<'_>| {
        let thread = GroupId::from_bytes(row.get(0)?);
        let result = match row.get(1)? {
            state::ACCEPTED => Ok(Timestamp::from_millis(row.get::<_, Option<i64>>(2)?.unwrap_or_default())),
            state::FAILED => Err(row.get(3)?),
            _ => return Ok(None),
        };
        Ok(Some(Decided { message_id: *message_id, thread, result }))
    };
    Ok(tx
        .sql()
        .prepare_cached(
            "SELECT coalesce((SELECT root FROM threads WHERE threads.group_id = outbox.group_id), group_id), \
             state, accepted_at_ms, failure FROM outbox WHERE message_id = ?1",
        )?
        .query_row([message_id.as_bytes()], read)
        .optional()?
        .flatten())
}
