//! What time takes away.

use crate::outbox::{Ended, Kind};
use crate::parcel::MAX_LIFE;
use crate::tables::{Tables, Tx};
use crate::{mailbox, report, submit};
use chancery_proto::federation::v1 as wire;
use chancery_types::{Reason, Timestamp};
use std::time::Duration;

/// Rows of one kind that one transaction takes.
const SLICE: usize = 512;
/// How long a parcel that the peer has but never settled is kept beyond its
/// expiry: the report or outcome may still be on its way.
pub const GRACE: Duration = Duration::from_hours(72);
/// How long a hub may be silent before what was submitted to it comes back: whoever
/// sent it may then let another group take the place of the hub's.
pub const PATIENCE: Duration = Duration::from_hours(24);
/// How long it must still be good for then: only the hub can say whether it was in time,
/// as long as that is all there is to say.
const STILL_GOOD: Duration = Duration::from_hours(1);

/// Forgets a slice of what has expired; whether there may be more.
///
/// # Errors
/// The tables'.
pub async fn expire<T: Tables>(tx: &mut Tx<T>) -> Result<bool, T::Error> {
    let items = mailbox::expire(tx, SLICE).await?;
    let parcels = waiting(tx).await?.max(silent(tx).await?);
    let notes = tx.tables.expire_notes(tx.now, SLICE).await?;
    Ok(items.max(parcels).max(notes) >= SLICE as u64)
}

/// Parcels that no peer took or settled in time. Whether a peer has what it has not
/// acknowledged nobody knows: so that it alone says what became of a message, it gets
/// what remains of a delivery, and a submission as it stands, for a while beyond expiry.
async fn waiting<T: Tables>(tx: &mut Tx<T>) -> Result<u64, T::Error> {
    let (now, kept_until) = (tx.now, tx.now.before(GRACE));
    let ended = tx.tables.expired_parcels(now, kept_until, SLICE).await?;
    let rows = ended.len() as u64;
    let mut gone = Vec::new();
    for ended in ended {
        // What is behind it may go on.
        tx.after.peers.insert(ended.peer.clone());
        let id = ended.id;
        match end(tx, ended).await? {
            Some(Rest { kind, delivery, expires_at }) => {
                let parcel = wire::Parcel { parcel: Some(wire::parcel::Parcel::Delivery(delivery)) };
                tx.tables.replace_parcel(id, kind, &parcel, expires_at).await?;
            }
            None => gone.push(id),
        }
    }
    tx.tables.remove_parcels(&gone).await?;
    Ok(rows)
}

/// Submissions whose hub may be gone for good. It may have some of them all the same.
async fn silent<T: Tables>(tx: &mut Tx<T>) -> Result<u64, T::Error> {
    let (since, good_until) = (tx.now.before(PATIENCE), tx.now.after(GRACE).after(STILL_GOOD));
    let given_up = tx.tables.silent_submissions(since, good_until, SLICE).await?;
    let mut gone = Vec::with_capacity(given_up.len());
    for ended in given_up {
        gone.push(ended.id);
        end(tx, ended).await?;
    }
    tx.tables.remove_parcels(&gone).await?;
    Ok(gone.len() as u64)
}

/// What waits in the place of a delivery.
struct Rest {
    kind: Kind,
    delivery: wire::Delivery,
    expires_at: Timestamp,
}

async fn end<T: Tables>(tx: &mut Tx<T>, ended: Ended) -> Result<Option<Rest>, T::Error> {
    let Ended { kept, acknowledged, parcel, .. } = ended;
    let delivery = match parcel.parcel {
        Some(wire::parcel::Parcel::Submission(submission)) => {
            submit::refused_on_the_way(tx, &submission, Reason::PeerUnreachable.as_str()).await?;
            return Ok(None);
        }
        // What the peer has stays undetermined without its report.
        Some(wire::parcel::Parcel::Delivery(delivery)) if !acknowledged && kept.kind == Kind::Delivery => {
            delivery
        }
        _ => return Ok(None),
    };
    let is_rest = mailbox::is_rest(&delivery);
    let expires_at = Timestamp::from_millis(delivery.expires_at_ms).after(GRACE);
    let rest = mailbox::remains(delivery);
    if is_rest || rest.is_none() {
        report::settle_kept(tx, &kept, wire::report::Outcome::Expired(true)).await?;
    }
    let until = tx.now.after(MAX_LIFE);
    Ok(rest.map(|delivery| match is_rest {
        false => Rest { kind: Kind::Delivery, delivery, expires_at },
        true => Rest { kind: Kind::Expired, delivery, expires_at: until },
    }))
}
