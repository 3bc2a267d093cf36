//! The directory's rules for records: who may put, change, close and re-enrol,
//! and what the log then says.

use crate::attestation::CLOCK_SKEW;
use crate::entry::{RecordChange, SALT_LENGTH};
use crate::record::SignedRecord;
use crate::state::FederationState;
use crate::totals::day_of;
use crate::{AccountKey, Error};
use chancery_types::Timestamp;
use std::time::Duration;

/// How long a re-enrolment waits for its owner's veto.
pub const RE_ENROLMENT_WAIT: Duration = Duration::from_hours(7 * 24);
/// Most entries of one handle in a day (UTC).
pub const CHANGES_PER_DAY: u32 = 20;

/// A record in the log.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Index of its entry.
    pub index: u64,
    /// When it was sequenced.
    pub sequenced_at: Timestamp,
    /// The handle's entries of that day, this one included.
    pub changes: u32,
    /// The record.
    pub record: SignedRecord,
}

/// What stands for a handle.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Its record.
    pub standing: Option<Logged>,
    /// A re-enrolment that is not in force.
    pub pending: Option<Logged>,
}

/// What becomes of a record that is handed in.
#[derive(Clone, Debug)]
pub enum Judgement {
    /// The very record was logged before, at this index.
    Repeated(u64),
    /// To be logged.
    Accepted(Box<AcceptedRecord>),
}

/// A record that may be logged: only [`judge`] makes one.
#[derive(Clone, Debug)]
pub struct AcceptedRecord {
    record: SignedRecord,
    pending: bool,
    ends_index: Option<u64>,
    changes: u32,
}

impl AcceptedRecord {
    /// The record.
    pub const fn record(&self) -> &SignedRecord {
        &self.record
    }

    /// The handle's entries of today, this one included.
    pub const fn changes(&self) -> u32 {
        self.changes
    }

    /// The entry that commits to it.
    pub fn change(&self, salt: &[u8; SALT_LENGTH]) -> RecordChange {
        let record = &self.record;
        let change = RecordChange::new(record.handle(), record.previous_index(), salt, record.wire());
        RecordChange { pending: self.pending, ends_index: self.ends_index, ..change }
    }

    /// What stands for the handle once it is logged.
    pub fn logged_at(self, index: u64, sequenced_at: Timestamp, before: Held) -> Held {
        let logged = Logged { index, sequenced_at, changes: self.changes, record: self.record };
        if self.pending {
            Held { pending: Some(logged), ..before }
        } else {
            Held { standing: Some(logged), pending: None }
        }
    }
}

/// Judges a record against what stands for its handle.
///
/// - A first record has version 1, no previous index and a current attestation.
/// - A change is the next version, names the entry that stands, keeps its account
///   key and is signed by it; an attestation other than the one that stands must be
///   current. It ends a re-enrolment that is pending: the owner's veto.
/// - A re-enrolment is the next version under another account key. Over a closed
///   record it counts at once. Over a live one it stands as pending for
///   [`RE_ENROLMENT_WAIT`]; the same record, handed in again, then comes into force.
///   With the word of two authorities the owner's changes do not end it, and it takes
///   the place of one that has a single word.
///
/// # Errors
/// Which rule is broken.
pub fn judge(
    record: SignedRecord,
    held: &Held,
    federation: &FederationState,
    now: Timestamp,
) -> Result<Judgement, Error> {
    for logged in [&held.standing, &held.pending].into_iter().flatten() {
        if logged.record.handle() != record.handle() {
            return Err(Error::Internal("a record was judged against another handle's"));
        }
    }
    if let Some(standing) = held.standing.as_ref().filter(|s| s.record.wire() == record.wire()) {
        return Ok(Judgement::Repeated(standing.index));
    }
    let pending = held.pending.as_ref();
    let waited = pending.filter(|p| p.record.wire() == record.wire());
    if let Some(p) = waited.filter(|p| now.since(p.sequenced_at) < RE_ENROLMENT_WAIT) {
        return Ok(Judgement::Repeated(p.index));
    }
    let standing = held.standing.as_ref();
    let next = standing.map_or((Some(1), None), |s| (s.record.version().checked_add(1), Some(s.index)));
    if (Some(record.version()), record.previous_index()) != next {
        return Err(Error::VersionConflict);
    }
    if !record.is_signed() {
        return Err(Error::Record("the record's signature is wrong"));
    }
    let changes = changes_today(held, now);
    if changes >= CHANGES_PER_DAY {
        return Err(Error::ChangeLimit);
    }
    let (pending, ends_index) = match standing {
        // What it says was judged when it was put; but who said it must still be admitted.
        Some(_) if waited.is_some() => {
            for word in [Some(record.attestation()), record.second_attestation()].into_iter().flatten() {
                word.verify(federation, now)?;
            }
            (false, pending.map(|p| p.index))
        }
        Some(standing) if owns(record.account_key(), standing) => {
            judge_change(&record, standing, pending, federation, now)?;
            (false, pending.map(|p| p.index))
        }
        Some(standing) => {
            judge_enrolment(&record, federation, now)?;
            judge_re_enrolment(&record, standing, pending)?;
            (!standing.record.is_closed(), pending.map(|p| p.index))
        }
        None => {
            judge_enrolment(&record, federation, now)?;
            (false, None)
        }
    };
    let accepted = AcceptedRecord { record, pending, ends_index, changes: changes + 1 };
    Ok(Judgement::Accepted(Box::new(accepted)))
}

