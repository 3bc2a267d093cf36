//! The endpoint's store: one SQLite file, one thread that owns the connection.
//! Operations are closures on a [`Tx`]; each sees MLS state, queues and received
//! content in one transaction. Operations that wait together are committed
//! together, each behind its own savepoint. The tables' meaning belongs to the
//! modules that use them.

mod cache;
mod schema;

pub use cache::Tx;

use cache::{Groups, Services};
use chancery_types::{Clock, Entropy};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use std::fs::OpenOptions;
use std::future::Future;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// How many operations may wait for the store's thread.
const WAITING: usize = 1024;
/// How many operations one transaction takes at most …
const BATCH: usize = 64;
/// … and for how long it takes more in.
const BATCH_TIME: Duration = Duration::from_millis(20);

/// Why the store failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process, or this one, has the store open.
    #[error("the endpoint's store is in use by another process")]
    InUse,
    /// The store was written by a newer version of this software.
    #[error("the endpoint's store has schema {found}, this build knows up to {known}")]
    NewerSchema {
        /// Schema of the file.
        found: u32,
        /// Newest schema of this build.
        known: u32,
    },
    /// SQLite failed.
    #[error("the endpoint's store failed: {0}")]
    Sql(Arc<rusqlite::Error>),
    /// The file could not be made.
    #[error("the endpoint's store cannot be opened: {0}")]
    File(std::io::ErrorKind),
    /// The tables of MLS could not be made.
    #[error("the tables of MLS cannot be made")]
    Mls,
    /// A row does not hold what it should.
    #[error("unreadable row: {table}.{column}")]
    Row {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
    },
    /// SQLite gave the transaction up: the disk is full, or fails.
    #[error("the endpoint's store gave a transaction up")]
    RolledBack,
    /// The store's thread has ended.
    #[error("the endpoint's store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Self::InUse,
            _ => Self::Sql(Arc::new(error)),
        }
    }
}

