//! What waits for peers, and what peers have but not yet reported on.

use super::{NodeStore, sql};
use chancery_node_core::outbox::{Ended, Kept, Kind, Outgoing, Waiting};
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, Incarnation, MessageId, NodeId, Timestamp};
use prost::Message as _;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

/// What [`Kept`] is read from.
const KEPT: &str = "peer, state, kind, message_id, part, recipients, sender, sender_node, wants_events";

/// Puts parcels behind all that wait.
pub(super) async fn push(connection: &mut SqliteConnection, parcels: &[Outgoing]) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO outbox (peer, kind, parcel, message_id, part, recipients, sender, \
                sender_node, wants_events, expires_at)";
    sql::insert(connection, head, 10, "", parcels, |statement, out| {
        let recipients: Vec<u8> = out.recipients.iter().flat_map(|a| *a.as_bytes()).collect();
        statement
            .bind(out.peer.as_str())
            .bind(out.kind as i64)
            .bind(wire::Parcel { parcel: Some(out.parcel.clone()) }.encode_to_vec())
            .bind(out.message_id.as_bytes().as_slice())
            .bind(i64::from(out.part))
            .bind(recipients)
            .bind(out.sender.as_bytes().as_slice())
            .bind(out.sender_node.as_str())
            .bind(out.wants_events)
            .bind(out.expires_at.millis())
    })
    .await
}

/// Parcels for a peer behind `after` that wait, oldest first.
pub(crate) async fn next(
    store: &NodeStore,
    peer: &NodeId,
    after: i64,
    most: usize,
) -> Result<Vec<Waiting>, sqlx::Error> {
    // SQLite prepares a statement with a bound LIMIT anew each time.
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT id, parcel, expires_at FROM outbox
         WHERE peer = $1 AND state = 0 AND id > $2 ORDER BY id LIMIT {most}"
    )))
    .bind(peer.as_str())
    .bind(after)
    .fetch_all(store.readers())
    .await?;
    let waiting = |row: &SqliteRow| {
        Ok(Waiting {
            id: row.try_get(0)?,
            parcel: row.try_get::<Vec<u8>, _>(1)?.into(),
            expires_at: Timestamp::from_millis(row.try_get(2)?),
        })
    };
    rows.iter().map(waiting).collect()
}

/// A peer has these parcels: forgets those that nothing will be heard of, keeps the
/// others, and gives those that waited before.
pub(super) async fn acknowledged(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<Kept>, sqlx::Error> {
    let ids = || ids.iter().copied();
    sql::select_in(&mut *connection, "DELETE FROM outbox WHERE id", "AND kind IN (2, 3, 5, 6)", ids())
        .await?;
    let head = "UPDATE outbox SET state = 1 WHERE state = 0 AND id";
    let tail = format!("RETURNING {KEPT}");
    sql::select_in(connection, head, &tail, ids()).await?.iter().map(kept).collect()
}

/// A waiting parcel is a dead letter from now on.
pub(super) async fn dead(
    connection: &mut SqliteConnection,
    id: i64,
    reason: &str,
) -> Result<Option<Ended>, sqlx::Error> {
    let text = format!(
        "UPDATE outbox SET state = 2, reason = $2 WHERE id = $1 AND state = 0 RETURNING id, parcel, {KEPT}"
    );
    let statement = sqlx::query(AssertSqlSafe(text)).bind(id).bind(reason);
    statement.fetch_optional(connection).await?.as_ref().map(ended).transpose()
}

/// The delivery that a peer got, and whether it has acknowledged it.
pub(super) async fn delivery(
    connection: &mut SqliteConnection,
    peer: &NodeId,
    message_id: MessageId,
    part: u32,
) -> Result<Option<(i64, bool, Kept)>, sqlx::Error> {
    let text = format!(
        "SELECT id, {KEPT} FROM outbox WHERE message_id = $1 AND peer = $2 AND part = $3 AND kind = 1"
    );
    let row = sqlx::query(AssertSqlSafe(text))
        .bind(message_id.as_bytes().as_slice())
        .bind(peer.as_str())
        .bind(i64::from(part))
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok((row.try_get("id")?, row.try_get::<i64, _>("state")? != 0, kept(&row)?))).transpose()
}

/// Who is still to be reported on; the parcel goes with the last one.
pub(super) async fn release(
    connection: &mut SqliteConnection,
    id: i64,
    rest: &[Alias],
) -> Result<(), sqlx::Error> {
    let statement = if rest.is_empty() {
        sqlx::query("DELETE FROM outbox WHERE id = $1").bind(id)
    } else {
        let rest: Vec<u8> = rest.iter().flat_map(|alias| *alias.as_bytes()).collect();
        sqlx::query("UPDATE outbox SET recipients = $2 WHERE id = $1").bind(id).bind(rest)
    };
    statement.execute(connection).await.map(drop)
}

/// Forgets a submission's parcel: its hub has decided.
pub(super) async fn drop_submission(
    connection: &mut SqliteConnection,
    peer: &NodeId,
    message_id: MessageId,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM outbox WHERE message_id = $1 AND peer = $2 AND kind = 0")
        .bind(message_id.as_bytes().as_slice())
        .bind(peer.as_str())
        .execute(connection)
        .await
        .map(drop)
}

/// Forgets the news of an alias's move: its hub has noted it.
pub(super) async fn forget_news(
    connection: &mut SqliteConnection,
    hub: &NodeId,
    alias: Alias,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM outbox WHERE sender = $1 AND kind = 4 AND peer = $2")
        .bind(alias.as_bytes().as_slice())
        .bind(hub.as_str())
        .execute(connection)
        .await
        .map(drop)
}

