//! One direction of a peer link: stream sequences, credit and versions.

use crate::outbox::Waiting;
use chancery_proto::federation::v1 as wire;
use chancery_types::{Reason, Refusal, Timestamp};
use prost::Message as _;
use std::collections::{HashMap, VecDeque};

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

/// What the sending side has on the way. It begins anew with each link.
#[derive(Debug)]
pub struct Sending {
    credit: u64,
    on_the_way: u64,
    next_sequence: u64,
    /// Id in the outbox up to which parcels were sent.
    sent: i64,
    /// Sequence, bytes and id in the outbox.
    unacked: VecDeque<(u64, u64, i64)>,
}

/// What became of parcels, by their ids in the outbox.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// The peer has committed them.
    pub taken: Vec<i64>,
    /// The peer will never take them, and why.
    pub refused: Vec<(i64, String)>,
}

impl Sending {
    /// Nothing on the way; the peer allows `credit_bytes`.
    pub const fn new(credit_bytes: u64) -> Self {
        Self { credit: credit_bytes, on_the_way: 0, next_sequence: 1, sent: 0, unacked: VecDeque::new() }
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

    /// Id in the outbox behind which everything is still to be sent.
    pub const fn sent(&self) -> i64 {
        self.sent
    }

    /// Makes a batch of the first of these, as many as it takes; `None`: there are none.
    /// What has expired stops it: what comes in its place goes before what is behind it.
    ///
    /// # Errors
    /// INTERNAL: a row of the outbox does not decode.
    pub fn batch(&mut self, waiting: Vec<Waiting>, now: Timestamp) -> Result<Option<wire::Batch>, Refusal> {
        let first_sequence = self.next_sequence;
        let mut parcels = Vec::with_capacity(waiting.len().min(MAX_BATCH));
        let mut bytes = 0;
        let fresh = waiting.into_iter().take_while(|waiting| waiting.expires_at > now);
        for Waiting { id, parcel, .. } in fresh.take(MAX_BATCH) {
            let size = parcel.len();
            if !parcels.is_empty() && bytes + size > MAX_BATCH_BYTES {
                break;
            }
            let parcel = wire::Parcel::decode(parcel)
                .map_err(|_| Refusal::new(Reason::Internal, "an outbox row does not decode"))?;
            parcels.push(parcel);
            bytes += size;
            self.unacked.push_back((self.next_sequence, size as u64, id));
            self.on_the_way += size as u64;
            self.next_sequence += 1;
            self.sent = id;
        }
        Ok((!parcels.is_empty()).then_some(wire::Batch { first_sequence, parcels }))
    }

    /// What an ack says of parcels for the first time.
    ///
    /// # Errors
    /// PEER_MISBEHAVED: it covers what was never sent.
    pub fn acked(&mut self, ack: wire::Ack) -> Result<Acked, Refusal> {
        if ack.sequence >= self.next_sequence {
            return Err(Refusal::new(Reason::PeerMisbehaved, "the peer acknowledged what was never sent"));
        }
        let mut refusals: HashMap<u64, String> =
            ack.refusals.into_iter().map(|r| (r.sequence, r.reason.chars().take(63).collect())).collect();
        let mut acked = Acked::default();
        while let Some((sequence, bytes, id)) = self.unacked.pop_front_if(|(at, ..)| *at <= ack.sequence) {
            self.on_the_way -= bytes;
            match refusals.remove(&sequence) {
                Some(reason) => acked.refused.push((id, reason)),
                None => acked.taken.push(id),
            }
        }
        Ok(acked)
    }
}

/// What the receiving side has had.
#[derive(Debug, Default)]
pub struct Receiving {
    last: u64,
}

impl Receiving {
    /// Checks a batch; the sequence of its last parcel, which is acknowledged once
    /// all are committed.
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

    /// A parcel of some bytes.
    fn waiting(id: i64, bytes: usize) -> Waiting {
        let report = wire::Report { message_id: vec![0; bytes].into(), ..Default::default() };
        let parcel = wire::Parcel { parcel: Some(wire::parcel::Parcel::Report(report)) };
        Waiting { id, parcel: parcel.encode_to_vec().into(), expires_at: Timestamp::from_millis(2) }
    }

    fn send(sending: &mut Sending, waiting: Vec<Waiting>) -> Result<Option<wire::Batch>, Refusal> {
        sending.batch(waiting, Timestamp::from_millis(1))
    }

    fn ack(sequence: u64) -> wire::Ack {
        wire::Ack { sequence, refusals: Vec::new() }
    }

    #[test]
    fn an_ack_beyond_what_was_sent_is_refused() {
        let mut sending = Sending::new(10);
        let batch = send(&mut sending, vec![waiting(7, 4), waiting(9, 4)]).unwrap().unwrap();
        assert_eq!((batch.first_sequence, batch.parcels.len(), sending.sent()), (1, 2, 9));
        assert!(sending.acked(ack(3)).is_err());
        let refused = wire::ParcelRefusal { sequence: 2, reason: "WRONG_HUB".into() };
        let acked = sending.acked(wire::Ack { sequence: 2, refusals: vec![refused] }).unwrap();
        assert_eq!(acked, Acked { taken: vec![7], refused: vec![(9, "WRONG_HUB".into())] });
        assert_eq!(sending.acked(ack(2)).unwrap(), Acked::default());
    }

    #[test]
    fn a_batch_has_a_limit() {
        let mut sending = Sending::new(CREDIT);
        assert!(send(&mut sending, Vec::new()).unwrap().is_none());
        let half = MAX_BATCH_BYTES / 2 + 1;
        let batch = send(&mut sending, vec![waiting(1, half), waiting(2, half)]).unwrap().unwrap();
        assert_eq!((batch.parcels.len(), sending.sent()), (1, 1));
        let old = Waiting { expires_at: Timestamp::from_millis(1), ..waiting(2, 1) };
        assert!(send(&mut sending, vec![old, waiting(3, 1)]).unwrap().is_none(), "order holds");
        let many = (2..1000).map(|id| waiting(id, 1)).collect();
        assert_eq!(send(&mut sending, many).unwrap().unwrap().parcels.len(), MAX_BATCH);
    }

    proptest! {
        /// Whatever is sent and acked, every parcel is covered exactly once,
        /// in order, and credit comes back whole.
        #[test]
        fn every_parcel_is_covered_once(sizes in proptest::collection::vec(1usize..100, 1..50), cuts in any::<u64>()) {
            let mut sending = Sending::new(200);
            let mut covered = Vec::new();
            let total = sizes.len() as u64;
            for (index, size) in sizes.iter().enumerate() {
                if !sending.may_send() || cuts >> (index % 64) & 1 == 1 {
                    covered.extend(sending.acked(ack(index as u64)).unwrap().taken);
                }
                prop_assert!(sending.may_send());
                send(&mut sending, vec![waiting(index as i64 + 1, *size)]).unwrap();
            }
            covered.extend(sending.acked(ack(total)).unwrap().taken);
            prop_assert_eq!(covered, (1..=total as i64).collect::<Vec<_>>());
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
