//! The chain of keys in one epoch of a cell. K₀ is random and reaches the residents as the epoch's first
//! message; each broadcast takes one key off the chain. Whoever holds the chain after
//! broadcast i, agent or device, cannot open broadcast i any more.

use super::{BroadcastError, ContentKey};
use aes_gcm::aead::AeadInPlace as _;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, Tag};
use chancery_directory_core::manifest::SignedManifest;
use chancery_types::{ChannelId, Entropy};
use hkdf::Hkdf;
use sha2::Sha256;
use std::fmt;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, ZeroizeOnDrop};

/// Length of a wrap in bytes: the epoch, the wrapped key, the tag.
pub const WRAP_LENGTH: usize = 8 + 32 + 16;
/// A key wraps once, so its nonce may be fixed.
const NONCE: [u8; 12] = [0; 12];

/// A content key for one cell: `u64 epoch ‖ AES-256-GCM(content key)`.
pub type Wrap = [u8; WRAP_LENGTH];

/// The keys of an epoch from one broadcast on.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Chain {
    #[zeroize(skip)]
    epoch: u64,
    #[zeroize(skip)]
    next: u64,
    key: [u8; 32],
}

impl Chain {
    /// The chain of `epoch` whose first key is for the broadcast of sequence `first`.
    pub const fn new(epoch: u64, first: u64, key: [u8; 32]) -> Self {
        Self { epoch, next: first, key }
    }

    /// A new chain.
    pub fn random(epoch: u64, first: u64, entropy: &dyn Entropy) -> Self {
        Self::new(epoch, first, entropy.array())
    }

    /// The cell's epoch.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Sequence of the broadcast that the next key is for.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// The next key.
    pub const fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Passes over a broadcast that has not come: gives the chain that it alone needs.
    ///
    /// # Errors
    /// [`BroadcastError::WrongPlace`]: there is no next sequence.
    pub fn skip(&mut self) -> Result<Self, BroadcastError> {
        let passed = self.clone();
        self.advance()?;
        Ok(passed)
    }

    fn advance(&mut self) -> Result<(), BroadcastError> {
        let after = self.next.checked_add(1).ok_or(BroadcastError::WrongPlace)?;
        let mut following = expand(&self.key, &[b"chancery broadcast next"])?;
        std::mem::swap(&mut self.key, &mut following);
        following.zeroize();
        self.next = after;
        Ok(())
    }

    /// Takes the key for a broadcast off the chain: from here on the chain does not have it.
    ///
    /// # Errors
    /// [`BroadcastError::WrongPlace`]: the manifest is not of the next sequence.
    pub fn take(&mut self, manifest: &SignedManifest) -> Result<WrapKey, BroadcastError> {
        let said = manifest.manifest();
        if said.sequence != self.next {
            return Err(BroadcastError::WrongPlace);
        }
        let key = expand(&self.key, &[b"chancery broadcast wrap", &manifest.hash()])?;
        self.advance()?;
        Ok(WrapKey {
            key,
            epoch: self.epoch,
            channel: said.channel,
            sequence: said.sequence,
            commitment: said.key_commitment,
        })
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain(epoch {}, next {})", self.epoch, self.next)
    }
}

/// Wraps and opens the content key of one broadcast in one cell.
#[derive(Clone, ZeroizeOnDrop)]
pub struct WrapKey {
    key: [u8; 32],
    #[zeroize(skip)]
    epoch: u64,
    #[zeroize(skip)]
    channel: ChannelId,
    #[zeroize(skip)]
    sequence: u64,
    #[zeroize(skip)]
    commitment: [u8; 32],
}

impl WrapKey {
    /// Wraps the broadcast's content key. The key is spent.
    ///
    /// # Errors
    /// [`BroadcastError::WrongKey`]: the manifest commits to another one.
    pub fn wrap(self, content_key: &ContentKey) -> Result<Wrap, BroadcastError> {
        self.check(content_key)?;
        let mut wrap = [0; WRAP_LENGTH];
        let (epoch, sealed) = wrap.split_at_mut(8);
        let (key, end) = sealed.split_at_mut(32);
        epoch.copy_from_slice(&self.epoch.to_be_bytes());
        key.copy_from_slice(content_key.as_bytes());
        let tag = self.cipher().encrypt_in_place_detached(Nonce::from_slice(&NONCE), &self.data(), key);
        end.copy_from_slice(&tag.map_err(|_| BroadcastError::WrongKey)?);
        Ok(wrap)
    }

    /// Opens a wrap.
    ///
    /// # Errors
    /// [`BroadcastError::WrapDoesNotOpen`], or [`BroadcastError::WrongKey`].
    pub fn open(&self, wrap: &Wrap) -> Result<ContentKey, BroadcastError> {
        let (epoch, sealed) = wrap.split_at(8);
        let (sealed, tag) = sealed.split_at(32);
        if epoch != self.epoch.to_be_bytes() {
            return Err(BroadcastError::WrapDoesNotOpen);
        }
        let mut content_key = ContentKey([0; 32]);
        content_key.0.copy_from_slice(sealed);
        self.cipher()
            .decrypt_in_place_detached(
                Nonce::from_slice(&NONCE),
                &self.data(),
                &mut content_key.0,
                Tag::from_slice(tag),
            )
            .map_err(|_| BroadcastError::WrapDoesNotOpen)?;
        self.check(&content_key)?;
        Ok(content_key)
    }

