//! What happens to a thread whose group cannot go on: another group takes its place. A
//! thread keeps the id of its first group; its letters that are undecided go over, and a
//! recipient takes each once.

use crate::{Alarm, Conclusion, Item, Progress, Queues, outbox};
use chancery_types::{Chain, GroupId, Reason};
use std::time::Duration;

/// A successor that fails within this time of its opening is not succeeded at once: a
/// hostile member or node could go on for ever.
const YOUNG: Duration = Duration::from_hours(1);
/// Longest chain of groups, each in the place of the one before, that is followed.
const GENERATIONS: usize = 64;

/// What may be done in a thread's group. It only gets worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stand {
    /// Letters are sent and read.
    Open,
    /// Nothing is sent any more; what comes is read. Another group takes its place once
    /// there is something to send.
    Ended,
    /// The same, but some of what comes cannot be read: another group takes its place at once.
    Failing,
    /// Nothing is sent or read any more: another group takes its place at once.
    Broken,
    /// Nothing is sent or read any more, and nothing takes its place.
    Closed,
}

impl Stand {
    /// Whether what comes is read.
    pub const fn reads(self) -> bool {
        matches!(self, Self::Open | Self::Ended | Self::Failing)
    }

    /// Whether another group is to take its place.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Failing | Self::Broken)
    }
}

/// What the first message of a successor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The thread: its first group.
    pub root: GroupId,
    /// The group that is over.
    pub group: GroupId,
    /// The last message there that its sender saw, and the hub's chain value at it.
    pub head: Option<(u64, Chain)>,
}

/// A thread's group stands worse from now on, and what waits in it with it.
///
/// # Errors
/// The rows'.
pub fn end<Q: Queues>(tx: &mut Q, id: &GroupId, stand: Stand) -> Result<(), Q::Error> {
    let Some(thread) = tx.thread(id)?.filter(|thread| thread.stand < stand) else { return Ok(()) };
    match stand {
        Stand::Failing if is_young(tx, &thread) => return Ok(()),
        Stand::Broken if fails_again(tx, &thread) => tx.keep_stand(id, Stand::Closed)?,
        stand => tx.keep_stand(id, stand)?,
    }
    outbox::prepare(tx, id).map(drop)
}

/// Whether a group failed that had only just taken another one's place.
fn fails_again<Q: Queues>(tx: &Q, thread: &Progress) -> bool {
    thread.root != thread.id && is_young(tx, thread)
}

fn is_young<Q: Queues>(tx: &Q, thread: &Progress) -> bool {
    tx.now().since(thread.opened) < YOUNG
}

/// The hub cannot order anything in the item's group any more, for a reason. Whether the
/// item waits for another one.
///
/// # Errors
/// The rows'.
pub(crate) fn outlive<Q: Queues>(tx: &mut Q, item: &Item, reason: Reason) -> Result<bool, Q::Error> {
    let Some(thread) = tx.thread(&item.group)? else { return Ok(false) };
    if thread.stand == Stand::Closed || fails_again(tx, &thread) {
        return Ok(false);
    }
    // Whether a hub that is silent has merged a commit of ours, nobody can tell.
    let unknown = item.commits && reason == Reason::PeerUnreachable;
    end(tx, &item.group, if unknown { Stand::Broken } else { Stand::Ended })?;
    if reason == Reason::PeerUnreachable && item.expires <= tx.now() {
        return Ok(false);
    }
    outbox::requeue(tx, item, 0)?;
    Ok(true)
}

/// What is queued in a group that is over waits for its successor, or goes there when
/// nothing of before is undecided. Whether it does.
///
/// # Errors
/// The rows'.
pub(crate) fn wait<Q: Queues>(tx: &mut Q, id: &GroupId) -> Result<bool, Q::Error> {
    for item in tx.queued(id)? {
        if item.expires <= tx.now() {
            tx.conclude(&item, Conclusion::Failed(Reason::Expired.as_str()))?;
        }
    }
    // Letters go in their order.
    if tx.any_submitted(id)? {
        return Ok(false);
    }
    let next = last(tx, *id)?;
    if next == *id || !tx.any_queued(id)? {
        return Ok(false);
    }
    tx.carry_over(id, &next)?;
    outbox::prepare(tx, &next)?;
    Ok(true)
}

/// The group that stands at the end of those that took each other's place.
fn last<Q: Queues>(tx: &Q, mut id: GroupId) -> Result<GroupId, Q::Error> {
    for _ in 0..GENERATIONS {
        match tx.successor(&id)? {
            Some(next) => id = next,
            None => break,
        }
    }
    Ok(id)
}

/// `next`, which this device opened, takes the place of `id`.
///
/// # Errors
/// The rows'.
pub fn succeed<Q: Queues>(tx: &mut Q, id: &GroupId, next: &GroupId) -> Result<(), Q::Error> {
    tx.set_successor(id, next)?;
    outbox::prepare(tx, id).map(drop)
}

/// Somebody says in `next` that it takes another group's place. When several took the
/// same one's, all go on in the one with the smallest id; but not in one where others have
/// spoken: who says so now may have lost it.
///
/// # Errors
/// The rows'.
pub fn follow<Q: Queues>(tx: &mut Q, next: &Progress, said: &Succession) -> Result<(), Q::Error> {
    let Some(thread) = tx.thread(&said.group)?.filter(|thread| thread.id != next.id) else { return Ok(()) };
    if thread.peer != next.peer || thread.root != next.root {
        return tx.raise(Alarm::FalseThread, Some(&next.id));
    }
    if let Some((sequence, theirs)) = said.head
        && tx.chain(&thread.id, sequence)?.is_some_and(|ours| ours != theirs)
    {
        tx.raise(Alarm::Forked, Some(&thread.id))?;
    }
    if thread.stand == Stand::Open {
        tx.keep_stand(&thread.id, Stand::Ended)?;
    }
    let before = last(tx, thread.id)?;
    if before == thread.id {
        tx.set_successor(&thread.id, &next.id)?;
    } else if before != next.id && last(tx, next.id)? == next.id {
        let spoken = tx.thread(&before)?.is_some_and(|before| before.delivered_sequence > 0);
        let (winner, loser) = if before < next.id && !spoken { (before, next.id) } else { (next.id, before) };
        if tx.thread(&loser)?.is_some_and(|loser| loser.stand == Stand::Open) {
            tx.keep_stand(&loser, Stand::Ended)?;
        }
        tx.set_successor(&loser, &winner)?;
        outbox::prepare(tx, &loser)?;
    }
    outbox::prepare(tx, &thread.id).map(drop)
}
