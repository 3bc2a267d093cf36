//! Records: made by their owners, judged by the directory's rules, committed
//! to in the log. The sealed part is [`crate::sealed`]'s.

use crate::Error;
use crate::attestation::SignedAttestation;
use crate::entry::{RecordChange, SALT_LENGTH};
use crate::keys::{self, AccountKey, Purpose, SigningKey};
use crate::sealed::MAX_SEALED;
use crate::state::FederationState;
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
    /// [`crate::Address`], sealed for this handle and version.
    pub sealed_part: Bytes,
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
            sealed_part: self.sealed_part,
            changed_at_ms: self.changed_at.millis(),
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
    sealed_part: Bytes,
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

    /// The sealed part.
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
        let attestation: SignedAttestation =
            record.attestation.ok_or(Error::Field("a record has no attestation"))?.try_into()?;
        let (handle, account_key) =
            (Handle::try_from(&record.handle)?, AccountKey::try_from(record.account_key.as_ref())?);
        if attestation.claim().handle != handle || attestation.claim().account_key != account_key {
            return Err(Error::Record("the attestation names another handle or account key"));
        }
        Ok(Self {
            handle,
            account_key,
            version: record.version,
            previous_index: record.previous_index,
            attestation,
            sealed_part: record.sealed_part,
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

/// The record that stands for a handle.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Index of its entry.
    pub index: u64,
    /// The record.
    pub record: SignedRecord,
}

/// A record that may be logged: only [`judge`] makes one.
#[derive(Clone, Debug)]
pub struct AcceptedRecord(SignedRecord);

impl AcceptedRecord {
    /// The record.
    pub const fn record(&self) -> &SignedRecord {
        &self.0
    }

    /// The record, now standing at `index`.
    pub fn standing_at(self, index: u64) -> Standing {
        Standing { index, record: self.0 }
    }

    /// The entry that commits to it.
    pub fn change(&self, salt: &[u8; SALT_LENGTH]) -> RecordChange {
        RecordChange::new(&self.0.handle, self.0.previous_index, salt, &self.0.wire)
    }
}

/// The directory's rules. A first record has version 1, no previous index and
/// a current attestation. A change is the next version after the one that
/// stands, names its entry, keeps its account key and is signed by it; an
/// attestation other than the one that stands must be current. (An account key
/// is replaced by re-enrolment, never by a change: senders, who see one
/// version, could not tell who signed it.)
///
/// # Errors
/// Which rule is broken.
pub fn judge(
    record: SignedRecord,
    standing: Option<&Standing>,
    federation: &FederationState,
    now: Timestamp,
) -> Result<AcceptedRecord, Error> {
    let next = match standing {
        Some(s) => (s.record.version.checked_add(1), Some(s.index)),
        None => (Some(1), None),
    };
    if (Some(record.version), record.previous_index) != next {
        return Err(Error::VersionConflict);
    }
    if let Some(standing) = standing {
        if standing.record.handle != record.handle {
            return Err(Error::Internal("a record was judged against another handle's"));
        }
        if standing.record.account_key != record.account_key {
            return Err(Error::Record("a change does not replace the account key"));
        }
    }
    if !record.is_signed() {
        return Err(Error::Record("the record's signature is wrong"));
    }
    if standing.is_none_or(|s| s.record.attestation != record.attestation) {
        record.attestation.verify(federation)?.current(now)?;
    }
    Ok(AcceptedRecord(record))
}

#[cfg(test)]
mod tests;
