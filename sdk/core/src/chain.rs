//! The hub's hash chain over a thread's messages, as far as this device can
//! follow it: gapless sequences, each value made from the one before. What the
//! hub withholds, reorders or tells differently becomes an alarm.

use crate::{Alarm, Progress, Queues, Stand};
use chancery_types::{Chain, MessageId};

/// How many links are kept behind the head, to compare with other members' heads.
const KEPT: u64 = 4096;

/// One message in the hub's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub sequence: u64,
    /// Its id.
    pub message_id: MessageId,
    /// SHA-256 of the MLSMessage; `None` for a Welcome, which stands for the
    /// commit that the joiner does not see.
    pub digest: Option<[u8; 32]>,
    /// The hub's value.
    pub chain: Chain,
}

/// How a link became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Through the mailbox, in the hub's order.
    Delivered,
    /// Our own message was accepted.
    Accepted,
}

/// Begins the chain of a thread that was joined.
///
/// # Errors
/// The rows'.
pub fn begin<Q: Queues>(tx: &mut Q, progress: &mut Progress, link: &Link) -> Result<(), Q::Error> {
    tx.add_link(&progress.id, link)?;
    progress.head_sequence = link.sequence;
    progress.delivered_sequence = link.sequence;
    tx.keep_head(progress)
}

/// Whether a sequence was seen before; with another value it is an alarm.
///
/// # Errors
/// The rows'.
pub fn is_seen<Q: Queues>(tx: &mut Q, progress: &Progress, link: &Link) -> Result<bool, Q::Error> {
    match tx.chain(&progress.id, link.sequence)? {
        Some(seen) => {
            if seen != link.chain {
                tx.raise(Alarm::Forked, Some(&progress.id))?;
            }
            Ok(true)
        }
        // Its link is gone, so it was seen.
        None => Ok(link.sequence < progress.head_sequence.saturating_sub(KEPT)),
    }
}

/// Notes a link and moves the head over what is known without a gap, unless the
/// sequence was seen before.
///
/// # Errors
/// The rows'.
pub fn record<Q: Queues>(
    tx: &mut Q,
    progress: &mut Progress,
    link: &Link,
    source: Source,
) -> Result<(), Q::Error> {
    if is_seen(tx, progress, link)? {
        return Ok(());
    }
    tx.add_link(&progress.id, link)?;
    if source == Source::Delivered {
        if link.sequence < progress.delivered_sequence {
            tx.raise(Alarm::Reordered, Some(&progress.id))?;
        }
        progress.delivered_sequence = progress.delivered_sequence.max(link.sequence);
    }
    settle(tx, progress)?;
    tx.forget_links(&progress.id, progress.head_sequence.saturating_sub(KEPT))
}

/// Moves the head as far as it goes. A gap below what was delivered is an alarm,
/// unless a message of ours may fill it: its outcome is still on its way, or a hub that
/// was given up had it all the same.
///
/// # Errors
/// The rows'.
pub fn settle<Q: Queues>(tx: &mut Q, progress: &mut Progress) -> Result<(), Q::Error> {
    advance(tx, progress)?;
    if progress.head_sequence < progress.delivered_sequence && !tx.any_submitted(&progress.id)? {
        if progress.stand == Stand::Open {
            tx.raise(Alarm::Withheld, Some(&progress.id))?;
        }
        progress.head_sequence = progress.delivered_sequence;
        advance(tx, progress)?;
    }
    tx.keep_head(progress)
}

fn advance<Q: Queues>(tx: &mut Q, progress: &mut Progress) -> Result<(), Q::Error> {
    let mut previous = match progress.head_sequence {
        0 => Chain::START,
        sequence => tx.chain(&progress.id, sequence)?.unwrap_or(Chain::START),
    };
    while let Some(link) = tx.link(&progress.id, progress.head_sequence + 1)? {
        let expected = link.digest.map(|digest| previous.next(link.sequence, &link.message_id, &digest));
        if expected != Some(link.chain) {
            tx.raise(Alarm::Forked, Some(&progress.id))?;
        }
        progress.head_sequence = link.sequence;
        previous = link.chain;
    }
    Ok(())
}
