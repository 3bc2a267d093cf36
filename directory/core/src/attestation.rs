//! An enrolment authority's word: made, and checked against the log's authorities.

use crate::Error;
use crate::keys::{self, AccountKey, AuthorityKey, Batch, Purpose, SigningKey};
use crate::state::FederationState;
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Handle, NodeId, Scheme, Timestamp};
use prost::Message as _;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Longest attestation in bytes.
pub const MAX_ATTESTATION: usize = 1024;
/// An attestation that its authority did not sign.
pub(crate) const WRONG_SIGNATURE: Error = Error::Record("the attestation's signature is wrong");
/// How far an authority's clock may run ahead of ours.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Name of an identifier scheme, for example `be-nn`. The log may name schemes
/// that this build does not know.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchemeName(Arc<str>);

impl SchemeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Scheme> for SchemeName {
    fn from(scheme: Scheme) -> Self {
        Self(scheme.as_str().into())
    }
}

impl FromStr for SchemeName {
    type Err = Error;

    /// The form of a [`NodeId`].
    fn from_str(name: &str) -> Result<Self, Error> {
        let name: NodeId =
            name.parse().map_err(|_| Error::Field("a scheme has 1 to 63 characters a-z, 0-9 or '-'"))?;
        Ok(Self(name.as_str().into()))
    }
}

impl fmt::Display for SchemeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SchemeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// That somebody showed the authority the identifier behind a handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// Who says so.
    pub authority: NodeId,
    /// Scheme of the identifier that was checked.
    pub scheme: SchemeName,
    /// The handle.
    pub handle: Handle,
    /// May speak for the handle.
    pub account_key: AccountKey,
    /// Key epoch under which the handle was made.
    pub key_epoch: u32,
    /// When the authority checked.
    pub issued_at: Timestamp,
    /// Until when a record may be put with it.
    pub expires_at: Timestamp,
}

impl Attestation {
    /// Signs as the authority.
    pub fn sign(&self, key: &SigningKey) -> wire::SignedAttestation {
        let attestation = wire::Attestation {
            authority: self.authority.to_string(),
            scheme: self.scheme.to_string(),
            handle: self.handle.to_wire(),
            account_key: self.account_key.to_wire(),
            key_epoch: self.key_epoch,
            issued_at_ms: self.issued_at.millis(),
            expires_at_ms: self.expires_at.millis(),
        }
        .encode_to_vec();
        let signature = keys::sign(Purpose::Attestation, &attestation, key);
        wire::SignedAttestation {
            attestation: attestation.into(),
            signature: Bytes::copy_from_slice(&signature),
        }
    }
}

impl Attestation {
    /// Refuses one that is expired or from the future at `at`.
    pub(crate) fn current(&self, at: Timestamp) -> Result<(), Error> {
        if at >= self.expires_at || self.issued_at > at.after(CLOCK_SKEW) {
            return Err(Error::AttestationExpired);
        }
        Ok(())
    }
}

impl TryFrom<wire::Attestation> for Attestation {
    type Error = Error;

    fn try_from(attestation: wire::Attestation) -> Result<Self, Error> {
        Ok(Self {
            authority: attestation.authority.parse()?,
            scheme: attestation.scheme.parse()?,
            handle: Handle::try_from(&attestation.handle)?,
            account_key: AccountKey::try_from(attestation.account_key.as_ref())?,
            key_epoch: attestation.key_epoch,
            issued_at: Timestamp::from_millis(attestation.issued_at_ms),
            expires_at: Timestamp::from_millis(attestation.expires_at_ms),
        })
    }
}

/// An attestation as received; its signature is not checked yet.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedAttestation {
    content: Attestation,
    bytes: Bytes,
    signature: Bytes,
}

impl SignedAttestation {
    /// What it claims.
    pub const fn claim(&self) -> &Attestation {
        &self.content
    }

    /// Checks that an authority that was admitted for the scheme at a time signed
    /// it and that it is for a key epoch whose handles are evaluated.
    ///
    /// # Errors
    /// Authority unknown or not admitted then, wrong signature, another key epoch.
    pub fn verify(
        &self,
        federation: &FederationState,
        at: Timestamp,
    ) -> Result<VerifiedAttestation<'_>, Error> {
        let key = self.authority(federation, at)?;
        if !self.is_signed_by(key) {
            return Err(WRONG_SIGNATURE);
        }
        Ok(VerifiedAttestation(&self.content))
    }

    /// Key of the authority, if it was admitted for the scheme at a time and the
    /// attestation is for a key epoch whose handles are evaluated.
    pub(crate) fn authority<'f>(
        &self,
        federation: &'f FederationState,
        at: Timestamp,
    ) -> Result<&'f AuthorityKey, Error> {
        let claim = &self.content;
        if !federation.key_epochs().any(|epoch| epoch.key_epoch == claim.key_epoch) {
            return Err(Error::WrongKeyEpoch);
        }
        let authority = federation.authority(&claim.authority, at);
        let authority = authority.filter(|authority| authority.schemes.contains(&claim.scheme));
        Ok(&authority.ok_or(Error::AuthorityNotAdmitted)?.key)
    }

    /// Whether this key signed it.
    pub(crate) fn is_signed_by(&self, key: &AuthorityKey) -> bool {
        key.verifies(Purpose::Attestation, &self.bytes, &self.signature)
    }

    /// Has a batch check the same.
    pub(crate) fn checked_by(&self, batch: &mut Batch, key: &AuthorityKey) {
        batch.add(key, Purpose::Attestation, &self.bytes, &self.signature);
    }
}

impl TryFrom<wire::SignedAttestation> for SignedAttestation {
    type Error = Error;

    fn try_from(signed: wire::SignedAttestation) -> Result<Self, Error> {
        if signed.attestation.len() > MAX_ATTESTATION {
            return Err(Error::TooLarge("an attestation has at most 1 KiB"));
        }
        if signed.signature.len() != keys::SIGNATURE_LENGTH {
            return Err(Error::Field("an attestation's signature has not 64 bytes"));
        }
        let content = wire::Attestation::decode(signed.attestation.as_ref())
            .map_err(|_| Error::Field("an attestation does not parse"))?;
        Ok(Self { content: content.try_into()?, bytes: signed.attestation, signature: signed.signature })
    }
}

impl fmt::Debug for SignedAttestation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignedAttestation")
    }
}

/// An attestation by an authority admitted for its scheme.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedAttestation<'a>(&'a Attestation);

impl VerifiedAttestation<'_> {
    /// Refuses one that is expired or from the future at `at`.
    ///
    /// # Errors
    /// [`Error::AttestationExpired`].
    pub fn current(self, at: Timestamp) -> Result<Self, Error> {
        self.0.current(at)?;
        Ok(self)
    }

    /// What the authority vouches for.
    pub const fn attestation(&self) -> &Attestation {
        self.0
    }
}
