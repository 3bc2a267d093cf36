//! Deliveries into local mailboxes: from this node as the hub, or from a peer.

use crate::expire::GRACE;
use crate::mailbox::{self, Delivered, Item, Origin};
use crate::parcel::{Delivery, MAX_SKEW};
use crate::report;
use crate::tables::{Seen, Tables, Tx};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, GroupId, NodeId, Reason, Timestamp};
use std::collections::HashSet;

/// A delivery and who wants its report.
pub(crate) struct Incoming {
    pub(crate) delivery: Delivery,
    pub(crate) origin: Origin,
}

/// What comes into local mailboxes, in order.
pub(crate) enum Arrival {
    /// A delivery.
    Delivery(Incoming),
    /// Something for a sender.
    Item(Item),
}

/// Puts deliveries into the mailboxes of their recipients, and items where they belong.
pub(crate) async fn deliver<T: Tables>(tx: &mut Tx<T>, arrivals: Vec<Arrival>) -> Result<(), T::Error> {
    if arrivals.is_empty() {
        return Ok(());
    }
    let recipients = |arrival: &Arrival| match arrival {
        Arrival::Delivery(incoming) => incoming.delivery.recipients.clone(),
        Arrival::Item(_) => Vec::new(),
    };
    let aliases: HashSet<Alias> = arrivals.iter().flat_map(recipients).collect();
    let devices = tx.tables.devices(&aliases).await?;
    let (mut items, mut settled) = (Vec::new(), Vec::new());
    for arrival in arrivals {
        let Incoming { delivery, origin } = match arrival {
            Arrival::Delivery(incoming) => incoming,
            Arrival::Item(item) => {
                items.push(item);
                continue;
            }
        };
        let wants_receipt = matches!(delivery.message.body, Some(wire::delivery::Body::Application(_)));
        let (message_id, part) = (delivery.message_id, delivery.part);
        let delivered = Delivered { message_id, part, origin, wants_receipt };
        let remains = mailbox::is_rest(&delivery.message);
        for recipient in &delivery.recipients {
            let end = |outcome| report::Settled {
                delivered: delivered.clone(),
                recipient: *recipient,
                at: tx.now,
                outcome,
            };
            match devices.get(recipient) {
                None => {
                    let reason = Reason::AliasUnknown.as_str().to_owned();
                    settled.push(end(wire::report::Outcome::Refused(reason)));
                }
                Some(_) if remains || delivery.expires_at <= tx.now => {
                    settled.push(end(wire::report::Outcome::Expired(true)));
                    items.extend(rest(&delivery, recipient, tx.now));
                }
                // A copy for the sender's other devices, of which there are none.
                Some(1) if delivery.except_device.is_some() => {
                    settled.push(end(wire::report::Outcome::Delivered(wire::Delivered::default())));
                }
                Some(_) => items.push(Item {
                    alias: *recipient,
                    item: node::subscribe_response::Item::Delivery(for_recipient(&delivery, recipient)),
                    delivery: Some(delivered.clone()),
                    only_device: None,
                    except_device: delivery.except_device,
                    expires_at: delivery.expires_at,
                }),
            }
        }
    }
    mailbox::put(tx, &items).await?;
    report::settle(tx, settled).await
}

/// What a mailbox gets of a delivery that has expired.
fn rest(delivery: &Delivery, recipient: &Alias, now: Timestamp) -> Option<Item> {
    let remains = mailbox::remains(for_recipient(delivery, recipient))?;
    let item = node::subscribe_response::Item::Delivery(remains);
    Some(Item { except_device: delivery.except_device, ..Item::news(*recipient, item, now) })
}

/// A mailbox shows no other recipient.
fn for_recipient(delivery: &Delivery, recipient: &Alias) -> wire::Delivery {
    wire::Delivery { recipients: vec![recipient.to_wire()], ..delivery.message.clone() }
}

/// Takes deliveries of a peer, each once. One result for each: a reason where
/// the peer may not deliver it.
pub(crate) async fn receive<T: Tables>(
    tx: &mut Tx<T>,
    peer: &NodeId,
    deliveries: Vec<Delivery>,
) -> Result<Vec<Option<Reason>>, T::Error> {
    let ids: HashSet<GroupId> = deliveries.iter().map(|d| d.group_id).collect();
    let mut routes = tx.tables.routes(&ids).await?;
    let own = tx.tables.groups(&ids).await?;
    let mut verdicts = Vec::with_capacity(deliveries.len());
    let (mut allowed, mut new_routes) = (Vec::new(), Vec::new());
    for delivery in deliveries {
        // The first Welcome binds a group to its hub, for good.
        let foreign = own.contains_key(&delivery.group_id)
            || delivery.recipients.iter().any(|alias| match routes.get(&(delivery.group_id, *alias)) {
                Some(hub) => hub != peer,
                None => !delivery.welcome,
            });
        if foreign {
            verdicts.push(Some(Reason::WrongHub));
            continue;
        }
        verdicts.push(None);
        if delivery.welcome {
            for alias in &delivery.recipients {
                routes.insert((delivery.group_id, *alias), peer.clone());
                new_routes.push((delivery.group_id, *alias, peer.clone()));
            }
        }
        allowed.push(delivery);
    }
    let seen: Vec<_> = allowed.iter().map(seen).collect();
    let fresh = tx.tables.first_time(peer, &seen).await?;
    tx.tables.add_routes(&new_routes).await?;
    let incoming = allowed
        .into_iter()
        .zip(fresh)
        .filter(|(_, fresh)| *fresh)
        .map(|(delivery, _)| Arrival::Delivery(Incoming { delivery, origin: Origin::Hub(peer.clone()) }))
        .collect();
    deliver(tx, incoming).await?;
    Ok(verdicts)
}

fn seen(delivery: &Delivery) -> Seen {
    Seen {
        key: delivery.message_id.to_wire(),
        part: delivery.part,
        // What remains of it may come until then.
        expires_at: delivery.expires_at.after(GRACE).after(MAX_SKEW).after(MAX_SKEW),
    }
}
