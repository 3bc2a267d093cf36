//! TLS of the mesh: 1.3 only, hybrid key exchange preferred, mutual where a
//! certificate is shown, live reload, the peer's SPIFFE id checked on both sides. What makes a chain
//! hold is `chancery_pki_core`'s matter.
//!
//! - [`Credentials`]: own identity, roots and revocation lists, replaced while running.
//! - [`incoming`]: connections for `tonic`'s server, each with a [`ConnectionInfo`].
//! - [`connect`]: channels for `tonic`'s clients.
//! - [`enrol`]: how a party gets its certificate and keeps it renewed.

mod client;
mod credentials;
pub mod enrol;
pub mod files;
mod provider;
mod server;
mod verifier;

pub use client::{ExporterHandle, cause, connect, connect_lazy, connect_pinned};
pub use credentials::{Credentials, Identity};
pub use server::{
    AlreadyBound, ConnectionInfo, Counters, Figures, Incoming, Limits, Session, TlsConn, incoming,
};

use chancery_pki_core::ChainError;
use chancery_types::{Reason, Refusal};

/// Label of the TLS exporter (RFC 8446, section 7.5) that binds a device's
/// proof of possession to its connection; without context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-chancery-device";

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the identity folder cannot be read or written.
    #[error("{file}: {error}")]
    File {
        /// Its name within the folder.
        file: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// A private file can be read by others than its owner.
    #[error("{0} must be readable by its owner alone (mode 0600)")]
    Exposed(&'static str),
    /// A file of the identity folder does not hold what it should.
    #[error("{0} does not hold what it should")]
    Content(&'static str),
    /// The private key is not the one of the certificate.
    #[error("key.pem does not belong to chain.pem")]
    KeyMismatch,
    /// A certificate, ours or the peer's, does not hold.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A server needs a certificate, and there is none.
    #[error("no certificate to serve with")]
    NoIdentity,
    /// An endpoint is not `host:port`.
    #[error("an endpoint is host:port")]
    Endpoint,
    /// Nothing answers at the endpoint.
    #[error("cannot connect: {0}")]
    Unreachable(std::io::ErrorKind),
    /// Whoever answers holds another key than the log pins.
    #[error("the peer's key is not the one that the log pins")]
    WrongKey,
    /// Whoever answers does not speak our TLS, or refused us.
    #[error("the TLS handshake failed")]
    Handshake(#[source] std::io::Error),
    /// The TLS library refused its configuration.
    #[error("TLS configuration: {0}")]
    Library(#[from] rustls::Error),
}

impl From<TlsError> for Refusal {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Chain(error) => error.into(),
            TlsError::Endpoint => Self::field(error.to_string()),
            TlsError::WrongKey => Self::new(Reason::WrongNodeKey, error.to_string()),
            TlsError::Unreachable(_) => Self::new(Reason::PeerUnreachable, "nothing answers at the endpoint"),
            TlsError::Handshake(_) => Self::new(Reason::PeerUnreachable, "the TLS handshake failed"),
            error => {
                tracing::error!(%error, "tls");
                Self::new(Reason::Internal, "TLS could not be set up")
            }
        }
    }
}

#[cfg(test)]
mod tests;
