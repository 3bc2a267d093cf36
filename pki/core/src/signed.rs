//! Statements that a party signs with the key of its certificate, for those who know the key by its
//! pin alone: they need no certificate of that day.

use crate::chain::ChainError;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use sha2::{Digest as _, Sha256};
use webpki::RawPublicKeyEntity;
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

/// Checks a signature (ECDSA P-256 with SHA-256, ASN.1) by the key that `pin` names.
///
/// # Errors
/// [`ChainError::WrongParty`]: it is another key; [`ChainError::BadSignature`]: the key did not sign
/// this; [`ChainError::Malformed`]: it is none.
pub fn verify_signed(pin: &[u8; 32], key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), ChainError> {
    if Sha256::digest(key).as_slice() != pin {
        return Err(ChainError::WrongParty);
    }
    let key = SubjectPublicKeyInfoDer::from(key);
    let key = RawPublicKeyEntity::try_from(&key).map_err(|_| ChainError::Malformed)?;
    key.verify_signature(ECDSA_P256_SHA256, message, signature).map_err(|_| ChainError::BadSignature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

    #[test]
    fn only_the_pinned_keys_word_counts() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (public, theirs) = (key.subject_public_key_info(), other.subject_public_key_info());
        let pin = Sha256::digest(&public).into();
        let signature = key.sign(b"what it is: this").unwrap();
        assert_eq!(verify_signed(&pin, &public, b"what it is: this", &signature), Ok(()));
        assert_eq!(
            verify_signed(&pin, &public, b"what it is: that", &signature),
            Err(ChainError::BadSignature)
        );
        assert_eq!(
            verify_signed(&pin, &theirs, b"what it is: this", &signature),
            Err(ChainError::WrongParty)
        );
        let forged = other.sign(b"what it is: this").unwrap();
        assert_eq!(verify_signed(&pin, &public, b"what it is: this", &forged), Err(ChainError::BadSignature));
        let nothing = Sha256::digest(b"").into();
        assert_eq!(verify_signed(&nothing, b"", b"", b""), Err(ChainError::Malformed));
    }
}
