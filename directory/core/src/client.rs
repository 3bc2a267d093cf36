//! What those who ask the directory verify before they believe: checkpoint,
//! inclusion, governance, attestation, signature. Still no I/O; fetching is
//! the caller's. Completeness (nothing left out of a bucket) is not proven by
//! the log alone: that is the map's.

use crate::attestation::SchemeName;
use crate::ceremony::conclusion::Conclusion;
use crate::entry::{Entry, Event, Leaf, RecordChange, SALT_LENGTH};
use crate::governance::{self, GovernanceKeys};
use crate::keys::AccountKey;
use crate::note::{self, LogVerifier, VerifiedCheckpoint};
use crate::record::SignedRecord;
use crate::statement::array;
use crate::{Address, Error, FederationState, Prefix, RecordKey};
use bytes::Bytes;
use chancery_pki_core::FederationBundle;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Handle, Reason, Refusal, Timestamp};
use std::collections::BTreeMap;
use std::fmt;

/// Most records in one bucket.
pub const MAX_BUCKET: usize = 4_096;

/// What a party believes from the start: everything else is verified from it.
#[derive(Clone, Debug)]
pub struct Trust {
    federation: String,
    governance: GovernanceKeys,
    log: LogVerifier,
}

impl Trust {
    /// Trusts these governance keys and the log with this verifier key.
    ///
    /// # Errors
    /// The verifier key is not that of the federation's directory.
    pub fn new(federation: &str, governance: GovernanceKeys, directory_vkey: &str) -> Result<Self, Error> {
        let log = LogVerifier::new(directory_vkey)?;
        if log.origin() != note::origin(federation) {
            return Err(Error::Field("the directory's verifier key is another log's"));
        }
        Ok(Self { federation: federation.to_owned(), governance, log })
    }

    /// What a federation's bundle lets a party trust.
    ///
    /// # Errors
    /// The bundle does not name the directory's key, or names no governance.
    pub fn from_bundle(bundle: &FederationBundle) -> Result<Self, Error> {
        let vkey = bundle.directory_vkey();
        let vkey = vkey.ok_or(Error::Field("the federation's bundle does not name the directory's key"))?;
        Self::new(bundle.federation().as_str(), GovernanceKeys::from_bundle(bundle)?, vkey)
    }

    /// The federation's name.
    pub fn federation(&self) -> &str {
        &self.federation
    }

    /// Who decides.
    pub const fn governance(&self) -> &GovernanceKeys {
        &self.governance
    }

    /// Verifies a checkpoint by itself.
    ///
    /// # Errors
    /// [`Error::Proof`].
    pub fn verify_checkpoint(&self, checkpoint: &[u8]) -> Result<VerifiedCheckpoint, Error> {
        self.log.verify(checkpoint)
    }

    /// Verifies the statements in force: each included in the checkpoint, each
    /// under enough governance signatures. Kinds that this build does not know
    /// are left out.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn verify_statements(
        &self,
        response: wire::ListStatementsResponse,
    ) -> Result<(VerifiedCheckpoint, FederationState), Error> {
        let checkpoint = self.log.verify(&response.checkpoint)?;
        let mut state = FederationState::default();
        let mut last = None;
        for logged in response.statements {
            let inclusion = logged.inclusion.ok_or(Error::Proof("a statement comes without its proof"))?;
            if last.is_some_and(|last| inclusion.index <= last) {
                return Err(Error::Proof("statements are not in the order of the log"));
            }
            last = Some(inclusion.index);
            let leaf = Leaf::from_bytes(logged.entry)?;
            checkpoint.includes(&leaf.hash(), inclusion.index, &inclusion.path)?;
            let (federation, governors) = (self.federation.as_str(), &self.governance);
            let applied = leaf.entry().and_then(|entry| {
                match entry.event {
                    Event::Statement(statement) => {
                        let verified = governance::verify(&statement, federation, governors)?;
                        state.apply(verified, inclusion.index);
                    }
                    Event::Ceremony(concluded) => {
                        let verified = Conclusion::verify(&concluded, federation, governors)?;
                        state.conclude(verified, inclusion.index);
                    }
                    Event::RecordChange(_) | Event::EvaluationTotals(_) => {
                        return Err(Error::Proof("an entry given for a statement is none"));
                    }
                }
                Ok(())
            });
            match applied {
                Ok(()) | Err(Error::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((checkpoint, state))
    }

    /// Verifies an answer to a lookup of `prefixes`, each of `bits` bits: every
    /// record is under its prefix and included in the checkpoint. Whether a
    /// record may be believed is judged when it is taken out.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify_lookup(
        &self,
        response: wire::LookupResponse,
        prefixes: &[Prefix],
        bits: u32,
    ) -> Result<VerifiedLookup, Error> {
        let checkpoint = self.log.verify(&response.checkpoint)?;
        if response.buckets.len() != prefixes.len() {
            return Err(Error::Proof("a lookup has another number of buckets than prefixes"));
        }
        let mut records = BTreeMap::new();
        for (prefix, bucket) in prefixes.iter().zip(response.buckets) {
            if bucket.records.len() > MAX_BUCKET {
                return Err(Error::Proof("a bucket has more than 4,096 records"));
            }
            let mut last = None;
            for logged in bucket.records {
                let record = verify_logged(logged, &checkpoint)?;
                let handle = *record.record.handle();
                if !prefix.covers(&handle, bits) || last.is_some_and(|last| handle <= last) {
                    return Err(Error::Proof(
                        "a bucket is not in order or holds what is not under its prefix",
                    ));
                }
                last = Some(handle);
                records.insert(handle, record);
            }
        }
        Ok(VerifiedLookup { checkpoint, prefixes: prefixes.to_vec(), bits, records })
    }

    /// Verifies the opened answer to a record operation: `sent` is in the log.
    ///
    /// # Errors
    /// The directory's refusal, or what does not hold.
    pub fn verify_publication(
        &self,
        result: wire::RecordOperationResult,
        sent: &wire::SignedRecord,
    ) -> Result<Publication, Refusal> {
        use wire::record_operation_result::Result as Outcome;
        match result.result {
            Some(Outcome::Logged(logged)) => {
                let checkpoint = self.log.verify(&result.checkpoint)?;
                let logged = verify_logged(logged, &checkpoint)?;
                if logged.record.wire() != sent {
                    return Err(Error::Proof("the directory logged another record than was sent").into());
                }
                Ok(Publication { index: logged.index, checkpoint })
            }
            Some(Outcome::Refusal(refusal)) => Err(Refusal::new(
                Reason::from_wire(&refusal.reason).unwrap_or(Reason::DirectoryMisbehaved),
                refusal.message.chars().take(500).collect::<String>(),
            )),
            None => Err(Refusal::new(Reason::DirectoryMisbehaved, "the directory's answer is empty")),
        }
    }
}

/// A record operation that is in the log.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Index of the entry: the next change names it as the previous one.
    pub index: u64,
    /// Covers the entry.
    pub checkpoint: VerifiedCheckpoint,
}

