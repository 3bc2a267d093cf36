//! Reading the directory's rows.

use super::{CHUNK, array, index, position, unreadable};
use bytes::Bytes;
use chancery_directory_core::entry::{Event, Leaf};
use chancery_directory_core::map::{ITEM_LENGTH, Item, Kind, Sum};
use chancery_directory_core::record::SignedRecord;
use chancery_directory_core::rules::Logged;
use chancery_kit::store::{DatabasePlace, StoreError, values};
use chancery_proto::directory::v1 as wire;
use chancery_types::{ChannelId, NodeId, Timestamp};
use futures::TryStreamExt as _;
use prost::Message as _;
use sqlx::any::AnyRow;
use sqlx::{Any, AssertSqlSafe, Pool, Row as _};
use std::collections::HashMap;

/// Entries whose items are read together.
const ITEMS_IN_A_ROW: u32 = 4_096;

/// Reads the items of places: one row for each.
#[derive(Clone)]
pub(crate) struct Items {
    pool: Pool<Any>,
    joined: String,
}

impl Items {
    pub(crate) fn new(pool: Pool<Any>, database: &DatabasePlace) -> Self {
        Self { pool, joined: database.joined_bytes("item", "handle_prefix, entry_index") }
    }

    /// Serialised MapItems of these entries, in the map's order; `None` if one was erased.
    pub(crate) async fn of(&self, entries: &[u64]) -> Result<Option<Bytes>, StoreError> {
        if entries.is_empty() {
            return Ok(Some(Bytes::new()));
        }
        // Few lengths of the list, so that the statements stay prepared.
        let length = entries.len().next_multiple_of(16);
        let text = format!(
            "SELECT count(*), {} FROM record_body WHERE entry_index IN (VALUES {})",
            self.joined,
            values(length, 1)
        );
        let mut query = sqlx::query(AssertSqlSafe(text));
        let last = entries.last().copied().unwrap_or_default();
        for entry in entries.iter().chain(std::iter::repeat(&last)).take(length) {
            query = query.bind(position(*entry)?);
        }
        let row = query.fetch_one(&self.pool).await?;
        let (found, items): (i64, Option<Vec<u8>>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(items
            .filter(|_| usize::try_from(found).is_ok_and(|found| found == entries.len()))
            .map(Bytes::from))
    }
}

/// The records of these entries, as the rules read them.
pub(crate) async fn logged(pool: &Pool<Any>, entries: &[u64]) -> Result<HashMap<u64, Logged>, StoreError> {
    let mut logged = HashMap::with_capacity(entries.len());
    for row in rows_of(pool, "entry_index, item, sequenced_at_ms, changes", entries).await? {
        let (entry, body) = body(&row)?;
        let record = SignedRecord::try_from(body.record.unwrap_or_default())
            .map_err(|e| unreadable("record_body.item", e))?;
        let changes = u32::try_from(row.try_get::<i64, _>(3)?);
        let found = Logged {
            index: entry,
            sequenced_at: Timestamp::from_millis(row.try_get(2)?),
            changes: changes.map_err(|e| unreadable("record_body.changes", e))?,
            record,
        };
        logged.insert(found.index, found);
    }
    Ok(logged)
}

async fn rows_of(pool: &Pool<Any>, columns: &str, entries: &[u64]) -> Result<Vec<AnyRow>, StoreError> {
    let mut rows = Vec::with_capacity(entries.len());
    for chunk in entries.chunks(CHUNK) {
        let text = format!(
            "SELECT {columns} FROM record_body WHERE entry_index IN (VALUES {})",
            values(chunk.len(), 1)
        );
        let mut query = sqlx::query(AssertSqlSafe(text));
        for entry in chunk {
            query = query.bind(position(*entry)?);
        }
        rows.extend(query.fetch_all(pool).await?);
    }
    Ok(rows)
}

/// Every item of the map: thousands in a row.
pub(crate) async fn items(pool: &Pool<Any>, database: &DatabasePlace) -> Result<Vec<Item>, StoreError> {
    let joined = database.joined_bytes("item", "entry_index");
    let text = format!("SELECT {joined} FROM map_item GROUP BY entry_index / {ITEMS_IN_A_ROW}");
    let mut rows = sqlx::query(AssertSqlSafe(text)).fetch(pool);
    let mut items = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let bytes: Vec<u8> = row.try_get(0)?;
        let (whole, rest) = bytes.as_chunks::<ITEM_LENGTH>();
        if !rest.is_empty() {
            return Err(unreadable("map_item.item", "wrong length"));
        }
        for bytes in whole {
            items.push(item(bytes)?);
        }
    }
    Ok(items)
}

/// Items of the map whose records are not here.
pub(crate) async fn bare_items(pool: &Pool<Any>) -> Result<Vec<Item>, StoreError> {
    let rows = sqlx::query(
        "SELECT m.item FROM map_item m LEFT JOIN record_body b ON b.entry_index = m.entry_index \
         WHERE b.entry_index IS NULL",
    )
    .fetch_all(pool)
    .await?;
    let items = rows.iter().map(|row| item(&array(row.try_get(0)?, "map_item.item")?));
    let items = items.collect::<Result<Vec<_>, StoreError>>()?;
    // What stands for a channel is in the log itself.
    Ok(items.into_iter().filter(|item| item.kind() != Kind::Channel).collect())
}

fn item(bytes: &[u8; ITEM_LENGTH]) -> Result<Item, StoreError> {
    Item::from_bytes(bytes).ok_or_else(|| unreadable("map_item.item", "an item of an unknown kind"))
}

