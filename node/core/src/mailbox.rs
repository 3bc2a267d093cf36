//! Mailboxes: what waits for the devices of an alias, how far each device has
//! come, and the terminal outcome of each delivery.

use crate::parcel::MAX_LIFE;
use crate::report;
use crate::tables::{Expired, Gone, Tables, Tx};
use bytes::Bytes;
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, DeviceId, MessageId, NodeId, Reason, Timestamp};
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, HashSet};

/// Deliveries that acknowledgements settle in one transaction: a submission may wait for it.
pub const TAKEN_AT_ONCE: usize = 256;

/// Something to put into a mailbox.
#[derive(Clone, PartialEq)]
pub struct Item {
    /// Whose.
    pub alias: Alias,
    /// What.
    pub item: node::subscribe_response::Item,
    /// Of a delivery: what its report needs.
    pub delivery: Option<Delivered>,
    /// The one device that it is for; `None`: all.
    pub only_device: Option<DeviceId>,
    /// The one device that it is not for.
    pub except_device: Option<DeviceId>,
    /// When to give up.
    pub expires_at: Timestamp,
}

/// Of a delivery: what its terminal report needs.
#[derive(Clone, PartialEq)]
pub struct Delivered {
    /// The message.
    pub message_id: MessageId,
    /// Which of its deliveries to this node.
    pub part: u32,
    /// Who wants the report.
    pub origin: Origin,
    /// Whether it is an application message.
    pub wants_receipt: bool,
}

/// Who wants the terminal report of a delivery.
#[derive(Clone, PartialEq)]
pub enum Origin {
    /// Another node is the hub.
    Hub(NodeId),
    /// This node is the hub.
    Here {
        /// Who sent the message.
        sender: Alias,
        /// And from where.
        sender_node: NodeId,
        /// And whether it wants events.
        wants_events: bool,
    },
}

impl Item {
    /// An event for the sender of a message.
    pub fn event(sender: Alias, event: node::Event, now: Timestamp) -> Self {
        Self::news(sender, node::subscribe_response::Item::Event(event), now)
    }

    /// Something that every device of an alias is to know.
    pub fn news(alias: Alias, item: node::subscribe_response::Item, now: Timestamp) -> Self {
        Self {
            alias,
            item,
            delivery: None,
            only_device: None,
            except_device: None,
            expires_at: now.after(MAX_LIFE),
        }
    }

    /// An outcome for the device that submitted.
    pub fn outcome(sender: Alias, device: DeviceId, outcome: wire::Outcome, now: Timestamp) -> Self {
        let news = Self::news(sender, node::subscribe_response::Item::Outcome(outcome), now);
        Self { only_device: Some(device), ..news }
    }
}

/// Puts items into mailboxes, in order.
///
/// # Errors
/// The tables'.
pub async fn put<T: Tables>(tx: &mut Tx<T>, items: &[Item]) -> Result<(), T::Error> {
    tx.tables.put(items).await?;
    tx.after.aliases.extend(items.iter().map(|item| item.alias));
    Ok(())
}

/// A device has committed everything up to `through`.
pub struct Acknowledgement {
    /// Of whose mailbox.
    pub alias: Alias,
    /// Which device.
    pub device: DeviceId,
    /// Position in the mailbox.
    pub through: u64,
    /// Delivery receipts by message.
    pub receipts: HashMap<MessageId, Bytes>,
}

