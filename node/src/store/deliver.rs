//! Deliveries into local mailboxes: from this node as the hub, or from a peer.

use super::mailbox::{self, Delivered, Item, Origin};
use super::{Tx, group, report, sql};
use chancery_node_core::parcel::{Delivery, MAX_SKEW};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, GroupId, MessageId, NodeId, Reason};
use sqlx::Row as _;
use std::collections::{HashMap, HashSet};

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

/// How many devices each alias has; an alias that is not here is left out.
pub(crate) async fn devices(
    tx: &mut Tx<'_>,
    aliases: &HashSet<Alias>,
) -> Result<HashMap<Alias, i64>, sqlx::Error> {
    let head = "SELECT a.alias, count(*) FROM alias a JOIN device d ON d.account_id = a.account_id
                WHERE a.alias";
    let keys = aliases.iter().map(|alias| alias.as_bytes().as_slice());
    let mut counts = HashMap::new();
    for row in sql::select_in(tx.connection, head, "GROUP BY a.alias", keys).await? {
        let alias = sql::column(row.try_get::<Vec<u8>, _>(0)?, "alias.alias")?;
        counts.insert(alias, row.try_get(1)?);
    }
    Ok(counts)
}

/// Puts deliveries into the mailboxes of their recipients, and items where they belong.
pub(crate) async fn deliver(tx: &mut Tx<'_>, arrivals: Vec<Arrival>) -> Result<(), sqlx::Error> {
    if arrivals.is_empty() {
        return Ok(());
    }
    let recipients = |arrival: &Arrival| match arrival {
        Arrival::Delivery(incoming) => incoming.delivery.recipients.clone(),
        Arrival::Item(_) => Vec::new(),
    };
    let aliases = arrivals.iter().flat_map(recipients).collect();
    let devices = devices(tx, &aliases).await?;
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
                _ if delivery.expires_at <= tx.now => settled.push(end(wire::report::Outcome::Expired(true))),
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

/// A mailbox shows no other recipient.
fn for_recipient(delivery: &Delivery, recipient: &Alias) -> wire::Delivery {
    wire::Delivery { recipients: vec![recipient.to_wire()], ..delivery.message.clone() }
}

/// Takes deliveries of a peer, each once. One result for each: a reason where
/// the peer may not deliver it.
pub(crate) async fn receive(
    tx: &mut Tx<'_>,
    peer: &NodeId,
    deliveries: Vec<Delivery>,
) -> Result<Vec<Option<Reason>>, sqlx::Error> {
    let ids: HashSet<GroupId> = deliveries.iter().map(|d| d.group_id).collect();
    let mut routes = group::routes(tx, &ids).await?;
    let own = group::load(tx, &ids).await?;
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
    let fresh = first_time(tx, peer, &allowed).await?;
    group::add_routes(tx, &new_routes).await?;
    let incoming = allowed
        .into_iter()
        .filter(|delivery| fresh.contains(&(delivery.message_id, delivery.part)))
        .map(|delivery| Arrival::Delivery(Incoming { delivery, origin: Origin::Hub(peer.clone()) }))
        .collect();
    deliver(tx, incoming).await?;
    Ok(verdicts)
}

/// Which of the deliveries come for the first time.
async fn first_time(
    tx: &mut Tx<'_>,
    peer: &NodeId,
    deliveries: &[Delivery],
) -> Result<HashSet<(MessageId, u32)>, sqlx::Error> {
    let head = "INSERT INTO received (message_id, peer, part, expires_at)";
    let tail = "ON CONFLICT DO NOTHING RETURNING message_id, part";
    let rows = sql::insert_returning(tx.connection, head, 4, tail, deliveries, |statement, delivery| {
        statement
            .bind(delivery.message_id.as_bytes().as_slice())
            .bind(peer.as_str())
            .bind(i64::from(delivery.part))
            .bind(delivery.expires_at.after(MAX_SKEW).after(MAX_SKEW).millis())
    })
    .await?;
    rows.iter()
        .map(|row| {
            let id = sql::column(row.try_get::<Vec<u8>, _>(0)?, "received.message_id")?;
            Ok((id, u32::try_from(row.try_get::<i64, _>(1)?).unwrap_or(0)))
        })
        .collect()
}
