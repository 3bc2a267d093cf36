//! Entries of the log: how a leaf is made and read. Storing them is the log's room.

use crate::map::Sum;
use crate::statement::array;
use crate::{Error, Prefix, merkle};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Handle, Timestamp};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// Longest entry in bytes (C2SP tlog-tiles).
pub const MAX_ENTRY: usize = 65_535;
/// Length of a record's salt in bytes.
pub const SALT_LENGTH: usize = 32;

/// What a leaf says.
pub struct Entry {
    /// When the directory sequenced it.
    pub sequenced_at: Timestamp,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Clone)]
pub enum Event {
    /// A governance statement, not verified yet.
    Statement(wire::SignedStatement),
    /// A record was put or changed.
    RecordChange(RecordChange),
    /// Evaluators concluded a ceremony; not verified yet.
    Ceremony(Box<wire::ConcludedCeremony>),
    /// What an evaluator answered in a day; not verified yet.
    EvaluationTotals(wire::SignedEvaluationTotals),
    /// Root of the map that the entries before this one make.
    MapRoot(Sum),
    /// A channel was published or changed; not verified yet.
    Channel(wire::SignedChannel),
    /// Something was broadcast; not verified yet.
    Manifest(wire::SignedManifest),
}

/// Commits to a record without naming it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordChange {
    /// First 4 bytes of the handle.
    pub handle_prefix: [u8; 4],
    /// Entry of the record that this one replaces; of a pending one, would replace.
    pub previous_index: Option<u64>,
    /// [`commitment`] to the record.
    pub commitment: [u8; 32],
    /// Whether it is a re-enrolment that is not in force.
    pub pending: bool,
    /// Entry of the pending re-enrolment that it ends.
    pub ends_index: Option<u64>,
}

impl RecordChange {
    /// The change that logs `record` for `handle`.
    pub fn new(
        handle: &Handle,
        previous_index: Option<u64>,
        salt: &[u8; SALT_LENGTH],
        record: &wire::SignedRecord,
    ) -> Self {
        let handle_prefix = Prefix::of(handle, crate::prefix::MAX_BITS).to_bytes();
        let commitment = commitment(salt, record);
        Self { handle_prefix, previous_index, commitment, pending: false, ends_index: None }
    }
}

/// SHA-256(salt ‖ SignedRecord), the latter as its two fields in order and
/// nothing else.
pub fn commitment(salt: &[u8; SALT_LENGTH], record: &wire::SignedRecord) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(salt);
    hash.update(record.encode_to_vec());
    hash.finalize().into()
}

/// The bytes of a leaf.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf(Bytes);

impl Leaf {
    /// The leaf of an entry.
    ///
    /// # Errors
    /// It would be longer than [`MAX_ENTRY`].
    pub fn new(entry: &Entry) -> Result<Self, Error> {
        use wire::log_entry::Entry as Wire;
        let bytes = wire::LogEntry {
            sequenced_at_ms: entry.sequenced_at.millis(),
            entry: Some(match &entry.event {
                Event::Statement(statement) => Wire::Statement(statement.clone()),
                Event::EvaluationTotals(totals) => Wire::EvaluationTotals(totals.clone()),
                Event::Ceremony(concluded) => Wire::Ceremony((**concluded).clone()),
                Event::RecordChange(change) => Wire::RecordChange(wire::RecordChange {
                    handle_prefix: Bytes::copy_from_slice(&change.handle_prefix),
                    previous_index: change.previous_index,
                    commitment: Bytes::copy_from_slice(&change.commitment),
                    pending: change.pending,
                    ends_index: change.ends_index,
                }),
                Event::MapRoot(sum) => Wire::MapRoot(wire::MapRoot { sum: Some(sum.into()) }),
                Event::Channel(channel) => Wire::Channel(channel.clone()),
                Event::Manifest(manifest) => Wire::Manifest(manifest.clone()),
            }),
        }
        .encode_to_vec();
        Self::from_bytes(bytes.into())
    }

    /// From the bytes received.
    ///
    /// # Errors
    /// Longer than [`MAX_ENTRY`].
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Error> {
        if bytes.len() > MAX_ENTRY {
            return Err(Error::TooLarge("an entry of the log has at most 65,535 bytes"));
        }
        Ok(Self(bytes))
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Its hash (RFC 6962, section 2.1).
    pub fn hash(&self) -> merkle::Hash {
        merkle::leaf_hash(&self.0)
    }

    /// What it says.
    ///
    /// # Errors
    /// It does not parse, or is of a kind that this build does not know.
    pub fn entry(&self) -> Result<Entry, Error> {
        use wire::log_entry::Entry as Wire;
        let entry = wire::LogEntry::decode(self.0.clone())
            .map_err(|_| Error::Field("an entry of the log does not parse"))?;
        let event = match entry.entry {
            Some(Wire::Statement(statement)) => Event::Statement(statement),
            Some(Wire::EvaluationTotals(totals)) => Event::EvaluationTotals(totals),
            Some(Wire::Ceremony(concluded)) => Event::Ceremony(Box::new(concluded)),
            Some(Wire::RecordChange(change)) => Event::RecordChange(RecordChange {
                handle_prefix: array(&change.handle_prefix, "a handle's prefix has not 4 bytes")?,
                previous_index: change.previous_index,
                commitment: array(&change.commitment, "a commitment has not 32 bytes")?,
                pending: change.pending,
                ends_index: change.ends_index,
            }),
            Some(Wire::MapRoot(root)) => {
                let sum = root.sum.ok_or(Error::Field("a root of the map is empty"))?;
                Event::MapRoot(sum.try_into()?)
            }
            Some(Wire::Channel(channel)) => Event::Channel(channel),
            Some(Wire::Manifest(manifest)) => Event::Manifest(manifest),
            None => return Err(Error::Unsupported("the entry's kind is unknown to this build")),
        };
        Ok(Entry { sequenced_at: Timestamp::from_millis(entry.sequenced_at_ms), event })
    }
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Leaf({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_read_back() {
        let leaf = |event| Leaf::new(&Entry { sequenced_at: Timestamp::from_millis(5), event }).unwrap();
        let change = RecordChange {
            handle_prefix: [1; 4],
            previous_index: Some(0),
            commitment: [2; 32],
            pending: true,
            ends_index: Some(3),
        };
        let read = leaf(Event::RecordChange(change)).entry().unwrap().event;
        assert!(matches!(read, Event::RecordChange(read) if read == change));
        let sum = Sum { items: 7, hash: [8; 32] };
        let read = leaf(Event::MapRoot(sum)).entry().unwrap().event;
        assert!(matches!(read, Event::MapRoot(read) if read == sum));
        assert!(Leaf::from_bytes(vec![0; MAX_ENTRY + 1].into()).is_err());
        assert!(matches!(Leaf::from_bytes(Bytes::new()).unwrap().entry(), Err(Error::Unsupported(_))));
        assert!(matches!(Leaf::from_bytes(vec![0xff].into()).unwrap().entry(), Err(Error::Field(_))));
    }

    #[test]
    fn a_commitment_binds_salt_record_and_signature() {
        let record = |record: &'static [u8], signature: &'static [u8]| wire::SignedRecord {
            record: Bytes::from_static(record),
            signature: Bytes::from_static(signature),
        };
        let base = commitment(&[1; 32], &record(b"a", b"b"));
        assert_ne!(base, commitment(&[2; 32], &record(b"a", b"b")));
        assert_ne!(base, commitment(&[1; 32], &record(b"ab", b"")));
        assert_ne!(base, commitment(&[1; 32], &record(b"a", b"c")));
    }
}
