//! The sealed part of a record: where a handle's mailbox is. AES-256-GCM under
//! the record key, bound to handle and version, padded to hide lengths.

use crate::keys::CredentialKey;
use crate::padding::padded;
use crate::{Error, RecordKey};
use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Alias, Entropy, Handle, NodeId};
use prost::Message as _;
use zeroize::Zeroizing;

/// Longest sealed part in bytes, nonce and tag included.
pub const MAX_SEALED: usize = 4 * 1024;
/// Sealed parts are padded to a multiple of this many bytes: one fits any name of a node.
const BLOCK: usize = 128;
const NONCE_LENGTH: usize = 12;

/// Where letters for a handle go, and who vouches for the devices there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Id of the home node.
    pub node: NodeId,
    /// Mailbox at that node.
    pub alias: Alias,
    /// Signs the account's device credentials.
    pub credential_key: CredentialKey,
}

impl Address {
    /// Seals for one version of one handle's record.
    ///
    /// # Errors
    /// Never: the plaintext is short.
    pub fn seal(
        &self,
        key: &RecordKey,
        handle: &Handle,
        version: u64,
        entropy: &dyn Entropy,
    ) -> Result<Bytes, Error> {
        let part = wire::SealedPart {
            node: self.node.to_string(),
            alias: self.alias.to_wire(),
            credential_key: self.credential_key.to_wire(),
            padding: Bytes::new(),
        };
        let plaintext = Zeroizing::new(padded(part, BLOCK, |part, zeroes| part.padding = zeroes));
        let nonce = entropy.array::<NONCE_LENGTH>();
        let aad = associated_data(handle, version);
        let sealed = cipher(key)
            .encrypt(&nonce.into(), Payload { msg: &plaintext, aad: &aad })
            .map_err(|_| Error::Internal("a record's sealed part cannot be sealed"))?;
        Ok([nonce.as_slice(), &sealed].concat().into())
    }

    /// Opens the sealed part of one version of one handle's record.
    ///
    /// # Errors
    /// [`Error::CannotOpen`] under another key, handle or version;
    /// [`Error::Record`] when the owner sealed something else.
    pub fn open(sealed: &[u8], key: &RecordKey, handle: &Handle, version: u64) -> Result<Self, Error> {
        if sealed.len() > MAX_SEALED {
            return Err(Error::TooLarge("a sealed part has at most 4 KiB"));
        }
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LENGTH>().ok_or(Error::CannotOpen)?;
        let aad = associated_data(handle, version);
        let plaintext = cipher(key)
            .decrypt(nonce.into(), Payload { msg: ciphertext, aad: &aad })
            .map_err(|_| Error::CannotOpen)?;
        let plaintext = Zeroizing::new(plaintext);
        let part = wire::SealedPart::decode(plaintext.as_slice())
            .map_err(|_| Error::Record("a record's sealed part does not parse"))?;
        if !plaintext.len().is_multiple_of(BLOCK) || part.padding.iter().any(|b| *b != 0) {
            return Err(Error::Record("a record's sealed part is not padded as it must be"));
        }
        Ok(Self {
            node: part.node.parse()?,
            alias: Alias::try_from(&part.alias)?,
            credential_key: CredentialKey::try_from(part.credential_key.as_ref())?,
        })
    }
}

fn cipher(key: &RecordKey) -> Aes256Gcm {
    Aes256Gcm::new(key.as_bytes().into())
}

/// handle ‖ u64 version, big-endian.
fn associated_data(handle: &Handle, version: u64) -> Vec<u8> {
    [handle.as_bytes().as_slice(), &version.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;
    use chancery_types::entropy::SeededEntropy;

    fn address(node: &str) -> Address {
        let entropy = SeededEntropy::new(1);
        Address {
            node: node.parse().unwrap(),
            alias: Alias::random(&entropy),
            credential_key: (&keys::generate(&entropy)).into(),
        }
    }

    #[test]
    fn opens_for_its_handle_version_and_key_alone() {
        let entropy = SeededEntropy::new(2);
        let (key, handle) = (RecordKey::from_bytes([1; 32]), Handle::from_bytes([2; 32]));
        let address = address("federal");
        let sealed = address.seal(&key, &handle, 3, &entropy).unwrap();
        assert_eq!(Address::open(&sealed, &key, &handle, 3).unwrap(), address);
        assert_eq!(Address::open(&sealed, &key, &handle, 4), Err(Error::CannotOpen));
        let other = RecordKey::from_bytes([9; 32]);
        assert_eq!(Address::open(&sealed, &other, &handle, 3), Err(Error::CannotOpen));
        let other = Handle::from_bytes([9; 32]);
        assert_eq!(Address::open(&sealed, &key, &other, 3), Err(Error::CannotOpen));
        assert_eq!(Address::open(&sealed[..11], &key, &handle, 3), Err(Error::CannotOpen));
        let large = vec![0; MAX_SEALED + 1];
        assert!(matches!(Address::open(&large, &key, &handle, 3), Err(Error::TooLarge(_))));
    }

    #[test]
    fn lengths_tell_nothing() {
        let entropy = SeededEntropy::new(3);
        let (key, handle) = (RecordKey::from_bytes([1; 32]), Handle::from_bytes([2; 32]));
        for length in 1..=63 {
            let sealed = address(&"n".repeat(length)).seal(&key, &handle, 1, &entropy).unwrap();
            assert_eq!(sealed.len(), NONCE_LENGTH + BLOCK + 16, "{length}");
        }
    }
}
