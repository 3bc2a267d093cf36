//! What is to be sent. A letter's plaintext stays here until the hub has
//! accepted it, so that it can be encrypted anew, under the same message id,
//! when the epoch has moved. What was encrypted once is submitted again byte for
//! byte, so that the hub can tell a repetition.

use crate::content_view;
use crate::error::EndpointError;
use crate::event::{self, EventKind};
use crate::home;
use crate::identity::{self, Identity};
use crate::inbox;
use crate::store::{StoreError, Tx};
use crate::thread::chain::{self, Link, Source};
use crate::thread::{self, Thread, admit, encrypt, receive};
use chancery_proto::federation::v1::{Accepted, Commit, Outcome, Submission, outcome, submission};
use chancery_types::{Chain, GroupId, MessageId, Reason, Timestamp};
use prost::Message as _;
use rusqlite::{OptionalExtension as _, Params, Row, params};
use sha2::{Digest as _, Sha256};
use std::time::Duration;

/// Largest body of a letter, in bytes: leaves room for padding and framing
/// within the 256 KiB of an MLSMessage.
pub const BODY_LIMIT: usize = 250 * 1024;
/// Longest time ahead that a letter may expire.
pub const LONGEST_EXPIRY: Duration = Duration::from_hours(90 * 24);
/// How long the hub may take to bring a commit to its joiners.
const COMMIT_EXPIRY: Duration = Duration::from_hours(89 * 24);
/// How long after a message's expiry its outcome may still come: nodes answer for
/// it 72 hours long.
const OUTCOME_GRACE: Duration = Duration::from_hours(96);
/// Bytes of submissions in one call.
const CALL_BYTES: usize = 3 * 1024 * 1024 - 64 * 1024;

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

/// What to submit in one call.
pub struct Batch {
    /// In order.
    pub submissions: Vec<Due>,
    /// Whether there is more behind it.
    pub more: bool,
}

/// Something to submit.
pub struct Due {
    /// Growing: what is encrypted anew goes to the end.
    pub position: u64,
    /// What the home node gets.
    pub submission: Submission,
}

struct Item {
    id: i64,
    message_id: MessageId,
    group: GroupId,
    commits: bool,
    state: u8,
    body: Option<Vec<u8>>,
    expires: Timestamp,
    wants_events: bool,
    needs_epoch: u64,
    submission: Option<Vec<u8>>,
    digest: Option<[u8; 32]>,
}

const COLUMNS: &str = "id, message_id, group_id, commits, state, body, expires_at_ms, wants_events, \
                       needs_epoch, submission, digest";

fn from_row(row: &Row<'_>) -> rusqlite::Result<Item> {
    Ok(Item {
        id: row.get(0)?,
        message_id: MessageId::from_bytes(row.get(1)?),
        group: GroupId::from_bytes(row.get(2)?),
        commits: row.get(3)?,
        state: row.get(4)?,
        body: row.get(5)?,
        expires: Timestamp::from_millis(row.get(6)?),
        wants_events: row.get(7)?,
        needs_epoch: row.get(8)?,
        submission: row.get(9)?,
        digest: row.get(10)?,
    })
}

fn items(tx: &Tx<'_>, rest: &str, parameters: impl Params) -> Result<Vec<Item>, EndpointError> {
    let sql = format!("SELECT {COLUMNS} FROM outbox WHERE {rest}");
    let mut statement = tx.sql().prepare_cached(&sql)?;
    Ok(statement.query_map(parameters, from_row)?.collect::<Result<_, _>>()?)
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
    let content_id = content_view::look(&identity.federation, &identity.alias, &thread.id, letter.body).id;
    tx.sql()
        .prepare_cached(
            "INSERT INTO outbox (message_id, group_id, commits, state, body, expires_at_ms, wants_events, \
             needs_epoch, content_id) VALUES (?1, ?2, 0, 0, ?3, ?4, ?5, 0, ?6)",
        )?
        .execute(params![
            letter.message_id.as_bytes(),
            thread.id.as_bytes(),
            letter.body,
            letter.expires.millis(),
            letter.wants_events,
            content_id.map(|id| *id.as_bytes())
        ])?;
    prepare(tx, &thread.id).map(drop)
}