/// A record with its place in the log, not judged yet.
#[derive(Clone, Debug)]
struct Included {
    record: SignedRecord,
    sequenced_at: Timestamp,
    index: u64,
}

fn verify_logged(logged: wire::LoggedRecord, checkpoint: &VerifiedCheckpoint) -> Result<Included, Error> {
    let record: SignedRecord =
        logged.record.ok_or(Error::Proof("a logged record comes without its record"))?.try_into()?;
    let inclusion = logged.inclusion.ok_or(Error::Proof("a record comes without its proof"))?;
    let salt: [u8; SALT_LENGTH] = array(&logged.salt, "a salt has not 32 bytes")?;
    let sequenced_at = Timestamp::from_millis(logged.sequenced_at_ms);
    let change = RecordChange::new(record.handle(), record.previous_index(), &salt, record.wire());
    let leaf = Leaf::new(&Entry { sequenced_at, event: Event::RecordChange(change) })?;
    checkpoint.includes(&leaf.hash(), inclusion.index, &inclusion.path)?;
    if record.previous_index().is_some_and(|previous| previous >= inclusion.index) {
        return Err(Error::Proof("a record's previous entry does not come before it"));
    }
    Ok(Included { record, sequenced_at, index: inclusion.index })
}

/// What stands under the prefixes asked for, all of it in the log.
#[derive(Clone)]
pub struct VerifiedLookup {
    checkpoint: VerifiedCheckpoint,
    prefixes: Vec<Prefix>,
    bits: u32,
    records: BTreeMap<Handle, Included>,
}

impl VerifiedLookup {
    /// Checkpoint that everything leads to.
    pub const fn checkpoint(&self) -> &VerifiedCheckpoint {
        &self.checkpoint
    }

    /// The record of a handle for a sender who addressed `scheme`: its
    /// signature, its attestation for that very scheme by an authority
    /// admitted for it, and for a first record that the attestation was
    /// current when it was logged. `None`: nobody enrolled the handle.
    ///
    /// # Errors
    /// The handle was not asked for, or its record is not to be believed.
    pub fn find(
        &self,
        handle: &Handle,
        scheme: &SchemeName,
        federation: &FederationState,
    ) -> Result<Option<VerifiedRecord>, Error> {
        if !self.prefixes.contains(&Prefix::of(handle, self.bits)) {
            return Err(Error::Field("the lookup did not ask for this handle"));
        }
        let Some(included) = self.records.get(handle) else { return Ok(None) };
        let record = &included.record;
        if !record.is_signed() {
            return Err(Error::Record("the record's signature is wrong"));
        }
        let attestation = record.attestation().verify(federation)?;
        if attestation.attestation().scheme != *scheme {
            return Err(Error::AuthorityNotAdmitted);
        }
        if record.version() == 1 {
            attestation.current(included.sequenced_at)?;
        }
        Ok(Some(VerifiedRecord {
            handle: *handle,
            account_key: *record.account_key(),
            version: record.version(),
            index: included.index,
            previous_index: record.previous_index(),
            sequenced_at: included.sequenced_at,
            sealed_part: record.sealed_part().clone(),
        }))
    }
}

impl fmt::Debug for VerifiedLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedLookup({} records)", self.records.len())
    }
}

/// A record that a sender may believe.
#[derive(Clone, Debug)]
pub struct VerifiedRecord {
    /// The handle.
    pub handle: Handle,
    /// Speaks for the handle.
    pub account_key: AccountKey,
    /// Version, from 1.
    pub version: u64,
    /// Index of its entry.
    pub index: u64,
    /// Index of the handle's previous entry.
    pub previous_index: Option<u64>,
    /// When the directory sequenced it.
    pub sequenced_at: Timestamp,
    sealed_part: Bytes,
}

impl VerifiedRecord {
    /// Where letters for the handle go.
    ///
    /// # Errors
    /// [`Error::CannotOpen`], or the owner sealed something malformed.
    pub fn open(&self, key: &RecordKey) -> Result<Address, Error> {
        Address::open(&self.sealed_part, key, &self.handle, self.version)
    }
}

#[cfg(test)]
mod tests;
