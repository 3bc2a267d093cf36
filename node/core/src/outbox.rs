//! What waits for peers. A parcel is kept until it is settled: a submission
//! until its outcome, a delivery until each recipient's terminal report, news of a move
//! until the hub has noted it, a part of a broadcast until it expires, anything else until the
//! peer has acknowledged it.

use crate::link::Acked;
use crate::mailbox::{self, Item};
use crate::tables::{Tables, Tx};
use crate::{moves, report, submit};
use bytes::Bytes;
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, Incarnation, MessageId, NodeId, Timestamp};

/// What kind of parcel; numbers as in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the hub of a group.
    Submission = 0,
    /// To the homes of its members.
    Delivery = 1,
    /// To the sender's home.
    Outcome = 2,
    /// To the hub, or on to the sender's home.
    Report = 3,
    /// To hubs of groups of an alias that left.
    Moved = 4,
    /// To the homes of a group's members, in the place of a delivery that expired long ago.
    Expired = 5,
    /// To the former home of an alias.
    MoveNoted = 6,
    /// Of a broadcast: to a channel's agent, or to the residents' homes. Kept until it expires, for
    /// a peer that is restored.
    Broadcast = 7,
}

impl Kind {
    /// Whether it is kept until something is heard of it.
    pub const fn is_kept(self) -> bool {
        matches!(self, Self::Submission | Self::Delivery | Self::Moved | Self::Broadcast)
    }
}

/// A parcel to hand over.
#[derive(Clone)]
pub struct Outgoing {
    /// Whom to.
    pub peer: NodeId,
    /// What kind.
    pub kind: Kind,
    /// The parcel.
    pub parcel: wire::parcel::Parcel,
    /// What it is about.
    pub message_id: MessageId,
    /// Which part of it.
    pub part: u32,
    /// Who is still to be reported on; for a delivery.
    pub recipients: Vec<Alias>,
    /// Who sent the message.
    pub sender: Alias,
    /// And from where.
    pub sender_node: NodeId,
    /// And whether it wants events.
    pub wants_events: bool,
    /// When to give up.
    pub expires_at: Timestamp,
}

/// A waiting parcel, as its peer gets it.
#[derive(Clone, PartialEq)]
pub struct Waiting {
    /// Growing.
    pub id: i64,
    /// `federation.v1.Parcel`, serialised.
    pub parcel: Bytes,
    /// When to give up.
    pub expires_at: Timestamp,
}

/// What the outbox keeps about a parcel beside its bytes.
#[derive(Clone, PartialEq)]
pub struct Kept {
    /// What kind.
    pub kind: Kind,
    /// What it is about.
    pub message_id: MessageId,
    /// Which part of it.
    pub part: u32,
    /// Who is still to be reported on.
    pub recipients: Vec<Alias>,
    /// Who sent the message.
    pub sender: Alias,
    /// And from where.
    pub sender_node: NodeId,
    /// And whether it wants events.
    pub wants_events: bool,
}

/// A parcel that came to its end without being settled.
#[derive(PartialEq)]
pub struct Ended {
    /// Its id in the outbox.
    pub id: i64,
    /// Whom it was for.
    pub peer: NodeId,
    /// What was kept.
    pub kept: Kept,
    /// Whether the peer had acknowledged it.
    pub acknowledged: bool,
    /// The parcel.
    pub parcel: wire::Parcel,
}

impl Kept {
    /// Events for the sender: each recipient's node has the message.
    pub(crate) fn relayed<T>(&self, tx: &Tx<T>) -> Vec<Item> {
        if self.kind != Kind::Delivery || !self.wants_events || self.sender_node != tx.here {
            return Vec::new();
        }
        let event = |recipient: &Alias| node::Event {
            message_id: self.message_id.to_wire(),
            recipient: recipient.to_wire(),
            occurred_at_ms: tx.now.millis(),
            kind: Some(node::event::Kind::Relayed(true)),
        };
        self.recipients.iter().map(|r| Item::event(self.sender, event(r), tx.now)).collect()
    }
}

/// Puts parcels into the outbox, in order.
///
/// # Errors
/// The tables'.
pub async fn push<T: Tables>(tx: &mut Tx<T>, parcels: &[Outgoing]) -> Result<(), T::Error> {
    tx.tables.push(parcels).await?;
    tx.after.peers.extend(parcels.iter().map(|out| out.peer.clone()));
    Ok(())
}

/// The peer has committed parcels: keeps what is to be settled, forgets the
/// rest, and tells senders on this node what was relayed. What it will never take
/// is a dead letter.
///
/// # Errors
/// The tables'.
pub async fn acked<T: Tables>(tx: &mut Tx<T>, acked: &Acked) -> Result<(), T::Error> {
    let kept = tx.tables.acknowledged(&acked.taken).await?;
    let events: Vec<_> = kept.iter().flat_map(|kept| kept.relayed(tx)).collect();
    mailbox::put(tx, &events).await?;
    for (id, reason) in &acked.refused {
        dead(tx, *id, reason).await?;
    }
    Ok(())
}

/// The peer will never take a parcel: its sender hears of it.
async fn dead<T: Tables>(tx: &mut Tx<T>, id: i64, reason: &str) -> Result<(), T::Error> {
    let Some(ended) = tx.tables.dead(id, reason).await? else { return Ok(()) };
    match &ended.parcel.parcel {
        Some(wire::parcel::Parcel::Submission(submission)) => {
            submit::refused_on_the_way(tx, submission, reason).await
        }
        Some(wire::parcel::Parcel::Delivery(delivery)) => {
            let outcome = if mailbox::is_rest(delivery) {
                wire::report::Outcome::Expired(true)
            } else {
                wire::report::Outcome::Refused(reason.to_owned())
            };
            report::settle_kept(tx, &ended.kept, outcome).await
        }
        _ => Ok(()),
    }
}

/// A peer does not answer.
///
/// # Errors
/// The tables'.
pub async fn silent<T: Tables>(tx: &mut Tx<T>, peer: &NodeId) -> Result<(), T::Error> {
    tx.tables.silent_from(peer, tx.now).await
}

/// A peer says who it is. Another store than before has lost what it had
/// acknowledged and not settled: it goes out again. Whether it does.
///
/// # Errors
/// The tables'.
pub async fn greet<T: Tables>(
    tx: &mut Tx<T>,
    peer: &NodeId,
    incarnation: Incarnation,
) -> Result<bool, T::Error> {
    let before = tx.tables.greet(peer, incarnation).await?;
    if before.is_none_or(|before| before == incarnation) {
        return Ok(false);
    }
    tx.tables.replay(peer).await?;
    // It may have forgotten who has gone where, too.
    let news: Vec<_> = tx
        .tables
        .departed(peer)
        .await?
        .into_iter()
        .map(|(alias, to)| moves::news(tx, peer.clone(), alias, &to))
        .collect();
    push(tx, &news).await?;
    tx.after.peers.insert(peer.clone());
    Ok(true)
}