/// Queues a commit; see [`admit`].
pub(crate) fn enqueue_commit(
    tx: &mut Tx<'_>,
    group: &GroupId,
    plan: &[u8],
) -> Result<MessageId, EndpointError> {
    let message_id = tx.entropy().message_id(tx.clock());
    tx.sql().execute(
        "INSERT INTO outbox (message_id, group_id, commits, state, body, expires_at_ms, wants_events, \
         needs_epoch) VALUES (?1, ?2, 1, 0, ?3, ?4, 0, 0)",
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
    tx.sql()
        .prepare_cached(
            "INSERT INTO outbox (message_id, group_id, commits, state, expires_at_ms, wants_events, \
             needs_epoch) VALUES (?1, ?2, 1, 0, ?3, 0, 0)",
        )?
        .execute(params![message_id.as_bytes(), group.as_bytes(), expires.millis()])?;
    let id = tx.sql().last_insert_rowid();
    let envelope = Envelope { id, message_id, group: *group, epoch: 0, expires, wants_events: false };
    submit(tx, identity, &envelope, submission::Body::Commit(commit))
}

struct Envelope {
    id: i64,
    message_id: MessageId,
    group: GroupId,
    epoch: u64,
    expires: Timestamp,
    wants_events: bool,
}

fn submit(
    tx: &Tx<'_>,
    identity: &Identity,
    envelope: &Envelope,
    body: submission::Body,
) -> Result<(), EndpointError> {
    let digest = Sha256::digest(match &body {
        submission::Body::Application(message) => message,
        submission::Body::Commit(commit) => &commit.mls_commit,
    });
    let submission = Submission {
        message_id: envelope.message_id.to_wire(),
        group_id: envelope.group.to_wire(),
        sender: identity.alias.to_wire(),
        sender_device: identity.device.to_wire(),
        epoch: envelope.epoch,
        expires_at_ms: envelope.expires.millis(),
        urgency: 0,
        category: 0,
        wants_events: envelope.wants_events,
        body: Some(body),
        // The home node knows whether there are other devices.
        echo: false,
    };
    let position = inbox::count_up(tx, "submitted")?;
    tx.sql()
        .prepare_cached(
            "UPDATE outbox SET state = 1, submission = ?2, digest = ?3, submitted = ?4, made_in = ?5 \
             WHERE id = ?1",
        )?
        .execute(params![
            envelope.id,
            submission.encode_to_vec(),
            digest.as_slice(),
            position,
            envelope.epoch
        ])?;
    Ok(())
}

/// Encrypts what is queued in a thread, in order, as far as it may go now: to be
/// called whenever the thread's epoch, its pending commit, its state or what is
/// undecided in it has changed. Whether there was anything.
pub(crate) fn prepare(tx: &mut Tx<'_>, group: &GroupId) -> Result<bool, EndpointError> {
    let any = "SELECT EXISTS (SELECT 1 FROM outbox WHERE group_id = ?1 AND state = 0)";
    if !tx.sql().prepare_cached(any)?.query_row([group.as_bytes()], |row| row.get::<_, bool>(0))? {
        return Ok(false);
    }
    let thread = thread::find(tx, group)?;
    if let Some(thread) = thread.filter(|thread| thread.open)
        && (thread.pending_commit.is_some() || overtakes(tx, &thread)?)
    {
        return Ok(false);
    }
    let identity = identity::identity(tx)?;
    for item in items(tx, "group_id = ?1 AND state = 0 ORDER BY id", [group.as_bytes()])? {
        prepare_one(tx, &identity, &item)?;
    }
    Ok(true)
}

/// Whether a letter made now might be ordered before one of an older epoch that
/// the hub may yet refuse.
fn overtakes(tx: &Tx<'_>, thread: &Thread) -> Result<bool, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM outbox \
             WHERE group_id = ?1 AND state < 3 AND state = 1 AND commits = 0 AND made_in < ?2)",
        )?
        .query_row(params![thread.id.as_bytes(), thread.epoch], |row| row.get(0))?)
}