/// Parcels that waited beyond their expiry, and those that a peer has and that expired
/// before `kept_until`.
pub(super) async fn expired(
    connection: &mut SqliteConnection,
    now: Timestamp,
    kept_until: Timestamp,
    most: usize,
) -> Result<Vec<Ended>, sqlx::Error> {
    let text = format!(
        "SELECT id, parcel, {KEPT} FROM outbox WHERE expires_at <= $1 AND (state = 0 OR expires_at <= $2)
         ORDER BY expires_at LIMIT {most}"
    );
    let statement = sqlx::query(AssertSqlSafe(text)).bind(now.millis()).bind(kept_until.millis());
    statement.fetch_all(connection).await?.iter().map(ended).collect()
}

/// Submissions to hubs that have been silent since then or longer, which expire after
/// `good_until`.
pub(super) async fn silent(
    connection: &mut SqliteConnection,
    since: Timestamp,
    good_until: Timestamp,
    most: usize,
) -> Result<Vec<Ended>, sqlx::Error> {
    let text = format!(
        "SELECT id, parcel, {KEPT} FROM outbox WHERE kind = 0 AND state < 2 AND expires_at > $2
           AND peer IN (SELECT node FROM peer WHERE silent_since <= $1) LIMIT {most}"
    );
    let statement = sqlx::query(AssertSqlSafe(text)).bind(since.millis()).bind(good_until.millis());
    statement.fetch_all(connection).await?.iter().map(ended).collect()
}

/// Another parcel waits in the place of one, about the same.
pub(super) async fn replace(
    connection: &mut SqliteConnection,
    id: i64,
    kind: Kind,
    parcel: &wire::Parcel,
    expires_at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE outbox SET kind = $2, parcel = $3, expires_at = $4 WHERE id = $1")
        .bind(id)
        .bind(kind as i64)
        .bind(parcel.encode_to_vec())
        .bind(expires_at.millis())
        .execute(connection)
        .await
        .map(drop)
}

/// Deletes parcels.
pub(super) async fn remove(connection: &mut SqliteConnection, ids: &[i64]) -> Result<(), sqlx::Error> {
    sql::select_in(connection, "DELETE FROM outbox WHERE id", "", ids.iter().copied()).await.map(drop)
}

/// Notes a peer's incarnation; the one before.
pub(super) async fn greet(
    connection: &mut SqliteConnection,
    peer: &NodeId,
    incarnation: Incarnation,
) -> Result<Option<Incarnation>, sqlx::Error> {
    let row = sqlx::query("SELECT incarnation, silent_since FROM peer WHERE node = $1")
        .bind(peer.as_str())
        .fetch_optional(&mut *connection)
        .await?;
    let (mut before, mut silent_since) = (None, None::<i64>);
    if let Some(row) = row {
        before = Some(sql::column(row.try_get::<Vec<u8>, _>(0)?, "peer.incarnation")?);
        silent_since = row.try_get(1)?;
    }
    if before != Some(incarnation) || silent_since.is_some() {
        sqlx::query(
            "INSERT INTO peer (node, incarnation) VALUES ($1, $2)
             ON CONFLICT (node) DO UPDATE SET incarnation = excluded.incarnation, silent_since = NULL",
        )
        .bind(peer.as_str())
        .bind(incarnation.as_bytes().as_slice())
        .execute(connection)
        .await?;
    }
    Ok(before)
}

/// A peer does not answer, from now on unless that is known.
pub(super) async fn silent_from(
    connection: &mut SqliteConnection,
    peer: &NodeId,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE peer SET silent_since = $2 WHERE node = $1 AND silent_since IS NULL")
        .bind(peer.as_str())
        .bind(now.millis())
        .execute(connection)
        .await
        .map(drop)
}

/// What a peer had acknowledged waits again.
pub(super) async fn replay(connection: &mut SqliteConnection, peer: &NodeId) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE outbox SET state = 0 WHERE peer = $1 AND state = 1")
        .bind(peer.as_str())
        .execute(connection)
        .await
        .map(drop)
}

fn ended(row: &SqliteRow) -> Result<Ended, sqlx::Error> {
    let parcel: wire::Parcel = sql::message(row.try_get("parcel")?, "outbox.parcel")?;
    Ok(Ended {
        id: row.try_get("id")?,
        peer: sql::column(row.try_get::<String, _>("peer")?, "outbox.peer")?,
        kept: kept(row)?,
        acknowledged: row.try_get::<i64, _>("state")? != 0,
        parcel,
    })
}

fn kept(row: &SqliteRow) -> Result<Kept, sqlx::Error> {
    let kind = match row.try_get::<i64, _>("kind")? {
        0 => Kind::Submission,
        1 => Kind::Delivery,
        2 => Kind::Outcome,
        3 => Kind::Report,
        4 => Kind::Moved,
        5 => Kind::Expired,
        6 => Kind::MoveNoted,
        _ => Kind::Broadcast,
    };
    let recipients: Vec<u8> = row.try_get("recipients")?;
    Ok(Kept {
        kind,
        message_id: sql::column(row.try_get::<Vec<u8>, _>("message_id")?, "outbox.message_id")?,
        part: u32::try_from(row.try_get::<i64, _>("part")?).unwrap_or(0),
        recipients: recipients
            .chunks(Alias::LENGTH)
            .map(|alias| sql::column(alias, "outbox.recipients"))
            .collect::<Result<_, _>>()?,
        sender: sql::column(row.try_get::<Vec<u8>, _>("sender")?, "outbox.sender")?,
        sender_node: sql::column(row.try_get::<String, _>("sender_node")?, "outbox.sender_node")?,
        wants_events: row.try_get("wants_events")?,
    })
}
