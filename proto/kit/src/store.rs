//! SQL pools with migrations, and the writer that commits in groups.
//!
//! A [`Store`] has one writer: jobs queue up while the disk flushes, and
//! whatever has queued goes into the next transaction together. A job's caller
//! hears its answer after commit and flush, never before.

mod database;

pub use database::{DatabasePlace, Migrations};

use chancery_types::{Reason, Refusal};
use futures::future::BoxFuture;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Database, Pool, Sqlite};
use std::ops::DerefMut;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait for the writer; more callers wait for a place.
const QUEUE: usize = 4096;
/// Jobs that one transaction takes at most.
const GROUP: usize = 256;
/// Connections that read beside the writer.
const READERS: u32 = 4;
/// The lock is waited for here. One that has read something first is not given it later if
/// another process holds it: SQLite refuses at once.
const BEGIN_SQLITE: &str = "BEGIN IMMEDIATE";

/// A database and its one writer.
pub struct Store<DB: Database> {
    readers: Pool<DB>,
    jobs: mpsc::Sender<Queued<DB>>,
}

impl<DB: Database> Clone for Store<DB> {
    fn clone(&self) -> Self {
        Self { readers: self.readers.clone(), jobs: self.jobs.clone() }
    }
}

/// A store cannot be opened, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The database said no.
    #[error("database: {0}")]
    Database(Arc<sqlx::Error>),
    /// The schema is newer than this program or a migration failed.
    #[error("schema: {0}")]
    Schema(Arc<sqlx::migrate::MigrateError>),
    /// The file cannot be made private to its owner.
    #[error("file: {0}")]
    File(Arc<std::io::Error>),
    /// The writer has stopped.
    #[error("the store is closed")]
    Closed,
}

/// Codes by which databases say that there is no room: SQLITE_FULL, PostgreSQL's `disk_full`.
const FULL: [&str; 2] = ["13", "53100"];

impl StoreError {
    /// Whether there is no room on the disk.
    pub fn is_full(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        code.is_some_and(|code| FULL.contains(&&*code))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self::Schema(Arc::new(error))
    }
}

/// The text stays in the log: it may name tables and files.
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "store");
        match error {
            StoreError::Closed => Self::new(Reason::ShuttingDown, "the server is stopping; try again"),
            error if error.is_full() => {
                Self::new(Reason::Overloaded, "the disk is full; nothing was changed")
            }
            _ => Self::new(Reason::Internal, "the store failed; nothing was changed"),
        }
    }
}

type Work<DB> = Box<
    dyn for<'c> FnMut(&'c mut <DB as Database>::Connection) -> BoxFuture<'c, Result<(), sqlx::Error>> + Send,
>;

struct Queued<DB: Database> {
    name: &'static str,
    work: Work<DB>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Store<Sqlite> {
    /// Opens or creates an SQLite database (WAL, synchronous=FULL, mode 0600)
    /// and brings its schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened, or its schema is newer than `migrations`.
    pub async fn open(path: &Path, migrations: &Migrator) -> Result<Self, StoreError> {
        private_file(path).map_err(|e| StoreError::File(Arc::new(e)))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .page_size(16 * 1024)
            .busy_timeout(Duration::from_secs(10))
            .statement_cache_capacity(256)
            .pragma("cache_size", "-32768")
            .pragma("temp_store", "MEMORY")
            .pragma("journal_size_limit", "67108864");
        // A file does not go away: no question before each use.
        let pool = |most| SqlitePoolOptions::new().max_connections(most).test_before_acquire(false);
        let writer = pool(1).connect_with(options.clone()).await?;
        let readers = pool(READERS).connect_with(options.read_only(true)).await?;
        Self::with_pools((writer, BEGIN_SQLITE), readers, migrations).await
    }
}

fn private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(drop)
}

