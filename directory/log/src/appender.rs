//! The log's one writer. It never signs two heads that contradict each other:
//! the next head is made from the last stored one, stored only on top of it,
//! and shown only after commit.

use crate::frontier::Frontier;
use crate::reader::{read_hashes, signed};
use crate::{LogError, LogReader};
use chancery_directory_core::VerifiedCheckpoint;
use chancery_directory_core::entry::Leaf;
use chancery_directory_core::merkle::Hash;
use chancery_directory_core::note::{CheckpointSigner, LogVerifier};
use chancery_kit::store::{Store, values};
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row as _};
use std::sync::Arc;
use tlog_tiles::stored_hash_count;
use tokio::sync::watch;

/// Rows that one statement writes (statements of many rows cost far less each).
const WRITE_CHUNK: usize = 64;

/// Appends to a log.
pub struct Appender {
    store: Store<Any>,
    signer: CheckpointSigner,
    frontier: Frontier,
    head: watch::Sender<VerifiedCheckpoint>,
}

/// Entries under way: signed, not stored yet.
#[derive(Clone)]
pub struct Batch(Arc<Inner>);

struct Inner {
    old_size: i64,
    new_size: i64,
    first_hash: i64,
    leaves: Vec<Leaf>,
    hashes: Vec<tlog_tiles::Hash>,
    frontier: Frontier,
    checkpoint: VerifiedCheckpoint,
}

impl Appender {
    /// Opens the log in a store that has its tables, or begins one, and checks
    /// it against its signed head.
    ///
    /// # Errors
    /// The store fails, or the log does not fit its head.
    pub async fn open(store: Store<Any>, signer: CheckpointSigner) -> Result<(Self, LogReader), LogError> {
        let (frontier, checkpoint) = match load(&store, &signer).await? {
            Some(loaded) => loaded,
            None => {
                begin(&store, &signer).await?;
                load(&store, &signer).await?.ok_or(LogError::Damaged("the head is missing"))?
            }
        };
        let (head, receiver) = watch::channel(checkpoint);
        let reader = LogReader::new(store.readers().clone(), receiver);
        Ok((Self { store, signer, frontier, head }, reader))
    }

    /// Index of the next entry.
    pub const fn next_index(&self) -> u64 {
        self.frontier.size()
    }

    /// Root of the tree so far.
    ///
    /// # Errors
    /// Never: its edge is complete.
    pub fn root(&self) -> Result<Hash, LogError> {
        self.frontier.root()
    }

    /// Makes a batch of the next entries: at least one.
    ///
    /// # Errors
    /// There are none.
    pub fn prepare(&self, leaves: Vec<Leaf>) -> Result<Batch, LogError> {
        if leaves.is_empty() {
            return Err(LogError::Range("a batch has at least one entry"));
        }
        let grown = self.frontier.grow(leaves.iter().map(Leaf::hash))?;
        let checkpoint = self.signer.sign(grown.frontier.size(), &grown.frontier.root()?)?;
        Ok(Batch(Arc::new(Inner {
            old_size: signed(self.frontier.size())?,
            new_size: signed(grown.frontier.size())?,
            first_hash: signed(grown.first_hash)?,
            leaves,
            hashes: grown.hashes,
            frontier: grown.frontier,
            checkpoint,
        })))
    }

    /// Takes note that the batch, the last one prepared, was committed, and
    /// shows its head to readers.
    pub fn committed(&mut self, batch: &Batch) {
        self.frontier = batch.0.frontier.clone();
        self.head.send_replace(batch.0.checkpoint.clone());
    }

    /// Reads the head again, after a batch whose commit may have failed.
    ///
    /// # Errors
    /// As [`Appender::open`].
    pub async fn reload(&mut self) -> Result<(), LogError> {
        let loaded = load(&self.store, &self.signer).await?;
        let (frontier, checkpoint) = loaded.ok_or(LogError::Damaged("the head is missing"))?;
        self.frontier = frontier;
        self.head.send_replace(checkpoint);
        Ok(())
    }

    /// Appends entries by themselves; gives the index of the first.
    ///
    /// # Errors
    /// The store failed: nothing was appended, or all was.
    pub async fn append(&mut self, leaves: Vec<Leaf>) -> Result<u64, LogError> {
        let first = self.next_index();
        let batch = self.prepare(leaves)?;
        let writing = batch.clone();
        let written = self.store.write("log.append", move |connection| {
            let batch = writing.clone();
            Box::pin(async move { batch.write(connection).await })
        });
        if let Err(error) = written.await {
            self.reload().await?;
            return Err(error.into());
        }
        self.committed(&batch);
        Ok(first)
    }
}

