//! The content of a broadcast as nodes store it: one blob under the content key, padded so that
//! its size says little about the text.

use super::{BroadcastError, ContentKey};
use aes_gcm::aead::AeadInPlace as _;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, Tag};
use chancery_directory_core::manifest::{MAX_BLOB, Manifest};
use chancery_types::{BlobId, ChannelId};
use sha2::{Digest as _, Sha256};

/// The key is of this blob alone, so the nonce may be fixed.
const NONCE: [u8; 12] = [0; 12];
const TAG: usize = 16;
/// Contents are padded to a multiple of this many bytes.
const BLOCK: usize = 1_024;

/// A sealed content.
pub struct SealedContent {
    /// SHA-256 of the bytes.
    pub id: BlobId,
    /// What nodes store.
    pub bytes: Vec<u8>,
}

/// Seals the content of a broadcast: `AES-256-GCM(content key, u32 length ‖ content ‖ zeroes)` up to
/// the next multiple of 1,024 bytes, then the tag.
///
/// # Errors
/// [`BroadcastError::TooLarge`].
pub fn seal(
    content: &[u8],
    key: &ContentKey,
    channel: &ChannelId,
    sequence: u64,
) -> Result<SealedContent, BroadcastError> {
    let length = u32::try_from(content.len()).map_err(|_| BroadcastError::TooLarge)?;
    let padded = (4 + content.len()).next_multiple_of(BLOCK);
    if (padded + TAG) as u64 > MAX_BLOB {
        return Err(BroadcastError::TooLarge);
    }
    let mut bytes = Vec::with_capacity(padded + TAG);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(content);
    bytes.resize(padded, 0);
    let tag = cipher(key)
        .encrypt_in_place_detached(Nonce::from_slice(&NONCE), &data(channel, sequence), &mut bytes)
        .map_err(|_| BroadcastError::TooLarge)?;
    bytes.extend_from_slice(&tag);
    Ok(SealedContent { id: BlobId::from_bytes(Sha256::digest(&bytes).into()), bytes })
}

/// Opens the content that a manifest names.
///
/// # Errors
/// [`BroadcastError::WrongBlob`], [`BroadcastError::DoesNotOpen`].
pub fn open(mut bytes: Vec<u8>, key: &ContentKey, manifest: &Manifest) -> Result<Vec<u8>, BroadcastError> {
    if bytes.len() as u64 != manifest.blob_size
        || BlobId::from_bytes(Sha256::digest(&bytes).into()) != manifest.blob
    {
        return Err(BroadcastError::WrongBlob);
    }
    let end = bytes.len().checked_sub(TAG).ok_or(BroadcastError::DoesNotOpen)?;
    let tag = *Tag::from_slice(bytes.get(end..).unwrap_or_default());
    bytes.truncate(end);
    cipher(key)
        .decrypt_in_place_detached(
            Nonce::from_slice(&NONCE),
            &data(&manifest.channel, manifest.sequence),
            &mut bytes,
            &tag,
        )
        .map_err(|_| BroadcastError::DoesNotOpen)?;
    let (length, rest) = bytes.split_first_chunk().ok_or(BroadcastError::DoesNotOpen)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (content, padding) = rest.split_at_checked(length).ok_or(BroadcastError::DoesNotOpen)?;
    if !bytes.len().is_multiple_of(BLOCK) || padding.len() >= BLOCK || padding.iter().any(|byte| *byte != 0) {
        return Err(BroadcastError::DoesNotOpen);
    }
    Ok(content.to_vec())
}

fn cipher(key: &ContentKey) -> Aes256Gcm {
    Aes256Gcm::new(key.as_bytes().into())
}

/// Channel and sequence, as associated data.
fn data(channel: &ChannelId, sequence: u64) -> [u8; 24] {
    let mut data = [0; 24];
    let (head, rest) = data.split_at_mut(16);
    head.copy_from_slice(channel.as_bytes());
    rest.copy_from_slice(&sequence.to_be_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::Timestamp;
    use chancery_types::entropy::SeededEntropy;
    use proptest::prelude::*;

    fn manifest(sealed: &SealedContent, key: &ContentKey) -> Manifest {
        Manifest {
            channel: ChannelId::from_bytes([3; 16]),
            sequence: 2,
            previous_hash: [1; 32],
            blob: sealed.id,
            blob_size: sealed.bytes.len() as u64,
            key_commitment: key.commitment(),
            category: 1,
            emergency: false,
            created_at: Timestamp::from_millis(1),
            expires_at: Timestamp::from_millis(2),
            about: None,
        }
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_and_its_size_says_little(content: Vec<u8>, more in 0_usize..3_000) {
            let mut content = content;
            content.resize(content.len() + more, 5);
            let key = ContentKey::random(&SeededEntropy::new(1));
            let sealed = seal(&content, &key, &ChannelId::from_bytes([3; 16]), 2).unwrap();
            prop_assert_eq!((sealed.bytes.len() - TAG) % BLOCK, 0);
            let manifest = manifest(&sealed, &key);
            prop_assert_eq!(open(sealed.bytes, &key, &manifest), Ok(content));
        }
    }

    #[test]
    fn nothing_else_opens() {
        let key = ContentKey::random(&SeededEntropy::new(1));
        let channel = ChannelId::from_bytes([3; 16]);
        let sealed = seal(b"flood at the river", &key, &channel, 2).unwrap();
        let genuine = manifest(&sealed, &key);
        let stranger = ContentKey::from_bytes([9; 32]);
        assert_eq!(open(sealed.bytes.clone(), &stranger, &genuine), Err(BroadcastError::DoesNotOpen));
        let elsewhere = Manifest { sequence: 3, ..genuine.clone() };
        assert_eq!(open(sealed.bytes.clone(), &key, &elsewhere), Err(BroadcastError::DoesNotOpen));
        let mut changed = sealed.bytes.clone();
        changed[0] ^= 1;
        assert_eq!(open(changed, &key, &genuine), Err(BroadcastError::WrongBlob));
        let short = Manifest { blob_size: genuine.blob_size - 1, ..genuine };
        assert_eq!(open(sealed.bytes, &key, &short), Err(BroadcastError::WrongBlob));
        // An agent that pads in another way says more by the size than it may.
        let mut bytes = vec![0; 2 * BLOCK];
        bytes[3] = 1;
        let tag = cipher(&key)
            .encrypt_in_place_detached(Nonce::from_slice(&NONCE), &data(&channel, 2), &mut bytes)
            .unwrap();
        bytes.extend_from_slice(&tag);
        let id = BlobId::from_bytes(Sha256::digest(&bytes).into());
        let odd = SealedContent { id, bytes };
        let manifest = manifest(&odd, &key);
        assert_eq!(open(odd.bytes, &key, &manifest), Err(BroadcastError::DoesNotOpen));
        let large = vec![0; usize::try_from(MAX_BLOB).unwrap()];
        assert_eq!(seal(&large, &key, &channel, 1).err(), Some(BroadcastError::TooLarge));
    }
}
