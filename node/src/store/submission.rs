//! What is remembered so that nothing counts twice: submissions with their
//! outcomes, and what peers brought.

use super::sql;
use chancery_node_core::tables::{Known, Note, Seen};
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, MessageId, NodeId, Timestamp};
use prost::Message as _;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};
use std::collections::{HashMap, HashSet};

/// What is known of submissions with these ids.
pub(super) async fn known(
    connection: &mut SqliteConnection,
    ids: &[MessageId],
) -> Result<HashMap<(MessageId, Alias), Known>, sqlx::Error> {
    let head = "SELECT message_id, sender, digest, outcome FROM submission WHERE message_id";
    let keys = ids.iter().map(|id| id.as_bytes().as_slice());
    let mut known = HashMap::new();
    for row in sql::select_in(connection, head, "", keys).await? {
        let id = sql::column(row.try_get::<Vec<u8>, _>(0)?, "submission.message_id")?;
        let sender = sql::column(row.try_get::<Vec<u8>, _>(1)?, "submission.sender")?;
        let digest = sql::array(&row.try_get::<Vec<u8>, _>(2)?, "submission.digest")?;
        let outcome = row
            .try_get::<Option<Vec<u8>>, _>(3)?
            .map(|bytes| sql::message(bytes, "submission.outcome"))
            .transpose()?;
        known.insert((id, sender), Known { digest, outcome });
    }
    Ok(known)
}

/// Notes submissions in the place of what was noted.
pub(super) async fn note(connection: &mut SqliteConnection, notes: &[Note]) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO submission (message_id, sender, digest, hub, wants_events, outcome, expires_at)";
    let tail = "ON CONFLICT (message_id, sender) DO UPDATE SET digest = excluded.digest, \
                hub = excluded.hub, wants_events = excluded.wants_events, \
                outcome = excluded.outcome, expires_at = excluded.expires_at";
    sql::insert(connection, head, 7, tail, notes, |statement, note| {
        statement
            .bind(note.message_id.as_bytes().as_slice())
            .bind(note.sender.as_bytes().as_slice())
            .bind(note.digest.as_slice())
            .bind(note.hub.as_str())
            .bind(note.wants_events)
            .bind(note.outcome.as_ref().map(wire::Outcome::encode_to_vec))
            .bind(note.expires_at.millis())
    })
    .await
}

/// Notes the outcome of a submission that waits for this hub; whether one does.
pub(super) async fn conclude(
    connection: &mut SqliteConnection,
    hub: &NodeId,
    (message_id, sender): (MessageId, Alias),
    outcome: &wire::Outcome,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE submission SET outcome = $4
         WHERE message_id = $1 AND sender = $2 AND hub = $3 AND outcome IS NULL",
    )
    .bind(message_id.as_bytes().as_slice())
    .bind(sender.as_bytes().as_slice())
    .bind(hub.as_str())
    .bind(outcome.encode_to_vec())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Forgets a submission that waits for its hub; whether one does.
pub(super) async fn forget_undecided(
    connection: &mut SqliteConnection,
    message_id: MessageId,
    sender: Alias,
) -> Result<bool, sqlx::Error> {
    let done =
        sqlx::query("DELETE FROM submission WHERE message_id = $1 AND sender = $2 AND outcome IS NULL")
            .bind(message_id.as_bytes().as_slice())
            .bind(sender.as_bytes().as_slice())
            .execute(connection)
            .await?;
    Ok(done.rows_affected() > 0)
}

/// Who on this node submitted a message to that hub and wants events.
pub(super) async fn submitter(
    connection: &mut SqliteConnection,
    message_id: MessageId,
    hub: &NodeId,
) -> Result<Option<Alias>, sqlx::Error> {
    let sender = sqlx::query_scalar::<_, Vec<u8>>(
        "SELECT sender FROM submission WHERE message_id = $1 AND hub = $2 AND wants_events",
    )
    .bind(message_id.as_bytes().as_slice())
    .bind(hub.as_str())
    .fetch_optional(connection)
    .await?;
    sender.map(|alias| sql::column(alias, "submission.sender")).transpose()
}

/// Notes what a peer brought; of each, whether it comes for the first time.
pub(super) async fn first_time(
    connection: &mut SqliteConnection,
    peer: &NodeId,
    seen: &[Seen],
) -> Result<Vec<bool>, sqlx::Error> {
    let head = "INSERT INTO received (message_id, peer, part, expires_at)";
    let tail = "ON CONFLICT DO NOTHING RETURNING message_id, part";
    let rows = sql::insert_returning(connection, head, 4, tail, seen, |statement, seen| {
        statement
            .bind(seen.key.to_vec())
            .bind(peer.as_str())
            .bind(i64::from(seen.part))
            .bind(seen.expires_at.millis())
    })
    .await?;
    let mut fresh: HashSet<(Vec<u8>, i64)> =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>()?;
    // The second of two in one batch is none.
    Ok(seen.iter().map(|seen| fresh.remove(&(seen.key.to_vec(), i64::from(seen.part)))).collect())
}

/// Deletes notes that have run out, at most `most` of either kind; the larger number.
pub(super) async fn expire(
    connection: &mut SqliteConnection,
    now: Timestamp,
    most: usize,
) -> Result<u64, sqlx::Error> {
    let mut larger = 0;
    for (table, key) in [("submission", "message_id, sender"), ("received", "message_id, peer, part")] {
        let text = format!(
            "DELETE FROM {table} WHERE ({key}) IN (
               SELECT {key} FROM {table} WHERE expires_at <= $1 ORDER BY expires_at LIMIT {most})"
        );
        let done = sqlx::query(AssertSqlSafe(text)).bind(now.millis()).execute(&mut *connection).await?;
        larger = larger.max(done.rows_affected());
    }
    Ok(larger)
}
