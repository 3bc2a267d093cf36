//! Terminal reports: from the recipient's home to the hub, from the hub to the
//! sender's node, from there into the sender's mailbox as events.

use super::mailbox::{self, Delivered, Item, Origin};
use super::outbox::{self, Kept, Kind, Outgoing};
use super::{Tx, sql};
use chancery_node_core::parcel::{MAX_LIFE, MAX_SKEW, Report};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, MessageId, NodeId, Timestamp};
use sha2::{Digest as _, Sha256};
use sqlx::Row as _;

/// A delivery on this node has come to its end.
pub(crate) struct Settled {
    pub(crate) delivered: Delivered,
    pub(crate) recipient: Alias,
    pub(crate) at: Timestamp,
    pub(crate) outcome: wire::report::Outcome,
}

/// Passes the ends of deliveries on to whoever is to hear of them.
pub(crate) async fn settle(tx: &mut Tx<'_>, settled: Vec<Settled>) -> Result<(), sqlx::Error> {
    let (mut parcels, mut events) = (Vec::new(), Vec::new());
    for Settled { delivered, recipient, at, outcome } in settled {
        let report = wire::Report {
            message_id: delivered.message_id.to_wire(),
            recipient: recipient.to_wire(),
            occurred_at_ms: at.millis(),
            outcome: Some(outcome),
            part: delivered.part,
        };
        match delivered.origin {
            Origin::Hub(hub) => parcels.push(parcel(tx, hub, delivered.message_id, report)),
            Origin::Here { sender, sender_node, wants_events } => {
                pass_on(tx, sender, sender_node, wants_events, report, &mut parcels, &mut events);
            }
        }
    }
    outbox::push(tx, &parcels).await?;
    mailbox::put(tx, &events).await
}

/// As [`settle`], for a delivery that never left the outbox.
pub(crate) async fn settle_kept(
    tx: &mut Tx<'_>,
    kept: &Kept,
    part: u32,
    outcome: wire::report::Outcome,
) -> Result<(), sqlx::Error> {
    let origin = Origin::Here {
        sender: kept.sender,
        sender_node: kept.sender_node.clone(),
        wants_events: kept.wants_events,
    };
    let delivered = Delivered { message_id: kept.message_id, part, origin, wants_receipt: false };
    let settled = kept.recipients.iter().map(|recipient| Settled {
        delivered: delivered.clone(),
        recipient: *recipient,
        at: tx.now,
        outcome: outcome.clone(),
    });
    settle(tx, settled.collect()).await
}

/// A peer reports: as the home of a recipient to us, the hub, or as the hub to
/// us, the sender's node.
pub(crate) async fn receive(tx: &mut Tx<'_>, peer: &NodeId, reports: &[Report]) -> Result<(), sqlx::Error> {
    let (mut parcels, mut events) = (Vec::new(), Vec::new());
    for report in reports {
        if let Some(kept) = release(tx, peer, report).await? {
            // The report may overtake the acknowledgement of its own delivery.
            if kept.1 {
                events.extend(kept.0.relayed(tx).into_iter().filter(|item| is_of(item, report)));
            }
            let Kept { sender, sender_node, wants_events, .. } = kept.0;
            let message = report.message.clone();
            pass_on(tx, sender, sender_node, wants_events, message, &mut parcels, &mut events);
        } else if let Some(sender) = submitted(tx, peer, report).await?
            && first_time(tx, peer, &key(report), report.part).await?
        {
            events.push(Item::event(sender, event(report.message.clone()), tx.now));
        }
    }
    outbox::push(tx, &parcels).await?;
    mailbox::put(tx, &events).await
}

fn is_of(item: &Item, report: &Report) -> bool {
    matches!(&item.item, node::subscribe_response::Item::Event(event)
        if event.recipient.as_ref() == report.recipient.as_bytes())
}

