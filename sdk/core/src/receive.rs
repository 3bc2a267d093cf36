//! What comes through the mailbox: each delivery is taken once, in the hub's order,
//! and its effect is committed with the mailbox position.

use crate::chain::{self, Link, Source};
use crate::{Alarm, Content, Opened, Place, Queues, Stand, outbox, succession};
use chancery_proto::federation::v1::{Delivery, delivery};
use chancery_types::{Chain, GroupId, MessageId};
use sha2::{Digest as _, Sha256};

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processed {
    /// This device is in a new thread.
    Joined,
    /// A letter stands in the inbox.
    Letter {
        /// Its position.
        position: u64,
    },
    /// Something about earlier letters, which became events.
    Noted,
    /// The thread moved to another epoch.
    Committed,
    /// It waits for the outcome of our own commit, or for what comes before it.
    Parked,
    /// It was taken before.
    Duplicate,
    /// It is for another device of this account.
    NotForUs,
    /// It expired before it could be read.
    Expired,
    /// It was refused, and an alarm was raised.
    Rejected(Alarm),
}

/// A delivery whose envelope parses.
pub struct Envelope<'a> {
    /// Where it stood.
    pub place: Place,
    /// As it came.
    pub delivery: &'a Delivery,
    /// Its group.
    pub group: GroupId,
    /// Its id.
    pub message_id: MessageId,
    /// The hub's chain value at its sequence.
    pub chain: Chain,
    /// What it carries.
    pub body: &'a delivery::Body,
}

impl<'a> Envelope<'a> {
    fn parse(place: Place, delivery: &'a Delivery) -> Option<Self> {
        Some(Self {
            place,
            delivery,
            group: GroupId::try_from(&delivery.group_id).ok()?,
            message_id: MessageId::try_from(&delivery.message_id).ok()?,
            chain: Chain::try_from(&delivery.chain).ok()?,
            body: delivery.body.as_ref().filter(|_| {
                (1..=Chain::LAST).contains(&delivery.sequence) && delivery.epoch <= Chain::LAST
            })?,
        })
    }

    /// Its place in the hub's order.
    pub fn link(&self) -> Link {
        let digest = match self.body {
            delivery::Body::Application(message) | delivery::Body::Commit(message) => {
                Some(Sha256::digest(message).into())
            }
            delivery::Body::Expired(digest) => digest.as_ref().try_into().ok(),
            delivery::Body::Welcome(_) => None,
        };
        Link { sequence: self.delivery.sequence, message_id: self.message_id, digest, chain: self.chain }
    }
}

/// Takes a delivery that stood at `place`. Idempotent by group and sequence. A bad
/// delivery is no error: it is [`Processed::Rejected`], or it would block the mailbox.
///
/// # Errors
/// The rows'; unless `last_try`, also the shell's want of something that it can
/// fetch: fetch it and call again; nothing is left behind.
pub fn receive<Q: Queues>(
    tx: &mut Q,
    place: Place,
    delivery: &Delivery,
    last_try: bool,
) -> Result<Processed, Q::Error> {
    let Some(envelope) = Envelope::parse(place, delivery) else {
        tx.raise(Alarm::InvalidMessage, None)?;
        return Ok(Processed::Rejected(Alarm::InvalidMessage));
    };
    let processed = take(tx, &envelope, last_try)?;
    if matches!(processed, Processed::Committed | Processed::Rejected(Alarm::ForbiddenCommit)) {
        // The epoch that queued letters waited for, or the end of the thread. No
        // commit of ours is pending any more.
        unpark(tx, &envelope.group)?;
        outbox::prepare(tx, &envelope.group)?;
    } else if processed != Processed::Parked && tx.parks(&envelope.group)? {
        // Perhaps what another home brought follows this.
        unpark(tx, &envelope.group)?;
    }
    Ok(processed)
}

/// Takes again all that waited for a former home.
///
/// # Errors
/// The rows'.
pub fn unpark_all<Q: Queues>(tx: &mut Q) -> Result<(), Q::Error> {
    tx.parked_groups()?.iter().try_for_each(|group| unpark(tx, group))
}

