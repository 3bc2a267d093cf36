//! What time takes away.

use super::outbox::Kept;
use super::{Tx, mailbox, report, sql, submit};
use chancery_proto::federation::v1 as wire;
use chancery_types::Reason;
use sqlx::Row as _;
use std::time::Duration;

/// Rows of one kind that one transaction takes.
const SLICE: i64 = 512;
/// How long a parcel that the peer has but never settled is kept beyond its
/// expiry: the report or outcome may still be on its way.
pub(crate) const GRACE: Duration = Duration::from_hours(72);

/// Forgets a slice of what has expired; whether there may be more.
pub(crate) async fn expire(tx: &mut Tx<'_>) -> Result<bool, sqlx::Error> {
    let items = mailbox::expire(tx, SLICE).await?;
    let parcels = waiting(tx).await?;
    let mut most = items.max(parcels);
    for text in [
        "DELETE FROM submission WHERE (message_id, sender) IN (
           SELECT message_id, sender FROM submission WHERE expires_at <= $1 ORDER BY expires_at LIMIT $3)
           AND $2 < $1",
        "DELETE FROM received WHERE (message_id, peer, part) IN (
           SELECT message_id, peer, part FROM received WHERE expires_at <= $1 ORDER BY expires_at LIMIT $3)
           AND $2 < $1",
    ] {
        let done = sqlx::query(text)
            .bind(tx.now.millis())
            .bind(tx.now.before(GRACE).millis())
            .bind(SLICE)
            .execute(&mut *tx.connection)
            .await?;
        most = most.max(done.rows_affected());
    }
    Ok(i64::try_from(most).unwrap_or(SLICE) >= SLICE)
}

/// Parcels that no peer took or settled in time: failures before relay are our own.
async fn waiting(tx: &mut Tx<'_>) -> Result<u64, sqlx::Error> {
    let rows = sqlx::query(
        "DELETE FROM outbox WHERE id IN (
           SELECT id FROM outbox WHERE expires_at <= $1 AND (state = 0 OR expires_at <= $3)
           ORDER BY expires_at LIMIT $2)
         RETURNING state, kind, message_id, recipients, sender, sender_node, wants_events, parcel, part",
    )
    .bind(tx.now.millis())
    .bind(SLICE)
    .bind(tx.now.before(GRACE).millis())
    .fetch_all(&mut *tx.connection)
    .await?;
    for row in &rows {
        let parcel: wire::Parcel = sql::message(row.try_get("parcel")?, "outbox.parcel")?;
        let relayed = row.try_get::<i64, _>("state")? != 0;
        match parcel.parcel {
            Some(wire::parcel::Parcel::Submission(submission)) => {
                let reason = if relayed { Reason::PeerUnreachable } else { Reason::Expired };
                submit::refused_on_the_way(tx, &submission, reason.as_str()).await?;
            }
            // What the peer has stays undetermined without its report.
            Some(wire::parcel::Parcel::Delivery(_)) if !relayed => {
                let part = u32::try_from(row.try_get::<i64, _>("part")?).unwrap_or(0);
                let kept = Kept::read(row)?;
                report::settle_kept(tx, &kept, part, wire::report::Outcome::Expired(true)).await?;
            }
            _ => {}
        }
    }
    Ok(rows.len() as u64)
}
