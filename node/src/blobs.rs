//! Encrypted attachments on disk: `<hex>` when whole and checked, `<hex>.part`
//! before. What has come of a part is kept across cuts and restarts; a blob
//! counts only after its hash was checked and the file flushed.

use crate::mesh::{Mesh, peer_call};
use crate::store::NodeStore;
use bytes::Bytes;
use chancery_node_core::parcel::MAX_LIFE;
use chancery_proto::federation::v1 as federation;
use chancery_types::{BlobId, NodeId, Reason, Refusal, Timestamp};
use futures::stream::BoxStream;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{OwnedMutexGuard, watch};

/// Largest blob, in bytes.
pub(crate) const MAX_BLOB: u64 = 100 * 1024 * 1024;
/// Most bytes of one message.
pub(crate) const PIECE: usize = 64 * 1024;
/// Longest wait for the next piece.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long an unfinished upload is kept.
const PART_LIFE: Duration = Duration::from_hours(48);

/// The blob folder of a node.
#[derive(Clone)]
pub(crate) struct Blobs {
    folder: Arc<Path>,
    store: NodeStore,
    queues: Arc<Mutex<HashMap<BlobId, Weak<Queue>>>>,
}

/// Writers of one blob.
#[derive(Default)]
struct Queue {
    alone: Arc<tokio::sync::Mutex<()>>,
    /// How many uploads came.
    uploads: watch::Sender<u64>,
}

/// Some bytes of a blob.
pub(crate) struct Piece {
    /// Of the whole, in bytes.
    pub(crate) size: u64,
    pub(crate) data: Bytes,
}

