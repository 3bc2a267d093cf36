//! Terminal reports: from the recipient's home to the hub, from the hub to the
//! sender's node, from there into the sender's mailbox as events.

use crate::mailbox::{self, Delivered, Item, Origin};
use crate::outbox::{self, Kept, Kind, Outgoing};
use crate::parcel::{MAX_LIFE, MAX_SKEW, Report};
use crate::tables::{Seen, Tables, Tx};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, MessageId, NodeId, Timestamp};
use sha2::{Digest as _, Sha256};

/// A delivery on this node has come to its end.
pub(crate) struct Settled {
    pub(crate) delivered: Delivered,
    pub(crate) recipient: Alias,
    pub(crate) at: Timestamp,
    pub(crate) outcome: wire::report::Outcome,
}

/// Passes the ends of deliveries on to whoever is to hear of them.
pub(crate) async fn settle<T: Tables>(tx: &mut Tx<T>, settled: Vec<Settled>) -> Result<(), T::Error> {
    let mut out = Heard::default();
    for Settled { delivered, recipient, at, outcome } in settled {
        let report = wire::Report {
            message_id: delivered.message_id.to_wire(),
            recipient: recipient.to_wire(),
            occurred_at_ms: at.millis(),
            outcome: Some(outcome),
            part: delivered.part,
        };
        match delivered.origin {
            Origin::Hub(hub) => out.parcels.push(parcel(tx, hub, delivered.message_id, report)),
            Origin::Here { sender, sender_node, wants_events } if wants_events => {
                out.pass_on(tx, sender, sender_node, report);
            }
            Origin::Here { .. } => {}
        }
    }
    out.perform(tx).await
}

/// As [`settle`], for a delivery that never left the outbox.
pub(crate) async fn settle_kept<T: Tables>(
    tx: &mut Tx<T>,
    kept: &Kept,
    outcome: wire::report::Outcome,
) -> Result<(), T::Error> {
    let origin = Origin::Here {
        sender: kept.sender,
        sender_node: kept.sender_node.clone(),
        wants_events: kept.wants_events,
    };
    let (message_id, part) = (kept.message_id, kept.part);
    let delivered = Delivered { message_id, part, origin, wants_receipt: false };
    let settled = kept.recipients.iter().map(|recipient| Settled {
        delivered: delivered.clone(),
        recipient: *recipient,
        at: tx.now,
        outcome: outcome.clone(),
    });
    let settled = settled.collect();
    settle(tx, settled).await
}

/// A peer reports: as the home of a recipient to us, the hub, or as the hub to
/// us, the sender's node.
pub(crate) async fn receive<T: Tables>(
    tx: &mut Tx<T>,
    peer: &NodeId,
    reports: &[Report],
) -> Result<(), T::Error> {
    let mut out = Heard::default();
    for report in reports {
        if let Some((acknowledged, kept)) = release(tx, peer, report).await? {
            // The report may overtake the acknowledgement of its own delivery.
            if !acknowledged {
                out.events.extend(kept.relayed(tx).into_iter().filter(|item| is_of(item, report)));
            }
            if kept.wants_events {
                out.pass_on(tx, kept.sender, kept.sender_node, report.message.clone());
            }
        } else if let Some(sender) = tx.tables.submitter(report.message_id, peer).await?
            && first_time(tx, peer, &key(report), report.part).await?
        {
            out.events.push(Item::event(sender, event(report.message.clone()), tx.now));
        }
    }
    out.perform(tx).await
}

fn is_of(item: &Item, report: &Report) -> bool {
    matches!(&item.item, node::subscribe_response::Item::Event(event)
        if event.recipient.as_ref() == report.recipient.as_bytes())
}

/// Takes a recipient off the kept delivery; the delivery goes with its last
/// one. Also says whether the peer has acknowledged it. `None`: nothing was
/// delivered to that peer, or it has reported before.
async fn release<T: Tables>(
    tx: &mut Tx<T>,
    peer: &NodeId,
    report: &Report,
) -> Result<Option<(bool, Kept)>, T::Error> {
    let found = tx.tables.delivery(peer, report.message_id, report.part).await?;
    let Some((id, acknowledged, kept)) = found else { return Ok(None) };
    if !kept.recipients.contains(&report.recipient) {
        return Ok(None);
    }
    let rest: Vec<_> = kept.recipients.iter().copied().filter(|alias| *alias != report.recipient).collect();
    tx.tables.release(id, &rest).await?;
    Ok(Some((acknowledged, kept)))
}

fn key(report: &Report) -> [&[u8]; 3] {
    [b"report", report.message_id.as_bytes(), report.recipient.as_bytes()]
}

/// Whether something comes from a peer for the first time.
pub(crate) async fn first_time<T: Tables>(
    tx: &mut Tx<T>,
    peer: &NodeId,
    what: &[&[u8]],
    part: u32,
) -> Result<bool, T::Error> {
    let key = what.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize();
    let expires_at = tx.now.after(MAX_LIFE).after(MAX_SKEW);
    let seen = Seen { key: key.to_vec().into(), part, expires_at };
    Ok(tx.tables.first_time(peer, &[seen]).await?.first().copied().unwrap_or(false))
}

/// Who hears of reports.
#[derive(Default)]
struct Heard {
    parcels: Vec<Outgoing>,
    events: Vec<Item>,
}

impl Heard {
    fn pass_on<T>(&mut self, tx: &Tx<T>, sender: Alias, sender_node: NodeId, report: wire::Report) {
        if sender_node == tx.here {
            self.events.push(Item::event(sender, event(report), tx.now));
        } else if let Ok(message_id) = MessageId::try_from(&report.message_id) {
            self.parcels.push(parcel(tx, sender_node, message_id, report));
        }
    }

    async fn perform<T: Tables>(self, tx: &mut Tx<T>) -> Result<(), T::Error> {
        outbox::push(tx, &self.parcels).await?;
        mailbox::put(tx, &self.events).await
    }
}

fn parcel<T>(tx: &Tx<T>, peer: NodeId, message_id: MessageId, report: wire::Report) -> Outgoing {
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
