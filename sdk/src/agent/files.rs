//! Outgoing attachments: sealed and brought to the home node once, however
//! many letters of a mailing carry them.

use super::uploads::{UploadId, Uploads, disk};
use crate::attachment::{ExternalFile, Resume, Seal, Spool, seal, seal_file, upload};
use crate::endpoint::Endpoint;
use chancery_proto::agent::v1 as wire;
use chancery_types::{Entropy, NodeId, Reason, Refusal, Timestamp};
use moka::future::Cache;
use sha2::{Digest as _, Sha256};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Largest attachment inside a request, in bytes.
const MAX_INLINE: usize = 1024 * 1024;
/// How long a blob stays on the node: as long as a letter may travel, and a
/// little longer than a sealed file is used again.
const BLOB_LIFE: Duration = Duration::from_mins(90 * 24 * 60 + 50);
/// How long a sealed file is used again.
const REUSE: Duration = Duration::from_mins(30);
/// Sealed files remembered.
const REMEMBERED: u64 = 1024;

/// Seals and brings attachments.
pub(super) struct Files {
    endpoint: Endpoint,
    spool: Arc<Spool>,
    uploads: Arc<Uploads>,
    entropy: Arc<dyn Entropy>,
    sealed: Cache<[u8; 32], (Seal, Timestamp)>,
}

enum Source {
    Inline(bytes::Bytes),
    Upload(PathBuf),
}

/// An attachment of a request, found and measured.
pub(super) struct Found {
    source: Source,
    /// SHA-256 of the file.
    digest: [u8; 32],
    media_type: String,
    file_name: String,
}

impl Files {
    pub(super) fn new(
        endpoint: Endpoint,
        spool: Arc<Spool>,
        uploads: Arc<Uploads>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let sealed = Cache::builder().max_capacity(REMEMBERED).time_to_live(REUSE).build();
        Self { endpoint, spool, uploads, entropy, sealed }
    }

    /// Finds an attachment's bytes.
    pub(super) fn find(&self, attachment: wire::Attachment) -> Result<Found, Refusal> {
        let (source, digest) = match attachment.source {
            Some(wire::attachment::Source::Data(data)) => {
                if data.len() > MAX_INLINE {
                    return Err(Refusal::new(Reason::TooLarge, "over 1 MiB: use PutAttachment"));
                }
                let digest = Sha256::digest(&data).into();
                (Source::Inline(data), digest)
            }
            Some(wire::attachment::Source::AttachmentId(id)) => {
                let id: UploadId = id.parse().map_err(|_| Refusal::field("attachment_id is no UUID"))?;
                let unknown =
                    || Refusal::new(Reason::AttachmentUnknown, "no such attachment, or not whole yet");
                let (digest, path) = self.uploads.find(id).ok_or_else(unknown)?;
                (Source::Upload(path), digest)
            }
            None => return Err(Refusal::field("an attachment has data or attachment_id")),
        };
        let (media_type, file_name) = (attachment.media_type, attachment.file_name);
        Ok(Found { source, digest, media_type, file_name })
    }

    /// Seals a found attachment, brings it to the node, and says how a letter
    /// names it.
    pub(super) async fn bring(&self, found: &Found) -> Result<ExternalFile, Refusal> {
        let sealing = self.sealed.try_get_with(found.digest, self.seal_and_bring(&found.source));
        let (seal, expires_at) = sealing.await.map_err(|refusal| Refusal::clone(&refusal))?;
        let node: NodeId = self.endpoint.identity().node.clone();
        let file = seal.file(node, expires_at, &found.media_type, &found.file_name);
        file.check().map_err(|error| Refusal::field(error.to_string()))?;
        Ok(file)
    }

    async fn seal_and_bring(&self, source: &Source) -> Result<(Seal, Timestamp), Refusal> {
        let (spool, entropy) = (Arc::clone(&self.spool), Arc::clone(&self.entropy));
        let sealed = match source {
            Source::Inline(data) => {
                let data = data.to_vec();
                tokio::task::spawn_blocking(move || {
                    let blob = seal(data, &*entropy)?;
                    spool.put(&blob)?;
                    Ok(blob.seal().clone())
                })
            }
            Source::Upload(path) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || seal_file(&path, &spool, &*entropy))
            }
        };
        let seal = sealed.await.map_err(|error| disk(&std::io::Error::other(error)))??;
        let expires_at = self.endpoint.now().after(BLOB_LIFE);
        let resume = Resume::new(&*self.entropy);
        let blobs = self.endpoint.node().blobs().await?;
        upload(&blobs, &self.spool, &seal.id, expires_at, &resume, &|_, _| {}).await?;
        self.spool.remove(&seal.id)?;
        Ok((seal, expires_at))
    }
}
