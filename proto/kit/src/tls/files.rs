//! The folder a party keeps its identity in, and how its files are read and
//! written: private to their owner, replaced whole or not at all.
//!
//! | file | holds |
//! | --- | --- |
//! | `key.pem` | private key, PKCS#8; never leaves |
//! | `csr.der` | certificate request for the key, as sent |
//! | `chain.pem` | leaf, then issuing CA |
//! | `crls.pem` | the federation's revocation lists |

use super::TlsError;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use zeroize::Zeroizing;

/// Largest file, bytes: revocation lists of 1 MiB in PEM fit.
const MAX_FILE: u64 = 2 * 1024 * 1024;

/// The private key, PKCS#8, PEM.
pub const KEY: &str = "key.pem";
/// The certificate request, PKCS#10, DER.
pub const CSR: &str = "csr.der";
/// The chain, leaf first, PEM.
pub const CHAIN: &str = "chain.pem";
/// Revocation lists, PEM.
pub const CRLS: &str = "crls.pem";

/// A party's identity folder.
#[derive(Clone, Debug)]
pub struct IdentityFolder(PathBuf);

impl IdentityFolder {
    /// The folder at `path`; it need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Creates it with mode 0700, parents included.
    ///
    /// # Errors
    /// The system says no.
    pub fn create(&self) -> Result<(), TlsError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(|error| TlsError::File { file: "identity folder", error })
    }

    /// Reads a file of at most 2 MiB; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read, or is larger.
    pub fn read(&self, file: &'static str) -> Result<Option<Zeroizing<Vec<u8>>>, TlsError> {
        self.open(file)?.map(|opened| read_all(opened, file)).transpose()
    }

    /// Reads a file only if none but its owner may.
    ///
    /// # Errors
    /// [`TlsError::Exposed`], or as [`IdentityFolder::read`].
    pub fn read_private(&self, file: &'static str) -> Result<Option<Zeroizing<Vec<u8>>>, TlsError> {
        let Some(opened) = self.open(file)? else { return Ok(None) };
        let mode = opened.metadata().map_err(|error| TlsError::File { file, error })?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(TlsError::Exposed(file));
        }
        read_all(opened, file).map(Some)
    }

    /// Replaces a file, mode 0600: after a crash it is the old or the new one, whole.
    ///
    /// # Errors
    /// The system says no.
    pub fn replace(&self, file: &'static str, content: &[u8]) -> Result<(), TlsError> {
        replace(&self.0.join(file), content).map_err(|error| TlsError::File { file, error })
    }

    /// When the files of the identity last changed; differs when one was replaced.
    pub(super) fn stamp(&self) -> [Option<(SystemTime, u64)>; 3] {
        [KEY, CHAIN, CRLS].map(|file| {
            let metadata = std::fs::metadata(self.0.join(file)).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }

    fn open(&self, file: &'static str) -> Result<Option<File>, TlsError> {
        match File::open(self.0.join(file)) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(TlsError::File { file, error }),
        }
    }
}

/// Replaces the file at `path` durably, mode 0600.
///
/// # Errors
/// The system says no; the old file is still there then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let new = folder.join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    // One that a crash left behind keeps its mode.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

/// Overwrites the file at `path` with zeroes, flushes, and removes it; one that
/// is not there is fine. What a file system or disk keeps of it elsewhere is
/// out of reach: secrets in files are sealed as well.
///
/// # Errors
/// The system says no.
pub fn erase(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    file.write_all(&vec![0; length.min(2 * 1024 * 1024)])?;
    file.sync_all()?;
    std::fs::remove_file(path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn read_all(opened: File, file: &'static str) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let length = opened.metadata().map_or(0, |metadata| metadata.len());
    if length > MAX_FILE {
        return Err(TlsError::Content(file));
    }
    // Room for all of it at once: growing would leave copies of a key behind.
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1));
    opened.take(MAX_FILE).read_to_end(&mut content).map_err(|error| TlsError::File { file, error })?;
    Ok(content)
}