fn prepare_one(tx: &mut Tx<'_>, identity: &Identity, item: &Item) -> Result<(), EndpointError> {
    let Some(thread) = thread::find(tx, &item.group)?.filter(|thread| thread.open) else {
        return fail(tx, item, Reason::ThreadUnknown.as_str());
    };
    if thread.pending_commit.is_some() || thread.epoch < item.needs_epoch {
        return Ok(());
    }
    if item.expires <= tx.now() {
        return fail(tx, item, Reason::Expired.as_str());
    }
    let body = item.body.as_deref().ok_or(StoreError::Row { table: "outbox", column: "body" })?;
    let envelope = Envelope {
        id: item.id,
        message_id: item.message_id,
        group: item.group,
        epoch: thread.epoch,
        expires: item.expires,
        wants_events: item.wants_events,
    };
    let made = if item.commits {
        admit::stage(tx, &thread, body).map(|commit| commit.map(submission::Body::Commit))
    } else {
        encrypt::encrypt(tx, &thread, item.message_id, item.expires, body)
            .map(|message| Some(submission::Body::Application(message.into())))
    };
    match made {
        Ok(Some(made)) => {
            if item.commits {
                tx.sql().execute(
                    "UPDATE threads SET pending_commit = ?2 WHERE group_id = ?1",
                    params![item.group.as_bytes(), item.message_id.as_bytes()],
                )?;
            }
            submit(tx, identity, &envelope, made)
        }
        // Somebody else brought the devices in.
        Ok(None) => close(tx, item, state::ACCEPTED, None, None),
        Err(error @ EndpointError::Store(_)) => Err(error),
        Err(error) => {
            let refusal = chancery_types::Refusal::from(error);
            fail(tx, item, refusal.reason.as_str())
        }
    }
}

/// What is undecided behind a position, in order: at most `limit` and 3 MiB,
/// unless there is only one. Beginning at 0 submits everything undecided again,
/// which the home node knows by its message id.
///
/// # Errors
/// The store's.
pub fn next(tx: &mut Tx<'_>, after: u64, limit: usize) -> Result<Batch, EndpointError> {
    give_up(tx)?;
    if home::submissions_wait(tx)? {
        return Ok(Batch { submissions: Vec::new(), more: false });
    }
    let mut bytes = 0;
    let mut submissions: Vec<Due> = Vec::new();
    let mut more = false;
    let mut statement = tx.sql().prepare_cached(
        "SELECT submitted, submission FROM outbox WHERE state = 1 AND submitted > ?1 \
         ORDER BY submitted LIMIT ?2",
    )?;
    let mut rows = statement.query(params![after, limit + 1])?;
    while let Some(row) = rows.next()? {
        let submission = row.get_ref(1)?.as_blob().unwrap_or_default();
        bytes += submission.len();
        if submissions.len() == limit || (bytes > CALL_BYTES && !submissions.is_empty()) {
            more = true;
            break;
        }
        let submission = Submission::decode(submission)
            .map_err(|_| StoreError::Row { table: "outbox", column: "submission" })?;
        submissions.push(Due { position: row.get(0)?, submission });
    }
    Ok(Batch { submissions, more })
}

/// Ends what has expired: at once while it is queued, and once no outcome can
/// come any more when it was submitted.
fn give_up(tx: &mut Tx<'_>) -> Result<(), EndpointError> {
    let now = tx.now();
    let due = "state < 2 AND expires_at_ms <= ?1 AND (state = 0 OR expires_at_ms <= ?2) LIMIT 128";
    for item in items(tx, due, [now.millis(), now.before(OUTCOME_GRACE).millis()])? {
        if let Some(mut thread) = thread::find(tx, &item.group)? {
            withdraw(tx, &item, &mut thread)?;
        }
        let reason = if item.state == state::SUBMITTED { Reason::PeerUnreachable } else { Reason::Expired };
        fail(tx, &item, reason.as_str())?;
        prepare(tx, &item.group)?;
    }
    Ok(())
}

