//! What waits for peers. A parcel is kept until it is settled: a submission
//! until its outcome, a delivery until each recipient's terminal report, anything
//! else until the peer has acknowledged it.

use super::{NodeStore, Tx, mailbox, moves, report, sql, submit};
use bytes::Bytes;
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, Incarnation, MessageId, NodeId, Timestamp};
use prost::Message as _;
use sqlx::{AssertSqlSafe, Row as _};

/// What kind of parcel; numbers as in the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Submission = 0,
    Delivery = 1,
    Outcome = 2,
    Report = 3,
    Moved = 4,
}

/// A parcel to hand over.
pub(crate) struct Outgoing {
    pub(crate) peer: NodeId,
    pub(crate) kind: Kind,
    pub(crate) parcel: wire::parcel::Parcel,
    pub(crate) message_id: MessageId,
    pub(crate) part: u32,
    /// Who is still to be reported on; for a delivery.
    pub(crate) recipients: Vec<Alias>,
    pub(crate) sender: Alias,
    pub(crate) sender_node: NodeId,
    pub(crate) wants_events: bool,
    pub(crate) expires_at: Timestamp,
}

/// Puts parcels into the outbox, in order.
pub(crate) async fn push(tx: &mut Tx<'_>, parcels: &[Outgoing]) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO outbox (peer, kind, parcel, message_id, part, recipients, sender, \
                sender_node, wants_events, expires_at)";
    sql::insert(tx.connection, head, 10, "", parcels, |statement, out| {
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
    .await?;
    tx.woken.peers.extend(parcels.iter().map(|out| out.peer.clone()));
    Ok(())
}

/// A waiting parcel.
pub(crate) struct Waiting {
    pub(crate) id: i64,
    pub(crate) parcel: Bytes,
}

/// Parcels for a peer behind `after` that wait and have not expired, oldest first.
pub(crate) async fn next(
    store: &NodeStore,
    peer: &NodeId,
    after: i64,
    most: usize,
) -> Result<Vec<Waiting>, sqlx::Error> {
    // SQLite prepares a statement with a bound LIMIT anew each time.
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT id, parcel FROM outbox
         WHERE peer = $1 AND state = 0 AND id > $2 AND expires_at > $3 ORDER BY id LIMIT {most}"
    )))
    .bind(peer.as_str())
    .bind(after)
    .bind(store.now().millis())
    .fetch_all(store.readers())
    .await?;
    rows.into_iter()
        .map(|row| Ok(Waiting { id: row.try_get(0)?, parcel: row.try_get::<Vec<u8>, _>(1)?.into() }))
        .collect()
}

/// The peer has committed parcels: keeps what is to be settled, forgets the
/// rest, and tells senders on this node what was relayed.
pub(crate) async fn acked(tx: &mut Tx<'_>, ids: &[i64]) -> Result<(), sqlx::Error> {
    let tail = "AND kind >= 2";
    sql::select_in(tx.connection, "DELETE FROM outbox WHERE id", tail, ids.iter().copied()).await?;
    let head = "UPDATE outbox SET state = 1 WHERE state = 0 AND id";
    let tail = "RETURNING kind, message_id, recipients, sender, sender_node, wants_events";
    let mut events = Vec::new();
    for row in sql::select_in(tx.connection, head, tail, ids.iter().copied()).await? {
        let kept = Kept::read(&row)?;
        events.extend(kept.relayed(tx));
    }
    mailbox::put(tx, &events).await
}

