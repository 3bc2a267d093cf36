//! A folder that holds ciphertext by blob id: `<id>` is whole and checked,
//! `<id>.part` is on its way in. Knows no keys and no network. All calls block.
//!
//! A name without ending appears only after the bytes are flushed and their
//! hash is known, by a rename; so a crash leaves a blob whole, in part, or not
//! at all. The folder belongs to one process. Its size is bounded: what is being
//! written counts in full from the start.

use super::{AttachmentError, MAX_BLOB, SealedBlob};
use chancery_types::BlobId;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The folder.
pub struct Spool {
    folder: PathBuf,
    limit: u64,
    state: Mutex<State>,
}

struct State {
    /// Bytes of whole blobs and idle parts, and what blobs being written will have.
    used: u64,
    /// Blobs being written.
    busy: HashSet<BlobId>,
}

impl Spool {
    /// Opens or creates the folder; it will hold at most `limit` bytes.
    pub fn open(folder: impl Into<PathBuf>, limit: u64) -> Result<Self, AttachmentError> {
        let folder = folder.into();
        std::fs::create_dir_all(&folder)?;
        let mut used = 0;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "tmp") {
                std::fs::remove_file(entry.path())?;
            } else {
                used += entry.metadata()?.len();
            }
        }
        Ok(Self { folder, limit, state: Mutex::new(State { used, busy: HashSet::new() }) })
    }

    /// Keeps a blob; it is flushed when this returns. Again: nothing happens.
    pub fn put(self: &Arc<Self>, blob: &SealedBlob) -> Result<(), AttachmentError> {
        let id = blob.seal().id;
        if self.size(&id)?.is_some() {
            return Ok(());
        }
        let claim = Claim::new(self, id, blob.seal().size)?;
        let partial = self.path(&id, ".tmp");
        let mut file = File::create(&partial)?;
        let written = file.write_all(blob.ciphertext()).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| self.settle(&partial, &id)) {
            let _ = std::fs::remove_file(&partial);
            return Err(error.into());
        }
        claim.keep();
        Ok(())
    }

    /// Bytes of a blob that is whole. `None`: it is not here.
    pub fn size(&self, id: &BlobId) -> Result<Option<u64>, AttachmentError> {
        present(std::fs::metadata(self.path(id, ""))).map(|found| found.map(|metadata| metadata.len()))
    }

    /// A blob, to be read from its beginning, and its size.
    pub fn reader(&self, id: &BlobId) -> Result<(File, u64), AttachmentError> {
        let file = present(File::open(self.path(id, "")))?.ok_or(AttachmentError::Missing)?;
        let size = file.metadata()?.len();
        if size > MAX_BLOB { Err(AttachmentError::TooLarge) } else { Ok((file, size)) }
    }

    /// A blob in memory, up to 100 MiB.
    pub fn read(&self, id: &BlobId) -> Result<Vec<u8>, AttachmentError> {
        let (file, size) = self.reader(id)?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Forgets a blob, whole or in part. Again: nothing happens. [`AttachmentError::Busy`] while it is written.
    pub fn remove(&self, id: &BlobId) -> Result<(), AttachmentError> {
        let mut state = self.state();
        if state.busy.contains(id) {
            return Err(AttachmentError::Busy);
        }
        for ending in ["", ".part"] {
            let path = self.path(id, ending);
            if let Some(metadata) = present(std::fs::metadata(&path))? {
                std::fs::remove_file(&path)?;
                state.used = state.used.saturating_sub(metadata.len());
            }
        }
        Ok(sync_folder(&self.folder)?)
    }

    /// Begins or continues to receive a blob of `size` bytes. `None`: it is whole already.
    pub fn part(self: &Arc<Self>, id: &BlobId, size: u64) -> Result<Option<PartFile>, AttachmentError> {
        if size > MAX_BLOB {
            return Err(AttachmentError::TooLarge);
        }
        if self.size(id)?.is_some() {
            return Ok(None);
        }
        let mut claim = Claim::new(self, *id, size)?;
        let path = self.path(id, ".part");
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        // Longer than the letter says: it was another's idea of the blob.
        if claim.written > size {
            file.set_len(0)?;
        }
        let length = file.seek(io::SeekFrom::End(0))?;
        claim.written = length;
        Ok(Some(PartFile { claim, path, file, size, length }))
    }

    fn path(&self, id: &BlobId, ending: &str) -> PathBuf {
        self.folder.join(hex::encode(id.as_bytes()) + ending)
    }

    fn settle(&self, flushed: &Path, id: &BlobId) -> io::Result<()> {
        std::fs::rename(flushed, self.path(id, ""))?;
        sync_folder(&self.folder)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob on its way in. Dropped before [`PartFile::finish`], its bytes stay for the next time.
pub struct PartFile {
    claim: Claim,
    path: PathBuf,
    file: File,
    size: u64,
    length: u64,
}

impl PartFile {
    /// Bytes that are here: where to go on.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Adds the next bytes. More than the blob has are refused.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), AttachmentError> {
        let length = self.length.saturating_add(bytes.len() as u64);
        if length > self.size {
            return Err(AttachmentError::WrongSize);
        }
        self.file.write_all(bytes)?;
        self.length = length;
        self.claim.written = length;
        Ok(())
    }

    /// Checks the blob against its id and keeps it, flushed. What does not
    /// hash to its id is thrown away, so that the next attempt begins anew.
    pub fn finish(mut self) -> Result<(), AttachmentError> {
        if self.length != self.size {
            return Err(AttachmentError::WrongSize);
        }
        self.file.rewind()?;
        let mut hash = Sha256::new();
        io::copy(&mut self.file, &mut hash)?;
        if hash.finalize()[..] != self.claim.id.as_bytes()[..] {
            self.file.set_len(0)?;
            self.claim.written = 0;
            return Err(AttachmentError::WrongHash);
        }
        self.file.sync_all()?;
        self.claim.spool.settle(&self.path, &self.claim.id)?;
        self.claim.keep();
        Ok(())
    }
}

/// The right to write one blob, and the room for it.
struct Claim {
    spool: Arc<Spool>,
    id: BlobId,
    size: u64,
    /// Bytes that stay when the claim is dropped.
    written: u64,
}

impl Claim {
    /// Room for `size` bytes, of which those of a part are counted already.
    fn new(spool: &Arc<Spool>, id: BlobId, size: u64) -> Result<Self, AttachmentError> {
        let mut state = spool.state();
        if state.busy.contains(&id) {
            return Err(AttachmentError::Busy);
        }
        let part = present(std::fs::metadata(spool.path(&id, ".part")))?.map_or(0, |metadata| metadata.len());
        let used = state.used.saturating_sub(part).saturating_add(size);
        if used > spool.limit {
            return Err(AttachmentError::Full);
        }
        state.used = used;
        state.busy.insert(id);
        Ok(Self { spool: Arc::clone(spool), id, size, written: part })
    }

    fn keep(mut self) {
        self.written = self.size;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.spool.state();
        state.used = state.used.saturating_sub(self.size.saturating_sub(self.written));
        state.busy.remove(&self.id);
    }
}

/// Makes renames and removals in a folder survive a crash.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn present<T>(result: io::Result<T>) -> Result<Option<T>, AttachmentError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
