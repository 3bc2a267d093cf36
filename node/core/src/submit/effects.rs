//! What a batch of submissions writes, gathered so that each table is written once.

use crate::deliver::{self, Arrival, Incoming};
use crate::expire::GRACE;
use crate::hub::{Group, Ordered};
use crate::mailbox::{self, Item, Origin};
use crate::outbox::{self, Kind, Outgoing};
use crate::parcel::{Body, Delivery, MAX_SKEW, Submission};
use crate::tables::{Note, Tables, Tx};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, GroupId, NodeId, Reason, Timestamp};
use std::collections::{HashMap, HashSet};

#[derive(Default)]
pub(super) struct Effects {
    /// Why submissions were refused.
    pub(super) refused: Vec<Reason>,
    moved: HashSet<GroupId>,
    joined: Vec<(GroupId, Alias, NodeId)>,
    left: Vec<(GroupId, Alias)>,
    local: Vec<Arrival>,
    events: Vec<Item>,
    parcels: Vec<Outgoing>,
    notes: Vec<Note>,
}

impl Effects {
    /// A submission was accepted here.
    pub(super) fn ordered(
        &mut self,
        (here, now): (&NodeId, Timestamp),
        from: &NodeId,
        submission: &Submission,
        ordered: Ordered,
    ) {
        let group = submission.group_id;
        self.moved.insert(group);
        self.joined.extend(ordered.joined.into_iter().map(|(alias, node)| (group, alias, node)));
        if submission.epoch == 0 && matches!(submission.body, Body::Commit(_)) {
            self.joined.push((group, submission.sender, from.clone()));
        }
        self.left.extend(ordered.left.into_iter().map(|alias| (group, alias)));
        let wants_events = wants_events(submission);
        for (node, delivery) in ordered.deliveries {
            let Ok(delivery) = Delivery::from_wire(delivery, now) else { continue };
            if node == *here {
                if wants_events && from == here {
                    self.relayed(now, submission, &delivery);
                }
                let origin =
                    Origin::Here { sender: submission.sender, sender_node: from.clone(), wants_events };
                self.local.push(Arrival::Delivery(Incoming { delivery, origin }));
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
    fn relayed(&mut self, now: Timestamp, submission: &Submission, delivery: &Delivery) {
        for recipient in delivery.recipients.iter().filter(|alias| **alias != submission.sender) {
            let event = node::Event {
                message_id: submission.message_id.to_wire(),
                recipient: recipient.to_wire(),
                occurred_at_ms: now.millis(),
                kind: Some(node::event::Kind::Relayed(true)),
            };
            self.events.push(Item::event(submission.sender, event, now));
        }
    }

    /// Another node is the hub.
    pub(super) fn relay(&mut self, here: &NodeId, hub: &NodeId, submission: &Submission, echo: bool) {
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
            sender_node: here.clone(),
            wants_events: false,
            // Only the hub knows whether it was in time.
            expires_at: submission.expires_at.after(GRACE),
        });
    }

    /// What is known of a submission from now on.
    pub(super) fn note(
        &mut self,
        submission: &Submission,
        digest: [u8; 32],
        hub: &NodeId,
        outcome: Option<&wire::Outcome>,
    ) {
        self.notes.push(Note {
            message_id: submission.message_id,
            sender: submission.sender,
            digest,
            hub: hub.clone(),
            wants_events: wants_events(submission),
            outcome: outcome.cloned(),
            // The hub's answer may be late: see `expire`.
            expires_at: submission.expires_at.after(GRACE).after(MAX_SKEW),
        });
    }

    /// Something for a mailbox of this node, in line with the deliveries.
    pub(super) fn tell(&mut self, item: Item) {
        self.local.push(Arrival::Item(item));
    }

    pub(super) async fn perform<T: Tables>(
        self,
        tx: &mut Tx<T>,
        mut groups: HashMap<GroupId, Group>,
    ) -> Result<(), T::Error> {
        let moved: Vec<_> = self.moved.into_iter().filter_map(|id| Some((id, groups.remove(&id)?))).collect();
        tx.tables.save_groups(&moved).await?;
        tx.tables.add_members(&self.joined).await?;
        for (group, alias) in self.left {
            tx.tables.remove_member(group, alias).await?;
        }
        tx.tables.note_submissions(&self.notes).await?;
        outbox::push(tx, &self.parcels).await?;
        mailbox::put(tx, &self.events).await?;
        deliver::deliver(tx, self.local).await?;
        tx.after.refused.extend(self.refused);
        Ok(())
    }
}

fn wants_events(submission: &Submission) -> bool {
    submission.wants_events && matches!(submission.body, Body::Application(_))
}
