//! Records as their owners make them. Whether one may be logged is
//! [`crate::rules`]'s, the sealed part [`crate::sealed`]'s.

use crate::Error;
use crate::attestation::SignedAttestation;
use crate::keys::{self, AccountKey, Batch, Purpose, SigningKey};
use crate::sealed::MAX_SEALED;
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Handle, Timestamp};
use prost::Message as _;
use std::fmt;

/// Longest record in bytes.
pub const MAX_RECORD: usize = 8 * 1024;

/// What an owner signs.
#[derive(Clone)]
pub struct RecordDraft {
    /// The handle.
    pub handle: Handle,
    /// 1, or one more than the version that stands.
    pub version: u64,
    /// Index of the handle's previous entry; none for version 1.
    pub previous_index: Option<u64>,
    /// Who vouches for the account key.
    pub attestation: wire::SignedAttestation,
    /// For a re-enrolment: who else does.
    pub second_attestation: Option<wire::SignedAttestation>,
    /// [`crate::Address`], sealed for this handle and version; empty closes the record.
    pub sealed_part: Bytes,
    /// Whether a re-enrolment over this record takes two authorities.
    pub two_authorities: bool,
    /// When the account makes the change.
    pub changed_at: Timestamp,
}

impl RecordDraft {
    /// Signs as the account.
    pub fn sign(self, account: &SigningKey) -> wire::SignedRecord {
        let record = wire::Record {
            handle: self.handle.to_wire(),
            account_key: AccountKey::from(account).to_wire(),
            version: self.version,
            previous_index: self.previous_index,
            attestation: Some(self.attestation),
            closed: self.sealed_part.is_empty(),
            sealed_part: self.sealed_part,
            changed_at_ms: self.changed_at.millis(),
            second_attestation: self.second_attestation,
            two_authorities: self.two_authorities,
        }
        .encode_to_vec();
        let signature = Bytes::copy_from_slice(&keys::sign(Purpose::Record, &record, account));
        wire::SignedRecord { record: record.into(), signature }
    }
}

/// A record as received: its form holds, its signatures are not checked yet.
#[derive(Clone)]
pub struct SignedRecord {
    wire: wire::SignedRecord,
    handle: Handle,
    account_key: AccountKey,
    version: u64,
    previous_index: Option<u64>,
    attestation: SignedAttestation,
    second_attestation: Option<SignedAttestation>,
    sealed_part: Bytes,
    two_authorities: bool,
    changed_at: Timestamp,
}

impl SignedRecord {
    /// The handle it claims.
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The account key it claims.
    pub const fn account_key(&self) -> &AccountKey {
        &self.account_key
    }

    /// Its version, from 1.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Index of the handle's previous entry.
    pub const fn previous_index(&self) -> Option<u64> {
        self.previous_index
    }

    /// Who vouches for the account key, unchecked.
    pub const fn attestation(&self) -> &SignedAttestation {
        &self.attestation
    }

    /// Who else does, unchecked; another authority.
    pub const fn second_attestation(&self) -> Option<&SignedAttestation> {
        self.second_attestation.as_ref()
    }

    /// Whether its owner left.
    pub fn is_closed(&self) -> bool {
        self.sealed_part.is_empty()
    }

    /// Whether a re-enrolment over it takes two authorities.
    pub const fn two_authorities(&self) -> bool {
        self.two_authorities
    }

    /// The sealed part; empty in a closed record.
    pub const fn sealed_part(&self) -> &Bytes {
        &self.sealed_part
    }

    /// When the account says it made the change.
    pub const fn changed_at(&self) -> Timestamp {
        self.changed_at
    }

    /// As received.
    pub const fn wire(&self) -> &wire::SignedRecord {
        &self.wire
    }

    /// Has a batch check that its own account key signed it.
    pub(crate) fn checked_by(&self, batch: &mut Batch) {
        batch.add(&self.account_key, Purpose::Record, &self.wire.record, &self.wire.signature);
    }

    /// Whether the record's own account key signed it.
    pub(crate) fn is_signed(&self) -> bool {
        self.account_key.verifies(Purpose::Record, &self.wire.record, &self.wire.signature)
    }
}

impl TryFrom<wire::SignedRecord> for SignedRecord {
    type Error = Error;

    fn try_from(signed: wire::SignedRecord) -> Result<Self, Error> {
        if signed.record.len() > MAX_RECORD {
            return Err(Error::TooLarge("a record has at most 8 KiB"));
        }
        if signed.signature.len() != keys::SIGNATURE_LENGTH {
            return Err(Error::Field("a record's signature has not 64 bytes"));
        }
        let record = wire::Record::decode(signed.record.clone())
            .map_err(|_| Error::Field("a record does not parse"))?;
        if record.sealed_part.len() > MAX_SEALED {
            return Err(Error::TooLarge("a sealed part has at most 4 KiB"));
        }
        if record.version == 0 {
            return Err(Error::Field("versions of records count from 1"));
        }
        if record.closed != record.sealed_part.is_empty() {
            return Err(Error::Field("a closed record has no sealed part, and no other goes without"));
        }
        let attestation: SignedAttestation =
            record.attestation.ok_or(Error::Field("a record has no attestation"))?.try_into()?;
        let second_attestation = record.second_attestation.map(SignedAttestation::try_from).transpose()?;
        let (handle, account_key) =
            (Handle::try_from(&record.handle)?, AccountKey::try_from(record.account_key.as_ref())?);
        for claim in [Some(&attestation), second_attestation.as_ref()].into_iter().flatten() {
            if claim.claim().handle != handle || claim.claim().account_key != account_key {
                return Err(Error::Record("the attestation names another handle or account key"));
            }
        }
        if let Some(second) = &second_attestation
            && (second.claim().authority == attestation.claim().authority
                || second.claim().scheme != attestation.claim().scheme)
        {
            return Err(Error::Record("a second attestation is by another authority, for the same scheme"));
        }
        Ok(Self {
            handle,
            account_key,
            version: record.version,
            previous_index: record.previous_index,
            attestation,
            second_attestation,
            sealed_part: record.sealed_part,
            two_authorities: record.two_authorities,
            changed_at: Timestamp::from_millis(record.changed_at_ms),
            wire: signed,
        })
    }
}

impl fmt::Debug for SignedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedRecord(version {})", self.version)
    }
}

#[cfg(test)]
mod tests;
