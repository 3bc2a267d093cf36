//! The directory's rows beside the log: records, their bodies, operations that
//! were logged, where statements stand. Each statement takes many rows.

use chancery_directory_core::entry::{Leaf, SALT_LENGTH};
use chancery_directory_core::record::{SignedRecord, Standing};
use chancery_kit::store::{StoreError, values};
use chancery_proto::directory::v1 as wire;
use chancery_types::{Handle, NodeId, Timestamp};
use prost::Message as _;
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Pool, Row as _, Sqlite, SqliteConnection};
use std::collections::{BTreeMap, HashMap};

/// Rows that one statement reads or writes at most.
const CHUNK: usize = 64;

/// Tables of the directory and its log.
pub(crate) fn migrations() -> Migrator {
    static OWN: Migrator = sqlx::migrate!("./migrations/sqlite");
    chancery_directory_log::migrations_with(&OWN)
}

/// A record's body as stored.
pub(crate) struct StoredRecord {
    /// Index of its entry.
    pub(crate) index: u64,
    /// As its owner signed it.
    pub(crate) record: wire::SignedRecord,
    /// Salt of the commitment.
    pub(crate) salt: Vec<u8>,
    /// When it was sequenced.
    pub(crate) sequenced_at_ms: i64,
}

impl StoredRecord {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let record: Vec<u8> = row.try_get("record")?;
        Ok(Self {
            index: index(row.try_get("entry_index")?)?,
            record: wire::SignedRecord::decode(record.as_slice())
                .map_err(|error| unreadable("record_body.record", error))?,
            salt: row.try_get("salt")?,
            sequenced_at_ms: row.try_get("sequenced_at_ms")?,
        })
    }
}

/// The body that an entry commits to; `None` when there is none.
pub(crate) async fn record_at(pool: &Pool<Sqlite>, entry: u64) -> Result<Option<StoredRecord>, StoreError> {
    let row = sqlx::query(
        "SELECT entry_index, record, salt, sequenced_at_ms FROM record_body WHERE entry_index = $1",
    )
    .bind(position(entry)?)
    .fetch_optional(pool)
    .await?;
    row.as_ref().map(StoredRecord::read).transpose()
}

/// The records that stand for the handles from `low` to `high`, in their
/// order, `limit` at most.
pub(crate) async fn records_between(
    pool: &Pool<Sqlite>,
    low: &Handle,
    high: &Handle,
    limit: usize,
) -> Result<Vec<StoredRecord>, StoreError> {
    let rows = sqlx::query(
        "SELECT b.entry_index, b.record, b.salt, b.sequenced_at_ms \
         FROM record r JOIN record_body b ON b.entry_index = r.entry_index \
         WHERE r.handle >= $1 AND r.handle <= $2 ORDER BY r.handle LIMIT $3",
    )
    .bind(low.as_bytes().as_slice())
    .bind(high.as_bytes().as_slice())
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(pool)
    .await?;
    rows.iter().map(StoredRecord::read).collect()
}

/// The records that stand for these handles.
pub(crate) async fn standing(
    pool: &Pool<Sqlite>,
    handles: &[Handle],
) -> Result<HashMap<Handle, Standing>, StoreError> {
    let mut standing = HashMap::with_capacity(handles.len());
    for chunk in handles.chunks(CHUNK) {
        let text = format!(
            "SELECT b.entry_index, b.record, b.salt, b.sequenced_at_ms \
             FROM record r JOIN record_body b ON b.entry_index = r.entry_index \
             WHERE r.handle IN (VALUES {})",
            values(chunk.len(), 1)
        );
        let mut query = sqlx::query(AssertSqlSafe(text));
        for handle in chunk {
            query = query.bind(handle.as_bytes().as_slice());
        }
        for row in query.fetch_all(pool).await? {
            let stored = StoredRecord::read(&row)?;
            let record =
                SignedRecord::try_from(stored.record).map_err(|e| unreadable("record_body.record", e))?;
            standing.insert(*record.handle(), Standing { index: stored.index, record });
        }
    }
    Ok(standing)
}

/// Digest and entry of each of these requests that was logged.
pub(crate) async fn operations(
    pool: &Pool<Sqlite>,
    request_ids: &[[u8; 16]],
) -> Result<HashMap<[u8; 16], ([u8; 32], u64)>, StoreError> {
    let mut found = HashMap::new();
    for chunk in request_ids.chunks(CHUNK) {
        let text = format!(
            "SELECT request_id, digest, entry_index FROM operation WHERE request_id IN (VALUES {})",
            values(chunk.len(), 1)
        );
        let mut query = sqlx::query(AssertSqlSafe(text));
        for id in chunk {
            query = query.bind(id.as_slice());
        }
        for row in query.fetch_all(pool).await? {
            let (id, digest): (Vec<u8>, Vec<u8>) = (row.try_get("request_id")?, row.try_get("digest")?);
            let id = array(id).ok_or_else(|| unreadable("operation.request_id", "wrong length"))?;
            let digest = array(digest).ok_or_else(|| unreadable("operation.digest", "wrong length"))?;
            found.insert(id, (digest, index(row.try_get("entry_index")?)?));
        }
    }
    Ok(found)
}