/// The peer will never take a parcel: a dead letter from now on. Its sender
/// hears of it.
pub(crate) async fn dead(tx: &mut Tx<'_>, id: i64, reason: &str) -> Result<(), sqlx::Error> {
    let row = sqlx::query(
        "UPDATE outbox SET state = 2, reason = $2 WHERE id = $1 AND state = 0
         RETURNING kind, message_id, recipients, sender, sender_node, wants_events, parcel, part",
    )
    .bind(id)
    .bind(reason)
    .fetch_optional(&mut *tx.connection)
    .await?;
    let Some(row) = row else { return Ok(()) };
    let parcel: wire::Parcel = sql::message(row.try_get("parcel")?, "outbox.parcel")?;
    match parcel.parcel {
        Some(wire::parcel::Parcel::Submission(submission)) => {
            submit::refused_on_the_way(tx, &submission, reason).await
        }
        Some(wire::parcel::Parcel::Delivery(_)) => {
            let kept = Kept::read(&row)?;
            let part = u32::try_from(row.try_get::<i64, _>("part")?).unwrap_or(0);
            let outcome = wire::report::Outcome::Refused(reason.to_owned());
            report::settle_kept(tx, &kept, part, outcome).await
        }
        _ => Ok(()),
    }
}

/// What the outbox keeps about a parcel beside its bytes.
pub(crate) struct Kept {
    pub(crate) kind: i64,
    pub(crate) message_id: MessageId,
    pub(crate) recipients: Vec<Alias>,
    pub(crate) sender: Alias,
    pub(crate) sender_node: NodeId,
    pub(crate) wants_events: bool,
}

impl Kept {
    /// From a row with these columns.
    pub(crate) fn read(row: &sqlx::sqlite::SqliteRow) -> Result<Self, sqlx::Error> {
        let recipients: Vec<u8> = row.try_get("recipients")?;
        Ok(Self {
            kind: row.try_get("kind")?,
            message_id: sql::column(row.try_get::<Vec<u8>, _>("message_id")?, "outbox.message_id")?,
            recipients: recipients
                .chunks(Alias::LENGTH)
                .map(|alias| sql::column(alias, "outbox.recipients"))
                .collect::<Result<_, _>>()?,
            sender: sql::column(row.try_get::<Vec<u8>, _>("sender")?, "outbox.sender")?,
            sender_node: sql::column(row.try_get::<String, _>("sender_node")?, "outbox.sender_node")?,
            wants_events: row.try_get("wants_events")?,
        })
    }

    /// Events for the sender: each recipient's node has the message.
    pub(crate) fn relayed(&self, tx: &Tx<'_>) -> Vec<mailbox::Item> {
        if self.kind != Kind::Delivery as i64 || !self.wants_events || self.sender_node != tx.here {
            return Vec::new();
        }
        let event = |recipient: &Alias| node::Event {
            message_id: self.message_id.to_wire(),
            recipient: recipient.to_wire(),
            occurred_at_ms: tx.now.millis(),
            kind: Some(node::event::Kind::Relayed(true)),
        };
        self.recipients.iter().map(|r| mailbox::Item::event(self.sender, event(r), tx.now)).collect()
    }
}

/// The peer has another store than before: whatever it had acknowledged but
/// not settled goes out again.
pub(crate) async fn greet(
    tx: &mut Tx<'_>,
    peer: &NodeId,
    incarnation: Incarnation,
) -> Result<bool, sqlx::Error> {
    let before: Option<Vec<u8>> = sqlx::query_scalar("SELECT incarnation FROM peer WHERE node = $1")
        .bind(peer.as_str())
        .fetch_optional(&mut *tx.connection)
        .await?;
    if before.as_deref() == Some(incarnation.as_bytes().as_slice()) {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO peer (node, incarnation) VALUES ($1, $2)
         ON CONFLICT (node) DO UPDATE SET incarnation = excluded.incarnation",
    )
    .bind(peer.as_str())
    .bind(incarnation.as_bytes().as_slice())
    .execute(&mut *tx.connection)
    .await?;
    if before.is_none() {
        return Ok(false);
    }
    sqlx::query("UPDATE outbox SET state = 0 WHERE peer = $1 AND state = 1")
        .bind(peer.as_str())
        .execute(&mut *tx.connection)
        .await?;
    moves::tell_again(tx, peer).await?;
    tx.woken.peers.insert(peer.clone());
    Ok(true)
}
