//! Manifests: what is known in public about a broadcast. Whether one may be logged is
//! [`crate::channels`]'s; whoever is handed a broadcast verifies that it was.

use crate::channel::LAST_CATEGORY;
use crate::entry::{Entry, Event, Leaf};
use crate::keys::{self, AgentKey, Purpose, SigningKey};
use crate::statement::array;
use crate::{Error, Trust, VerifiedCheckpoint, merkle};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_proto::federation::v1::Urgency;
use chancery_types::{BlobId, ChannelId, Timestamp};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::time::Duration;

/// Longest manifest in bytes.
pub const MAX_MANIFEST: usize = 1_024;
/// Largest blob in bytes.
pub const MAX_BLOB: u64 = 64 * 1024 * 1024;
/// Longest that a broadcast may be handed out.
pub const MAX_LIFE: Duration = Duration::from_hours(400 * 24);
/// Stands for the manifest before the first.
pub const NONE: [u8; 32] = [0; 32];

/// What is known in public about a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The channel.
    pub channel: ChannelId,
    /// 1, then one more with each broadcast of the channel.
    pub sequence: u64,
    /// [`SignedManifest::hash`] of the one before; [`NONE`] in the first.
    pub previous_hash: [u8; 32],
    /// SHA-256 of the encrypted content.
    pub blob: BlobId,
    /// Its size in bytes.
    pub blob_size: u64,
    /// SHA-256("chancery content key" ‖ content key).
    pub key_commitment: [u8; 32],
    /// Coarse category, 0 to 7.
    pub category: u32,
    /// Whether it is an emergency.
    pub emergency: bool,
    /// When the agent made it.
    pub created_at: Timestamp,
    /// When it is handed out no more.
    pub expires_at: Timestamp,
    /// An earlier broadcast that it is about.
    pub about: Option<About>,
}

/// What a broadcast does to an earlier one, by that one's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Takes its place.
    Corrects(u64),
    /// It is to be disregarded.
    Recalls(u64),
}

impl Manifest {
    /// Signs as the agent that speaks on the channel.
    pub fn sign(&self, key: &SigningKey) -> wire::SignedManifest {
        let manifest = Bytes::from(wire::Manifest::from(self).encode_to_vec());
        let signature = Bytes::copy_from_slice(&keys::sign(Purpose::Manifest, &manifest, key));
        wire::SignedManifest { manifest, signature }
    }
}

/// SHA-256("chancery content key" ‖ content key): AES-GCM alone lets one blob open as two texts.
pub fn key_commitment(content_key: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update("chancery content key").chain_update(content_key).finalize().into()
}

/// SHA-256("chancery manifest" ‖ manifest as signed): by it the next one names it.
pub fn hash(manifest: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update("chancery manifest").chain_update(manifest).finalize().into()
}

/// A manifest as received: its form holds, its signature is not checked yet.
#[derive(Clone)]
pub struct SignedManifest {
    manifest: Manifest,
    wire: wire::SignedManifest,
}

impl SignedManifest {
    /// What was signed.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// As received.
    pub const fn wire(&self) -> &wire::SignedManifest {
        &self.wire
    }

    /// SHA-256("chancery manifest" ‖ manifest as signed).
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.wire.manifest)
    }

    /// Whether this agent signed it.
    pub fn is_signed_by(&self, key: &AgentKey) -> bool {
        key.verifies(Purpose::Manifest, &self.wire.manifest, &self.wire.signature)
    }
}

impl std::fmt::Debug for SignedManifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignedManifest({})", self.manifest.sequence)
    }
}

impl TryFrom<wire::SignedManifest> for SignedManifest {
    type Error = Error;

    fn try_from(signed: wire::SignedManifest) -> Result<Self, Error> {
        if signed.manifest.len() > MAX_MANIFEST {
            return Err(Error::TooLarge("a manifest has at most 1 KiB"));
        }
        if signed.signature.len() != keys::SIGNATURE_LENGTH {
            return Err(Error::Field("a signature has not 64 bytes"));
        }
        let manifest = wire::Manifest::decode(signed.manifest.as_ref())
            .map_err(|_| Error::Field("a manifest does not parse"))?;
        Ok(Self { manifest: manifest.try_into()?, wire: signed })
    }
}

impl TryFrom<wire::Manifest> for Manifest {
    type Error = Error;

