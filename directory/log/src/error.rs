//! Why the log says no.

use chancery_directory_core as core;
use chancery_kit::store::StoreError;
use chancery_types::{Reason, Refusal};

/// The log cannot be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored log contradicts its own signed head: nothing is served.
    #[error("the stored log is damaged: {0}")]
    Damaged(&'static str),
    /// A checkpoint cannot be signed or an entry is too long.
    #[error(transparent)]
    Core(#[from] core::Error),
    /// No such entry or tree.
    #[error("{0}")]
    Range(&'static str),
}

impl From<sqlx::Error> for LogError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<LogError> for Refusal {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Store(error) => error.into(),
            LogError::Core(error) => error.into(),
            LogError::Range(message) => Self::field(message),
            LogError::Damaged(_) => {
                tracing::error!(%error, "log");
                Self::new(Reason::Internal, "the log failed")
            }
        }
    }
}