impl Blobs {
    /// Opens the folder, making it when it is missing.
    pub(crate) fn open(folder: &Path, store: NodeStore) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Self { folder: folder.into(), store, queues: Arc::default() })
    }

    /// Bytes stored so far, and whether that is all.
    pub(crate) async fn stat(&self, blob: BlobId) -> Result<(u64, bool), Refusal> {
        if let Some(size) = size(&self.whole(blob)).await? {
            return Ok((size, true));
        }
        Ok((size(&self.part(blob)).await?.unwrap_or(0), false))
    }

    /// Goes on writing a blob at `offset`, where what is stored ends. An older
    /// upload of the same blob gives way: its line may have died unnoticed.
    pub(crate) async fn write(
        &self,
        blob: BlobId,
        size: u64,
        offset: u64,
        expires_at: Timestamp,
    ) -> Result<Writer, Refusal> {
        let now = self.store.now();
        if size == 0 || size > MAX_BLOB {
            return Err(Refusal::new(Reason::TooLarge, "a blob has 1 byte to 100 MiB"));
        }
        if expires_at <= now || expires_at > now.after(MAX_LIFE).after(Duration::from_hours(1)) {
            return Err(Refusal::field("expires_at_ms has passed or is more than 90 days ahead"));
        }
        let queue = self.queue(blob);
        let mut uploads = 0;
        queue.uploads.send_modify(|count| {
            *count += 1;
            uploads = *count;
        });
        let turn = Turn::of(queue, uploads).await;
        let (stored, complete) = self.stat(blob).await?;
        if !complete && stored != offset {
            return Err(Refusal::new(Reason::WrongOffset, "call StatBlob and go on from there"));
        }
        let file = if complete { None } else { Some(self.open_part(blob)?) };
        Ok(Writer { blobs: self.clone(), blob, size, stored, expires_at, file, turn: Arc::new(turn) })
    }

    fn open_part(&self, blob: BlobId) -> Result<Arc<std::fs::File>, Refusal> {
        let file = std::fs::File::options().create(true).append(true).open(self.part(blob));
        Ok(Arc::new(file.map_err(|error| disk(&error))?))
    }

    /// Reads a whole blob from `offset` on: at least one piece, which says how
    /// large it is even when no bytes are left.
    pub(crate) async fn read(
        &self,
        blob: BlobId,
        offset: u64,
    ) -> Result<BoxStream<'static, Result<Piece, Refusal>>, Refusal> {
        let path = self.whole(blob);
        let size = size(&path).await?;
        let size = size.ok_or_else(|| Refusal::new(Reason::BlobUnknown, "the blob is not on this node"))?;
        if offset > size {
            return Err(Refusal::new(Reason::WrongOffset, "offset is behind the end of the blob"));
        }
        let mut file = File::open(path).await.map_err(|error| disk(&error))?;
        file.seek(io::SeekFrom::Start(offset)).await.map_err(|error| disk(&error))?;
        Ok(Box::pin(futures::stream::try_unfold((file, true), move |(mut file, first)| async move {
            let mut data = bytes::BytesMut::with_capacity(PIECE);
            // A file may give less than asked; a message should not.
            while data.len() < PIECE {
                let mut rest = (&mut file).take((PIECE - data.len()) as u64);
                if rest.read_buf(&mut data).await.map_err(|error| disk(&error))? == 0 {
                    break;
                }
            }
            if data.is_empty() && !first {
                return Ok(None);
            }
            Ok(Some((Piece { size, data: data.freeze() }, (file, false))))
        })))
    }

    /// Makes sure that a blob of another node is here; goes on where an
    /// earlier pull was cut.
    pub(crate) async fn pull(&self, mesh: &Mesh, origin: &NodeId, blob: BlobId) -> Result<(), Refusal> {
        if self.stat(blob).await?.1 {
            return Ok(());
        }
        if origin == mesh.here() {
            return Err(Refusal::new(Reason::BlobUnknown, "the blob is not on this node, where it was put"));
        }
        let turn = Turn::of(self.queue(blob), u64::MAX).await;
        let (mut stored, complete) = self.stat(blob).await?;
        if complete {
            return Ok(());
        }
        let mut peer = mesh.peer(origin).await?;
        let from = |offset| federation::ReadBlobRequest { blob_id: blob.to_wire(), offset };
        let mut pieces = match peer_call(peer.read_blob(from(stored))).await {
            // More is here than there is of the blob: no part of it.
            Err(refusal) if refusal.reason == Reason::WrongOffset => {
                remove(&self.part(blob)).await?;
                stored = 0;
                peer_call(peer.read_blob(from(0))).await?
            }
            pieces => pieces?,
        };
        let cut = || Refusal::new(Reason::PeerUnreachable, "the blob's node broke off; try again");
        let mut writer = Writer {
            blobs: self.clone(),
            blob,
            size: MAX_BLOB,
            stored,
            expires_at: self.store.now().after(MAX_LIFE),
            file: Some(self.open_part(blob)?),
            turn: Arc::new(turn),
        };
        loop {
            let piece = tokio::time::timeout(PATIENCE, pieces.message()).await;
            match piece.map_err(|_| cut())?.map_err(|_| cut())? {
                Some(piece) => {
                    writer.size = piece.size.min(MAX_BLOB);
                    writer.append(piece.data).await?;
                }
                None => break,
            }
        }
        writer.finish().await
    }

    /// Deletes expired blobs and abandoned parts.
    pub(crate) async fn sweep(&self) -> Result<(), Refusal> {
        let now = self.store.now();
        let expired: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT blob_id FROM blob WHERE expires_at <= $1 LIMIT 256")
                .bind(now.millis())
                .fetch_all(self.store.readers())
                .await
                .map_err(chancery_kit::store::StoreError::from)?;
        for id in expired {
            let blob = BlobId::try_from(id)?;
            let _turn = Turn::of(self.queue(blob), u64::MAX).await;
            remove(&self.whole(blob)).await?;
            self.store.change("node.blob.expire", move |tx| Box::pin(forget(tx, blob))).await?;
        }
        let oldest = now.before(PART_LIFE);
        let mut entries = tokio::fs::read_dir(&self.folder).await.map_err(|error| disk(&error))?;
        while let Some(entry) = entries.next_entry().await.map_err(|error| disk(&error))? {
            let path = entry.path();
            let touched = entry.metadata().await.and_then(|m| m.modified()).map_err(|error| disk(&error))?;
            let touched = touched.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
            let touched = Timestamp::from_millis(i64::try_from(touched).unwrap_or(i64::MAX));
            if path.extension().is_some_and(|e| e == "part") && touched < oldest {
                remove(&path).await?;
            }
        }
        Ok(())
    }

    fn whole(&self, blob: BlobId) -> PathBuf {
        self.folder.join(hex::encode(blob.as_bytes()))
    }

    fn part(&self, blob: BlobId) -> PathBuf {
        self.whole(blob).with_extension("part")
    }

    fn queue(&self, blob: BlobId) -> Arc<Queue> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, queue| queue.strong_count() > 0);
        if let Some(queue) = queues.get(&blob).and_then(Weak::upgrade) {
            return queue;
        }
        let queue = Arc::default();
        queues.insert(blob, Arc::downgrade(&queue));
        queue
    }
}