/// Takes acknowledgements; says of each how far it was taken, which is less than
/// all when they are of more than [`TAKEN_AT_ONCE`] deliveries together. The
/// first device that gives a receipt decides the terminal outcome of an
/// application message; what all devices have is forgotten.
///
/// # Errors
/// The tables'.
pub async fn acknowledge<T: Tables>(
    tx: &mut Tx<T>,
    acknowledgements: &[Acknowledgement],
) -> Result<Vec<u64>, T::Error> {
    let (mut settled, mut taken) = (Vec::new(), HashSet::new());
    let mut reached = Vec::with_capacity(acknowledgements.len());
    let mut left = TAKEN_AT_ONCE;
    for acknowledgement in acknowledgements {
        let Acknowledgement { alias, device, through, receipts } = acknowledgement;
        if left == 0 {
            reached.push(0);
            continue;
        }
        let rows = tx.tables.untaken(*alias, *device, *through, left).await?;
        left -= rows.len();
        let last = rows.last().filter(|_| left == 0).map(|row| row.position);
        reached.push(last.unwrap_or(*through));
        for row in rows {
            let receipt = receipts.get(&row.delivered.message_id).cloned();
            if row.delivered.wants_receipt && receipt.is_none() {
                continue;
            }
            // Another device of the account may be a call earlier.
            if !taken.insert(row.position) {
                continue;
            }
            let receipt = receipt.filter(|_| row.delivered.wants_receipt).unwrap_or_default();
            let outcome = wire::report::Outcome::Delivered(wire::Delivered { receipt });
            let delivered = row.delivered;
            settled.push(report::Settled { delivered, recipient: *alias, at: tx.now, outcome });
        }
    }
    let mut cursors = HashMap::new();
    for (acknowledgement, reached) in acknowledgements.iter().zip(&reached) {
        let cursor: &mut u64 = cursors.entry((acknowledgement.alias, acknowledgement.device)).or_default();
        *cursor = (*cursor).max(*reached);
    }
    let cursors: Vec<_> = cursors.into_iter().collect();
    tx.tables.raise_cursors(&cursors).await?;
    tx.tables.take(&taken).await?;
    report::settle(tx, settled).await?;
    let aliases: HashSet<Alias> = acknowledgements.iter().map(|a| a.alias).collect();
    forget(tx, &aliases).await?;
    Ok(reached)
}

/// Deletes what every device of these aliases has. A message that none of them
/// could read has come to its end, too.
///
/// # Errors
/// The tables'.
pub async fn forget<T: Tables>(tx: &mut Tx<T>, aliases: &HashSet<Alias>) -> Result<(), T::Error> {
    let at = tx.now;
    let outcome = wire::report::Outcome::Refused(Reason::InvalidMessage.as_str().to_owned());
    let settle = |Gone { recipient, delivered }| report::Settled {
        delivered,
        recipient,
        at,
        outcome: outcome.clone(),
    };
    let settled = tx.tables.forget(aliases).await?.into_iter().map(settle).collect();
    report::settle(tx, settled).await
}

/// What remains of a delivery that has expired: its place in the group, so that nobody
/// takes it for withheld. `None`: it has none that anybody looks for.
pub(crate) fn remains(delivery: wire::Delivery) -> Option<wire::Delivery> {
    use wire::delivery::Body;
    let digest = match delivery.body.as_ref()? {
        Body::Application(message) | Body::Commit(message) => Sha256::digest(message).to_vec().into(),
        // Who is no member yet follows no chain.
        Body::Welcome(_) => return None,
        Body::Expired(digest) => digest.clone(),
    };
    Some(wire::Delivery { body: Some(Body::Expired(digest)), ..delivery })
}

/// Whether a delivery is what remains of one.
pub(crate) const fn is_rest(delivery: &wire::Delivery) -> bool {
    matches!(delivery.body, Some(wire::delivery::Body::Expired(_)))
}

/// Expired deliveries: reported unless a device has them; what remains stays for
/// whoever reads the mailbox later. How many rows.
pub(crate) async fn expire<T: Tables>(tx: &mut Tx<T>, most: usize) -> Result<u64, T::Error> {
    let (now, until) = (tx.now, tx.now.after(MAX_LIFE));
    let expired = tx.tables.expired_items(now, most).await?;
    let rows = expired.len() as u64;
    let (mut gone, mut settled) = (Vec::new(), Vec::new());
    for Expired { position, recipient, item, untaken } in expired {
        // What is behind it may go on.
        tx.after.aliases.insert(recipient);
        let rest = match item {
            node::subscribe_response::Item::Delivery(delivery) if !is_rest(&delivery) => remains(delivery),
            _ => None,
        };
        match rest.map(node::subscribe_response::Item::Delivery) {
            Some(rest) => tx.tables.replace_item(position, &rest, until).await?,
            None => gone.push(position),
        }
        let outcome = wire::report::Outcome::Expired(true);
        settled.extend(untaken.map(|delivered| report::Settled { delivered, recipient, at: now, outcome }));
    }
    tx.tables.remove_items(&gone).await?;
    report::settle(tx, settled).await?;
    Ok(rows)
}
