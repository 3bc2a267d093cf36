//! What a node does unasked: follows the log, forgets what has expired, hands seats over.

mod seats;

use crate::rpc::Rooms;
use crate::store::cell;
use chancery_node_core::expire::expire;
use chancery_proto::directory::v1 as directory;
use chancery_types::Refusal;
use prost::Message as _;
use sqlx::Row as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often the directory is asked for new statements.
const FOLLOW: Duration = Duration::from_secs(10);
/// How often expired rows are looked for.
const EXPIRE: Duration = Duration::from_secs(1);
/// How often blobs and quotas are swept.
const SWEEP: Duration = Duration::from_mins(10);
/// How often seats are looked for unasked.
const SEATS: Duration = Duration::from_secs(30);
/// How long a seat waits for others.
const TOGETHER: Duration = Duration::from_millis(200);

/// Reads the statements that were in force when the node last ran, so that it
/// works while the directory is down.
pub(crate) async fn recall(rooms: &Rooms) -> Result<(), Refusal> {
    let row = sqlx::query("SELECT value FROM meta WHERE name = 'statements'")
        .fetch_optional(rooms.store.readers())
        .await
        .map_err(chancery_kit::store::StoreError::from)?;
    let Some(row) = row else { return Ok(()) };
    let bytes: Vec<u8> = row.try_get(0).map_err(chancery_kit::store::StoreError::from)?;
    match directory::ListStatementsResponse::decode(bytes.as_slice()) {
        Ok(statements) => rooms.mesh.log().learn(statements).await,
        Err(_) => Ok(()),
    }
}

/// Follows the log's statements until the node stops.
pub(crate) async fn follow(rooms: Arc<Rooms>) {
    let mut ticks = interval(FOLLOW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while rooms.shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let result = match rooms.mesh.log().ask().await {
            Ok(statements) => remember(&rooms, &statements).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = result {
            tracing::warn!(reason = refusal.reason.as_str(), "the log's statements were not refreshed");
        }
    }
}

async fn remember(rooms: &Rooms, statements: &directory::ListStatementsResponse) -> Result<(), Refusal> {
    let bytes = Arc::new(statements.encode_to_vec());
    rooms
        .store
        .change("node.statements.remember", move |tx| {
            let bytes = Arc::clone(&bytes);
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO meta (name, value) VALUES ('statements', $1)
                     ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                )
                .bind(bytes.as_slice())
                .execute(&mut *tx.tables.connection)
                .await
                .map(drop)
            })
        })
        .await
}

/// Forgets what has expired until the node stops.
pub(crate) async fn sweep(rooms: Arc<Rooms>) {
    let (mut rows, mut files) = (interval(EXPIRE), interval(SWEEP));
    rows.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let result = tokio::select! {
            _ = rows.tick() => expired(&rooms).await,
            _ = files.tick() => {
                rooms.quotas.sweep();
                rooms.blobs.sweep().await
            }
            () = rooms.shutdown.cancelled() => return,
        };
        if let Err(refusal) = result {
            tracing::warn!(reason = refusal.reason.as_str(), "expired rows were not swept");
        }
    }
}

async fn expired(rooms: &Rooms) -> Result<(), Refusal> {
    while rooms.store.change("node.expire", |tx| Box::pin(expire(tx))).await? {}
    while rooms.store.change("node.broadcast.expire", |tx| Box::pin(cell::expire(tx))).await? {}
    Ok(())
}

/// Tells agents of the seats that residents want or give up, until the node stops.
pub(crate) async fn hand_over_seats(rooms: Arc<Rooms>) {
    loop {
        let handed_over = seats::hand_over(&rooms).await;
        if let Err(refusal) = &handed_over {
            tracing::warn!(reason = refusal.reason.as_str(), "seats were not handed over");
        }
        // Seats come in crowds: a list takes as many as have come in a moment.
        let pause = if handed_over == Ok(true) { TOGETHER } else { SEATS };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = async { rooms.seats.notified().await; tokio::time::sleep(TOGETHER).await } => {}
            () = rooms.shutdown.cancelled() => return,
        }
    }
}
