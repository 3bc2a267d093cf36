//! Sealing and opening of whole files with AES-128-GCM, as MIMI demands of
//! every client. A file is in memory at once, in place, up to 100 MiB: the AEAD
//! gives no byte of it out before its tag is checked. Key and nonce are new for
//! each blob.

use super::{AttachmentError, BlobUrl, ExternalFile, MAX_BLOB, OVERHEAD, Spool};
use aes_gcm::aead::AeadInPlace as _;
use aes_gcm::{Aes128Gcm, KeyInit as _, Nonce, Tag};
use chancery_types::{BlobId, Entropy, NodeId, Timestamp};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, ZeroizeOnDrop};

/// Opens one blob.
#[derive(Clone, ZeroizeOnDrop)]
pub struct FileKey([u8; 16]);

impl FileKey {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl PartialEq for FileKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for FileKey {}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey")
    }
}

/// How to find and open a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// SHA-256 of the ciphertext.
    pub id: BlobId,
    /// Bytes of ciphertext.
    pub size: u64,
    /// Its key.
    pub key: FileKey,
    /// Its nonce.
    pub nonce: [u8; 12],
}

impl Seal {
    /// What a letter says about the file, put on the node `origin` until `expires_at`.
    pub fn file(
        &self,
        origin: NodeId,
        expires_at: Timestamp,
        media_type: &str,
        file_name: &str,
    ) -> ExternalFile {
        ExternalFile {
            blob: BlobUrl { origin, id: self.id },
            size: self.size,
            key: self.key.clone(),
            nonce: self.nonce,
            expires_at: Some(Timestamp::from_millis(expires_at.seconds().saturating_mul(1000))),
            media_type: media_type.to_owned(),
            file_name: file_name.to_owned(),
            description: String::new(),
        }
    }
}

/// A blob and how to open it. Only [`seal`] makes one, so its id is right.
pub struct SealedBlob {
    seal: Seal,
    ciphertext: Vec<u8>,
}

impl SealedBlob {
    /// How to find and open it.
    pub const fn seal(&self) -> &Seal {
        &self.seal
    }

    /// What nodes store.
    pub fn ciphertext(&self) -> &[u8] {
        &self.ciphertext
    }
}

/// Seals a file in place, under a new key and nonce.
pub fn seal(plaintext: Vec<u8>, entropy: &dyn Entropy) -> Result<SealedBlob, AttachmentError> {
    if plaintext.len() as u64 > MAX_BLOB - OVERHEAD {
        return Err(AttachmentError::TooLarge);
    }
    let key = FileKey(entropy.array());
    let nonce: [u8; 12] = entropy.array();
    let mut ciphertext = plaintext;
    let tag = Aes128Gcm::new(&key.0.into())
        .encrypt_in_place_detached(Nonce::from_slice(&nonce), &[], &mut ciphertext)
        .map_err(|_| AttachmentError::TooLarge)?;
    ciphertext.extend_from_slice(&tag);
    let id = BlobId::from_bytes(Sha256::digest(&ciphertext).into());
    Ok(SealedBlob { seal: Seal { id, size: ciphertext.len() as u64, key, nonce }, ciphertext })
}

/// Opens a blob in place: size and hash are checked first, then the tag.
pub fn open(file: &ExternalFile, ciphertext: Vec<u8>) -> Result<Vec<u8>, AttachmentError> {
    let length = ciphertext.len() as u64;
    if length != file.size || length > MAX_BLOB {
        return Err(AttachmentError::WrongSize);
    }
    if Sha256::digest(&ciphertext)[..] != file.blob.id.as_bytes()[..] {
        return Err(AttachmentError::WrongHash);
    }
    let mut plaintext = ciphertext;
    let end = plaintext.len().checked_sub(OVERHEAD as usize).ok_or(AttachmentError::DoesNotOpen)?;
    let tag = *Tag::from_slice(&plaintext[end..]);
    plaintext.truncate(end);
    Aes128Gcm::new(file.key.as_bytes().into())
        .decrypt_in_place_detached(Nonce::from_slice(&file.nonce), &[], &mut plaintext, &tag)
        .map_err(|_| AttachmentError::DoesNotOpen)?;
    Ok(plaintext)
}

/// Seals the file at `path` into the spool. Blocks, and has the whole file in
/// memory, up to 100 MiB.
pub fn seal_file(path: &Path, spool: &Arc<Spool>, entropy: &dyn Entropy) -> Result<Seal, AttachmentError> {
    let file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    if size > MAX_BLOB - OVERHEAD {
        return Err(AttachmentError::TooLarge);
    }
    // Room for the tag, so that the plaintext is not copied; the limit holds
    // also for a file that grows meanwhile.
    let mut plaintext = Vec::with_capacity(usize::try_from(size + OVERHEAD).unwrap_or(0));
    file.take(MAX_BLOB).read_to_end(&mut plaintext)?;
    let blob = seal(plaintext, entropy)?;
    spool.put(&blob)?;
    Ok(blob.seal)
}

