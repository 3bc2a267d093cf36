//! Reading the log: its head, entries, proofs. Everything below a head is
//! written once, so reads need no transaction.

use crate::LogError;
use crate::frontier::Hashes;
use chancery_directory_core::VerifiedCheckpoint;
use chancery_directory_core::entry::Leaf;
use chancery_directory_core::merkle::Hash;
use chancery_kit::store::{StoreError, values};
use futures::TryStreamExt as _;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Pool, Row as _};
use std::cell::RefCell;
use std::collections::BTreeSet;
use tlog_tiles::HashReader;
use tokio::sync::watch;

/// Hashes that one statement reads at most.
const READ_CHUNK: usize = 512;
/// Bytes of entries that one answer holds at most.
const MAX_LISTED: usize = 2 * 1024 * 1024;

/// The log as readers see it. Cheap to clone.
#[derive(Clone)]
pub struct LogReader {
    pool: Pool<Any>,
    head: watch::Receiver<VerifiedCheckpoint>,
}

impl LogReader {
    pub(crate) fn new(pool: Pool<Any>, head: watch::Receiver<VerifiedCheckpoint>) -> Self {
        Self { pool, head }
    }

    /// The same log under other checkpoints: a mirror shows those of whom it mirrors.
    #[must_use]
    pub fn under(self, head: watch::Receiver<VerifiedCheckpoint>) -> Self {
        Self { head, ..self }
    }

    /// The latest checkpoint; it is stored.
    pub fn checkpoint(&self) -> VerifiedCheckpoint {
        self.head.borrow().clone()
    }

    /// The first checkpoint that covers `index`: waits for the moment between
    /// a commit and its checkpoint.
    ///
    /// # Errors
    /// The log is closed.
    pub async fn covering(&self, index: u64) -> Result<VerifiedCheckpoint, LogError> {
        let mut head = self.head.clone();
        let covering = head.wait_for(|checkpoint| checkpoint.size() > index).await;
        covering.map(|checkpoint| checkpoint.clone()).map_err(|_| StoreError::Closed.into())
    }

    /// Entries from `start` on, `limit` at most, 2 MiB at most, in order;
    /// empty at the end.
    ///
    /// # Errors
    /// The store failed or misses an entry.
    pub async fn entries(&self, start: u64, limit: u32) -> Result<Vec<Leaf>, LogError> {
        let size = self.head.borrow().size();
        let end = start.saturating_add(limit.into()).min(size);
        if start >= end {
            return Ok(Vec::new());
        }
        let mut rows = sqlx::query(
            "SELECT position, entry FROM log_entry WHERE position >= $1 AND position < $2 ORDER BY position",
        )
        .bind(signed(start)?)
        .bind(signed(end)?)
        .fetch(&self.pool);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut expected = start;
        while let Some(row) = rows.try_next().await? {
            let (position, entry): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            if position != signed(expected)? {
                return Err(LogError::Damaged("an entry is missing"));
            }
            expected += 1;
            bytes += entry.len();
            if bytes > MAX_LISTED && !entries.is_empty() {
                break;
            }
            entries.push(Leaf::from_bytes(entry.into())?);
        }
        if entries.is_empty() {
            return Err(LogError::Damaged("an entry is missing"));
        }
        Ok(entries)
    }

    /// Proof that the entry at `index` stands in the tree of `size` leaves.
    ///
    /// # Errors
    /// `index` is not below `size`, or `size` beyond the head.
    pub async fn inclusion_proof(&self, index: u64, size: u64) -> Result<Vec<Hash>, LogError> {
        let mut proofs = self.inclusion_proofs(&[index], size).await?;
        proofs.pop().ok_or(LogError::Damaged("a proof is missing"))
    }

