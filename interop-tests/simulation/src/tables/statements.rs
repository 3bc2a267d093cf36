//! What the statements of a node's transactions do to the tables in memory.

use super::{Disk, Parcel, Row, State, Submission, is_for};
use chancery_node_core::hub::Group;
use chancery_node_core::mailbox::Item;
use chancery_node_core::outbox::{Ended, Kept, Kind, Outgoing};
use chancery_node_core::tables::{Expired, Gone, Known, Note, Seen, Tables, Untaken};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, DeviceId, GroupId, Incarnation, MessageId, NodeId, Timestamp};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;

impl Tables for &mut Disk {
    type Error = Infallible;

    async fn groups(&mut self, ids: &HashSet<GroupId>) -> Result<HashMap<GroupId, Group>, Infallible> {
        Ok(ids.iter().filter_map(|id| Some((*id, self.groups.get(id)?.clone()))).collect())
    }

    async fn save_groups(&mut self, groups: &[(GroupId, Group)]) -> Result<(), Infallible> {
        for (id, group) in groups {
            // Members have statements of their own.
            let kept =
                self.groups.entry(*id).or_insert_with(|| Group { members: BTreeMap::new(), ..group.clone() });
            (kept.epoch, kept.sequence, kept.chain) = (group.epoch, group.sequence, group.chain);
        }
        Ok(())
    }

    async fn add_members(&mut self, joined: &[(GroupId, Alias, NodeId)]) -> Result<(), Infallible> {
        for (id, alias, node) in joined {
            if let Some(group) = self.groups.get_mut(id) {
                group.members.entry(*alias).or_insert_with(|| node.clone());
            }
        }
        Ok(())
    }

    async fn remove_member(&mut self, group: GroupId, alias: Alias) -> Result<(), Infallible> {
        if let Some(group) = self.groups.get_mut(&group) {
            group.members.remove(&alias);
        }
        Ok(())
    }

    async fn relocate(&mut self, alias: Alias, from: &NodeId, to: &NodeId) -> Result<(), Infallible> {
        for group in self.groups.values_mut() {
            if let Some(home) = group.members.get_mut(&alias).filter(|home| *home == from) {
                *home = to.clone();
            }
        }
        Ok(())
    }

    async fn routes(
        &mut self,
        ids: &HashSet<GroupId>,
    ) -> Result<HashMap<(GroupId, Alias), NodeId>, Infallible> {
        let of = |id: &GroupId| self.routes.get(id).into_iter().flatten();
        Ok(ids.iter().flat_map(|id| of(id).map(|(alias, hub)| ((*id, *alias), hub.clone()))).collect())
    }

    async fn add_routes(&mut self, routes: &[(GroupId, Alias, NodeId)]) -> Result<(), Infallible> {
        for (id, alias, hub) in routes {
            self.routes.entry(*id).or_default().entry(*alias).or_insert_with(|| hub.clone());
        }
        Ok(())
    }

    async fn devices(&mut self, aliases: &HashSet<Alias>) -> Result<HashMap<Alias, u32>, Infallible> {
        let count = |alias: &Alias| Some((*alias, u32::try_from(self.devices.get(alias)?.len()).ok()?));
        Ok(aliases.iter().filter_map(count).collect())
    }

    async fn homes(&mut self, _: &HashSet<Alias>) -> Result<HashMap<Alias, NodeId>, Infallible> {
        Ok(HashMap::new())
    }

    async fn departed(&mut self, _: &NodeId) -> Result<Vec<(Alias, NodeId)>, Infallible> {
        Ok(Vec::new())
    }

    async fn submissions(
        &mut self,
        ids: &[MessageId],
    ) -> Result<HashMap<(MessageId, Alias), Known>, Infallible> {
        let of = |id: &MessageId| {
            let (first, last) = (Alias::from_bytes([0; 16]), Alias::from_bytes([0xff; 16]));
            self.submissions.range((*id, first)..=(*id, last))
        };
        let known = |row: &Submission| Known { digest: row.digest, outcome: row.outcome.clone() };
        Ok(ids.iter().flat_map(of).map(|(key, row)| (*key, known(row))).collect())
    }