    fn try_from(manifest: wire::Manifest) -> Result<Self, Error> {
        let sequence = manifest.sequence;
        if sequence == 0 || sequence > i64::MAX.unsigned_abs() {
            return Err(Error::Field("broadcasts count from 1"));
        }
        if manifest.blob_size > MAX_BLOB {
            return Err(Error::TooLarge("a broadcast has at most 64 MiB"));
        }
        if manifest.category > LAST_CATEGORY {
            return Err(Error::Field("a category is 0 to 7"));
        }
        let created_at = Timestamp::from_millis(manifest.created_at_ms);
        let expires_at = Timestamp::from_millis(manifest.expires_at_ms);
        if expires_at <= created_at || expires_at > created_at.after(MAX_LIFE) {
            return Err(Error::Field("a broadcast expires within 400 days"));
        }
        let about = match manifest.about {
            None => None,
            Some(wire::manifest::About::Corrects(of)) => Some(About::Corrects(of)),
            Some(wire::manifest::About::Recalls(of)) => Some(About::Recalls(of)),
        };
        if let Some(About::Corrects(of) | About::Recalls(of)) = about
            && !(1..sequence).contains(&of)
        {
            return Err(Error::Field("a broadcast corrects or recalls an earlier one"));
        }
        let previous_hash = array(&manifest.previous_hash, "a manifest's hash has not 32 bytes")?;
        if (sequence == 1) != (previous_hash == NONE) {
            return Err(Error::Field("the first manifest alone follows none"));
        }
        Ok(Self {
            channel: array(&manifest.channel_id, "a channel id has not 16 bytes")
                .map(ChannelId::from_bytes)?,
            sequence,
            previous_hash,
            blob: array(&manifest.blob_id, "a blob id has not 32 bytes").map(BlobId::from_bytes)?,
            blob_size: manifest.blob_size,
            key_commitment: array(&manifest.key_commitment, "a key commitment has not 32 bytes")?,
            category: manifest.category,
            emergency: match Urgency::try_from(manifest.urgency) {
                Ok(Urgency::Unspecified | Urgency::Normal) => false,
                Ok(Urgency::Emergency) => true,
                Err(_) => return Err(Error::Unsupported("the broadcast's urgency is unknown to this build")),
            },
            created_at,
            expires_at,
            about,
        })
    }
}

impl From<&Manifest> for wire::Manifest {
    fn from(manifest: &Manifest) -> Self {
        let urgency = if manifest.emergency { Urgency::Emergency } else { Urgency::Normal };
        Self {
            channel_id: manifest.channel.to_wire(),
            sequence: manifest.sequence,
            previous_hash: Bytes::copy_from_slice(&manifest.previous_hash),
            blob_id: manifest.blob.to_wire(),
            blob_size: manifest.blob_size,
            key_commitment: Bytes::copy_from_slice(&manifest.key_commitment),
            category: manifest.category,
            urgency: urgency.into(),
            created_at_ms: manifest.created_at.millis(),
            expires_at_ms: manifest.expires_at.millis(),
            about: manifest.about.map(|about| match about {
                About::Corrects(of) => wire::manifest::About::Corrects(of),
                About::Recalls(of) => wire::manifest::About::Recalls(of),
            }),
        }
    }
}

/// A manifest that the log holds.
#[derive(Clone, Debug)]
pub struct VerifiedManifest {
    /// What was broadcast, under its agent's signature.
    pub signed: SignedManifest,
    /// Index of its entry.
    pub index: u64,
    /// When the directory sequenced it.
    pub sequenced_at: Timestamp,
    /// Covers the entry.
    pub checkpoint: VerifiedCheckpoint,
}

impl Trust {
    /// Verifies that the log holds a manifest, and that `agent` signed it.
    ///
    /// # Errors
    /// What does not hold.
    pub fn verify_manifest(
        &self,
        logged: wire::LoggedManifest,
        agent: &AgentKey,
    ) -> Result<VerifiedManifest, Error> {
        let manifest = logged.manifest.ok_or(Error::Field("a logged manifest is empty"))?;
        let signed = SignedManifest::try_from(manifest)?;
        if !signed.is_signed_by(agent) {
            return Err(Error::NotYourChannel(
                "the agent that speaks on the channel did not sign the manifest",
            ));
        }
        let sequenced_at = Timestamp::from_millis(logged.sequenced_at_ms);
        let leaf = Leaf::new(&Entry { sequenced_at, event: Event::Manifest(signed.wire().clone()) })?;
        let checkpoint = self.verify_checkpoint(&logged.checkpoint)?;
        checkpoint.includes(&leaf.hash(), logged.index, &logged.path)?;
        Ok(VerifiedManifest { signed, index: logged.index, sequenced_at, checkpoint })
    }
}

/// What proves to others that the log holds a manifest.
pub fn logged(
    manifest: wire::SignedManifest,
    sequenced_at: Timestamp,
    index: u64,
    path: &[merkle::Hash],
    checkpoint: &VerifiedCheckpoint,
) -> wire::LoggedManifest {
    wire::LoggedManifest {
        manifest: Some(manifest),
        sequenced_at_ms: sequenced_at.millis(),
        index,
        path: path.iter().map(|hash| Bytes::copy_from_slice(hash)).collect(),
        checkpoint: checkpoint.note().clone(),
    }
}
