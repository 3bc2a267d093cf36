//! An evaluator's secrets at rest: AES-256-GCM under a key that lies elsewhere,
//! for example a credential that systemd passes from a TPM. A copy of the
//! evaluator's folder alone gives no share.

use crate::DirectoryError;
use crate::keyfile::{self, Role};
use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use chancery_types::Entropy;
use std::fmt;
use std::path::Path;
use zeroize::Zeroizing;

const NONCE_LENGTH: usize = 12;

/// Seals and opens.
pub(super) struct Seal(Zeroizing<[u8; 32]>);

impl Seal {
    /// With the key in the file at `path`, made first when there is none.
    pub(super) fn open(path: &Path, entropy: &dyn Entropy) -> Result<Self, DirectoryError> {
        Ok(Self(keyfile::load_or_create(path, Role::Seal, entropy)?))
    }

    /// Seals 32 bytes for one place, in hexadecimal.
    pub(super) fn seal(
        &self,
        secret: &[u8; 32],
        place: &[u8],
        entropy: &dyn Entropy,
    ) -> Result<String, DirectoryError> {
        let nonce = entropy.array::<NONCE_LENGTH>();
        let payload = Payload { msg: secret, aad: place };
        let sealed = self.cipher().encrypt(&nonce.into(), payload).map_err(|_| DirectoryError::Seal)?;
        Ok(hex::encode([nonce.as_slice(), &sealed].concat()))
    }

    /// Opens what [`Seal::seal`] made for that place.
    pub(super) fn unseal(&self, sealed: &str, place: &[u8]) -> Result<Zeroizing<[u8; 32]>, DirectoryError> {
        let sealed = hex::decode(sealed).map_err(|_| DirectoryError::Seal)?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LENGTH>().ok_or(DirectoryError::Seal)?;
        let opened = self.cipher().decrypt(nonce.into(), Payload { msg: sealed, aad: place });
        let opened = Zeroizing::new(opened.map_err(|_| DirectoryError::Seal)?);
        Ok(Zeroizing::new(opened.as_slice().try_into().map_err(|_| DirectoryError::Seal)?))
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new((&*self.0).into())
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn opens_in_its_place_under_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let entropy = SeededEntropy::new(1);
        let seal = Seal::open(&folder.path().join("seal.key"), &entropy).unwrap();
        let sealed = seal.seal(&[7; 32], b"here", &entropy).unwrap();
        assert!(!sealed.contains(&hex::encode([7; 32])));
        assert_eq!(*seal.unseal(&sealed, b"here").unwrap(), [7; 32]);
        assert!(seal.unseal(&sealed, b"there").is_err());
        assert!(seal.unseal("00", b"here").is_err());
        let other = Seal::open(&folder.path().join("other.key"), &entropy).unwrap();
        assert!(other.unseal(&sealed, b"here").is_err());
    }
}
