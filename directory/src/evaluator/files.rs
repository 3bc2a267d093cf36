//! What an evaluator keeps: `share-N.toml`, its share of key epoch N, and one
//! `ceremony-….toml` for each ceremony that may still conclude. Secrets in them
//! are sealed; a file is replaced whole or erased. None of it belongs into a
//! backup: a lost share is dealt anew.

use super::seal::Seal;
use crate::DirectoryError;
use crate::keyfile::{read_private, write_private};
use chancery_directory_core::ceremony::party::Secret;
use chancery_directory_core::handle::Serving;
use chancery_directory_core::oprf::SecretKey;
use chancery_kit::tls::files::erase;
use chancery_types::Entropy;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Ceremonies that may be open at once.
const MAX_OPEN: usize = 16;

/// `share-N.toml`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareFile {
    key_epoch: u32,
    generation: u32,
    index: u32,
    /// Sealed.
    share: String,
}

/// `ceremony-….toml`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CeremonyFile {
    /// SHA-256 of the plan's statement, in hexadecimal, as are all bytes here.
    pub(super) id: String,
    /// The plan: a serialised SignedStatement.
    pub(super) plan: String,
    pub(super) key_epoch: u32,
    pub(super) generation: u32,
    /// This evaluator's secret in the ceremony, sealed.
    secret: String,
    /// Once it dealt: digest of the joins, and the serialised message.
    pub(super) dealt: Option<(String, String)>,
    /// Once it concluded.
    pub(super) concluded: Option<ConcludedFile>,
    /// In force by the log: takes the place of the share before.
    #[serde(default)]
    pub(super) in_force: bool,
}

/// What an evaluator holds at the end of a ceremony.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConcludedFile {
    /// Index of its share.
    pub(super) index: u32,
    /// The share, sealed.
    share: String,
    /// Serialised CeremonyResult.
    pub(super) result: String,
}

/// The folder of an evaluator.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    seal: Seal,
}

impl Files {
    pub(super) fn new(folder: &Path, seal: Seal) -> Self {
        Self { folder: folder.to_owned(), seal }
    }

    /// The shares that this evaluator holds: at most one of each key epoch.
    pub(super) fn shares(&self) -> Result<Vec<Serving>, DirectoryError> {
        let files = self.all::<ShareFile>("share-")?;
        let unseal = |file: ShareFile| {
            let place = share_place(file.key_epoch, file.generation, file.index);
            let share = SecretKey::from_bytes(&*self.seal.unseal(&file.share, &place)?)?;
            let (key_epoch, generation) = (file.key_epoch, file.generation);
            Ok(Serving { key_epoch, generation, index: file.index, share })
        };
        files.into_iter().map(unseal).collect()
    }

    /// Erases the share of a key epoch.
    pub(super) fn erase_share(&self, key_epoch: u32) -> Result<(), DirectoryError> {
        let path = self.share_path(key_epoch);
        erase(&path).map_err(DirectoryError::file(path))
    }

    /// All ceremonies that may still conclude, or did.
    pub(super) fn ceremonies(&self) -> Result<Vec<CeremonyFile>, DirectoryError> {
        self.all("ceremony-")
    }

    fn all<T: for<'de> Deserialize<'de>>(&self, prefix: &str) -> Result<Vec<T>, DirectoryError> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(DirectoryError::file(&self.folder))? {
            let path = entry.map_err(DirectoryError::file(&self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(prefix) && name.ends_with(".toml") {
                found.extend(read::<T>(&path)?);
            }
        }
        Ok(found)
    }

    pub(super) fn ceremony(&self, id: &[u8; 32]) -> Result<Option<CeremonyFile>, DirectoryError> {
        read(&self.ceremony_path(&hex::encode(id)))
    }

    /// Begins a ceremony with a new secret.
    pub(super) fn begin(
        &self,
        id: &[u8; 32],
        plan: &[u8],
        (key_epoch, generation): (u32, u32),
        entropy: &dyn Entropy,
    ) -> Result<CeremonyFile, DirectoryError> {
        if self.ceremonies()?.len() >= MAX_OPEN {
            return Err(DirectoryError::Ceremonies);
        }
        let secret = Secret::random(entropy).to_bytes();
        let file = CeremonyFile {
            id: hex::encode(id),
            plan: hex::encode(plan),
            key_epoch,
            generation,
            secret: self.seal.seal(&secret, &secret_place(&hex::encode(id)), entropy)?,
            dealt: None,
            concluded: None,
            in_force: false,
        };
        self.keep(&file)?;
        Ok(file)
    }

    pub(super) fn secret(&self, file: &CeremonyFile) -> Result<Secret, DirectoryError> {
        Ok(Secret::from_bytes(*self.seal.unseal(&file.secret, &secret_place(&file.id))?))
    }

    /// Seals the share that a ceremony gives this evaluator.
    pub(super) fn conclude(
        &self,
        file: &mut CeremonyFile,
        index: u32,
        share: &SecretKey,
        result: &[u8],
        entropy: &dyn Entropy,
    ) -> Result<(), DirectoryError> {
        let place = share_place(file.key_epoch, file.generation, index);
        let share = self.seal.seal(&share.to_bytes(), &place, entropy)?;
        file.concluded = Some(ConcludedFile { index, share, result: hex::encode(result) });
        self.keep(file)
    }

    pub(super) fn keep(&self, file: &CeremonyFile) -> Result<(), DirectoryError> {
        write(&self.ceremony_path(&file.id), file)
    }

    pub(super) fn forget(&self, file: &CeremonyFile) -> Result<(), DirectoryError> {
        let path = self.ceremony_path(&file.id);
        erase(&path).map_err(DirectoryError::file(path))
    }

    /// Puts a ceremony's share in the place of its key epoch's before, which is erased.
    /// Finished by whoever starts again, if it breaks off.
    pub(super) fn put_in_force(&self, file: &mut CeremonyFile) -> Result<(), DirectoryError> {
        let Some(concluded) = file.concluded.clone() else { return Ok(()) };
        if !file.in_force {
            file.in_force = true;
            self.keep(file)?;
        }
        self.erase_share(file.key_epoch)?;
        let share = ShareFile {
            key_epoch: file.key_epoch,
            generation: file.generation,
            index: concluded.index,
            share: concluded.share,
        };
        write(&self.share_path(file.key_epoch), &share)?;
        self.forget(file)
    }

    fn share_path(&self, key_epoch: u32) -> PathBuf {
        self.folder.join(format!("share-{key_epoch}.toml"))
    }

    fn ceremony_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("ceremony-{id}.toml"))
    }
}

fn share_place(key_epoch: u32, generation: u32, index: u32) -> Vec<u8> {
    format!("chancery share v1 {key_epoch} {generation} {index}").into_bytes()
}

fn secret_place(id: &str) -> Vec<u8> {
    format!("chancery ceremony secret v1 {id}").into_bytes()
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, DirectoryError> {
    let wrong = || DirectoryError::Content { path: path.to_owned(), expected: "an evaluator's file" };
    let Some(text) = read_private(path)? else { return Ok(None) };
    let text = std::str::from_utf8(&text).map_err(|_| wrong())?;
    toml::from_str(text).map(Some).map_err(|_| wrong())
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), DirectoryError> {
    let expected = "an evaluator's file";
    let text =
        toml::to_string(value).map_err(|_| DirectoryError::Content { path: path.to_owned(), expected })?;
    write_private(path, &[text.as_bytes()])
}