/// Takes again what waited of a group.
///
/// # Errors
/// The rows'.
pub fn unpark<Q: Queues>(tx: &mut Q, id: &GroupId) -> Result<(), Q::Error> {
    let mut parked = tx.unpark(id)?;
    parked.sort_by_key(|(_, delivery)| delivery.sequence);
    for (place, delivery) in parked {
        receive(tx, place, &delivery, true)?;
    }
    Ok(())
}

fn take<Q: Queues>(tx: &mut Q, envelope: &Envelope<'_>, last_try: bool) -> Result<Processed, Q::Error> {
    let mut thread = match (envelope.body, tx.thread(&envelope.group)?) {
        (delivery::Body::Welcome(_), None) => {
            return Ok(match tx.join(envelope, last_try)? {
                Opened::Good(()) => Processed::Joined,
                Opened::NotForUs => Processed::NotForUs,
                Opened::Bad => reject(tx, envelope)?,
            });
        }
        // Its Welcome may be with a former home.
        (_, None) if tx.must_follow(envelope.place.home)? => return park(tx, envelope),
        // Of a thread that this device is not in (yet), or not any more.
        (_, None) => return Ok(Processed::NotForUs),
        (_, Some(thread)) if !thread.stand.reads() => return Ok(Processed::NotForUs),
        // For a further device of this account.
        (delivery::Body::Welcome(_), Some(_)) => return Ok(Processed::NotForUs),
        (_, Some(thread)) => thread,
    };
    if envelope.delivery.epoch > thread.epoch && thread.pending_commit.is_some() {
        return park(tx, envelope);
    }
    if envelope.delivery.sequence > thread.head_sequence + 1 && tx.must_follow(envelope.place.home)? {
        return park(tx, envelope);
    }
    let link = envelope.link();
    if chain::is_seen(tx, &thread, &link)? {
        // A home that was restored from a copy has lost the receipt.
        if matches!(envelope.body, delivery::Body::Application(_)) {
            tx.receipt_again(envelope)?;
        }
        return Ok(Processed::Duplicate);
    }
    if matches!(envelope.body, delivery::Body::Expired(_)) {
        chain::record(tx, &mut thread, &link, Source::Delivered)?;
        return Ok(Processed::Expired);
    }
    let content = match tx.open(&mut thread, envelope, last_try)? {
        Opened::Good(content) => content,
        Opened::NotForUs => return Ok(Processed::NotForUs),
        Opened::Bad => return reject(tx, envelope),
    };
    chain::record(tx, &mut thread, &link, Source::Delivered)?;
    Ok(match content {
        Content::Letter(position) => Processed::Letter { position },
        Content::Note => Processed::Noted,
        Content::Again => Processed::Duplicate,
        Content::Commit => Processed::Committed,
    })
}

fn park<Q: Queues>(tx: &mut Q, envelope: &Envelope<'_>) -> Result<Processed, Q::Error> {
    tx.park(envelope.place, &envelope.group, envelope.delivery)?;
    Ok(Processed::Parked)
}

/// Notes a bad delivery. After a bad commit nothing more of the group can be
/// believed or read.
fn reject<Q: Queues>(tx: &mut Q, envelope: &Envelope<'_>) -> Result<Processed, Q::Error> {
    let alarm = match envelope.body {
        delivery::Body::Welcome(_) => Alarm::FalseThread,
        delivery::Body::Commit(_) => Alarm::ForbiddenCommit,
        delivery::Body::Application(_) | delivery::Body::Expired(_) => Alarm::InvalidMessage,
    };
    if let Some(mut thread) = tx.thread(&envelope.group)? {
        chain::record(tx, &mut thread, &envelope.link(), Source::Delivered)?;
        let stand = if alarm == Alarm::ForbiddenCommit { Stand::Broken } else { Stand::Failing };
        succession::end(tx, &envelope.group, stand)?;
    }
    tx.raise(alarm, Some(&envelope.group))?;
    Ok(Processed::Rejected(alarm))
}
