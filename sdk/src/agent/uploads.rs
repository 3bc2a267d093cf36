//! Attachments that a caller has uploaded, in clear on the organisation's own
//! disk: `<uuid>.part` while they come, `<uuid>-<sha256>` when whole. Kept for
//! a week. One call writes an upload: the latest, because the one before may
//! be cut without our knowing yet.

use crate::attachment::AttachmentError;
use bytes::Bytes;
use chancery_types::{Reason, Refusal, Timestamp};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// Largest attachment: a blob less its tag.
const MAX_UPLOAD: u64 = 100 * 1024 * 1024 - 16;
/// How long an upload is kept.
const LIFE: Duration = Duration::from_hours(7 * 24);

/// Name of an upload, chosen by the caller.
pub(super) type UploadId = uuid::Uuid;

/// The folder of uploads.
pub(super) struct Uploads {
    folder: PathBuf,
    whole: Mutex<HashMap<UploadId, [u8; 32]>>,
    /// Which call's turn it is, for each upload under way.
    turns: Mutex<HashMap<UploadId, Turn>>,
}

/// The number of the latest call; locked while something is written.
type Turn = Arc<tokio::sync::Mutex<u64>>;

impl Uploads {
    /// Opens the folder and forgets what is older than a week.
    pub(super) fn open(folder: &Path, now: Timestamp) -> Result<Self, AttachmentError> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let uploads = Self { folder: folder.to_owned(), whole: Mutex::default(), turns: Mutex::default() };
        uploads.sweep(now)?;
        Ok(uploads)
    }

    /// Finds what is there and forgets what is old.
    fn sweep(&self, now: Timestamp) -> io::Result<()> {
        let mut whole = HashMap::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let touched = entry.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let touched = Timestamp::from_millis(i64::try_from(touched.as_millis()).unwrap_or(i64::MAX));
            if now.since(touched) > LIFE {
                std::fs::remove_file(entry.path())?;
            } else if let Some((id, digest)) = entry.file_name().to_str().and_then(parse) {
                whole.insert(id, digest);
            }
        }
        *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = whole;
        Ok(())
    }

    /// SHA-256 of a whole upload, and its file.
    pub(super) fn find(&self, id: UploadId) -> Option<([u8; 32], PathBuf)> {
        let known = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = *known.get(&id)?;
        Some((digest, whole(&self.folder, id, &digest)))
    }

    /// Bytes that are safe, and whether that is all.
    pub(super) fn stat(&self, id: UploadId) -> Result<(u64, bool), Refusal> {
        if let Some((_, path)) = self.find(id) {
            return Ok((std::fs::metadata(path).map_err(|error| disk(&error))?.len(), true));
        }
        match std::fs::metadata(self.part(id)) {
            Ok(metadata) => Ok((metadata.len(), false)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((0, false)),
            Err(error) => Err(disk(&error)),
        }
    }

    /// Goes on with an upload at `offset`, where what has arrived ends.
    pub(super) async fn write(
        &self,
        id: UploadId,
        size: u64,
        offset: u64,
        now: Timestamp,
    ) -> Result<Upload<'_>, Refusal> {
        if !(1..=MAX_UPLOAD).contains(&size) {
            return Err(Refusal::new(Reason::TooLarge, "an attachment has 1 byte to 100 MiB minus 16"));
        }
        self.sweep(now).map_err(|error| disk(&error))?;
        let turn = self.turn(id);
        let mut latest = turn.lock().await;
        let (stored, complete) = self.stat(id)?;
        if complete || stored != offset || offset > size {
            return Err(Refusal::new(Reason::WrongOffset, "call StatAttachment and go on from there"));
        }
        let file = File::options().create(true).append(true).open(self.part(id));
        let file = Arc::new(file.map_err(|error| disk(&error))?);
        *latest += 1;
        let call = *latest;
        drop(latest);
        Ok(Upload { uploads: self, id, size, stored, file, turn, call })
    }

    fn turn(&self, id: UploadId) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|other, turn| *other == id || Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(id).or_default())
    }

    fn part(&self, id: UploadId) -> PathBuf {
        self.folder.join(format!("{id}.part"))
    }
}

fn parse(name: &str) -> Option<(UploadId, [u8; 32])> {
    let (id, digest) = name.rsplit_once('-')?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(digest, &mut bytes).ok()?;
    Some((id.parse().ok()?, bytes))
}

/// An upload under way.
pub(super) struct Upload<'a> {
    uploads: &'a Uploads,
    id: UploadId,
    size: u64,
    stored: u64,
    file: Arc<File>,
    turn: Turn,
    call: u64,
}

