//! What can be wrong with content: with a peer's ([`ContentError`]) and with
//! what our own side wants to write ([`ComposeError`]).

use crate::attachment::FileError;
use chancery_types::{Reason, Refusal};

/// Something is larger than its limit, or a multipart has fewer than 2 parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} outside the limits")]
pub struct OverLimit(
    /// What.
    pub &'static str,
);

/// A message that came in is not what the draft says. The sender's fault:
/// content is end-to-end encrypted, so nobody in between could change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// Larger than a limit.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// Not one well-formed CBOR item (RFC 8949, appendix C), or bytes follow it.
    #[error("not one well-formed CBOR item")]
    Malformed,
    /// Well-formed, but not in the deterministic encoding (RFC 8949, section 4.2.1).
    #[error("CBOR that is not deterministic")]
    NotDeterministic,
    /// Deterministic CBOR of another shape than the draft's appendix A.
    #[error("not MIMI content: {0}")]
    Shape(&'static str),
    /// A read receipt without, with too many, or with malformed ids.
    #[error("a read receipt is malformed")]
    ReadReceipt,
    /// A succession that names no thread, no group, or half a head.
    #[error("a succession is malformed")]
    Succession,
    /// Sender or room of the message are not those of the thread it came in.
    #[error("the message names another sender or room than its thread's")]
    WrongOrigin,
}

impl From<ContentError> for Refusal {
    fn from(error: ContentError) -> Self {
        Self::new(Reason::InvalidMessage, error.to_string())
    }
}

/// A letter cannot be written as asked. The caller's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// Larger than a limit.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// Neither text nor attachments.
    #[error("a letter has text or attachments")]
    Empty,
    /// Not a language tag of at most 35 characters (RFC 5646, section 4.4.1).
    #[error("the language is not a BCP 47 tag of at most 35 characters")]
    Language,
    /// An attachment's name or media type.
    #[error(transparent)]
    File(#[from] FileError),
    /// A read receipt without ids.
    #[error("a read receipt names at least one message")]
    NoMessages,
}

impl From<ComposeError> for Refusal {
    fn from(error: ComposeError) -> Self {
        match error {
            ComposeError::OverLimit(_) => Self::new(Reason::TooLarge, error.to_string()),
            ComposeError::File(error) => error.into(),
            _ => Self::field(error.to_string()),
        }
    }
}
