//! The directory's words and decisions, without I/O: pseudonymous handles,
//! records and their attestations, governance, the log's entries, checkpoints
//! and proofs. Whoever asks the directory verifies its answers with
//! [`client`] and [`lookup`]; the directory itself decides with [`rules`] and [`state`].
//!
//! Messages of the contract become domain types here, and verifying consumes
//! one type and returns another.

pub mod attestation;
pub mod ceremony;
pub mod channel;
pub mod channels;
pub mod client;
pub mod enrolment;
pub mod entry;
pub mod error;
pub mod evaluators;
pub mod governance;
pub mod handle;
pub mod keys;
pub mod lookup;
pub mod manifest;
pub mod map;
pub mod merkle;
pub mod note;
pub mod operation;
pub mod oprf;
mod padding;
mod possession;
pub mod prefix;
pub mod record;
pub mod replay;
pub mod rules;
pub mod sealed;
pub mod state;
pub mod statement;
pub mod threshold;
pub mod totals;

#[cfg(test)]
mod testing;

pub use client::Trust;
pub use error::Error;
pub use evaluators::{EvaluatorEpoch, EvaluatorShare};
pub use governance::GovernanceKeys;
pub use handle::{Blinded, RecordKey};
pub use keys::{AccountKey, AgentKey, AuthorityKey, CredentialKey, EvaluatorKey, GovernanceKey, SigningKey};
pub use lookup::{VerifiedLookup, VerifiedRecord};
pub use note::VerifiedCheckpoint;
pub use prefix::Prefix;
pub use sealed::Address;
pub use state::FederationState;
