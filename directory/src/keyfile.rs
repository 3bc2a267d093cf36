//! Secret seeds in files of their own: mode 0600, the role written in front,
//! so that no key serves two. Nothing else reads or writes them.

use crate::DirectoryError;
use chancery_directory_core::SigningKey;
use chancery_types::Entropy;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use zeroize::Zeroizing;

/// Longest file in bytes: a ceremony with its plan and dealing fits.
const MAX_FILE: u64 = 128 * 1024;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Signs the log's checkpoints.
    Checkpoint,
    /// Opens sealed record operations.
    Operation,
    /// Signs governance statements.
    Governance,
    /// Signs an enrolment authority's attestations.
    Authority,
    /// Signs what an evaluator says in ceremonies.
    Evaluator,
    /// Seals an evaluator's secrets at rest.
    Seal,
}

impl Role {
    const fn label(self) -> &'static str {
        match self {
            Self::Checkpoint => "chancery-checkpoint-key",
            Self::Operation => "chancery-operation-key",
            Self::Governance => "chancery-governance-key",
            Self::Authority => "chancery-authority-key",
            Self::Evaluator => "chancery-evaluator-key",
            Self::Seal => "chancery-seal-key",
        }
    }
}

/// The seed in the file at `path`, made first when there is none.
///
/// # Errors
/// The file can be read by others, holds another role's key, or cannot be
/// read or written.
pub fn load_or_create(
    path: &Path,
    role: Role,
    entropy: &dyn Entropy,
) -> Result<Zeroizing<[u8; 32]>, DirectoryError> {
    if let Some(seed) = load(path, role)? {
        return Ok(seed);
    }
    let seed = Zeroizing::new(entropy.array::<32>());
    let mut text = Zeroizing::new(vec![0; 64]);
    // Never fails: the buffer has twice the length.
    let _ = hex::encode_to_slice(*seed, &mut text);
    write_private(path, &[role.label().as_bytes(), b" ", &text, b"\n"])?;
    Ok(seed)
}

/// As [`load_or_create`], as an Ed25519 key.
///
/// # Errors
/// As there.
pub fn signing_key(path: &Path, role: Role, entropy: &dyn Entropy) -> Result<SigningKey, DirectoryError> {
    Ok(SigningKey::from_bytes(&*load_or_create(path, role, entropy)?))
}

/// The seed in the file at `path`; `None` when there is no file.
///
/// # Errors
/// As [`load_or_create`].
pub fn load(path: &Path, role: Role) -> Result<Option<Zeroizing<[u8; 32]>>, DirectoryError> {
    let Some(text) = read_private(path)? else { return Ok(None) };
    let wrong = || DirectoryError::Content { path: path.to_owned(), expected: role.label() };
    let digits = text.trim_ascii().strip_prefix(role.label().as_bytes()).ok_or_else(wrong)?;
    let mut seed = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits.trim_ascii_start(), &mut *seed).map_err(|_| wrong())?;
    Ok(Some(seed))
}

/// Reads a small file that only its owner may read; `None` when there is none.
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, DirectoryError> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DirectoryError::file(path)(error)),
    };
    let mode = file.metadata().map_err(DirectoryError::file(path))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(DirectoryError::Exposed(path.to_owned()));
    }
    // Room for all of it at once: growing would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(4 * 1024));
    file.take(MAX_FILE).read_to_end(&mut text).map_err(DirectoryError::file(path))?;
    Ok(Some(text))
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, parts: &[&[u8]]) -> Result<(), DirectoryError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(DirectoryError::file(folder))?;
    }
    let content = Zeroizing::new(parts.concat());
    chancery_kit::tls::files::replace(path, &content).map_err(DirectoryError::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn keys_are_private_and_keep_to_their_role() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/governance.key");
        let entropy = SeededEntropy::new(1);
        assert!(load(&path, Role::Governance).unwrap().is_none());
        let seed = load_or_create(&path, Role::Governance, &entropy).unwrap();
        assert_eq!(load_or_create(&path, Role::Governance, &entropy).unwrap(), seed);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(load(&path, Role::Authority), Err(DirectoryError::Content { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(&path, Role::Governance), Err(DirectoryError::Exposed(_))));
    }

    #[test]
    fn garbage_is_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        for text in ["", "chancery-authority-key", "chancery-authority-key 00", "ffff"] {
            write_private(&path, &[text.as_bytes()]).unwrap();
            assert!(load(&path, Role::Authority).is_err(), "{text}");
        }
    }
}