impl Upload<'_> {
    /// Adds the next bytes.
    pub(super) async fn append(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        self.stored += bytes.len() as u64;
        if self.stored > self.size {
            return Err(Refusal::new(Reason::TooLarge, "more bytes than size"));
        }
        let file = Arc::clone(&self.file);
        self.alone(move || (&*file).write_all(&bytes)).await
    }

    /// All bytes are here: flushes, and gives their SHA-256.
    pub(super) async fn finish(self) -> Result<[u8; 32], Refusal> {
        if self.stored != self.size {
            return Err(Refusal::new(Reason::WrongOffset, "the attachment is not whole yet; go on"));
        }
        let (file, part) = (Arc::clone(&self.file), self.uploads.part(self.id));
        let (folder, id) = (self.uploads.folder.clone(), self.id);
        let digest = self
            .alone(move || {
                file.sync_all()?;
                let mut hash = Sha256::new();
                io::copy(&mut io::BufReader::with_capacity(1024 * 1024, File::open(&part)?), &mut hash)?;
                let digest: [u8; 32] = hash.finalize().into();
                std::fs::rename(&part, whole(&folder, id, &digest))?;
                File::open(&folder)?.sync_all()?;
                Ok(digest)
            })
            .await?;
        self.uploads.whole.lock().unwrap_or_else(PoisonError::into_inner).insert(self.id, digest);
        Ok(digest)
    }

    /// Does something to the files while no other call does. Once begun it
    /// ends, even if this call is cut meanwhile.
    async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let latest = Arc::clone(&self.turn).lock_owned().await;
        if *latest != self.call {
            return Err(Refusal::new(Reason::WrongOffset, "another call goes on with this attachment"));
        }
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(latest);
            done
        });
        working.await.map_err(io::Error::other).flatten().map_err(|error| disk(&error))
    }
}

fn whole(folder: &Path, id: UploadId, digest: &[u8; 32]) -> PathBuf {
    folder.join(format!("{id}-{}", hex::encode(digest)))
}

pub(super) fn disk(error: &io::Error) -> Refusal {
    tracing::error!(kind = ?error.kind(), "attachment folder");
    Refusal::new(Reason::Internal, "the agent's disk failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(0);

    #[tokio::test]
    async fn goes_on_after_a_cut_and_survives_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(folder.path(), NOW).unwrap();
        let id = UploadId::from_bytes([1; 16]);
        uploads.write(id, 6, 0, NOW).await.unwrap().append(Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(uploads.stat(id).unwrap(), (3, false));
        assert_eq!(uploads.write(id, 6, 0, NOW).await.err().unwrap().reason, Reason::WrongOffset);
        let mut rest = uploads.write(id, 6, 3, NOW).await.unwrap();
        rest.append(Bytes::from_static(b"def")).await.unwrap();
        let digest = rest.finish().await.unwrap();
        assert_eq!(digest[..], Sha256::digest(b"abcdef")[..]);
        let again = Uploads::open(folder.path(), NOW).unwrap();
        assert_eq!(again.find(id).unwrap().0, digest);
        assert_eq!(again.stat(id).unwrap(), (6, true));
    }

    #[tokio::test]
    async fn the_latest_call_takes_over() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(folder.path(), NOW).unwrap();
        let id = UploadId::from_bytes([1; 16]);
        let mut cut = uploads.write(id, 6, 0, NOW).await.unwrap();
        cut.append(Bytes::from_static(b"abc")).await.unwrap();
        let mut latest = uploads.write(id, 6, 3, NOW).await.unwrap();
        // What was on the line when the first was cut comes in now.
        let late = cut.append(Bytes::from_static(b"d")).await.unwrap_err();
        assert_eq!(late.reason, Reason::WrongOffset);
        latest.append(Bytes::from_static(b"def")).await.unwrap();
        assert_eq!(latest.finish().await.unwrap()[..], Sha256::digest(b"abcdef")[..]);
    }

    #[tokio::test]
    async fn limits_hold() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(folder.path(), NOW).unwrap();
        let id = UploadId::from_bytes([1; 16]);
        assert!(uploads.write(id, MAX_UPLOAD + 1, 0, NOW).await.is_err());
        let mut upload = uploads.write(id, 2, 0, NOW).await.unwrap();
        assert_eq!(upload.append(Bytes::from_static(b"abc")).await.unwrap_err().reason, Reason::TooLarge);
    }
}