/// Whether the hub has yet to decide about something of ours in a thread.
pub(crate) fn any_undecided(tx: &Tx<'_>, group: &GroupId) -> Result<bool, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM outbox WHERE group_id = ?1 AND state < 3 AND state > 0)",
        )?
        .query_row([group.as_bytes()], |row| row.get(0))?)
}

fn find(tx: &Tx<'_>, message_id: &MessageId) -> Result<Option<Item>, EndpointError> {
    let sql = format!("SELECT {COLUMNS} FROM outbox WHERE message_id = ?1");
    Ok(tx.sql().prepare_cached(&sql)?.query_row([message_id.as_bytes()], from_row).optional()?)
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
        .prepare_cached("SELECT group_id, state, accepted_at_ms, failure FROM outbox WHERE message_id = ?1")?
        .query_row([message_id.as_bytes()], read)
        .optional()?
        .flatten())
}

/// Takes the hub's decisions about submissions of this device. Whether they may
/// have set queued letters free, or let in what waited for them.
///
/// # Errors
/// The store's.
pub fn decide<'a>(
    tx: &mut Tx<'_>,
    outcomes: impl IntoIterator<Item = &'a Outcome>,
) -> Result<bool, EndpointError> {
    let mut released = false;
    for outcome in outcomes {
        let id = MessageId::try_from(&outcome.message_id).ok();
        let item = id.map(|id| find(tx, &id)).transpose()?.flatten();
        if let Some(item) = item.filter(|item| item.state == state::SUBMITTED) {
            released |= decide_one(tx, &item, outcome)?;
        }
    }
    Ok(released)
}

fn decide_one(tx: &mut Tx<'_>, item: &Item, outcome: &Outcome) -> Result<bool, EndpointError> {
    let released = match &outcome.decision {
        Some(outcome::Decision::Accepted(accepted)) => {
            accept(tx, item, accepted)?;
            item.commits
        }
        // It goes out again through the new home.
        Some(outcome::Decision::Refused(refused)) if refused.reason == Reason::AliasMoved.as_str() => {
            return Ok(false);
        }
        Some(outcome::Decision::Refused(refused)) => {
            refuse(tx, item, &refused.reason, refused.current_epoch)?;
            true
        }
        None => return Ok(false),
    };
    // Our message may have been the gap, or was the last that could be.
    if let Some(mut thread) = thread::find(tx, &item.group)? {
        chain::settle(tx, &mut thread)?;
        if receive::parks(tx, &item.group)? {
            receive::unpark(tx, &item.group)?;
        }
    }
    Ok(prepare(tx, &item.group)? || released)
}

fn accept(tx: &mut Tx<'_>, item: &Item, accepted: &Accepted) -> Result<(), EndpointError> {
    let accepted_at = Timestamp::from_millis(accepted.accepted_at_ms);
    close(tx, item, state::ACCEPTED, Some(accepted_at), None)?;
    tx.decided(decision(item, Ok(accepted_at)));
    if !item.commits && item.wants_events {
        event::note(tx, &item.message_id, EventKind::Accepted, accepted_at, None)?;
    }
    let mut thread = thread::find(tx, &item.group)?.ok_or(EndpointError::ThreadUnknown)?;
    let (Ok(chain), 1..=Chain::LAST) = (Chain::try_from(&accepted.chain), accepted.sequence) else {
        crate::alarm::raise(tx, crate::alarm::Alarm::Forked, Some(&item.group))?;
        if item.commits {
            // Where the group stands now, nobody can tell.
            withdraw(tx, item, &mut thread)?;
            thread::close(tx, &item.group)?;
        }
        return Ok(());
    };
    let link = Link { sequence: accepted.sequence, message_id: item.message_id, digest: item.digest, chain };
    chain::record(tx, &mut thread, &link, Source::Accepted)?;
    if item.commits && thread.pending_commit == Some(item.message_id) {
        admit::merge(tx, &mut thread)?;
        receive::unpark(tx, &item.group)?;
    }
    Ok(())
}

