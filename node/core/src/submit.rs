//! Submissions: decided here when this node is the hub, handed to the outbox
//! otherwise. A whole batch takes a handful of statements.

mod effects;

use crate::hub::{self, Group};
use crate::mailbox::{self, Item};
use crate::outbox::{self, Kind, Outgoing};
use crate::parcel::{Body, MAX_SKEW, Outcome, Submission};
use crate::report;
use crate::tables::{Known, Tables, Tx};
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, DeviceId, GroupId, MessageId, NodeId, Reason, Refusal, Timestamp};
use effects::Effects;
use prost::Message as _;
use std::collections::{HashMap, HashSet};

/// What became of a submission.
pub enum Submitted {
    /// This node is the hub and has decided.
    Decided(wire::Outcome),
    /// Another node is the hub; it waits in the outbox.
    Queued,
}

/// Takes submissions that came from `from`, in order; one result for each.
///
/// # Errors
/// The tables'.
pub async fn submit<T: Tables>(
    tx: &mut Tx<T>,
    from: &NodeId,
    submissions: &[Submission],
) -> Result<Vec<Submitted>, T::Error> {
    let messages: Vec<MessageId> = submissions.iter().map(|s| s.message_id).collect();
    let groups: HashSet<GroupId> = submissions.iter().map(|s| s.group_id).collect();
    let senders: HashSet<Alias> = submissions.iter().map(|s| s.sender).collect();
    let local = *from == tx.here;
    let mut batch = Batch {
        here: tx.here.clone(),
        from: from.clone(),
        now: tx.now,
        known: tx.tables.submissions(&messages).await?,
        groups: tx.tables.groups(&groups).await?,
        routes: if local { tx.tables.routes(&groups).await? } else { HashMap::new() },
        devices: if local { tx.tables.devices(&senders).await? } else { HashMap::new() },
        moved: if local { tx.tables.homes(&senders).await? } else { HashMap::new() },
        effects: Effects::default(),
    };
    let results = submissions.iter().map(|submission| batch.take(submission)).collect();
    batch.effects.perform(tx, batch.groups).await?;
    Ok(results)
}

/// Takes the submissions of several calls by devices of this node.
///
/// # Errors
/// The tables'.
pub async fn submit_calls<T: Tables>(
    tx: &mut Tx<T>,
    calls: &[&[Submission]],
) -> Result<Vec<Vec<Submitted>>, T::Error> {
    let from = tx.here.clone();
    let all = calls.concat();
    let mut results = submit(tx, &from, &all).await?.into_iter();
    Ok(calls.iter().map(|call| results.by_ref().take(call.len()).collect()).collect())
}

struct Batch {
    here: NodeId,
    from: NodeId,
    now: Timestamp,
    known: HashMap<(MessageId, Alias), Known>,
    groups: HashMap<GroupId, Group>,
    routes: HashMap<(GroupId, Alias), NodeId>,
    /// Of senders on this node.
    devices: HashMap<Alias, u32>,
    /// Senders that have left this node.
    moved: HashMap<Alias, NodeId>,
    effects: Effects,
}

impl Batch {
    fn take(&mut self, submission: &Submission) -> Submitted {
        let key = (submission.message_id, submission.sender);
        let digest = submission.digest();
        if let Some(known) = self.known.get(&key) {
            if known.digest == digest {
                let outcome = known.outcome.clone().filter(|_| !self.by_mailbox(submission));
                return outcome.map_or(Submitted::Queued, Submitted::Decided);
            }
            // What was refused may come again, encrypted anew.
            if !known.outcome.as_ref().is_some_and(is_refused) {
                let reused = Refusal::new(Reason::RequestIdReused, "the message id was used before");
                return Submitted::Decided(self.refuse(submission, &reused, None));
            }
        }
        if self.moved.contains_key(&submission.sender) {
            // Not noted: the same comes by the new home.
            let moved = Refusal::new(Reason::AliasMoved, "submit it through the new home");
            return Submitted::Decided(self.refuse(submission, &moved, None));
        }
        if submission.expires_at <= self.now {
            let expired = Refusal::new(Reason::Expired, "expires_at_ms has passed");
            let outcome = self.refuse(submission, &expired, None);
            return self.conclude(submission, digest, outcome);
        }
        match self.routes.get(&(submission.group_id, submission.sender)) {
            Some(hub) if *hub != self.here => {
                self.known.insert(key, Known { digest, outcome: None });
                let echo = self.echoes(submission);
                self.effects.relay(&self.here, hub, submission, echo);
                self.effects.note(submission, digest, hub, None);
                Submitted::Queued
            }
            _ => self.decide(submission, digest),
        }
    }

