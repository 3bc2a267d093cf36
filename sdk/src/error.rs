//! What can go wrong at an endpoint, and which refusal it becomes. Nothing here
//! names a person, an alias or content.

use crate::credential::CredentialError;
use crate::store::StoreError;
use chancery_types::{Reason, Refusal};

/// Why an operation of an endpoint failed.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The endpoint's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// MLS failed where only our own state is concerned.
    #[error("MLS could not {0}")]
    Mls(&'static str),
    /// A KeyPackage does not lead back to the record of its alias.
    #[error("a KeyPackage of the recipient is false: {0}")]
    FalseKeyPackage(&'static str),
    /// A credential that came with a KeyPackage does not hold.
    #[error("a KeyPackage of the recipient is false: {0}")]
    FalseCredential(#[from] CredentialError),
    /// The recipient's devices share no cipher suite with this endpoint, or
    /// there are no KeyPackages.
    #[error("the recipient has no usable KeyPackage")]
    NoKeyPackage,
    /// The request id was used with another content.
    #[error("the request id was used with another content")]
    RequestIdReused,
    /// There is no such thread, or it was given up.
    #[error("the thread is unknown or closed")]
    ThreadUnknown,
    /// What the caller gave breaks a limit.
    #[error("{0}")]
    Invalid(&'static str),
    /// The endpoint has no alias yet, or it is a linked device and cannot do this.
    #[error("{0}")]
    NotPossible(&'static str),
    /// Somebody else said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<rusqlite::Error> for EndpointError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl EndpointError {
    /// For `map_err` at a call into MLS: keeps the step, logs the cause, which
    /// holds no secrets and no content.
    pub(crate) fn mls<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| {
            tracing::debug!(step, %error, "endpoint.mls.fail");
            Self::Mls(step)
        }
    }
}

impl From<EndpointError> for Refusal {
    fn from(error: EndpointError) -> Self {
        let message = error.to_string();
        let reason = match error {
            EndpointError::Refused(refusal) => return refusal,
            EndpointError::Store(_) | EndpointError::Mls(_) => Reason::Internal,
            EndpointError::FalseKeyPackage(_) | EndpointError::FalseCredential(_) => Reason::FalseKeyPackage,
            EndpointError::NoKeyPackage => Reason::NoKeyPackage,
            EndpointError::RequestIdReused => Reason::RequestIdReused,
            EndpointError::ThreadUnknown => Reason::ThreadUnknown,
            EndpointError::Invalid(_) => Reason::InvalidField,
            EndpointError::NotPossible(_) => Reason::Unsupported,
        };
        Self::new(reason, message)
    }
}
