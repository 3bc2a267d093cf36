//! Submissions: decided here when this node is the hub, handed to the outbox
//! otherwise. A whole batch takes a handful of statements.

use super::deliver::Arrival;
use super::expire::GRACE;
use super::mailbox::{self, Item, Origin};
use super::outbox::{self, Kind, Outgoing};
use super::{Tx, deliver, group, moves, report, sql};
use chancery_node_core::hub::{self, Group, Ordered};
use chancery_node_core::parcel::{Body, Delivery, MAX_SKEW, Outcome, Submission};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, DeviceId, GroupId, MessageId, NodeId, Reason, Refusal};
use prost::Message as _;
use sqlx::Row as _;
use std::collections::{HashMap, HashSet};

/// What became of a submission.
pub(crate) enum Submitted {
    /// This node is the hub and has decided.
    Decided(wire::Outcome),
    /// Another node is the hub; it waits in the outbox.
    Queued,
}

type Key = (MessageId, Alias);

/// A submission that is known already.
struct Known {
    digest: Vec<u8>,
    outcome: Option<wire::Outcome>,
}

/// Takes submissions that came from `from`, in order; one result for each.
pub(crate) async fn submit(
    tx: &mut Tx<'_>,
    from: &NodeId,
    submissions: &[Submission],
) -> Result<Vec<Submitted>, sqlx::Error> {
    let ids: HashSet<GroupId> = submissions.iter().map(|s| s.group_id).collect();
    let senders: HashSet<Alias> = submissions.iter().map(|s| s.sender).collect();
    let mut batch = Batch {
        known: known(tx, submissions).await?,
        groups: group::load(tx, &ids).await?,
        routes: if *from == tx.here { group::routes(tx, &ids).await? } else { HashMap::new() },
        echoes: echoes(tx, from, &senders).await?,
        moved: if *from == tx.here { moves::homes(tx, &senders).await? } else { HashMap::new() },
        effects: Effects::default(),
    };
    let mut results = Vec::with_capacity(submissions.len());
    for submission in submissions {
        results.push(batch.take(tx, from, submission));
    }
    batch.effects.perform(tx, batch.groups).await?;
    Ok(results)
}

/// Takes the submissions of several calls by devices of this node.
pub(crate) async fn submit_calls(
    tx: &mut Tx<'_>,
    calls: &[Vec<Submission>],
) -> Result<Vec<Vec<Submitted>>, sqlx::Error> {
    let from = tx.here.clone();
    let all = calls.concat();
    let mut results = submit(tx, &from, &all).await?.into_iter();
    Ok(calls.iter().map(|call| results.by_ref().take(call.len()).collect()).collect())
}

struct Batch {
    known: HashMap<Key, Known>,
    groups: HashMap<GroupId, Group>,
    routes: HashMap<(GroupId, Alias), NodeId>,
    /// Senders on this node that have other devices.
    echoes: HashSet<Alias>,
    /// Senders that have left this node.
    moved: HashMap<Alias, NodeId>,
    effects: Effects,
}

impl Batch {
    fn take(&mut self, tx: &Tx<'_>, from: &NodeId, submission: &Submission) -> Submitted {
        let key = (submission.message_id, submission.sender);
        let digest = submission.digest();
        if let Some(known) = self.known.get(&key) {
            if known.digest == digest {
                let outcome = known.outcome.clone().filter(|_| !by_mailbox(tx, from, submission));
                return outcome.map_or(Submitted::Queued, Submitted::Decided);
            }
            // What was refused may come again, encrypted anew.
            if !known.outcome.as_ref().is_some_and(is_refused) {
                let reused = Refusal::new(Reason::RequestIdReused, "the message id was used before");
                return Submitted::Decided(refused(submission, &reused, None));
            }
        }
        if self.moved.contains_key(&submission.sender) {
            // Not noted: the same comes by the new home.
            let moved = Refusal::new(Reason::AliasMoved, "submit it through the new home");
            return Submitted::Decided(refused(submission, &moved, None));
        }
        if submission.expires_at <= tx.now {
            let expired = Refusal::new(Reason::Expired, "expires_at_ms has passed");
            return self.conclude(tx, from, submission, digest, refused(submission, &expired, None));
        }
        match self.route(tx, submission) {
            Route::Here => self.decide(tx, from, submission, digest),
            Route::Hub(hub) => {
                self.known.insert(key, Known { digest: digest.to_vec(), outcome: None });
                self.effects.relay(tx, &hub, submission, self.echoes.contains(&submission.sender));
                self.effects.note(submission, digest, &hub, None);
                Submitted::Queued
            }
        }
    }