impl<DB> Store<DB>
where
    DB: Database,
    DB::Connection: Migrate,
{
    async fn with_pools(
        writer: (Pool<DB>, &'static str),
        readers: Pool<DB>,
        migrations: &Migrator,
    ) -> Result<Self, StoreError> {
        migrations.run_direct(None, &mut *writer.0.acquire().await?, false).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        tokio::spawn(write_in_groups(writer.0, writer.1, queue));
        Ok(Self { readers, jobs })
    }
}

impl<DB: Database> Store<DB> {
    /// Connections for reading.
    pub fn readers(&self) -> &Pool<DB> {
        &self.readers
    }

    /// Runs a job in a transaction and answers after commit and flush. The job
    /// may run twice: when another job of its group fails, the group is rolled
    /// back and each job runs again alone. So a job changes nothing but the
    /// database, and says no by a value, not by an error.
    ///
    /// # Errors
    /// The job's own database error, or that of the commit; nothing is changed then.
    pub async fn write<T, J>(&self, name: &'static str, mut job: J) -> Result<T, StoreError>
    where
        T: Send + 'static,
        J: for<'c> FnMut(&'c mut DB::Connection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send + 'static,
    {
        let slot = Arc::new(std::sync::Mutex::new(None));
        let answer = Arc::clone(&slot);
        let work: Work<DB> = Box::new(move |connection| {
            let slot = Arc::clone(&slot);
            let running = job(connection);
            Box::pin(async move {
                let value = running.await?;
                *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(value);
                Ok(())
            })
        });
        let (done, committed) = oneshot::channel();
        self.jobs.send(Queued { name, work, done }).await.map_err(|_| StoreError::Closed)?;
        committed.await.map_err(|_| StoreError::Closed)??;
        let value = answer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        value.ok_or(StoreError::Closed)
    }
}

async fn write_in_groups<DB: Database>(
    pool: Pool<DB>,
    begin: &'static str,
    mut queue: mpsc::Receiver<Queued<DB>>,
) {
    let mut group = Vec::with_capacity(GROUP);
    while queue.recv_many(&mut group, GROUP).await > 0 {
        if let Err(error) = commit(&pool, begin, &mut group).await {
            if let [only] = group.as_slice() {
                tracing::warn!(job = only.name, %error, "store job failed");
                if let Some(only) = group.pop() {
                    let _ = only.done.send(Err(error));
                }
                continue;
            }
            // One of them spoilt the transaction: each alone now.
            for job in group.drain(..) {
                let mut alone = vec![job];
                let result = commit(&pool, begin, &mut alone).await;
                if let Err(error) = &result {
                    tracing::warn!(job = alone.first().map(|j| j.name), %error, "store job failed");
                }
                for job in alone {
                    let _ = job.done.send(result.clone());
                }
            }
            continue;
        }
        for job in group.drain(..) {
            let _ = job.done.send(Ok(()));
        }
    }
    pool.close().await;
}

async fn commit<DB: Database>(
    pool: &Pool<DB>,
    begin: &'static str,
    group: &mut [Queued<DB>],
) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await?;
    let committed = commit_on::<DB>(&mut connection, begin, group).await;
    if committed.is_err() {
        // SQLite ends some transactions by itself when the disk is full or fails. sqlx does not
        // hear of it: its next transaction on this connection could be a savepoint inside
        // one that nobody commits.
        if let Err(error) = connection.close().await {
            tracing::warn!(%error, "the writer's connection was not closed well");
        }
    }
    Ok(committed?)
}

async fn commit_on<DB: Database>(
    connection: &mut DB::Connection,
    begin: &'static str,
    group: &mut [Queued<DB>],
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with(begin).await?;
    for job in group {
        (job.work)(transaction.deref_mut()).await?;
    }
    transaction.commit().await
}

/// Checks that a connection works: for health and start-up checks.
///
/// # Errors
/// The database does not answer.
pub async fn ping<DB: Database>(pool: &Pool<DB>) -> Result<(), StoreError> {
    Ok(pool.acquire().await?.ping().await?)
}

/// `VALUES` list of `rows` rows of `columns` numbered placeholders:
/// `($1,$2),($3,$4)`; understood alike by SQLite and PostgreSQL.
pub fn values(rows: usize, columns: usize) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(rows * columns * 6);
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ",(" });
        for column in 0..columns {
            let comma = if column == 0 { "" } else { "," };
            let _ = write!(text, "{comma}${}", row * columns + column + 1);
        }
        text.push(')');
    }
    text
}

#[cfg(test)]
mod tests;
