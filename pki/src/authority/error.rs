//! Why the authority says no, and what its callers hear of it.

use super::DAILY;
use crate::sealed::SealError;
use chancery_kit::store::StoreError;
use chancery_kit::tls::TlsError;
use chancery_pki_core::ProfileError;
use chancery_types::{Reason, Refusal};

/// Why the authority said no.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// There is no authority in the folder.
    #[error("there is no authority here; create one with `chancery pki init`")]
    NotInitialised,
    /// There is an authority in the folder.
    #[error("there is an authority here already")]
    AlreadyInitialised,
    /// The passphrase is wrong.
    #[error("the passphrase is wrong, or the sealed root key was changed")]
    Passphrase,
    /// A file of the folder cannot be read or written.
    #[error("{file}: {error}")]
    File {
        /// Its name.
        file: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file or row does not hold what it should.
    #[error("{0} does not hold what it should")]
    Content(&'static str),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A request or certificate.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The own identity.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The join token is unknown or has expired.
    #[error("the join token is unknown or has expired; ask the operator for a new one")]
    TokenInvalid,
    /// The join token was spent by another request.
    #[error("the join token was spent by another certificate request")]
    TokenSpent,
    /// The caller's certificate was not issued here.
    #[error("the certificate was not issued by this authority")]
    Unknown,
    /// The caller's certificate is revoked.
    #[error("the certificate is revoked")]
    Revoked,
    /// A node asked for a certificate of another key.
    #[error("a node's next certificate is for its pinned key")]
    WrongNodeKey,
    /// Too many certificates for one party in a day.
    #[error("a party gets at most {DAILY} certificates a day")]
    TooMany,
}

impl From<sqlx::Error> for AuthorityError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<SealError> for AuthorityError {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Passphrase => Self::Passphrase,
            SealError::Form => Self::Content("root.key.sealed"),
        }
    }
}

impl From<AuthorityError> for Refusal {
    fn from(error: AuthorityError) -> Self {
        let reason = match error {
            AuthorityError::Store(error) => return error.into(),
            AuthorityError::Profile(error) => return error.into(),
            AuthorityError::Tls(error) => return error.into(),
            AuthorityError::TokenInvalid => Reason::JoinTokenInvalid,
            AuthorityError::TokenSpent => Reason::JoinTokenSpent,
            AuthorityError::Unknown | AuthorityError::Revoked => Reason::WrongCertificate,
            AuthorityError::WrongNodeKey => Reason::WrongNodeKey,
            AuthorityError::TooMany => Reason::QuotaExceeded,
            AuthorityError::NotInitialised
            | AuthorityError::AlreadyInitialised
            | AuthorityError::Passphrase
            | AuthorityError::File { .. }
            | AuthorityError::Content(_) => {
                tracing::error!(%error, "authority");
                return Self::new(Reason::Internal, "the authority could not do it");
            }
        };
        Self::new(reason, error.to_string())
    }
}

pub(super) fn file_error(file: &str, error: std::io::Error) -> AuthorityError {
    AuthorityError::File { file: file.to_owned(), error }
}