    fn route(&self, tx: &Tx<'_>, submission: &Submission) -> Route {
        match self.routes.get(&(submission.group_id, submission.sender)) {
            Some(hub) if *hub != tx.here => Route::Hub(hub.clone()),
            _ => Route::Here,
        }
    }

    fn decide(&mut self, tx: &Tx<'_>, from: &NodeId, submission: &Submission, digest: [u8; 32]) -> Submitted {
        let mut echoed = submission.clone();
        if *from == tx.here {
            echoed.echo = self.echoes.contains(&submission.sender);
        }
        let mut state = self.groups.remove(&submission.group_id);
        let result = hub::order(&mut state, &echoed, from, &tx.here, tx.now);
        let epoch = state.as_ref().map(|group| group.epoch);
        if let Some(group) = state {
            self.groups.insert(submission.group_id, group);
        }
        let outcome = match result {
            Ok(ordered) => {
                let decision = wire::outcome::Decision::Accepted(ordered.accepted.clone());
                self.effects.ordered(tx, from, submission, ordered);
                outcome(submission, decision)
            }
            Err(refusal) => refused(submission, &refusal, epoch),
        };
        self.conclude(tx, from, submission, digest, outcome)
    }

    fn conclude(
        &mut self,
        tx: &Tx<'_>,
        from: &NodeId,
        submission: &Submission,
        digest: [u8; 32],
        outcome: wire::Outcome,
    ) -> Submitted {
        // Refusals, too: a batch that a peer repeats must get the answers of before.
        self.effects.note(submission, digest, &tx.here, Some(&outcome));
        let key = (submission.message_id, submission.sender);
        self.known.insert(key, Known { digest: digest.to_vec(), outcome: Some(outcome.clone()) });
        if by_mailbox(tx, from, submission) {
            let item = Item::outcome(submission.sender, submission.sender_device, outcome, tx.now);
            self.effects.local.push(Arrival::Item(item));
            return Submitted::Queued;
        }
        Submitted::Decided(outcome)
    }
}

/// Whether the outcome stands in the mailbox of a device of this node, behind all
/// that was ordered before: merging its commit earlier, the device could not
/// read that any more. The commit that opens a group has nothing before it.
fn by_mailbox(tx: &Tx<'_>, from: &NodeId, submission: &Submission) -> bool {
    *from == tx.here && submission.epoch > 0 && matches!(submission.body, Body::Commit(_))
}

enum Route {
    Here,
    Hub(NodeId),
}

/// What a batch writes, gathered so that each table is written once.
#[derive(Default)]
struct Effects {
    moved: HashSet<GroupId>,
    joined: Vec<(GroupId, Alias, NodeId)>,
    left: Vec<(GroupId, Alias)>,
    local: Vec<Arrival>,
    events: Vec<Item>,
    parcels: Vec<Outgoing>,
    notes: Vec<Note>,
}

struct Note {
    key: Key,
    digest: [u8; 32],
    hub: NodeId,
    wants_events: bool,
    outcome: Option<Vec<u8>>,
    expires_at: i64,
}

impl Effects {
    fn ordered(&mut self, tx: &Tx<'_>, from: &NodeId, submission: &Submission, ordered: Ordered) {
        let group = submission.group_id;
        self.moved.insert(group);
        self.joined.extend(ordered.joined.into_iter().map(|(alias, node)| (group, alias, node)));
        if submission.epoch == 0 && matches!(submission.body, Body::Commit(_)) {
            self.joined.push((group, submission.sender, from.clone()));
        }
        self.left.extend(ordered.left.into_iter().map(|alias| (group, alias)));
        let wants_events = submission.wants_events && matches!(submission.body, Body::Application(_));
        for (node, delivery) in ordered.deliveries {
            let Ok(delivery) = Delivery::from_wire(delivery, tx.now) else { continue };
            if node == tx.here {
                if wants_events && *from == tx.here {
                    self.relayed(tx, submission, &delivery);
                }
                let origin =
                    Origin::Here { sender: submission.sender, sender_node: from.clone(), wants_events };
                self.local.push(Arrival::Delivery(deliver::Incoming { delivery, origin }));
                continue;
            }
            self.parcels.push(Outgoing {
                peer: node,
                kind: Kind::Delivery,
                message_id: submission.message_id,
                part: delivery.part,
                recipients: delivery.recipients,
                parcel: wire::parcel::Parcel::Delivery(delivery.message),
                sender: submission.sender,
                sender_node: from.clone(),
                wants_events,
                expires_at: submission.expires_at,
            });
        }
    }

