//! Files that go with a letter: sealed at the endpoint, stored at nodes as
//! blobs that are named by the hash of their ciphertext, opened at the other
//! endpoint. What a letter says about a file is [`ExternalFile`]; ciphertext
//! waits in a [`Spool`] on its way out and in; [`upload`] and [`download`] move
//! it. Keys stay in the letter: neither the spool nor a node has them.

mod error;
mod file;
mod seal;
mod spool;
mod transfer;

pub use error::{AttachmentError, FileError, TransferError};
pub use file::{BlobUrl, ExternalFile, NotABlobUrl, NotOurFile};
pub use seal::{FileKey, Seal, SealedBlob, open, open_file, seal, seal_file};
pub use spool::{PartFile, Spool};
pub use transfer::{Progress, Resume, download, upload};

/// Largest blob in bytes (chancery.node.v1, `WriteBlobRequest.size`).
pub const MAX_BLOB: u64 = 100 * 1024 * 1024;

/// Bytes that sealing adds: the tag of AES-GCM.
pub const OVERHEAD: u64 = 16;