    /// As a program has it that does not look at what the manifest commits to.
    #[cfg(test)]
    pub(super) fn committing_to(&self, other: &ContentKey) -> Self {
        Self { commitment: other.commitment(), ..self.clone() }
    }

    fn check(&self, content_key: &ContentKey) -> Result<(), BroadcastError> {
        let same: bool = content_key.commitment().ct_eq(&self.commitment).into();
        if same { Ok(()) } else { Err(BroadcastError::WrongKey) }
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new((&self.key).into())
    }

    /// Channel, sequence and epoch, as associated data.
    fn data(&self) -> [u8; 32] {
        let mut data = [0; 32];
        let (channel, rest) = data.split_at_mut(16);
        let (sequence, epoch) = rest.split_at_mut(8);
        channel.copy_from_slice(self.channel.as_bytes());
        sequence.copy_from_slice(&self.sequence.to_be_bytes());
        epoch.copy_from_slice(&self.epoch.to_be_bytes());
        data
    }
}

impl fmt::Debug for WrapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrapKey")
    }
}

/// HKDF-Expand (RFC 5869 §2.3) to 32 bytes.
fn expand(key: &[u8; 32], info: &[&[u8]]) -> Result<[u8; 32], BroadcastError> {
    let mut expanded = [0; 32];
    let chain = Hkdf::<Sha256>::from_prk(key).map_err(|_| BroadcastError::Internal)?;
    chain.expand_multi_info(info, &mut expanded).map_err(|_| BroadcastError::Internal)?;
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_directory_core::SigningKey;
    use chancery_directory_core::manifest::{Manifest, NONE};
    use chancery_types::entropy::SeededEntropy;
    use chancery_types::{BlobId, Timestamp};
    use proptest::prelude::*;

    fn manifest(sequence: u64, content_key: &ContentKey) -> SignedManifest {
        let manifest = Manifest {
            channel: ChannelId::from_bytes([3; 16]),
            sequence,
            previous_hash: if sequence == 1 { NONE } else { [1; 32] },
            blob: BlobId::from_bytes([7; 32]),
            blob_size: 1_000,
            key_commitment: content_key.commitment(),
            category: 1,
            emergency: false,
            created_at: Timestamp::from_millis(1),
            expires_at: Timestamp::from_millis(2),
            about: None,
        };
        manifest.sign(&SigningKey::from_bytes(&[1; 32])).try_into().unwrap()
    }

    proptest! {
        #[test]
        fn both_ends_go_along_the_chain_and_cannot_go_back(first in 1_u64..1_000, count in 1_u64..20, seed: u64) {
            let entropy = SeededEntropy::new(seed);
            let mut agent = Chain::random(5, first, &entropy);
            let mut device = agent.clone();
            for sequence in first..first + count {
                let content_key = ContentKey::random(&entropy);
                let manifest = manifest(sequence, &content_key);
                let wrap = agent.take(&manifest).unwrap().wrap(&content_key).unwrap();
                let before = device.clone();
                prop_assert_eq!(device.take(&manifest).unwrap().open(&wrap), Ok(content_key.clone()));
                prop_assert_eq!(device.key(), agent.key());
                // Neither end has the key any more.
                prop_assert!(before.key() != device.key());
                prop_assert_eq!(device.clone().take(&manifest).unwrap_err(), BroadcastError::WrongPlace);
                let mut turned_back = Chain::new(5, sequence, *device.key());
                let opened = turned_back.take(&manifest).unwrap().open(&wrap);
                prop_assert_eq!(opened, Err(BroadcastError::WrapDoesNotOpen));
            }
        }
    }

    #[test]
    fn a_wrap_is_for_one_manifest_epoch_and_key() {
        let entropy = SeededEntropy::new(1);
        let (one, two) = (ContentKey::random(&entropy), ContentKey::random(&entropy));
        let chain = Chain::random(5, 1, &entropy);
        let manifest_of = |key: &ContentKey| manifest(1, key);
        let key = |chain: &Chain, manifest: &SignedManifest| chain.clone().take(manifest).unwrap();
        let wrap = key(&chain, &manifest_of(&one)).wrap(&one).unwrap();
        assert_eq!(key(&chain, &manifest_of(&one)).open(&wrap), Ok(one.clone()));
        // Another manifest of the sequence, another epoch, a changed byte.
        let refused = Err(BroadcastError::WrapDoesNotOpen);
        assert_eq!(key(&chain, &manifest_of(&two)).open(&wrap), refused);
        assert_eq!(key(&Chain::new(6, 1, *chain.key()), &manifest_of(&one)).open(&wrap), refused);
        for at in 0..WRAP_LENGTH {
            let mut changed = wrap;
            changed[at] ^= 1;
            assert_eq!(key(&chain, &manifest_of(&one)).open(&changed), refused, "byte {at}");
        }
        // An agent that wraps another key than it committed to: by itself, and by a program that does not check.
        assert_eq!(key(&chain, &manifest_of(&one)).wrap(&two), Err(BroadcastError::WrongKey));
        let honest = key(&chain, &manifest_of(&one));
        let lie = honest.committing_to(&two).wrap(&two).unwrap();
        assert_eq!(honest.open(&lie), Err(BroadcastError::WrongKey));
    }
}
