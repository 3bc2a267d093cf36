//! Checkpoints as signed notes: [signed-note](https://c2sp.org/signed-note) and
//! [tlog-checkpoint](https://c2sp.org/tlog-checkpoint), signed by the log's
//! Ed25519 key. Witnesses' cosignatures are carried along, not judged here.

use crate::Error;
use crate::keys::SigningKey;
use crate::merkle::{self, Hash};
use bytes::Bytes;
use ed25519_dalek::{SignatureError, Signer as _};
use signed_note::{Note, StandardVerifier, Verifier as _, VerifierList};
use std::fmt;
use tlog_tiles::Checkpoint;

/// Longest checkpoint in bytes, signatures included.
pub const MAX_CHECKPOINT: usize = 16 * 1024;

/// Origin of the directory's log: names it in every checkpoint.
pub fn origin(federation: &str) -> String {
    format!("{federation}/directory")
}

/// Signs a log's checkpoints.
pub struct CheckpointSigner {
    origin: String,
    key_id: u32,
    key: SigningKey,
}

impl CheckpointSigner {
    /// Signs for the log with this origin.
    ///
    /// # Errors
    /// The origin is empty or holds spaces or a `+`.
    pub fn new(origin: &str, key: SigningKey) -> Result<Self, Error> {
        if !signed_note::is_key_name_valid(origin) {
            return Err(Error::Field("an origin is not empty and has no spaces and no '+'"));
        }
        let vkey = signed_note::new_ed25519_verifier_key(origin, &key.verifying_key());
        let verifier =
            StandardVerifier::new(&vkey).map_err(|_| Error::Internal("a verifier key does not parse"))?;
        Ok(Self { origin: origin.to_owned(), key_id: verifier.key_id(), key })
    }

    /// The log's origin.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The verifier key, as C2SP tools and [`LogVerifier`] read it.
    pub fn vkey(&self) -> String {
        signed_note::new_ed25519_verifier_key(&self.origin, &self.key.verifying_key())
    }

    /// Signs a tree head. The caller sees to it that no two are inconsistent.
    ///
    /// # Errors
    /// Never: origin and text are well-formed.
    pub fn sign(&self, size: u64, root: &Hash) -> Result<VerifiedCheckpoint, Error> {
        const IMPOSSIBLE: Error = Error::Internal("a checkpoint cannot be signed");
        let checkpoint =
            Checkpoint::new(&self.origin, size, tlog_tiles::Hash(*root), "").map_err(|_| IMPOSSIBLE)?;
        let mut note = Note::new(&checkpoint.to_bytes(), &[]).map_err(|_| IMPOSSIBLE)?;
        note.add_sigs(&[self]).map_err(|_| IMPOSSIBLE)?;
        Ok(VerifiedCheckpoint { size, root: *root, note: note.to_bytes().into() })
    }
}

impl signed_note::Signer for CheckpointSigner {
    fn name(&self) -> &str {
        &self.origin
    }

    fn key_id(&self) -> u32 {
        self.key_id
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        Ok(self.key.try_sign(message)?.to_bytes().to_vec())
    }
}

impl fmt::Debug for CheckpointSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckpointSigner({})", self.origin)
    }
}

/// Checks a log's checkpoints.
#[derive(Clone)]
pub struct LogVerifier(StandardVerifier);

impl LogVerifier {
    /// From a verifier key: `<origin>+<key id>+<base64>`.
    ///
    /// # Errors
    /// Malformed, or not an Ed25519 key.
    pub fn new(vkey: &str) -> Result<Self, Error> {
        StandardVerifier::new(vkey)
            .map(Self)
            .map_err(|_| Error::Field("a verifier key is <origin>+<key id>+<base64 of an Ed25519 key>"))
    }

    /// Origin of the log.
    pub fn origin(&self) -> &str {
        self.0.name()
    }

    /// Checks signature and form of a checkpoint.
    ///
    /// # Errors
    /// Too long, malformed, another log's, or not signed by this key.
    pub fn verify(&self, note: &[u8]) -> Result<VerifiedCheckpoint, Error> {
        if note.len() > MAX_CHECKPOINT {
            return Err(Error::Proof("a checkpoint has at most 16 KiB"));
        }
        let parsed = Note::from_bytes(note).map_err(|_| Error::Proof("a checkpoint is no signed note"))?;
        parsed
            .verify(&VerifierList::new(vec![Box::new(self.0.clone())]))
            .map_err(|_| Error::Proof("a checkpoint is not signed by the log's key"))?;
        let checkpoint = Checkpoint::from_bytes(parsed.text())
            .map_err(|_| Error::Proof("a signed note is no checkpoint"))?;
        if checkpoint.origin() != self.origin() {
            return Err(Error::Proof("a checkpoint is another log's"));
        }
        Ok(VerifiedCheckpoint {
            size: checkpoint.size(),
            root: checkpoint.hash().0,
            note: Bytes::copy_from_slice(note),
        })
    }
}

impl fmt::Debug for LogVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogVerifier({})", self.origin())
    }
}

/// A tree head that the log's key signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedCheckpoint {
    size: u64,
    root: Hash,
    note: Bytes,
}

impl VerifiedCheckpoint {
    /// Number of leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Root of the tree.
    pub const fn root(&self) -> &Hash {
        &self.root
    }

    /// The signed note.
    pub const fn note(&self) -> &Bytes {
        &self.note
    }

    /// Checks that this tree contains that of `older`, by a proof from the
    /// directory. From an empty tree every tree follows.
    ///
    /// # Errors
    /// [`Error::Proof`]: the log was rewritten, or the directory went back.
    pub fn extends(&self, older: &Self, path: &[Bytes]) -> Result<(), Error> {
        if older.size == 0 && older.root == merkle::empty_root() && path.is_empty() {
            return Ok(());
        }
        merkle::verify_consistency(older.size, &older.root, self.size, &self.root, &merkle::path(path)?)
    }

    /// Checks that `leaf` is the hash of the entry at `index`.
    ///
    /// # Errors
    /// [`Error::Proof`].
    pub fn includes(&self, leaf: &Hash, index: u64, path: &[Bytes]) -> Result<(), Error> {
        merkle::verify_inclusion(leaf, index, self.size, &merkle::path(path)?, &self.root)
    }
}

#[cfg(test)]
mod tests;