fn owns(key: &AccountKey, standing: &Logged) -> bool {
    standing.record.account_key() == key
}

/// The handle's entries of today so far.
fn changes_today(held: &Held, now: Timestamp) -> u32 {
    let today = [&held.standing, &held.pending].into_iter().flatten();
    today.filter(|l| day_of(l.sequenced_at) == day_of(now)).map(|l| l.changes).max().unwrap_or(0)
}

/// The owner's own change.
fn judge_change(
    record: &SignedRecord,
    standing: &Logged,
    pending: Option<&Logged>,
    federation: &FederationState,
    now: Timestamp,
) -> Result<(), Error> {
    if standing.record.is_closed() {
        return Err(Error::Closed);
    }
    if pending.is_some_and(|p| p.record.second_attestation().is_some()) {
        return Err(Error::ReEnrolmentPending);
    }
    let words = |record: &SignedRecord| (record.attestation().clone(), record.second_attestation().cloned());
    if words(record) == words(&standing.record) { Ok(()) } else { judge_enrolment(record, federation, now) }
}

/// That authorities vouch for the account key today.
fn judge_enrolment(record: &SignedRecord, federation: &FederationState, now: Timestamp) -> Result<(), Error> {
    for word in [Some(record.attestation()), record.second_attestation()].into_iter().flatten() {
        // As senders will judge it for ever after.
        word.verify(federation, word.claim().issued_at.after(CLOCK_SKEW).min(now))?;
        // Handles of the epoch before stand until it ends; new ones are not put.
        if federation.evaluators().is_none_or(|current| current.key_epoch != word.claim().key_epoch) {
            return Err(Error::WrongKeyEpoch);
        }
    }
    let first = record.attestation().verify(federation, now)?.current(now)?;
    let Some(second) = record.second_attestation() else { return Ok(()) };
    let second = second.verify(federation, now)?.current(now)?;
    let key = |id| federation.authority(id, now).map(|authority| &authority.key);
    if key(&first.attestation().authority) == key(&second.attestation().authority) {
        return Err(Error::Record("two attestations are under one key"));
    }
    Ok(())
}

/// That another account key may stand beside, or replace, the one that stands.
fn judge_re_enrolment(
    record: &SignedRecord,
    standing: &Logged,
    pending: Option<&Logged>,
) -> Result<(), Error> {
    let words = [Some(record.attestation()), record.second_attestation()];
    // So that the word that a change has just vetoed is not used again.
    if words.into_iter().flatten().any(|word| word.claim().issued_at < standing.sequenced_at) {
        return Err(Error::Record("the attestation is older than the record that it contests"));
    }
    if standing.record.is_closed() {
        return Ok(());
    }
    let backed = record.second_attestation().is_some();
    if standing.record.two_authorities() && !backed {
        return Err(Error::Record("the owner asks for the word of two authorities"));
    }
    match pending {
        Some(p) if !backed || p.record.second_attestation().is_some() => Err(Error::ReEnrolmentPending),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