/// The right to write a blob, as long as it lives.
struct Turn {
    _alone: OwnedMutexGuard<()>,
    queue: Arc<Queue>,
    /// How many uploads had come with this one; none replaces what is no upload.
    uploads: u64,
}

impl Turn {
    async fn of(queue: Arc<Queue>, uploads: u64) -> Self {
        Self { _alone: Arc::clone(&queue.alone).lock_owned().await, queue, uploads }
    }
}

/// A blob that is being written; alone, as long as it lives.
pub(crate) struct Writer {
    blobs: Blobs,
    blob: BlobId,
    size: u64,
    stored: u64,
    expires_at: Timestamp,
    /// `None`: the blob was whole before.
    file: Option<Arc<std::fs::File>>,
    /// Held by what is under way on the disk as well, which goes on when the
    /// call is cut.
    turn: Arc<Turn>,
}

impl Writer {
    /// Answers once a newer upload waits for this one's place.
    pub(crate) async fn replaced(&self) {
        // The sender lives as long as the turn: this ends by a newer upload alone.
        let mut uploads = self.turn.queue.uploads.subscribe();
        let _ = uploads.wait_for(|count| *count > self.turn.uploads).await;
    }

    /// Adds the next bytes.
    pub(crate) async fn append(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        let Some(file) = self.file.clone() else { return Ok(()) };
        let stored = self.stored + bytes.len() as u64;
        if stored > self.size {
            return Err(Refusal::new(Reason::TooLarge, "more bytes than size"));
        }
        self.on_disk(move || (&*file).write_all(&bytes)).await?;
        self.stored = stored;
        Ok(())
    }

    /// All bytes are here: checks, flushes, and only then counts.
    pub(crate) async fn finish(self) -> Result<(), Refusal> {
        if let Some(file) = self.file.clone() {
            if self.stored != self.size {
                return Err(Refusal::new(Reason::WrongOffset, "the blob is not whole yet; go on"));
            }
            let (part, whole) = (self.blobs.part(self.blob), self.blobs.whole(self.blob));
            let (folder, blob) = (Arc::clone(&self.blobs.folder), self.blob);
            let keep = move || {
                file.sync_all()?;
                if digest(&part)? != *blob.as_bytes() {
                    std::fs::remove_file(&part)?;
                    return Ok(false);
                }
                std::fs::rename(&part, whole)?;
                std::fs::File::open(folder)?.sync_all()?;
                Ok(true)
            };
            if !self.on_disk(keep).await? {
                return Err(Refusal::new(
                    Reason::BlobMismatch,
                    "the bytes do not hash to blob_id; begin anew",
                ));
            }
        }
        let (blob, size, expires_at) = (self.blob, self.stored, self.expires_at);
        self.blobs
            .store
            .change("node.blob.keep", move |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO blob (blob_id, size, expires_at) VALUES ($1, $2, $3)
                         ON CONFLICT (blob_id) DO UPDATE SET expires_at = excluded.expires_at
                         WHERE excluded.expires_at > blob.expires_at",
                    )
                    .bind(blob.as_bytes().as_slice())
                    .bind(i64::try_from(size).unwrap_or(i64::MAX))
                    .bind(expires_at.millis())
                    .execute(&mut *tx.tables.connection)
                    .await
                    .map(drop)
                })
            })
            .await
    }

    /// Works on the disk; no other writer does until that has ended.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = Arc::clone(&self.turn);
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        working.await.map_err(io::Error::other).flatten().map_err(|error| disk(&error))
    }
}

async fn forget(tx: &mut crate::store::Tx<'_>, blob: BlobId) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM blob WHERE blob_id = $1")
        .bind(blob.as_bytes().as_slice())
        .execute(&mut *tx.tables.connection)
        .await
        .map(drop)
}

fn digest(path: &Path) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    io::copy(&mut io::BufReader::with_capacity(1024 * 1024, std::fs::File::open(path)?), &mut hash)?;
    Ok(hash.finalize().into())
}

async fn size(path: &Path) -> Result<Option<u64>, Refusal> {
    match tokio::fs::metadata(path).await {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(disk(&error)),
    }
}

async fn remove(path: &Path) -> Result<(), Refusal> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk(&error)),
        _ => Ok(()),
    }
}

fn disk(error: &io::Error) -> Refusal {
    tracing::error!(kind = ?error.kind(), "blob folder");
    match error.kind() {
        io::ErrorKind::StorageFull => Refusal::new(Reason::Overloaded, "the node's disk is full"),
        _ => Refusal::new(Reason::Internal, "the node's disk failed"),
    }
}