    /// Whether the sender has other devices here.
    fn echoes(&self, submission: &Submission) -> bool {
        self.devices.get(&submission.sender).is_some_and(|devices| *devices > 1)
    }

    /// Whether the outcome stands in the mailbox of a device of this node, behind all
    /// that was ordered before: merging its commit earlier, the device could not
    /// read that any more. The commit that opens a group has nothing before it.
    fn by_mailbox(&self, submission: &Submission) -> bool {
        self.from == self.here && submission.epoch > 0 && matches!(submission.body, Body::Commit(_))
    }

    fn decide(&mut self, submission: &Submission, digest: [u8; 32]) -> Submitted {
        let mut echoed = submission.clone();
        if self.from == self.here {
            echoed.echo = self.echoes(submission);
        }
        let mut state = self.groups.remove(&submission.group_id);
        let result = hub::order(&mut state, &echoed, &self.from, &self.here, self.now);
        let epoch = state.as_ref().map(|group| group.epoch);
        if let Some(group) = state {
            self.groups.insert(submission.group_id, group);
        }
        let outcome = match result {
            Ok(ordered) => {
                let decision = wire::outcome::Decision::Accepted(ordered.accepted.clone());
                self.effects.ordered((&self.here, self.now), &self.from, submission, ordered);
                outcome(submission, decision)
            }
            Err(refusal) => self.refuse(submission, &refusal, epoch),
        };
        self.conclude(submission, digest, outcome)
    }

    fn conclude(&mut self, submission: &Submission, digest: [u8; 32], outcome: wire::Outcome) -> Submitted {
        // Refusals, too: a batch that a peer repeats must get the answers of before.
        self.effects.note(submission, digest, &self.here, Some(&outcome));
        let key = (submission.message_id, submission.sender);
        self.known.insert(key, Known { digest, outcome: Some(outcome.clone()) });
        if self.by_mailbox(submission) {
            let item = Item::outcome(submission.sender, submission.sender_device, outcome, self.now);
            self.effects.tell(item);
            return Submitted::Queued;
        }
        Submitted::Decided(outcome)
    }

    fn refuse(&mut self, submission: &Submission, refusal: &Refusal, epoch: Option<u64>) -> wire::Outcome {
        self.effects.refused.push(refusal.reason);
        let current_epoch = epoch.filter(|_| refusal.reason == Reason::StaleEpoch);
        let refused = wire::Refused { reason: refusal.reason.as_str().to_owned(), current_epoch };
        outcome(submission, wire::outcome::Decision::Refused(refused))
    }
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

/// Hubs have decided about submissions of this node's accounts: their devices
/// hear of it, once.
pub(crate) async fn decided<T: Tables>(
    tx: &mut Tx<T>,
    peer: &NodeId,
    outcomes: Vec<Outcome>,
) -> Result<(), T::Error> {
    let mut items = Vec::new();
    for Outcome { message_id, sender, sender_device, message } in outcomes {
        // A repeated refusal is none of what was submitted anew in the meantime.
        let bytes = message.encode_to_vec();
        if !report::first_time(tx, peer, &[b"outcome", &bytes], 0).await?
            || !tx.tables.conclude(peer, message_id, sender, &message).await?
        {
            continue;
        }
        tx.tables.drop_submission(peer, message_id).await?;
        items.push(Item::outcome(sender, sender_device, message, tx.now));
    }
    mailbox::put(tx, &items).await
}

/// A submission never reached its hub, or the hub would not take it.
pub(crate) async fn refused_on_the_way<T: Tables>(
    tx: &mut Tx<T>,
    submission: &wire::Submission,
    reason: &str,
) -> Result<(), T::Error> {
    // They were checked before the parcel was made.
    let (Ok(message_id), Ok(sender), Ok(device)) = (
        MessageId::try_from(&submission.message_id),
        Alias::try_from(&submission.sender),
        DeviceId::try_from(&submission.sender_device),
    ) else {
        return Ok(());
    };
    if !tx.tables.forget_undecided(message_id, sender).await? {
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
    let item = Item::outcome(sender, device, outcome, tx.now);
    mailbox::put(tx, &[item]).await
}

/// Answers submissions of a peer's accounts by parcels.
pub(crate) async fn answer<T: Tables>(
    tx: &mut Tx<T>,
    peer: &NodeId,
    submissions: &[Submission],
) -> Result<(), T::Error> {
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