/// What an operation tells its caller once the fate of its transaction is known.
type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// An operation: whether to keep what it wrote, and how to tell its caller.
type Job = Box<dyn FnOnce(&mut Tx<'_>) -> (bool, Finish) + Send>;

/// Handle to an endpoint's store. Clones share one thread, which ends with the
/// last of them.
#[derive(Clone)]
pub struct EndpointStore {
    jobs: mpsc::Sender<Job>,
    /// Closes when the thread has let go of the file.
    ended: watch::Receiver<()>,
}

impl EndpointStore {
    /// Opens or makes the store at `path` (mode 0600) and starts its thread.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when somebody has it open,
    /// [`StoreError::NewerSchema`] when a newer build wrote it.
    pub fn open(path: &Path, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Result<Self, StoreError> {
        let connection = connect(path)?;
        let services = Services::new(clock, entropy);
        let (jobs, waiting) = mpsc::channel(WAITING);
        let (alive, ended) = watch::channel(());
        std::thread::Builder::new()
            .name("endpoint-store".into())
            .spawn(move || {
                run(&connection, &services, waiting);
                drop(connection);
                drop(alive);
            })
            .map_err(|error| StoreError::File(error.kind()))?;
        Ok(Self { jobs, ended })
    }

    /// Gives this handle up; answers when the file is free, which is once all
    /// clones are gone.
    pub async fn close(self) {
        let Self { jobs, mut ended } = self;
        drop(jobs);
        while ended.changed().await.is_ok() {}
    }

    /// Runs `operation` on the store's thread, in a transaction of its own or
    /// shared with others that wait. Answers after the commit is flushed.
    /// An error undoes everything the operation wrote.
    ///
    /// # Errors
    /// The operation's own, or the store's.
    pub fn call<T, E, F>(&self, operation: F) -> impl Future<Output = Result<T, E>> + Send + use<T, E, F>
    where
        F: FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let jobs = self.jobs.clone();
        async move {
            let (answer, answered) = oneshot::channel();
            let job: Job = Box::new(move |tx| {
                let result = operation(tx);
                let keep = result.is_ok();
                let finish: Finish = Box::new(move |committed| {
                    // Nobody may be waiting any more; the work is done all the same.
                    let _ = answer.send(match committed {
                        Err(error) if keep => Err(error.into()),
                        _ => result,
                    });
                });
                (keep, finish)
            });
            jobs.send(job).await.map_err(|_| StoreError::Closed)?;
            answered.await.map_err(|_| StoreError::Closed)?
        }
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    // SQLite gives its journals the mode of the main file.
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| StoreError::File(error.kind()))?;
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(Duration::ZERO)?;
    // Exclusive before the first access: the lock is held until the connection
    // closes, and the WAL index stays in memory.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "secure_delete", "ON")?;
    // What a savepoint may have to undo would go to a file under /var/tmp otherwise.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.execute_batch("BEGIN EXCLUSIVE; COMMIT;")?;
    schema::migrate(&mut connection)?;
    connection.set_prepared_statement_cache_capacity(128);
    // Plans do not depend on bound values: without this a statement with a
    // bound LIMIT is prepared anew each time it runs.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

fn run(connection: &Connection, services: &Services, mut waiting: mpsc::Receiver<Job>) {
    let mut groups = Groups::default();
    while let Some(first) = waiting.blocking_recv() {
        let mut finishes = Vec::new();
        let committed = batch(connection, services, &mut groups, first, &mut waiting, &mut finishes);
        if committed.is_err() {
            groups.clear();
            let _ = connection.execute_batch("ROLLBACK");
        }
        for finish in finishes {
            finish(committed.clone());
        }
    }
}

fn batch(
    connection: &Connection,
    services: &Services,
    groups: &mut Groups,
    first: Job,
    waiting: &mut mpsc::Receiver<Job>,
    finishes: &mut Vec<Finish>,
) -> Result<(), StoreError> {
    let started = Instant::now();
    // A job that never ran still owes its caller an answer: its channel closes.
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let mut next = Some(first);
    let mut kept = false;
    while let Some(job) = next {
        let mut tx = Tx::new(connection, services, groups);
        // Most jobs are alone: the first one needs no savepoint, which costs a
        // copy of every page that it changes.
        if kept {
            tx.savepoint()?;
        }
        let (keep, finish) = job(&mut tx);
        finishes.push(finish);
        if connection.is_autocommit() {
            return Err(StoreError::RolledBack);
        }
        match (keep, kept) {
            (true, true) => tx.release()?,
            (true, false) => kept = true,
            (false, true) => tx.undo()?,
            (false, false) => tx.restart()?,
        }
        next = (finishes.len() < BATCH && started.elapsed() < BATCH_TIME)
            .then(|| waiting.try_recv().ok())
            .flatten();
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::{SystemClock, SystemEntropy};
    use std::os::unix::fs::PermissionsExt as _;

    fn open(path: &Path) -> Result<EndpointStore, StoreError> {
        EndpointStore::open(path, Arc::new(SystemClock), Arc::new(SystemEntropy))
    }

    #[tokio::test]
    async fn has_one_owner_and_mode_0600() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("endpoint.db");
        let store = open(&path).unwrap();
        store.call(|_| Ok::<_, StoreError>(())).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(open(&path), Err(StoreError::InUse)));
        store.close().await;
        assert!(open(&path).is_ok());
    }

    /// Queues are read all the time, and old rows stay for long.
    #[tokio::test]
    async fn the_queues_are_read_by_index() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder.path().join("endpoint.db")).unwrap();
        for (query, index) in [
            (
                "SELECT id FROM outbox WHERE state = 1 AND submitted > 9 ORDER BY submitted LIMIT 3",
                "outbox_submitted",
            ),
            ("SELECT id FROM outbox WHERE state = 0 AND group_id = x'00' ORDER BY id", "outbox_queued"),
            (
                "SELECT id FROM outbox WHERE state < 2 AND expires_at_ms <= 9 AND (state = 0 OR expires_at_ms <= 7)",
                "outbox_expiry",
            ),
            ("SELECT 1 FROM outbox WHERE group_id = x'00' AND state < 3 AND state > 0", "outbox_open_group"),
            (
                "SELECT 1 FROM threads WHERE peer = x'00' AND state = 0 ORDER BY opened_at_ms",
                "threads_by_peer",
            ),
            ("SELECT 1 FROM inbox WHERE message_id = x'00'", "inbox_by_message"),
            ("SELECT 1 FROM outbox WHERE content_id = x'00'", "outbox_content"),
        ] {
            let plan: String = store
                .call(move |tx| {
                    let explain = format!("EXPLAIN QUERY PLAN {query}");
                    Ok::<_, StoreError>(tx.sql().query_row(&explain, [], |row| row.get(3))?)
                })
                .await
                .unwrap();
            assert!(plan.contains(&format!("INDEX {index}")), "{query}: {plan}");
        }
    }

    #[tokio::test]
    async fn refuses_a_newer_schema() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("endpoint.db");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 9_999).unwrap();
        assert!(matches!(open(&path), Err(StoreError::NewerSchema { found: 9_999, .. })));
    }

    #[tokio::test]
    async fn a_failed_operation_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder.path().join("endpoint.db")).unwrap();
        let insert = "INSERT INTO alarms (kind, group_id, raised_at_ms) VALUES ('x', NULL, 0)";
        let failed = store.call(move |tx| {
            tx.sql().execute(insert, [])?;
            Err::<(), _>(StoreError::Closed)
        });
        let kept = store.call(move |tx| Ok::<_, StoreError>(tx.sql().execute(insert, [])?));
        let (failed, kept) = tokio::join!(failed, kept);
        assert!(matches!(failed, Err(StoreError::Closed)));
        assert_eq!(kept.unwrap(), 1);
        let count = store.call(|tx| {
            Ok::<i64, StoreError>(tx.sql().query_row("SELECT count(*) FROM alarms", [], |row| row.get(0))?)
        });
        assert_eq!(count.await.unwrap(), 1);
    }
}
