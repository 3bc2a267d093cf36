//! A node's tables in memory: what its disk holds. Row for row they answer as the
//! statements of `node/src/store` do; see the test that runs both beside each other.

mod statements;

use bytes::Bytes;
use chancery_node_core::hub::Group;
use chancery_node_core::mailbox::{Delivered, Item};
use chancery_node_core::outbox::{Ended, Kept, Kind, Outgoing, Waiting};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, DeviceId, GroupId, Incarnation, MessageId, NodeId, Timestamp};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// What a node's disk holds.
#[derive(Clone, Default)]
pub struct Disk {
    groups: BTreeMap<GroupId, Group>,
    routes: BTreeMap<GroupId, BTreeMap<Alias, NodeId>>,
    devices: BTreeMap<Alias, BTreeSet<DeviceId>>,
    submissions: BTreeMap<(MessageId, Alias), Submission>,
    received: BTreeMap<(Bytes, u32, NodeId), Timestamp>,
    mailbox: BTreeMap<u64, Row>,
    /// Positions in the mailbox, by alias.
    positions: BTreeMap<Alias, BTreeSet<u64>>,
    cursors: BTreeMap<(Alias, DeviceId), u64>,
    outbox: BTreeMap<i64, Parcel>,
    /// Parcels that wait, by peer.
    waiting: BTreeMap<NodeId, BTreeSet<i64>>,
    /// Parcels that are kept for what will be heard of them.
    about: BTreeMap<(MessageId, u32), Vec<i64>>,
    peers: BTreeMap<NodeId, Incarnation>,
    silent: BTreeMap<NodeId, Timestamp>,
    last_position: u64,
    last_parcel: i64,
    /// When the first of anything expires; `None`: not known.
    first_expiry: Option<Timestamp>,
}

#[derive(Clone)]
struct Submission {
    digest: [u8; 32],
    hub: NodeId,
    wants_events: bool,
    outcome: Option<wire::Outcome>,
    expires_at: Timestamp,
}

#[derive(Clone)]
struct Row {
    item: Arc<Item>,
    taken: bool,
}

impl Row {
    fn untaken(&self) -> Option<Delivered> {
        self.item.delivery.clone().filter(|_| !self.taken)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Acknowledged,
    Dead,
}

#[derive(Clone)]
struct Parcel {
    state: State,
    recipients: Vec<Alias>,
    out: Arc<Outgoing>,
}

impl Parcel {
    fn kept(&self) -> Kept {
        Kept {
            kind: self.out.kind,
            message_id: self.out.message_id,
            part: self.out.part,
            recipients: self.recipients.clone(),
            sender: self.out.sender,
            sender_node: self.out.sender_node.clone(),
            wants_events: self.out.wants_events,
        }
    }

    fn ended(&self, id: i64) -> Ended {
        let parcel = wire::Parcel { parcel: Some(self.out.parcel.clone()) };
        Ended {
            id,
            peer: self.out.peer.clone(),
            kept: self.kept(),
            acknowledged: self.state != State::Waiting,
            parcel,
        }
    }
}

impl Disk {
    /// A device of an alias, which reads what arrives from now on.
    pub fn add_device(&mut self, alias: Alias, device: DeviceId) {
        self.devices.entry(alias).or_default().insert(device);
        let last = self.positions.get(&alias).and_then(BTreeSet::last).copied().unwrap_or(0);
        self.cursors.insert((alias, device), last);
    }

    /// The groups that this node is the hub of are gone.
    pub fn forget_groups(&mut self) {
        self.groups.clear();
    }

    /// Whether a commit was submitted to a peer that has not decided.
    pub fn has_commit_for(&self, peer: &NodeId) -> bool {
        let is_commit = |parcel: &Parcel| match &parcel.out.parcel {
            wire::parcel::Parcel::Submission(submission) => {
                matches!(submission.body, Some(wire::submission::Body::Commit(_)))
            }
            _ => false,
        };
        self.outbox.values().any(|parcel| parcel.out.peer == *peer && is_commit(parcel))
    }

    /// A peer has been silent since then, or is not.
    pub fn silent_since(&mut self, peer: &NodeId, since: Option<Timestamp>) {
        match since {
            Some(since) => self.silent.insert(peer.clone(), since),
            None => self.silent.remove(peer),
        };
    }

    /// Parcels for a peer behind `after` that wait, oldest first.
    pub fn waiting(&self, peer: &NodeId, after: i64, most: usize) -> Vec<Waiting> {
        let Some(waiting) = self.waiting.get(peer) else { return Vec::new() };
        let parcels = waiting.range(after + 1..).filter_map(|id| Some((*id, self.outbox.get(id)?)));
        parcels
            .take(most)
            .map(|(id, parcel)| {
                let bytes = wire::Parcel { parcel: Some(parcel.out.parcel.clone()) }.encode_to_vec();
                Waiting { id, parcel: bytes.into(), expires_at: parcel.out.expires_at }
            })
            .collect()
    }