impl std::fmt::Debug for Appender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Appender({} entries)", self.next_index())
    }
}

impl Batch {
    /// The head once the batch is stored.
    pub fn checkpoint(&self) -> &VerifiedCheckpoint {
        &self.0.checkpoint
    }

    /// Writes entries, hashes and head in the caller's transaction.
    ///
    /// # Errors
    /// The database's; `RowNotFound` when the stored head is not the one the
    /// batch builds on, because another process writes to the same store.
    pub async fn write(&self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        let head = sqlx::query("UPDATE log_head SET size = $1, checkpoint = $2 WHERE id = 1 AND size = $3")
            .bind(self.0.new_size)
            .bind(self.0.checkpoint.note().as_ref())
            .bind(self.0.old_size)
            .execute(&mut *connection)
            .await?;
        if head.rows_affected() != 1 {
            return Err(sqlx::Error::RowNotFound);
        }
        for (chunk, first) in self.0.leaves.chunks(WRITE_CHUNK).zip((self.0.old_size..).step_by(WRITE_CHUNK))
        {
            let rows = values(chunk.len(), 2);
            let mut query =
                sqlx::query(AssertSqlSafe(format!("INSERT INTO log_entry (position, entry) VALUES {rows}")));
            for (position, leaf) in (first..).zip(chunk) {
                query = query.bind(position).bind(leaf.bytes().as_ref());
            }
            query.execute(&mut *connection).await?;
        }
        for (chunk, first) in
            self.0.hashes.chunks(WRITE_CHUNK).zip((self.0.first_hash..).step_by(WRITE_CHUNK))
        {
            let rows = values(chunk.len(), 2);
            let mut query =
                sqlx::query(AssertSqlSafe(format!("INSERT INTO log_hash (position, hash) VALUES {rows}")));
            for (position, hash) in (first..).zip(chunk) {
                query = query.bind(position).bind(hash.0.as_slice());
            }
            query.execute(&mut *connection).await?;
        }
        Ok(())
    }
}

/// Stores the head of the empty tree.
async fn begin(store: &Store<Any>, signer: &CheckpointSigner) -> Result<(), LogError> {
    let checkpoint = signer.sign(0, &Frontier::default().root()?)?;
    let note = checkpoint.note().clone();
    store
        .write("log.begin", move |connection| {
            let note = note.clone();
            Box::pin(async move {
                sqlx::query("INSERT INTO log_head (id, size, checkpoint) VALUES (1, 0, $1)")
                    .bind(note.as_ref())
                    .execute(connection)
                    .await
                    .map(drop)
            })
        })
        .await?;
    Ok(())
}

/// Reads the head and checks that the stored log is the one it signs.
async fn load(
    store: &Store<Any>,
    signer: &CheckpointSigner,
) -> Result<Option<(Frontier, VerifiedCheckpoint)>, LogError> {
    // One statement, one snapshot: another process may be ending its last commit.
    let head = sqlx::query(
        "SELECT size, checkpoint, (SELECT MAX(position) FROM log_entry), (SELECT MAX(position) FROM log_hash) \
         FROM log_head WHERE id = 1",
    )
    .fetch_optional(store.readers())
    .await?;
    let Some(head) = head else { return Ok(None) };
    let (size, note): (i64, Vec<u8>) = (head.try_get(0)?, head.try_get(1)?);
    let checkpoint = LogVerifier::new(&signer.vkey())?
        .verify(&note)
        .map_err(|_| LogError::Damaged("the head is not signed by this log's key"))?;
    if signed(checkpoint.size())? != size {
        return Err(LogError::Damaged("the head's size is not that of its checkpoint"));
    }
    let last = |column: usize| Ok::<_, sqlx::Error>(head.try_get::<Option<i64>, _>(column)?.unwrap_or(-1));
    let (entry, hash) = (last(2)?, last(3)?);
    if entry != size - 1 || hash != signed(stored_hash_count(checkpoint.size()))? - 1 {
        return Err(LogError::Damaged("entries and hashes are not as many as the head says"));
    }
    let edge =
        read_hashes(&mut *store.readers().acquire().await?, &Frontier::positions(checkpoint.size())).await?;
    let frontier = Frontier::new(checkpoint.size(), edge);
    if frontier.root()? != *checkpoint.root() {
        return Err(LogError::Damaged("the stored hashes do not lead to the head"));
    }
    Ok(Some((frontier, checkpoint)))
}