/// Takes a recipient off the kept delivery; the delivery goes with its last
/// one. Also says whether the peer's acknowledgement is still to come. `None`:
/// nothing was delivered to that peer, or it has reported before.
async fn release(
    tx: &mut Tx<'_>,
    peer: &NodeId,
    report: &Report,
) -> Result<Option<(Kept, bool)>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT id, state, kind, message_id, recipients, sender, sender_node, wants_events FROM outbox
         WHERE message_id = $1 AND peer = $2 AND part = $3 AND kind = 1",
    )
    .bind(report.message_id.as_bytes().as_slice())
    .bind(peer.as_str())
    .bind(i64::from(report.part))
    .fetch_optional(&mut *tx.connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let kept = Kept::read(&row)?;
    if !kept.recipients.contains(&report.recipient) {
        return Ok(None);
    }
    let id: i64 = row.try_get("id")?;
    let rest: Vec<u8> =
        kept.recipients.iter().filter(|a| **a != report.recipient).flat_map(|a| *a.as_bytes()).collect();
    if rest.is_empty() {
        sqlx::query("DELETE FROM outbox WHERE id = $1").bind(id).execute(&mut *tx.connection).await?;
    } else {
        sqlx::query("UPDATE outbox SET recipients = $2 WHERE id = $1")
            .bind(id)
            .bind(rest)
            .execute(&mut *tx.connection)
            .await?;
    }
    Ok(Some((kept, row.try_get::<i64, _>("state")? == 0)))
}

/// Who on this node submitted the message to that hub and wants events.
async fn submitted(tx: &mut Tx<'_>, hub: &NodeId, report: &Report) -> Result<Option<Alias>, sqlx::Error> {
    let sender = sqlx::query_scalar::<_, Vec<u8>>(
        "SELECT sender FROM submission WHERE message_id = $1 AND hub = $2 AND wants_events",
    )
    .bind(report.message_id.as_bytes().as_slice())
    .bind(hub.as_str())
    .fetch_optional(&mut *tx.connection)
    .await?;
    sender.map(|alias| sql::column(alias, "submission.sender")).transpose()
}

fn key(report: &Report) -> [&[u8]; 3] {
    [b"report", report.message_id.as_bytes(), report.recipient.as_bytes()]
}

/// Whether something comes from a peer for the first time.
pub(crate) async fn first_time(
    tx: &mut Tx<'_>,
    peer: &NodeId,
    what: &[&[u8]],
    part: u32,
) -> Result<bool, sqlx::Error> {
    let key = what.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize();
    let done = sqlx::query(
        "INSERT INTO received (message_id, peer, part, expires_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT DO NOTHING",
    )
    .bind(key.as_slice())
    .bind(peer.as_str())
    .bind(i64::from(part))
    .bind(tx.now.after(MAX_LIFE).after(MAX_SKEW).millis())
    .execute(&mut *tx.connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

fn pass_on(
    tx: &Tx<'_>,
    sender: Alias,
    sender_node: NodeId,
    wants_events: bool,
    report: wire::Report,
    parcels: &mut Vec<Outgoing>,
    events: &mut Vec<Item>,
) {
    if !wants_events {
        return;
    }
    if sender_node == tx.here {
        events.push(Item::event(sender, event(report), tx.now));
    } else if let Ok(message_id) = MessageId::try_from(&report.message_id) {
        parcels.push(parcel(tx, sender_node, message_id, report));
    }
}

fn parcel(tx: &Tx<'_>, peer: NodeId, message_id: MessageId, report: wire::Report) -> Outgoing {
    Outgoing {
        peer,
        kind: Kind::Report,
        part: report.part,
        parcel: wire::parcel::Parcel::Report(report),
        message_id,
        recipients: Vec::new(),
        sender: Alias::from_bytes([0; 16]),
        sender_node: tx.here.clone(),
        wants_events: false,
        expires_at: tx.now.after(MAX_LIFE),
    }
}

fn event(report: wire::Report) -> node::Event {
    use wire::report::Outcome;
    node::Event {
        message_id: report.message_id,
        recipient: report.recipient,
        occurred_at_ms: report.occurred_at_ms,
        kind: report.outcome.map(|outcome| match outcome {
            Outcome::Delivered(delivered) => node::event::Kind::Delivered(delivered),
            Outcome::Refused(reason) => node::event::Kind::Refused(reason),
            Outcome::Expired(_) => node::event::Kind::Expired(true),
        }),
    }
}
