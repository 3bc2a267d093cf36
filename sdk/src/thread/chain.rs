//! The hub's hash chain over a thread's messages, as far as this device can
//! follow it: gapless sequences, each value made from the one before. What the
//! hub withholds, reorders or tells differently becomes an alarm.

use super::Thread;
use crate::alarm::{self, Alarm};
use crate::error::EndpointError;
use crate::outbox;
use crate::store::Tx;
use chancery_types::{Chain, GroupId, MessageId};
use rusqlite::{OptionalExtension as _, Row, params};

/// How many links are kept behind the head, to compare with other members' heads.
const KEPT: u64 = 4096;

/// One message in the hub's order.
pub(crate) struct Link {
    pub(crate) sequence: u64,
    pub(crate) message_id: MessageId,
    /// SHA-256 of the MLSMessage; `None` for a Welcome, which stands for the
    /// commit that the joiner does not see.
    pub(crate) digest: Option<[u8; 32]>,
    pub(crate) chain: Chain,
}

/// How a link became known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Through the mailbox, in the hub's order.
    Delivered,
    /// Our own message was accepted.
    Accepted,
}

/// The chain value at a sequence, if it was seen.
pub(crate) fn at(tx: &Tx<'_>, id: &GroupId, sequence: u64) -> Result<Option<Chain>, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached("SELECT chain FROM links WHERE group_id = ?1 AND sequence = ?2")?
        .query_row(params![id.as_bytes(), sequence], |row| row.get(0))
        .optional()?
        .map(Chain::from_bytes))
}

/// Begins the chain of a thread that was joined.
pub(crate) fn begin(tx: &Tx<'_>, thread: &mut Thread, link: &Link) -> Result<(), EndpointError> {
    insert(tx, &thread.id, link)?;
    thread.head_sequence = link.sequence;
    thread.delivered_sequence = link.sequence;
    store_head(tx, thread)
}

/// Notes a link and moves the head over what is known without a gap. `false`:
/// the sequence was seen before.
pub(crate) fn record(
    tx: &Tx<'_>,
    thread: &mut Thread,
    link: &Link,
    source: Source,
) -> Result<bool, EndpointError> {
    if let Some(seen) = at(tx, &thread.id, link.sequence)? {
        if seen != link.chain {
            alarm::raise(tx, Alarm::Forked, Some(&thread.id))?;
        }
        return Ok(false);
    }
    if link.sequence < thread.head_sequence.saturating_sub(KEPT) {
        // Its link is gone, so it was seen.
        return Ok(false);
    }
    insert(tx, &thread.id, link)?;
    if source == Source::Delivered {
        if link.sequence < thread.delivered_sequence {
            alarm::raise(tx, Alarm::Reordered, Some(&thread.id))?;
        }
        thread.delivered_sequence = thread.delivered_sequence.max(link.sequence);
    }
    settle(tx, thread)?;
    tx.sql()
        .prepare_cached("DELETE FROM links WHERE group_id = ?1 AND sequence < ?2")?
        .execute(params![thread.id.as_bytes(), thread.head_sequence.saturating_sub(KEPT)])?;
    Ok(true)
}

/// Moves the head as far as it goes. A gap below what was delivered is an alarm,
/// unless a message of ours may fill it whose outcome is still on its way.
pub(crate) fn settle(tx: &Tx<'_>, thread: &mut Thread) -> Result<(), EndpointError> {
    advance(tx, thread)?;
    if thread.head_sequence < thread.delivered_sequence && !outbox::any_undecided(tx, &thread.id)? {
        alarm::raise(tx, Alarm::Withheld, Some(&thread.id))?;
        thread.head_sequence = thread.delivered_sequence;
        advance(tx, thread)?;
    }
    store_head(tx, thread)
}

fn advance(tx: &Tx<'_>, thread: &mut Thread) -> Result<(), EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT message_id, digest, chain FROM links WHERE group_id = ?1 AND sequence = ?2",
    )?;
    let mut previous = match thread.head_sequence {
        0 => Chain::START,
        sequence => at(tx, &thread.id, sequence)?.unwrap_or(Chain::START),
    };
    loop {
        let sequence = thread.head_sequence + 1;
        let read = |row: &Row<'_>| {
            Ok(Link {
                sequence,
                message_id: MessageId::from_bytes(row.get(0)?),
                digest: row.get(1)?,
                chain: Chain::from_bytes(row.get(2)?),
            })
        };
        let link = statement.query_row(params![thread.id.as_bytes(), sequence], read).optional()?;
        let Some(link) = link else { return Ok(()) };
        let expected = link.digest.map(|digest| previous.next(sequence, &link.message_id, &digest));
        if expected != Some(link.chain) {
            alarm::raise(tx, Alarm::Forked, Some(&thread.id))?;
        }
        thread.head_sequence = sequence;
        previous = link.chain;
    }
}

fn insert(tx: &Tx<'_>, id: &GroupId, link: &Link) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "INSERT INTO links (group_id, sequence, message_id, digest, chain) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            id.as_bytes(),
            link.sequence,
            link.message_id.as_bytes(),
            link.digest,
            link.chain.as_bytes()
        ])?;
    Ok(())
}

fn store_head(tx: &Tx<'_>, thread: &Thread) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached("UPDATE threads SET head_sequence = ?2, delivered_sequence = ?3 WHERE group_id = ?1")?
        .execute(params![thread.id.as_bytes(), thread.head_sequence, thread.delivered_sequence])?;
    Ok(())
}
