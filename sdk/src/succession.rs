//! Opening the group that takes another one's place: which threads need one, and what
//! its first message says. What goes over is [`chancery_sdk_core::succession`]'s.

use crate::content::compose_succession;
use crate::error::EndpointError;
use crate::peer::{self, Peer};
use crate::request::{self, Compose};
use crate::store::Tx;
use crate::thread::{self, Thread};
use chancery_sdk_core::{Queues as _, Stand, Succession, succession};
use chancery_types::{GroupId, Reason, Refusal};
use prost::bytes::Bytes;
use std::time::Duration;

#[cfg(test)]
mod tests;

/// Threads whose successors are opened at once.
const AT_ONCE: usize = 128;
/// How long the first message may be on its way.
const LIFE: Duration = Duration::from_hours(30 * 24);

/// Groups that are over, without a successor, where something waits to be sent or cannot
/// be read, with the other side; a few. Nothing submitted in them is undecided.
pub(crate) fn due(tx: &mut Tx<'_>) -> Result<Vec<(GroupId, Peer)>, EndpointError> {
    // Any of them, so that none keeps the others waiting.
    let sql = "SELECT over.group_id FROM (\
                 SELECT group_id FROM threads WHERE state > 2 AND successor IS NULL UNION \
                 SELECT threads.group_id FROM outbox JOIN threads ON threads.group_id = outbox.group_id \
                 WHERE outbox.state = 0 AND threads.state > 1 AND successor IS NULL) AS over \
               WHERE NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.group_id = over.group_id \
                 AND state < 3 AND state > 0) ORDER BY random() LIMIT ?1";
    let groups: Vec<[u8; 32]> =
        tx.sql().prepare_cached(sql)?.query_map([AT_ONCE], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut due = Vec::with_capacity(groups.len());
    for group in groups.into_iter().map(GroupId::from_bytes) {
        let Some(thread) = thread::find(tx, &group)? else { continue };
        match peer::of_thread(tx, &thread)? {
            Some(peer) => due.push((group, peer)),
            // Nobody knows any more who it was.
            None => succession::end(tx, &group, Stand::Closed)?,
        }
    }
    Ok(due)
}

/// Opens the group that takes the place of `id`, unless one has; KeyPackages as for
/// [`thread::open`].
///
/// # Errors
/// Those of [`thread::open`].
pub(crate) fn open(
    tx: &mut Tx<'_>,
    id: &GroupId,
    peer: &Peer,
    theirs: &[Bytes],
    ours: &[Bytes],
) -> Result<(), EndpointError> {
    let over = thread::find(tx, id)?.filter(|thread| thread.stand.is_over());
    let Some(over) = over else { return Ok(()) };
    if tx.successor(id)?.is_some() {
        return Ok(());
    }
    let mut next = thread::open(tx, peer, theirs, ours)?;
    thread::set_root(tx, &mut next, &over.root)?;
    let head = match over.head_sequence {
        0 => None,
        sequence => tx.chain(id, sequence)?.map(|chain| (sequence, chain)),
    };
    say(tx, &next, Succession { root: over.root, group: *id, head })?;
    succession::succeed(tx, id, &next.id)
}

fn say(tx: &mut Tx<'_>, next: &Thread, said: Succession) -> Result<(), EndpointError> {
    let compose: Compose = Box::new(move |origin| {
        let composed = compose_succession(&said, &origin.sender_uri(), &origin.room_uri(), origin.entropy);
        let failed = |_| Refusal::new(Reason::Internal, "a succession cannot be told");
        Ok(composed.map_err(failed)?.bytes)
    });
    let expires = tx.now().after(LIFE);
    request::send(tx, next, compose, expires, false).map(drop)
}