/// Digest and entry of the totals that were logged for these evaluators and days.
pub(crate) async fn totals(
    pool: &Pool<Sqlite>,
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
            let digest = array(row.try_get("digest")?);
            let digest = digest.ok_or_else(|| unreadable("evaluation_total.digest", "wrong length"))?;
            found.insert((evaluator.clone(), *day), (digest, index(row.try_get("entry_index")?)?));
        }
    }
    Ok(found)
}

/// All statements in the order of the log.
pub(crate) async fn statements(pool: &Pool<Sqlite>) -> Result<Vec<(u64, Leaf)>, StoreError> {
    let rows = sqlx::query(
        "SELECT e.position, e.entry FROM statement s JOIN log_entry e ON e.position = s.entry_index \
         ORDER BY e.position",
    )
    .fetch_all(pool)
    .await?;
    let read = |row: &SqliteRow| {
        let entry: Vec<u8> = row.try_get("entry")?;
        let leaf = Leaf::from_bytes(entry.into()).map_err(|e| unreadable("log_entry.entry", e))?;
        Ok((index(row.try_get("position")?)?, leaf))
    };
    rows.iter().map(read).collect()
}

/// Time of the last entry; the smallest time for an empty log.
pub(crate) async fn last_sequenced_at(pool: &Pool<Sqlite>) -> Result<Timestamp, StoreError> {
    let row = sqlx::query("SELECT entry FROM log_entry ORDER BY position DESC LIMIT 1")
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(Timestamp::from_millis(i64::MIN)) };
    let entry: Vec<u8> = row.try_get("entry")?;
    let leaf = Leaf::from_bytes(entry.into()).and_then(|leaf| leaf.entry());
    leaf.map(|entry| entry.sequenced_at).map_err(|e| unreadable("log_entry.entry", e))
}

/// Rows that one batch of the sequencer adds beside its entries.
#[derive(Default)]
pub(crate) struct NewRows {
    /// Bodies: entry, record, salt.
    pub(crate) bodies: Vec<(u64, Vec<u8>, [u8; SALT_LENGTH])>,
    /// The entry that now stands for each handle.
    pub(crate) records: BTreeMap<Handle, u64>,
    /// Operations: request id, digest, entry.
    pub(crate) operations: Vec<([u8; 16], [u8; 32], u64)>,
    /// Entries that hold statements.
    pub(crate) statements: Vec<u64>,
    /// Totals: evaluator and day, digest, entry.
    pub(crate) totals: Vec<((NodeId, u32), [u8; 32], u64)>,
    /// When all of it was sequenced.
    pub(crate) sequenced_at_ms: i64,
}

impl NewRows {
    /// Writes them in the caller's transaction.
    pub(crate) async fn write(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        for chunk in self.bodies.chunks(CHUNK) {
            let text = format!(
                "INSERT INTO record_body (entry_index, record, salt, sequenced_at_ms) VALUES {}",
                values(chunk.len(), 4)
            );
            let mut query = sqlx::query(AssertSqlSafe(text));
            for (entry, record, salt) in chunk {
                query = query.bind(position(*entry)?).bind(record.as_slice()).bind(salt.as_slice());
                query = query.bind(self.sequenced_at_ms);
            }
            query.execute(&mut *connection).await?;
        }
        let records: Vec<_> = self.records.iter().collect();
        for chunk in records.chunks(CHUNK) {
            let text = format!(
                "INSERT INTO record (handle, entry_index) VALUES {} \
                 ON CONFLICT (handle) DO UPDATE SET entry_index = excluded.entry_index",
                values(chunk.len(), 2)
            );
            let mut query = sqlx::query(AssertSqlSafe(text));
            for (handle, entry) in chunk {
                query = query.bind(handle.as_bytes().as_slice()).bind(position(**entry)?);
            }
            query.execute(&mut *connection).await?;
        }
        for chunk in self.operations.chunks(CHUNK) {
            let text = format!(
                "INSERT INTO operation (request_id, digest, entry_index) VALUES {}",
                values(chunk.len(), 3)
            );
            let mut query = sqlx::query(AssertSqlSafe(text));
            for (id, digest, entry) in chunk {
                query = query.bind(id.as_slice()).bind(digest.as_slice()).bind(position(*entry)?);
            }
            query.execute(&mut *connection).await?;
        }
        for ((evaluator, day), digest, entry) in &self.totals {
            sqlx::query(
                "INSERT INTO evaluation_total (evaluator, day, digest, entry_index) VALUES ($1, $2, $3, $4)",
            )
            .bind(evaluator.as_str())
            .bind(i64::from(*day))
            .bind(digest.as_slice())
            .bind(position(*entry)?)
            .execute(&mut *connection)
            .await?;
        }
        for entry in &self.statements {
            sqlx::query("INSERT INTO statement (entry_index) VALUES ($1)")
                .bind(position(*entry)?)
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }
}

fn position(entry: u64) -> Result<i64, sqlx::Error> {
    i64::try_from(entry).map_err(|e| sqlx::Error::Encode(Box::new(e)))
}

fn index(position: i64) -> Result<u64, StoreError> {
    u64::try_from(position).map_err(|e| unreadable("entry_index", e))
}

fn array<const N: usize>(bytes: Vec<u8>) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

/// A row that does not read, by table and column.
fn unreadable(
    column: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: source.into() }.into()
}