/// What the log tells last of each channel: the entries of its version and of what stands,
/// in the order of the latter.
pub(crate) async fn channels(pool: &Pool<Any>) -> Result<Vec<[(u64, Leaf); 2]>, StoreError> {
    let rows = sqlx::query(
        "SELECT v.position, v.entry, h.position, h.entry FROM channel c \
         JOIN log_entry v ON v.position = c.channel_index \
         JOIN log_entry h ON h.position = c.head_index ORDER BY h.position",
    )
    .fetch_all(pool)
    .await?;
    let entry = |row: &AnyRow, at: usize| {
        Ok::<_, StoreError>((index(row.try_get(at)?)?, leaf(row.try_get(at + 1)?)?))
    };
    rows.iter().map(|row| Ok([entry(row, 0)?, entry(row, 2)?])).collect()
}

/// Hash and entry of the manifest that was logged for each of these sequences.
pub(crate) async fn manifests(
    pool: &Pool<Any>,
    sequences: &[(ChannelId, u64)],
) -> Result<HashMap<(ChannelId, u64), ([u8; 32], u64)>, StoreError> {
    let mut found = HashMap::new();
    for (channel, sequence) in sequences {
        let row =
            sqlx::query("SELECT hash, entry_index FROM manifest WHERE channel_id = $1 AND sequence = $2")
                .bind(channel.as_bytes().as_slice())
                .bind(position(*sequence)?)
                .fetch_optional(pool)
                .await?;
        if let Some(row) = row {
            let hash = array(row.try_get(0)?, "manifest.hash")?;
            found.insert((*channel, *sequence), (hash, index(row.try_get(1)?)?));
        }
    }
    Ok(found)
}

/// The latest root of the map: its entry, when that was sequenced, the root.
pub(crate) async fn root(pool: &Pool<Any>) -> Result<Option<(u64, Timestamp, Sum)>, StoreError> {
    let row = sqlx::query(
        "SELECT e.position, e.entry FROM map_root r JOIN log_entry e ON e.position = r.entry_index",
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let leaf = leaf(row.try_get(1)?)?;
    match leaf.entry().map_err(|e| unreadable("log_entry.entry", e))? {
        entry if let Event::MapRoot(sum) = entry.event => {
            Ok(Some((index(row.try_get(0)?)?, entry.sequenced_at, sum)))
        }
        _ => Err(unreadable("map_root.entry_index", "no root of the map")),
    }
}

/// Digest and entry of the totals that were logged for these evaluators and days.
pub(crate) async fn totals(
    pool: &Pool<Any>,
    days: &[(NodeId, u32)],
) -> Result<HashMap<(NodeId, u32), ([u8; 32], u64)>, StoreError> {
    let mut found = HashMap::new();
    for (evaluator, day) in days {
        let row =
            sqlx::query("SELECT digest, entry_index FROM evaluation_total WHERE evaluator = $1 AND day = $2")
                .bind(evaluator.as_str())
                .bind(i64::from(*day))
                .fetch_optional(pool)
                .await?;
        if let Some(row) = row {
            let digest = array(row.try_get(0)?, "evaluation_total.digest")?;
            found.insert((evaluator.clone(), *day), (digest, index(row.try_get(1)?)?));
        }
    }
    Ok(found)
}

/// The checkpoint up to which a mirror has everything.
pub(crate) async fn mirrored(pool: &Pool<Any>) -> Result<Option<Vec<u8>>, StoreError> {
    let row = sqlx::query("SELECT checkpoint FROM mirrored WHERE id = 1").fetch_optional(pool).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// The records of entries from `start` to before `end`; those that were erased are left out.
pub(crate) async fn bodies_between(
    pool: &Pool<Any>,
    start: u64,
    end: u64,
) -> Result<Vec<(u64, wire::RecordBody)>, StoreError> {
    let rows = sqlx::query(
        "SELECT entry_index, item FROM record_body WHERE entry_index >= $1 AND entry_index < $2 \
         ORDER BY entry_index",
    )
    .bind(position(start)?)
    .bind(position(end)?)
    .fetch_all(pool)
    .await?;
    rows.iter().map(body).collect()
}

fn body(row: &AnyRow) -> Result<(u64, wire::RecordBody), StoreError> {
    let (entry, item): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
    let items = wire::MapItems::decode(Bytes::from(item)).map_err(|e| unreadable("record_body.item", e))?;
    match items.items.into_iter().next().and_then(|item| item.content) {
        Some(wire::map_item::Content::Body(body)) => Ok((index(entry)?, body)),
        _ => Err(unreadable("record_body.item", "an item without its record")),
    }
}

/// All statements in the order of the log.
pub(crate) async fn statements(pool: &Pool<Any>) -> Result<Vec<(u64, Leaf)>, StoreError> {
    let rows = sqlx::query(
        "SELECT e.position, e.entry FROM statement s JOIN log_entry e ON e.position = s.entry_index \
         ORDER BY e.position",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| Ok((index(row.try_get(0)?)?, leaf(row.try_get(1)?)?))).collect()
}

/// Time of the last entry; the smallest time for an empty log.
pub(crate) async fn last_sequenced_at(pool: &Pool<Any>) -> Result<Timestamp, StoreError> {
    let row = sqlx::query("SELECT entry FROM log_entry ORDER BY position DESC LIMIT 1")
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(Timestamp::from_millis(i64::MIN)) };
    let entry = leaf(row.try_get(0)?)?.entry();
    entry.map(|entry| entry.sequenced_at).map_err(|e| unreadable("log_entry.entry", e))
}

fn leaf(entry: Vec<u8>) -> Result<Leaf, StoreError> {
    Leaf::from_bytes(entry.into()).map_err(|e| unreadable("log_entry.entry", e))
}
