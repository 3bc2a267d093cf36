//! Names, certificate profiles, chain and revocation checks of the
//! federation's PKI. No I/O: files, sockets and databases are the shells'.
//!
//! - [`spiffe`]: who a certificate names.
//! - [`profile`]: what the federation's CAs issue.
//! - [`chain`]: the one check that makes a [`VerifiedPeer`] of a chain.
//! - [`verify_signed`]: what a party said outside of TLS.
//! - [`armour`]: the PEM text of all that.
//! - [`bundle`]: what every party is given at installation.

pub mod armour;
pub mod bundle;
pub mod chain;
pub mod profile;
mod signed;
pub mod spiffe;

pub use bundle::{BundleError, FederationBundle};
pub use chain::{ChainError, Crls, TrustAnchors, Usage, VerifiedPeer, verify};
pub use profile::{CheckedCsr, LeafNames, ProfileError, Serial, Validity};
pub use signed::verify_signed;
pub use spiffe::{Federation, Party, SpiffeError, SpiffeId};