    /// The hub is the recipients' node, too: they are where they belong.
    fn relayed(&mut self, tx: &Tx<'_>, submission: &Submission, delivery: &Delivery) {
        for recipient in delivery.recipients.iter().filter(|alias| **alias != submission.sender) {
            let event = node::Event {
                message_id: submission.message_id.to_wire(),
                recipient: recipient.to_wire(),
                occurred_at_ms: tx.now.millis(),
                kind: Some(node::event::Kind::Relayed(true)),
            };
            self.events.push(Item::event(submission.sender, event, tx.now));
        }
    }

    fn relay(&mut self, tx: &Tx<'_>, hub: &NodeId, submission: &Submission, echo: bool) {
        let mut message = submission.to_wire();
        message.echo = echo;
        self.parcels.push(Outgoing {
            peer: hub.clone(),
            kind: Kind::Submission,
            parcel: wire::parcel::Parcel::Submission(message),
            message_id: submission.message_id,
            part: 0,
            recipients: Vec::new(),
            sender: submission.sender,
            sender_node: tx.here.clone(),
            wants_events: false,
            expires_at: submission.expires_at,
        });
    }

    fn note(
        &mut self,
        submission: &Submission,
        digest: [u8; 32],
        hub: &NodeId,
        outcome: Option<&wire::Outcome>,
    ) {
        self.notes.push(Note {
            key: (submission.message_id, submission.sender),
            digest,
            hub: hub.clone(),
            wants_events: submission.wants_events && matches!(submission.body, Body::Application(_)),
            outcome: outcome.map(wire::Outcome::encode_to_vec),
            // The hub's answer may be late: see `expire`.
            expires_at: submission.expires_at.after(GRACE).after(MAX_SKEW).millis(),
        });
    }

    async fn perform(self, tx: &mut Tx<'_>, mut groups: HashMap<GroupId, Group>) -> Result<(), sqlx::Error> {
        let moved: Vec<_> = self.moved.into_iter().filter_map(|id| Some((id, groups.remove(&id)?))).collect();
        group::save(tx, &moved).await?;
        group::join(tx, &self.joined).await?;
        for (id, alias) in self.left {
            group::leave(tx, id, alias).await?;
        }
        let head =
            "INSERT INTO submission (message_id, sender, digest, hub, wants_events, outcome, expires_at)";
        let tail = "ON CONFLICT (message_id, sender) DO UPDATE SET digest = excluded.digest, \
                    hub = excluded.hub, wants_events = excluded.wants_events, \
                    outcome = excluded.outcome, expires_at = excluded.expires_at";
        sql::insert(tx.connection, head, 7, tail, &self.notes, |statement, note| {
            statement
                .bind(note.key.0.as_bytes().as_slice())
                .bind(note.key.1.as_bytes().as_slice())
                .bind(note.digest.as_slice())
                .bind(note.hub.as_str())
                .bind(note.wants_events)
                .bind(note.outcome.as_deref())
                .bind(note.expires_at)
        })
        .await?;
        outbox::push(tx, &self.parcels).await?;
        mailbox::put(tx, &self.events).await?;
        deliver::deliver(tx, self.local).await
    }
}

async fn known(tx: &mut Tx<'_>, submissions: &[Submission]) -> Result<HashMap<Key, Known>, sqlx::Error> {
    let head = "SELECT message_id, sender, digest, outcome FROM submission WHERE message_id";
    let keys = submissions.iter().map(|s| s.message_id.as_bytes().as_slice());
    let mut known = HashMap::new();
    for row in sql::select_in(tx.connection, head, "", keys).await? {
        let id = sql::column(row.try_get::<Vec<u8>, _>(0)?, "submission.message_id")?;
        let sender = sql::column(row.try_get::<Vec<u8>, _>(1)?, "submission.sender")?;
        let outcome = row
            .try_get::<Option<Vec<u8>>, _>(3)?
            .map(|bytes| sql::message(bytes, "submission.outcome"))
            .transpose()?;
        known.insert((id, sender), Known { digest: row.try_get(2)?, outcome });
    }
    Ok(known)
}

/// Senders of this node that have more than one device.
async fn echoes(
    tx: &mut Tx<'_>,
    from: &NodeId,
    senders: &HashSet<Alias>,
) -> Result<HashSet<Alias>, sqlx::Error> {
    if *from != tx.here {
        return Ok(HashSet::new());
    }
    let devices = deliver::devices(tx, senders).await?;
    Ok(devices.into_iter().filter(|(_, count)| *count > 1).map(|(alias, _)| alias).collect())
}

