//! What time takes away.

use crate::outbox::{Ended, Kind};
use crate::parcel::MAX_LIFE;
use crate::tables::{Tables, Tx};
use crate::{mailbox, report, submit};
use chancery_proto::federation::v1 as wire;
use chancery_types::Reason;
use std::time::Duration;

/// Rows of one kind that one transaction takes.
const SLICE: usize = 512;
/// How long a parcel that the peer has but never settled is kept beyond its
/// expiry: the report or outcome may still be on its way.
pub const GRACE: Duration = Duration::from_hours(72);

/// Forgets a slice of what has expired; whether there may be more.
///
/// # Errors
/// The tables'.
pub async fn expire<T: Tables>(tx: &mut Tx<T>) -> Result<bool, T::Error> {
    let items = mailbox::expire(tx, SLICE).await?;
    let parcels = waiting(tx).await?;
    let notes = tx.tables.expire_notes(tx.now, SLICE).await?;
    Ok(items.max(parcels).max(notes) >= SLICE as u64)
}

/// Parcels that no peer took or settled in time: failures before relay are our own.
async fn waiting<T: Tables>(tx: &mut Tx<T>) -> Result<u64, T::Error> {
    let (now, kept_until, until) = (tx.now, tx.now.before(GRACE), tx.now.after(MAX_LIFE));
    let ended = tx.tables.expired_parcels(now, kept_until, SLICE).await?;
    let rows = ended.len() as u64;
    let mut gone = Vec::new();
    for Ended { id, peer, kept, acknowledged, parcel } in ended {
        // What is behind it may go on.
        tx.after.peers.insert(peer);
        let remains = match parcel.parcel {
            Some(wire::parcel::Parcel::Submission(submission)) => {
                let reason = if acknowledged { Reason::PeerUnreachable } else { Reason::Expired };
                submit::refused_on_the_way(tx, &submission, reason.as_str()).await?;
                None
            }
            // What the peer has stays undetermined without its report.
            Some(wire::parcel::Parcel::Delivery(delivery))
                if !acknowledged && kept.kind == Kind::Delivery =>
            {
                report::settle_kept(tx, &kept, wire::report::Outcome::Expired(true)).await?;
                mailbox::remains(delivery)
            }
            _ => None,
        };
        match remains {
            Some(mut remains) => {
                remains.expires_at_ms = until.millis();
                let parcel = wire::Parcel { parcel: Some(wire::parcel::Parcel::Delivery(remains)) };
                tx.tables.replace_parcel(id, Kind::Expired, &parcel, until).await?;
            }
            None => gone.push(id),
        }
    }
    tx.tables.remove_parcels(&gone).await?;
    Ok(rows)
}
