//! How a party starts as a process of its own: whom it believes, who it is,
//! where it keeps its things, where it listens. What it then serves is its room's.

use crate::tls::files::{CSR, IdentityFolder};
use crate::tls::{Credentials, TlsError, enrol};
use chancery_pki_core::bundle::MAX_BUNDLE;
use chancery_pki_core::profile::{CheckedCsr, ProfileError};
use chancery_pki_core::{BundleError, FederationBundle};
use chancery_types::Clock;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A party cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PartyError {
    /// A file or folder.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The federation's bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It has no certificate yet.
    #[error("{0}: no certificate request in that folder: enrol first")]
    NotEnrolled(PathBuf),
    /// Its certificate request does not hold.
    #[error(transparent)]
    Request(#[from] ProfileError),
    /// The address cannot be listened on.
    #[error("{address}: {error}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
}

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// It cannot be read as text, or is longer.
pub fn read_text(path: &Path, most: usize) -> Result<String, PartyError> {
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?.take(most as u64 + 1).read_to_string(&mut text)?;
        if text.len() > most { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
    };
    read().map_err(|error| PartyError::File { path: path.to_owned(), error })
}

/// Pin of the key that a party enrolled with: SHA-256 of its SubjectPublicKeyInfo.
///
/// # Errors
/// There is no certificate request in the folder, or it does not hold.
pub fn key_pin(identity: &Path) -> Result<[u8; 32], PartyError> {
    let request = IdentityFolder::new(identity).read(CSR)?;
    let request = request.ok_or_else(|| PartyError::NotEnrolled(identity.to_owned()))?;
    Ok(*CheckedCsr::check(&request)?.key_pin())
}

/// Reads the federation's bundle, which every party is given at installation.
///
/// # Errors
/// It cannot be read or does not hold.
pub fn read_bundle(path: &Path) -> Result<FederationBundle, PartyError> {
    Ok(FederationBundle::from_toml(&read_text(path, MAX_BUNDLE)?)?)
}

/// Makes a folder that only its owner enters (mode 0700), parents included;
/// one that is there stays as it is.
///
/// # Errors
/// The system says no.
pub fn make_folder(path: &Path) -> Result<(), PartyError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| PartyError::File { path: path.to_owned(), error })
}

/// Opens a party's certificate and keeps it until `shutdown`: renewed in time
/// at the enrolment service `pki` (host:port), its revocation lists fetched,
/// and loaded again whenever its files change.
///
/// # Errors
/// The party has not enrolled, or its certificate does not hold now.
pub fn keep_identity(
    folder: &Path,
    bundle: &FederationBundle,
    pki: String,
    clock: Arc<dyn Clock>,
    shutdown: &CancellationToken,
) -> Result<Arc<Credentials>, PartyError> {
    let credentials = Credentials::open(IdentityFolder::new(folder), bundle.anchors().clone(), clock)?;
    tokio::spawn(Arc::clone(&credentials).watch(shutdown.clone()));
    tokio::spawn(enrol::keep_renewed(pki, Arc::clone(&credentials), shutdown.clone()));
    Ok(credentials)
}

/// Binds an address and says so in one line on standard output, `listening on
/// ADDRESS`, for whoever started the process and waits. Port 0 takes any.
///
/// # Errors
/// The address is taken or not ours.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, PartyError> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| PartyError::Listen { address, error })?;
    let bound = listener.local_addr().unwrap_or(address);
    // That nobody reads it is no reason not to serve.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "listening on {bound}").and_then(|()| out.flush());
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_have_a_limit_and_folders_a_mode() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("a/b");
        make_folder(&folder).unwrap();
        make_folder(&folder).unwrap();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let file = folder.join("text");
        assert!(matches!(read_text(&file, 3), Err(PartyError::File { .. })));
        std::fs::write(&file, "abc").unwrap();
        assert_eq!(read_text(&file, 3).unwrap(), "abc");
        assert!(matches!(read_text(&file, 2), Err(PartyError::File { .. })));
        std::fs::write(&file, [0xff]).unwrap();
        assert!(matches!(read_text(&file, 3), Err(PartyError::File { .. })));
        std::fs::write(&file, " ".repeat(MAX_BUNDLE + 1)).unwrap();
        assert!(matches!(read_bundle(&file), Err(PartyError::File { .. })));
        std::fs::write(&file, "federation = 'x'").unwrap();
        assert!(matches!(read_bundle(&file), Err(PartyError::Bundle(_))));
    }

    #[tokio::test]
    async fn an_address_is_taken_once() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let again = listen(listener.local_addr().unwrap()).await;
        assert!(matches!(again, Err(PartyError::Listen { .. })));
    }
}