    /// As [`LogReader::inclusion_proof`] for several entries, in their order.
    ///
    /// # Errors
    /// As there.
    pub async fn inclusion_proofs(&self, indices: &[u64], size: u64) -> Result<Vec<Vec<Hash>>, LogError> {
        if size > self.head.borrow().size() || indices.iter().any(|index| *index >= size) {
            return Err(LogError::Range("the entry is beyond the tree, or the tree beyond the log"));
        }
        let mut positions = BTreeSet::new();
        for index in indices {
            positions.extend(wanted(|probe| tlog_tiles::prove_record(size, *index, probe)));
        }
        let hashes = self.hashes(&positions.into_iter().collect::<Vec<_>>()).await?;
        let proofs = indices.iter().map(|index| path(tlog_tiles::prove_record(size, *index, &hashes)));
        proofs.collect()
    }

    /// Proof that the tree of `old_size` leaves is a prefix of that of `new_size`.
    ///
    /// # Errors
    /// `old_size` is 0 or above `new_size`, or that beyond the head.
    pub async fn consistency_proof(&self, old_size: u64, new_size: u64) -> Result<Vec<Hash>, LogError> {
        if old_size == 0 || old_size > new_size || new_size > self.head.borrow().size() {
            return Err(LogError::Range("sizes are 1 ≤ old ≤ new ≤ that of the latest checkpoint"));
        }
        let positions = wanted(|probe| tlog_tiles::prove_tree(new_size, old_size, probe));
        let hashes = self.hashes(&positions).await?;
        path(tlog_tiles::prove_tree(new_size, old_size, &hashes))
    }

    async fn hashes(&self, positions: &[u64]) -> Result<Hashes, LogError> {
        read_hashes(&mut *self.pool.acquire().await?, positions).await
    }
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogReader({} entries)", self.head.borrow().size())
    }
}

/// A position or size as the database knows it.
pub(crate) fn signed(value: u64) -> Result<i64, LogError> {
    i64::try_from(value).map_err(|_| LogError::Range("a position is beyond any log"))
}

/// Reads stored hashes; all of them or an error.
pub(crate) async fn read_hashes(
    connection: &mut AnyConnection,
    positions: &[u64],
) -> Result<Hashes, LogError> {
    let mut hashes = Hashes::default();
    for chunk in positions.chunks(READ_CHUNK) {
        let list = values(chunk.len(), 1);
        let text = format!("SELECT position, hash FROM log_hash WHERE position IN (VALUES {list})");
        let mut query = sqlx::query(AssertSqlSafe(text));
        for position in chunk {
            query = query.bind(signed(*position)?);
        }
        for row in query.fetch_all(&mut *connection).await? {
            let (position, hash): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            let damaged = |()| LogError::Damaged("a hash is not one");
            let position = u64::try_from(position).map_err(|_| damaged(()))?;
            let hash = hash.try_into().map_err(|_| damaged(()))?;
            hashes.0.insert(position, tlog_tiles::Hash(hash));
        }
    }
    if hashes.0.len() != positions.len() {
        return Err(LogError::Damaged("a hash is missing"));
    }
    Ok(hashes)
}

/// Which stored hashes a proof reads: notes the one question it asks.
fn wanted<T>(prove: impl FnOnce(&Probe) -> Result<T, tlog_tiles::Error>) -> Vec<u64> {
    let probe = Probe(RefCell::default());
    // Fails, or needs nothing: either way the question is known.
    let _ = prove(&probe);
    probe.0.into_inner()
}

struct Probe(RefCell<Vec<u64>>);

impl HashReader for Probe {
    fn read_hashes(&self, positions: &[u64]) -> Result<Vec<tlog_tiles::Hash>, tlog_tiles::Error> {
        self.0.borrow_mut().extend_from_slice(positions);
        Err(tlog_tiles::Error::IndexesNotInTree)
    }
}

fn path(proof: Result<Vec<tlog_tiles::Hash>, tlog_tiles::Error>) -> Result<Vec<Hash>, LogError> {
    let proof = proof.map_err(|_| LogError::Damaged("a hash is missing"))?;
    Ok(proof.into_iter().map(|hash| hash.0).collect())
}