    async fn note_submissions(&mut self, notes: &[Note]) -> Result<(), Infallible> {
        for note in notes {
            self.expires(note.expires_at);
            let row = Submission {
                digest: note.digest,
                hub: note.hub.clone(),
                wants_events: note.wants_events,
                outcome: note.outcome.clone(),
                expires_at: note.expires_at,
            };
            self.submissions.insert((note.message_id, note.sender), row);
        }
        Ok(())
    }

    async fn conclude(
        &mut self,
        hub: &NodeId,
        message_id: MessageId,
        sender: Alias,
        outcome: &wire::Outcome,
    ) -> Result<bool, Infallible> {
        let row = self.submissions.get_mut(&(message_id, sender));
        let row = row.filter(|row| row.outcome.is_none() && row.hub == *hub);
        Ok(row.map(|row| row.outcome = Some(outcome.clone())).is_some())
    }

    async fn forget_undecided(&mut self, message_id: MessageId, sender: Alias) -> Result<bool, Infallible> {
        let key = (message_id, sender);
        let undecided = self.submissions.get(&key).is_some_and(|row| row.outcome.is_none());
        if undecided {
            self.submissions.remove(&key);
        }
        Ok(undecided)
    }

    async fn submitter(&mut self, message_id: MessageId, hub: &NodeId) -> Result<Option<Alias>, Infallible> {
        let (first, last) = (Alias::from_bytes([0; 16]), Alias::from_bytes([0xff; 16]));
        let mut rows = self.submissions.range((message_id, first)..=(message_id, last));
        Ok(rows.find(|(_, row)| row.wants_events && row.hub == *hub).map(|((_, alias), _)| *alias))
    }

    async fn first_time(&mut self, peer: &NodeId, seen: &[Seen]) -> Result<Vec<bool>, Infallible> {
        let mut first = Vec::with_capacity(seen.len());
        for Seen { key, part, expires_at } in seen {
            self.expires(*expires_at);
            let key = (key.clone(), *part, peer.clone());
            let new = !self.received.contains_key(&key);
            if new {
                self.received.insert(key, *expires_at);
            }
            first.push(new);
        }
        Ok(first)
    }

    async fn put(&mut self, items: &[Item]) -> Result<(), Infallible> {
        for item in items {
            self.expires(item.expires_at);
            self.last_position += 1;
            let row = Row { item: Arc::new(item.clone()), taken: false };
            self.mailbox.insert(self.last_position, row);
            self.positions.entry(item.alias).or_default().insert(self.last_position);
        }
        Ok(())
    }

    async fn untaken(
        &mut self,
        alias: Alias,
        device: DeviceId,
        through: u64,
        most: usize,
    ) -> Result<Vec<Untaken>, Infallible> {
        let after = self.cursor(alias, device);
        if through <= after {
            return Ok(Vec::new());
        }
        Ok(self
            .of(alias, after, through)
            .filter(|(_, row)| !row.taken && is_for(&row.item, device))
            .filter_map(|(position, row)| Some(Untaken { position, delivered: row.item.delivery.clone()? }))
            .take(most)
            .collect())
    }

    async fn take(&mut self, positions: &HashSet<u64>) -> Result<(), Infallible> {
        for position in positions {
            if let Some(row) = self.mailbox.get_mut(position) {
                row.taken = true;
            }
        }
        Ok(())
    }

    async fn raise_cursors(&mut self, cursors: &[((Alias, DeviceId), u64)]) -> Result<(), Infallible> {
        for (key, through) in cursors {
            let cursor = self.cursors.entry(*key).or_default();
            *cursor = (*cursor).max(*through);
        }
        Ok(())
    }