fn refuse(
    tx: &mut Tx<'_>,
    item: &Item,
    reason: &str,
    current_epoch: Option<u64>,
) -> Result<(), EndpointError> {
    let made_in = item
        .submission
        .as_deref()
        .and_then(|bytes| Submission::decode(bytes).ok())
        .map(|submission| submission.epoch)
        .unwrap_or_default();
    let mut thread = thread::find(tx, &item.group)?.ok_or(EndpointError::ThreadUnknown)?;
    let first_commit = item.commits && made_in == 0;
    match Reason::from_wire(reason) {
        Some(Reason::StaleEpoch) if !first_commit => {
            let needs = current_epoch.unwrap_or(made_in + 1);
            // A second answer to bytes that were made anew in the meantime says nothing.
            if needs > made_in && needs <= Chain::LAST {
                requeue(tx, item, thread, needs)?;
            }
            Ok(())
        }
        // A hub that has not heard of this endpoint's move yet: made anew, the same
        // counts once it has.
        Some(Reason::NotInGroup | Reason::GroupUnknown) if !first_commit && home::moved_lately(tx)? => {
            home::submit_later(tx)?;
            requeue(tx, item, thread, made_in)
        }
        _ if first_commit => {
            // Without its first commit the group does not exist.
            thread::close(tx, &item.group)?;
            let undecided = items(tx, "group_id = ?1 AND state < 3 ORDER BY id", [item.group.as_bytes()])?;
            undecided.iter().try_for_each(|item| fail(tx, item, reason))
        }
        _ => {
            withdraw(tx, item, &mut thread)?;
            fail(tx, item, reason)
        }
    }
}

/// Gives a commit of ours up, and lets in what waited for it.
fn withdraw(tx: &mut Tx<'_>, item: &Item, thread: &mut Thread) -> Result<(), EndpointError> {
    if thread.pending_commit == Some(item.message_id) {
        admit::abandon(tx, thread)?;
        receive::unpark(tx, &item.group)?;
    }
    Ok(())
}

/// Makes a message anew once the thread has reached an epoch.
fn requeue(tx: &mut Tx<'_>, item: &Item, mut thread: Thread, needs: u64) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "UPDATE outbox SET state = 0, submission = NULL, digest = NULL, needs_epoch = ?2 WHERE id = ?1",
        )?
        .execute(params![item.id, needs.max(item.needs_epoch)])?;
    withdraw(tx, item, &mut thread)
}

fn fail(tx: &Tx<'_>, item: &Item, reason: &str) -> Result<(), EndpointError> {
    close(tx, item, state::FAILED, None, Some(reason))?;
    tx.decided(decision(item, Err(reason.to_owned())));
    if !item.commits && item.wants_events {
        event::note(tx, &item.message_id, EventKind::Failed, tx.now(), Some(reason))?;
    }
    Ok(())
}

fn decision(item: &Item, result: Result<Timestamp, String>) -> Decided {
    Decided { message_id: item.message_id, thread: item.group, result }
}

/// The hub has decided: the plaintext goes.
fn close(
    tx: &Tx<'_>,
    item: &Item,
    state: u8,
    accepted_at: Option<Timestamp>,
    failure: Option<&str>,
) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "UPDATE outbox SET state = ?2, accepted_at_ms = ?3, failure = ?4, body = NULL, submission = NULL \
             WHERE id = ?1",
        )?
        .execute(params![item.id, state, accepted_at.map(Timestamp::millis), failure])?;
    Ok(())
}
