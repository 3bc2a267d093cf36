//! One direction of a peer link: stream sequences, credit and versions.

use chancery_proto::federation::v1 as wire;
use chancery_types::{Reason, Refusal};
use std::collections::VecDeque;

/// Versions of the link protocol that this build speaks: oldest, newest.
pub const VERSIONS: (u32, u32) = (1, 1);
/// Bytes of batches that a receiver lets be on the way.
pub const CREDIT: u64 = 16 * 1024 * 1024;
/// Most parcels of a batch.
pub const MAX_BATCH: usize = 256;
/// Bytes of parcels after which a batch is closed.
pub const MAX_BATCH_BYTES: usize = 3 * 1024 * 1024;

/// The version to speak with a peer.
///
/// # Errors
/// VERSION_UNSUPPORTED: the two ranges do not overlap.
pub fn negotiate(hello: &wire::Hello) -> Result<u32, Refusal> {
    let newest = VERSIONS.1.min(hello.version_max);
    if newest >= VERSIONS.0.max(hello.version_min) && hello.version_min <= hello.version_max {
        Ok(newest)
    } else {
        Err(Refusal::new(
            Reason::VersionUnsupported,
            "no common version of the link protocol; upgrade one node",
        ))
    }
}

/// What the sending side has on the way.
#[derive(Debug)]
pub struct Sending<K> {
    credit: u64,
    on_the_way: u64,
    next_sequence: u64,
    unacked: VecDeque<(u64, u64, K)>,
}

impl<K> Sending<K> {
    /// Nothing on the way; the peer allows `credit_bytes`.
    pub const fn new(credit_bytes: u64) -> Self {
        Self { credit: credit_bytes, on_the_way: 0, next_sequence: 1, unacked: VecDeque::new() }
    }

    /// Whether another batch may go. One may always go when nothing is on the
    /// way, so that a parcel larger than the credit is not stuck.
    pub const fn may_send(&self) -> bool {
        self.on_the_way < self.credit
    }

    /// Whether the peer owes no acknowledgement.
    pub fn is_idle(&self) -> bool {
        self.unacked.is_empty()
    }

    /// Notes a batch of parcels, each with its key and size in bytes; its
    /// first sequence.
    pub fn sent(&mut self, parcels: impl IntoIterator<Item = (K, u64)>) -> u64 {
        let first = self.next_sequence;
        for (key, bytes) in parcels {
            self.unacked.push_back((self.next_sequence, bytes, key));
            self.next_sequence += 1;
            self.on_the_way += bytes;
        }
        first
    }

    /// Keys of the parcels that an ack covers for the first time, with their
    /// sequences.
    ///
    /// # Errors
    /// PEER_MISBEHAVED: it covers what was never sent.
    pub fn acked(&mut self, sequence: u64) -> Result<Vec<(u64, K)>, Refusal> {
        if sequence >= self.next_sequence {
            return Err(Refusal::new(Reason::PeerMisbehaved, "the peer acknowledged what was never sent"));
        }
        let mut covered = Vec::new();
        while let Some((first, _, _)) = self.unacked.front()
            && *first <= sequence
            && let Some((at, bytes, key)) = self.unacked.pop_front()
        {
            self.on_the_way -= bytes;
            covered.push((at, key));
        }
        Ok(covered)
    }
}

/// What the receiving side has had.
#[derive(Debug, Default)]
pub struct Receiving {
    last: u64,
}

impl Receiving {
    /// Checks a batch; the sequence of its last parcel.
    ///
    /// # Errors
    /// PEER_MISBEHAVED: a gap, a repetition, an empty or too long batch.
    pub fn batch(&mut self, batch: &wire::Batch) -> Result<u64, Refusal> {
        let count = batch.parcels.len();
        if count == 0 || count > MAX_BATCH || self.last.checked_add(1) != Some(batch.first_sequence) {
            return Err(Refusal::new(Reason::PeerMisbehaved, "batch out of sequence, empty or too long"));
        }
        self.last += count as u64;
        Ok(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_overlap_or_not() {
        let hello = |min, max| wire::Hello { version_min: min, version_max: max, ..Default::default() };
        assert_eq!(negotiate(&hello(1, 7)).unwrap(), 1);
        assert!(negotiate(&hello(2, 7)).is_err());
        assert!(negotiate(&hello(1, 0)).is_err());
    }

    #[test]
    fn an_ack_beyond_what_was_sent_is_refused() {
        let mut sending = Sending::new(10);
        assert_eq!(sending.sent([((), 4), ((), 4)]), 1);
        assert!(sending.acked(3).is_err());
        assert_eq!(sending.acked(2).unwrap().len(), 2);
        assert_eq!(sending.acked(2).unwrap().len(), 0);
    }

    proptest! {
        /// Whatever is sent and acked, every parcel is covered exactly once,
        /// in order, and credit comes back whole.
        #[test]
        fn every_parcel_is_covered_once(sizes in proptest::collection::vec(1u64..100, 1..50), cuts in any::<u64>()) {
            let mut sending = Sending::new(200);
            let mut covered = Vec::new();
            let total = sizes.len() as u64;
            for (index, size) in sizes.iter().enumerate() {
                if !sending.may_send() || cuts >> (index % 64) & 1 == 1 {
                    covered.extend(sending.acked(index as u64).unwrap());
                }
                prop_assert!(sending.may_send());
                sending.sent([(index as u64 + 1, *size)]);
            }
            covered.extend(sending.acked(total).unwrap());
            prop_assert_eq!(covered, (1..=total).map(|n| (n, n)).collect::<Vec<_>>());
            prop_assert_eq!(sending.on_the_way, 0);
        }

        #[test]
        fn batches_are_contiguous(first in any::<u64>(), count in 0usize..300) {
            let batch = wire::Batch { first_sequence: first, parcels: vec![wire::Parcel::default(); count] };
            let accepted = Receiving::default().batch(&batch).is_ok();
            prop_assert_eq!(accepted, first == 1 && (1..=MAX_BATCH).contains(&count));
        }
    }
}
