//! What can go wrong with attachments: how a file is described, its sealing
//! and keeping, its way to and from a node.

use chancery_types::{Reason, Refusal};

/// A file is not described as it should be. The caller's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Empty, over 255 bytes, or with path separators or control characters.
    #[error("a file name has 1 to 255 bytes and no path separators or control characters")]
    Name,
    /// Not `type/subtype` in at most 127 characters.
    #[error("a media type is type/subtype in at most 127 characters")]
    MediaType,
    /// Over 1024 bytes.
    #[error("a description has at most 1024 bytes")]
    Description,
}

impl From<FileError> for Refusal {
    fn from(error: FileError) -> Self {
        Self::field(error.to_string())
    }
}

/// Sealing, opening or keeping a blob failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentError {
    /// Larger than a blob may be.
    #[error("an attachment has at most 100 MiB minus 16 bytes")]
    TooLarge,
    /// The blob has not the size that the letter states.
    #[error("the blob has another size than its letter states")]
    WrongSize,
    /// The blob does not hash to its id.
    #[error("the blob does not hash to its id")]
    WrongHash,
    /// The letter's key does not open the blob.
    #[error("the blob does not open with the letter's key")]
    DoesNotOpen,
    /// No room in the spool.
    #[error("the spool is full")]
    Full,
    /// The same blob is being written at this moment.
    #[error("the blob is being written by another task")]
    Busy,
    /// The blob is not in the spool.
    #[error("the blob is not in the spool")]
    Missing,
    /// The disk.
    #[error("a file cannot be read or written")]
    Io(#[from] std::io::Error),
}

impl From<AttachmentError> for Refusal {
    fn from(error: AttachmentError) -> Self {
        let reason = match error {
            AttachmentError::TooLarge => Reason::TooLarge,
            AttachmentError::WrongSize | AttachmentError::WrongHash => Reason::BlobMismatch,
            AttachmentError::DoesNotOpen => Reason::CannotOpen,
            AttachmentError::Full | AttachmentError::Busy => Reason::Overloaded,
            AttachmentError::Missing => Reason::AttachmentUnknown,
            AttachmentError::Io(_) => Reason::Internal,
        };
        Self::new(reason, error.to_string())
    }
}

/// An upload or download failed. What has arrived so far is kept: the same
/// call goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The connection was cut or stood still, and going on did not help.
    #[error("the node cannot be reached")]
    Cut(#[source] Refusal),
    /// The node said no.
    #[error("the node refused the blob")]
    Refused(#[source] Refusal),
    /// The node answered what the protocol forbids.
    #[error("the node broke the protocol: {0}")]
    Misbehaved(&'static str),
    /// On our side of it.
    #[error(transparent)]
    Local(#[from] AttachmentError),
}

impl From<TransferError> for Refusal {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Cut(refusal) | TransferError::Refused(refusal) => refusal,
            TransferError::Misbehaved(_) => Self::new(Reason::PeerMisbehaved, error.to_string()),
            TransferError::Local(error) => error.into(),
        }
    }
}