/// Opens a blob of the spool into the file at `path`, which appears whole or
/// not at all and replaces what was there. Blocks, and has the whole file in memory, up to 100 MiB.
pub fn open_file(file: &ExternalFile, spool: &Spool, path: &Path) -> Result<(), AttachmentError> {
    let mut plaintext = open(file, spool.read(&file.blob.id)?)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written = std::fs::File::create(&partial).and_then(|mut file| {
        file.write_all(&plaintext)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        super::spool::sync_folder(folder.unwrap_or(Path::new(".")))
    });
    plaintext.zeroize();
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;
    use proptest::prelude::*;

    fn letter_file(seal: &Seal) -> ExternalFile {
        seal.file(
            "federal".parse().unwrap(),
            Timestamp::from_millis(1_700_000_000_999),
            "application/pdf",
            "a.pdf",
        )
    }

    #[test]
    fn key_and_nonce_are_new_each_time() {
        let entropy = SeededEntropy::new(1);
        let [one, two] = [0; 2].map(|_| seal(b"same".to_vec(), &entropy).unwrap());
        assert_ne!(one.seal.key, two.seal.key);
        assert_ne!(one.seal.nonce, two.seal.nonce);
        assert_ne!(one.seal.id, two.seal.id);
    }

    /// NIST GCM test case 2 (all-zero key, nonce and block): what we write is
    /// what any other AES-128-GCM reads.
    #[test]
    fn is_plain_aes_128_gcm() {
        struct Zeroes;
        impl Entropy for Zeroes {
            fn fill(&self, bytes: &mut [u8]) {
                bytes.fill(0);
            }
        }
        let blob = seal(vec![0; 16], &Zeroes).unwrap();
        assert_eq!(
            hex::encode(blob.ciphertext()),
            "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf"
        );
    }

    #[test]
    fn changed_blobs_keys_and_sizes_are_told_apart() {
        let blob = seal(b"the decision".to_vec(), &SeededEntropy::new(2)).unwrap();
        let file = letter_file(blob.seal());
        assert_eq!(open(&file, blob.ciphertext.clone()).unwrap(), b"the decision");

        let mut shorter = blob.ciphertext.clone();
        shorter.pop();
        assert!(matches!(open(&file, shorter), Err(AttachmentError::WrongSize)));
        let mut other = blob.ciphertext.clone();
        other[0] ^= 1;
        assert!(matches!(open(&file, other), Err(AttachmentError::WrongHash)));
        let key = ExternalFile { key: FileKey::from_bytes([0; 16]), ..file.clone() };
        assert!(matches!(open(&key, blob.ciphertext.clone()), Err(AttachmentError::DoesNotOpen)));
        let nonce = ExternalFile { nonce: [0; 12], ..file };
        assert!(matches!(open(&nonce, blob.ciphertext), Err(AttachmentError::DoesNotOpen)));
    }

    #[test]
    fn the_limit_holds() {
        let at = |size: u64| seal(vec![0; size as usize], &SeededEntropy::new(3)).map(|blob| blob.seal.size);
        assert_eq!(at(MAX_BLOB - OVERHEAD).unwrap(), MAX_BLOB);
        assert!(matches!(at(MAX_BLOB - OVERHEAD + 1), Err(AttachmentError::TooLarge)));
    }

    #[test]
    fn from_file_to_file() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::open(folder.path().join("spool"), MAX_BLOB).unwrap());
        let (source, target) = (folder.path().join("a.pdf"), folder.path().join("b.pdf"));
        std::fs::write(&source, b"the decision").unwrap();
        let seal = seal_file(&source, &spool, &SeededEntropy::new(4)).unwrap();
        let stored = spool.read(&seal.id).unwrap();
        assert!(!stored.windows(8).any(|window| window == b"decision"));
        open_file(&letter_file(&seal), &spool, &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"the decision");
        assert!(!folder.path().join("b.pdf.partial").exists());

        spool.remove(&seal.id).unwrap();
        let gone = open_file(&letter_file(&seal), &spool, &target);
        assert!(matches!(gone, Err(AttachmentError::Missing)));

        let sparse = std::fs::File::create(&source).unwrap();
        sparse.set_len(MAX_BLOB).unwrap();
        let large = seal_file(&source, &spool, &SeededEntropy::new(4));
        assert!(matches!(large, Err(AttachmentError::TooLarge)));
    }

    proptest! {
        #[test]
        fn seals_and_opens(plaintext in proptest::collection::vec(any::<u8>(), 0..4096), seed: u64) {
            let blob = seal(plaintext.clone(), &SeededEntropy::new(seed)).unwrap();
            prop_assert_eq!(blob.ciphertext().len(), plaintext.len() + 16);
            prop_assert_eq!(open(&letter_file(blob.seal()), blob.ciphertext.clone()).unwrap(), plaintext);
        }
    }
}