    /// What waits for a device behind a position, oldest first, up to what has expired.
    pub fn read(
        &self,
        (alias, device): (Alias, DeviceId),
        after: u64,
        most: usize,
        now: Timestamp,
    ) -> Vec<node::SubscribeResponse> {
        self.of(alias, after.max(self.cursor(alias, device)), u64::MAX)
            .filter(|(_, row)| is_for(&row.item, device))
            .take_while(|(_, row)| row.item.expires_at > now)
            .take(most)
            .map(|(position, row)| node::SubscribeResponse { position, item: Some(row.item.item.clone()) })
            .collect()
    }

    /// Whether anything may have expired.
    pub(crate) fn may_expire(&self, now: Timestamp) -> bool {
        self.first_expiry.is_none_or(|first| first <= now)
    }

    /// Rows of anything that waits for somebody: nothing in the end. An item for one
    /// device stays until the others have read something behind it.
    pub(crate) fn waits(&self) -> usize {
        self.mailbox.iter().filter(|(position, row)| self.is_wanted(**position, row)).count()
            + self.outbox.len()
    }

    fn is_wanted(&self, position: u64, row: &Row) -> bool {
        let alias = row.item.alias;
        let wants = |device: &DeviceId| is_for(&row.item, *device) && self.cursor(alias, *device) < position;
        self.devices.get(&alias).is_some_and(|devices| devices.iter().any(wants))
    }

    /// What is left in the outbox and the mailboxes, in words.
    pub(crate) fn leftovers(&self) -> String {
        let parcels = self.outbox.values().map(|parcel| {
            let state = match parcel.state {
                State::Waiting => "waits",
                State::Acknowledged => "is kept",
                State::Dead => "is dead",
            };
            format!("{:?} for {} {state}", parcel.out.kind, parcel.out.peer)
        });
        let wanted = self.mailbox.iter().filter(|(position, row)| self.is_wanted(**position, row));
        let items = wanted.map(|(_, row)| {
            let what = match row.item.item {
                node::subscribe_response::Item::Delivery(_) => "delivery",
                node::subscribe_response::Item::Outcome(_) => "outcome",
                node::subscribe_response::Item::Event(_) => "event",
                node::subscribe_response::Item::Moved(_) => "move",
                node::subscribe_response::Item::Seats(_) => "seats",
            };
            format!("{what}, taken: {}", row.taken)
        });
        parcels.chain(items).take(20).collect::<Vec<_>>().join("; ")
    }

    /// Rows of an alias behind `after` and up to `through`.
    fn of(&self, alias: Alias, after: u64, through: u64) -> impl Iterator<Item = (u64, &Row)> {
        let positions = self.positions.get(&alias).into_iter();
        let positions =
            positions.flat_map(move |set| set.range((Bound::Excluded(after), Bound::Included(through))));
        positions.filter_map(|at| Some((*at, self.mailbox.get(at)?)))
    }

    fn remove(&mut self, position: u64) -> Option<Row> {
        let row = self.mailbox.remove(&position)?;
        if let Some(positions) = self.positions.get_mut(&row.item.alias) {
            positions.remove(&position);
        }
        Some(row)
    }

    fn cursor(&self, alias: Alias, device: DeviceId) -> u64 {
        self.cursors.get(&(alias, device)).copied().unwrap_or(0)
    }

    fn expires(&mut self, at: Timestamp) {
        self.first_expiry = self.first_expiry.map(|first| first.min(at));
    }

    fn unwait(&mut self, id: i64) {
        if let Some(parcel) = self.outbox.get(&id)
            && let Some(waiting) = self.waiting.get_mut(&parcel.out.peer)
        {
            waiting.remove(&id);
        }
    }

    fn drop_parcel(&mut self, id: i64) -> Option<Parcel> {
        self.unwait(id);
        let parcel = self.outbox.remove(&id)?;
        let key = (parcel.out.message_id, parcel.out.part);
        if let Some(ids) = self.about.get_mut(&key) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.about.remove(&key);
            }
        }
        Some(parcel)
    }

    fn find(&self, peer: &NodeId, message_id: MessageId, part: u32, kind: Kind) -> Option<i64> {
        let matches = |id: &&i64| {
            self.outbox.get(*id).is_some_and(|parcel| parcel.out.kind == kind && parcel.out.peer == *peer)
        };
        self.about.get(&(message_id, part))?.iter().find(matches).copied()
    }
}

fn is_for(item: &Item, device: DeviceId) -> bool {
    item.only_device.is_none_or(|only| only == device) && item.except_device != Some(device)
}