    async fn forget(&mut self, aliases: &HashSet<Alias>) -> Result<Vec<Gone>, Infallible> {
        let mut gone = Vec::new();
        for alias in aliases {
            let Some(devices) = self.devices.get(alias) else { continue };
            let through = devices.iter().map(|device| self.cursor(*alias, *device)).min().unwrap_or(0);
            let passed: Vec<_> = self.of(*alias, 0, through).map(|(position, _)| position).collect();
            for row in passed.into_iter().filter_map(|position| self.remove(position)) {
                if let Some(delivered) = row.untaken() {
                    gone.push(Gone { recipient: *alias, delivered });
                }
            }
        }
        Ok(gone)
    }

    async fn expired_items(&mut self, now: Timestamp, most: usize) -> Result<Vec<Expired>, Infallible> {
        let expired = self.mailbox.iter().filter(|(_, row)| row.item.expires_at <= now);
        let expired = expired.map(|(position, row)| Expired {
            position: *position,
            recipient: row.item.alias,
            item: row.item.item.clone(),
            untaken: row.untaken(),
        });
        Ok(expired.take(most).collect())
    }

    async fn replace_item(
        &mut self,
        position: u64,
        item: &node::subscribe_response::Item,
        expires_at: Timestamp,
    ) -> Result<(), Infallible> {
        if let Some(row) = self.mailbox.get_mut(&position) {
            let replaced = Item { item: item.clone(), expires_at, delivery: None, ..(*row.item).clone() };
            row.item = Arc::new(replaced);
        }
        Ok(())
    }

    async fn remove_items(&mut self, positions: &[u64]) -> Result<(), Infallible> {
        positions.iter().for_each(|position| drop(self.remove(*position)));
        Ok(())
    }

    async fn push(&mut self, parcels: &[Outgoing]) -> Result<(), Infallible> {
        for out in parcels {
            self.expires(out.expires_at);
            self.last_parcel += 1;
            let id = self.last_parcel;
            self.waiting.entry(out.peer.clone()).or_default().insert(id);
            self.about.entry((out.message_id, out.part)).or_default().push(id);
            let (recipients, out) = (out.recipients.clone(), Arc::new(out.clone()));
            self.outbox.insert(id, Parcel { state: State::Waiting, recipients, out });
        }
        Ok(())
    }

    async fn acknowledged(&mut self, ids: &[i64]) -> Result<Vec<Kept>, Infallible> {
        let mut waited = Vec::new();
        for id in ids {
            let Some(parcel) = self.outbox.get_mut(id) else { continue };
            if !parcel.out.kind.is_kept() {
                self.drop_parcel(*id);
                continue;
            }
            if parcel.state == State::Waiting {
                parcel.state = State::Acknowledged;
                waited.push(parcel.kept());
                self.unwait(*id);
            }
        }
        Ok(waited)
    }

    async fn dead(&mut self, id: i64, _: &str) -> Result<Option<Ended>, Infallible> {
        let Some(parcel) = self.outbox.get_mut(&id).filter(|parcel| parcel.state == State::Waiting) else {
            return Ok(None);
        };
        parcel.state = State::Dead;
        let ended = parcel.ended(id);
        self.unwait(id);
        Ok(Some(ended))
    }

    async fn delivery(
        &mut self,
        peer: &NodeId,
        message_id: MessageId,
        part: u32,
    ) -> Result<Option<(i64, bool, Kept)>, Infallible> {
        let Some(id) = self.find(peer, message_id, part, Kind::Delivery) else { return Ok(None) };
        Ok(self.outbox.get(&id).map(|parcel| (id, parcel.state != State::Waiting, parcel.kept())))
    }

    async fn release(&mut self, id: i64, rest: &[Alias]) -> Result<(), Infallible> {
        if rest.is_empty() {
            self.drop_parcel(id);
        } else if let Some(parcel) = self.outbox.get_mut(&id) {
            parcel.recipients = rest.to_vec();
        }
        Ok(())
    }

    async fn drop_submission(&mut self, peer: &NodeId, message_id: MessageId) -> Result<(), Infallible> {
        while let Some(id) = self.find(peer, message_id, 0, Kind::Submission) {
            self.drop_parcel(id);
        }
        Ok(())
    }