fn outcome(submission: &Submission, decision: wire::outcome::Decision) -> wire::Outcome {
    wire::Outcome {
        message_id: submission.message_id.to_wire(),
        group_id: submission.group_id.to_wire(),
        sender: submission.sender.to_wire(),
        sender_device: submission.sender_device.to_wire(),
        decision: Some(decision),
    }
}

fn is_refused(outcome: &wire::Outcome) -> bool {
    matches!(outcome.decision, Some(wire::outcome::Decision::Refused(_)))
}

/// An outcome that refuses.
pub(crate) fn refused(submission: &Submission, refusal: &Refusal, epoch: Option<u64>) -> wire::Outcome {
    chancery_kit::serve::REFUSALS.add(refusal.reason);
    let current_epoch = epoch.filter(|_| refusal.reason == Reason::StaleEpoch);
    let refused = wire::Refused { reason: refusal.reason.as_str().to_owned(), current_epoch };
    outcome(submission, wire::outcome::Decision::Refused(refused))
}

/// Hubs have decided about submissions of this node's accounts: their devices
/// hear of it, once.
pub(crate) async fn decided(
    tx: &mut Tx<'_>,
    peer: &NodeId,
    outcomes: Vec<Outcome>,
) -> Result<(), sqlx::Error> {
    let mut items = Vec::new();
    for outcome in outcomes {
        // A repeated refusal is none of what was submitted anew in the meantime.
        let bytes = outcome.message.encode_to_vec();
        let part = 0;
        if !report::first_time(tx, peer, &[b"outcome", bytes.as_slice()], part).await? {
            continue;
        }
        let done = sqlx::query(
            "UPDATE submission SET outcome = $4
             WHERE message_id = $1 AND sender = $2 AND hub = $3 AND outcome IS NULL",
        )
        .bind(outcome.message_id.as_bytes().as_slice())
        .bind(outcome.sender.as_bytes().as_slice())
        .bind(peer.as_str())
        .bind(bytes)
        .execute(&mut *tx.connection)
        .await?;
        if done.rows_affected() == 0 {
            continue;
        }
        sqlx::query("DELETE FROM outbox WHERE message_id = $1 AND peer = $2 AND kind = 0")
            .bind(outcome.message_id.as_bytes().as_slice())
            .bind(peer.as_str())
            .execute(&mut *tx.connection)
            .await?;
        items.push(Item::outcome(outcome.sender, outcome.sender_device, outcome.message, tx.now));
    }
    mailbox::put(tx, &items).await
}

/// A submission never reached its hub, or the hub would not take it.
pub(crate) async fn refused_on_the_way(
    tx: &mut Tx<'_>,
    submission: &wire::Submission,
    reason: &str,
) -> Result<(), sqlx::Error> {
    let sender: Alias = sql::column(&submission.sender, "outbox.parcel")?;
    let device: DeviceId = sql::column(&submission.sender_device, "outbox.parcel")?;
    let done =
        sqlx::query("DELETE FROM submission WHERE message_id = $1 AND sender = $2 AND outcome IS NULL")
            .bind(submission.message_id.as_ref())
            .bind(submission.sender.as_ref())
            .execute(&mut *tx.connection)
            .await?;
    if done.rows_affected() == 0 {
        return Ok(());
    }
    let refused = wire::Refused { reason: reason.to_owned(), current_epoch: None };
    let outcome = wire::Outcome {
        message_id: submission.message_id.clone(),
        group_id: submission.group_id.clone(),
        sender: submission.sender.clone(),
        sender_device: submission.sender_device.clone(),
        decision: Some(wire::outcome::Decision::Refused(refused)),
    };
    mailbox::put(tx, &[Item::outcome(sender, device, outcome, tx.now)]).await
}

/// Answers submissions of a peer's accounts by parcels.
pub(crate) async fn answer(
    tx: &mut Tx<'_>,
    peer: &NodeId,
    submissions: &[Submission],
) -> Result<(), sqlx::Error> {
    let results = submit(tx, peer, submissions).await?;
    let parcels: Vec<_> = results
        .into_iter()
        .zip(submissions)
        .filter_map(|(result, submission)| match result {
            Submitted::Decided(outcome) => Some(Outgoing {
                peer: peer.clone(),
                kind: Kind::Outcome,
                parcel: wire::parcel::Parcel::Outcome(outcome),
                message_id: submission.message_id,
                part: 0,
                recipients: Vec::new(),
                sender: submission.sender,
                sender_node: peer.clone(),
                wants_events: false,
                expires_at: submission.expires_at.after(MAX_SKEW),
            }),
            Submitted::Queued => None,
        })
        .collect();
    outbox::push(tx, &parcels).await
}
