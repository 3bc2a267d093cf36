//! What a home node may hear: everything up to a position is committed here.

use crate::Queues;
use prost::bytes::Bytes;

/// Receipts in one acknowledgement.
const RECEIPTS: usize = 256;

/// What to tell the home node: through which position, and the receipts.
pub struct Acknowledgement {
    /// Position of the last item that is safe here.
    pub through: u64,
    /// SignedDeliveryReceipts, serialised.
    pub receipts: Vec<Bytes>,
    /// Whether there is more behind it.
    pub more: bool,
}

/// What may be acknowledged to a home now, when everything up to `acknowledged` was;
/// `None`: nothing new. Items that wait for something before them, and all behind
/// them, are not.
///
/// # Errors
/// The rows'.
pub fn acknowledgement<Q: Queues>(
    tx: &Q,
    home: i64,
    acknowledged: u64,
) -> Result<Option<Acknowledgement>, Q::Error> {
    let parked = tx.first_parked(home)?.map_or(u64::MAX, |position| position.saturating_sub(1));
    let mut through = tx.through(home)?.min(parked);
    if through <= acknowledged {
        return Ok(None);
    }
    let receipts = tx.receipts(home, acknowledged, through, RECEIPTS)?;
    let more = receipts.len() == RECEIPTS;
    if more && let Some((last, _)) = receipts.last() {
        through = *last;
    }
    let receipts = receipts.into_iter().map(|(_, receipt)| receipt).collect();
    Ok(Some(Acknowledgement { through, receipts, more }))
}