    async fn forget_news(&mut self, hub: &NodeId, alias: Alias) -> Result<(), Infallible> {
        let is_news = |parcel: &Parcel| {
            parcel.out.kind == Kind::Moved && parcel.out.peer == *hub && parcel.out.sender == alias
        };
        let news = self.outbox.iter().filter(|(_, parcel)| is_news(parcel)).map(|(id, _)| *id);
        for id in news.collect::<Vec<_>>() {
            self.drop_parcel(id);
        }
        Ok(())
    }

    async fn expired_parcels(
        &mut self,
        now: Timestamp,
        kept_until: Timestamp,
        most: usize,
    ) -> Result<Vec<Ended>, Infallible> {
        let is_over = |parcel: &Parcel| {
            let at = parcel.out.expires_at;
            at <= now && (parcel.state == State::Waiting || at <= kept_until)
        };
        let over = self.outbox.iter().filter(|(_, parcel)| is_over(parcel));
        Ok(over.map(|(id, parcel)| parcel.ended(*id)).take(most).collect())
    }

    async fn silent_submissions(
        &mut self,
        since: Timestamp,
        good_until: Timestamp,
        most: usize,
    ) -> Result<Vec<Ended>, Infallible> {
        let given_up = self.outbox.iter().filter(|(_, parcel)| {
            parcel.out.kind == Kind::Submission
                && parcel.state != State::Dead
                && parcel.out.expires_at > good_until
                && self.silent.get(&parcel.out.peer).is_some_and(|silent| *silent <= since)
        });
        Ok(given_up.map(|(id, parcel)| parcel.ended(*id)).take(most).collect())
    }

    async fn replace_parcel(
        &mut self,
        id: i64,
        kind: Kind,
        parcel: &wire::Parcel,
        expires_at: Timestamp,
    ) -> Result<(), Infallible> {
        if let (Some(row), Some(parcel)) = (self.outbox.get_mut(&id), parcel.parcel.clone()) {
            row.out = Arc::new(Outgoing { kind, parcel, expires_at, ..(*row.out).clone() });
        }
        Ok(())
    }

    async fn remove_parcels(&mut self, ids: &[i64]) -> Result<(), Infallible> {
        ids.iter().for_each(|id| drop(self.drop_parcel(*id)));
        Ok(())
    }

    async fn expire_notes(&mut self, now: Timestamp, _: usize) -> Result<u64, Infallible> {
        let before = (self.submissions.len(), self.received.len());
        self.submissions.retain(|_, row| row.expires_at > now);
        self.received.retain(|_, expires_at| *expires_at > now);
        let gone = (before.0 - self.submissions.len()).max(before.1 - self.received.len());
        // Everything that expires is known by now.
        let mailboxes = self.mailbox.values().map(|row| row.item.expires_at);
        let parcels = self.outbox.values().map(|parcel| match parcel.state {
            State::Waiting => parcel.out.expires_at,
            _ => parcel.out.expires_at.after(chancery_node_core::expire::GRACE),
        });
        let notes =
            self.submissions.values().map(|row| row.expires_at).chain(self.received.values().copied());
        self.first_expiry = mailboxes.chain(parcels).chain(notes).min();
        if self.first_expiry.is_none() {
            self.first_expiry = Some(Timestamp::from_millis(i64::MAX));
        }
        Ok(gone as u64)
    }

    async fn greet(
        &mut self,
        peer: &NodeId,
        incarnation: Incarnation,
    ) -> Result<Option<Incarnation>, Infallible> {
        self.silent.remove(peer);
        Ok(self.peers.insert(peer.clone(), incarnation))
    }

    async fn silent_from(&mut self, peer: &NodeId, now: Timestamp) -> Result<(), Infallible> {
        if self.peers.contains_key(peer) {
            self.silent.entry(peer.clone()).or_insert(now);
        }
        Ok(())
    }

    async fn replay(&mut self, peer: &NodeId) -> Result<(), Infallible> {
        for (id, parcel) in &mut self.outbox {
            if parcel.state == State::Acknowledged && parcel.out.peer == *peer {
                parcel.state = State::Waiting;
                self.waiting.entry(peer.clone()).or_default().insert(*id);
            }
        }
        Ok(())
    }
}
