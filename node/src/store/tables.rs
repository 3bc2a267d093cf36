//! The tables of `chancery_node_core` as statements on the transaction's connection.

use super::{Sql, group, mailbox, moves, outbox, submission};
use chancery_node_core::hub::Group;
use chancery_node_core::mailbox::Item;
use chancery_node_core::outbox::{Ended, Kept, Kind, Outgoing};
use chancery_node_core::tables::{Expired, Gone, Known, Note, Seen, Tables, Untaken};
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, DeviceId, GroupId, Incarnation, MessageId, NodeId, Timestamp};
use sqlx::Error;
use std::collections::{HashMap, HashSet};

impl Tables for Sql<'_> {
    type Error = Error;

    async fn groups(&mut self, ids: &HashSet<GroupId>) -> Result<HashMap<GroupId, Group>, Error> {
        group::load(self.connection, ids).await
    }

    async fn save_groups(&mut self, groups: &[(GroupId, Group)]) -> Result<(), Error> {
        group::save(self.connection, groups).await
    }

    async fn add_members(&mut self, joined: &[(GroupId, Alias, NodeId)]) -> Result<(), Error> {
        group::join(self.connection, joined).await
    }

    async fn remove_member(&mut self, group: GroupId, alias: Alias) -> Result<(), Error> {
        group::leave(self.connection, group, alias).await
    }

    async fn relocate(&mut self, alias: Alias, from: &NodeId, to: &NodeId) -> Result<(), Error> {
        group::relocate(self.connection, alias, from, to).await
    }

    async fn routes(&mut self, ids: &HashSet<GroupId>) -> Result<HashMap<(GroupId, Alias), NodeId>, Error> {
        group::routes(self.connection, ids).await
    }

    async fn add_routes(&mut self, routes: &[(GroupId, Alias, NodeId)]) -> Result<(), Error> {
        group::add_routes(self.connection, routes).await
    }

    async fn devices(&mut self, aliases: &HashSet<Alias>) -> Result<HashMap<Alias, u32>, Error> {
        mailbox::devices(self.connection, aliases).await
    }

    async fn homes(&mut self, aliases: &HashSet<Alias>) -> Result<HashMap<Alias, NodeId>, Error> {
        moves::homes(self.connection, aliases).await
    }

    async fn departed(&mut self, hub: &NodeId) -> Result<Vec<(Alias, NodeId)>, Error> {
        moves::departed(self.connection, hub).await
    }

    async fn submissions(&mut self, ids: &[MessageId]) -> Result<HashMap<(MessageId, Alias), Known>, Error> {
        submission::known(self.connection, ids).await
    }

    async fn note_submissions(&mut self, notes: &[Note]) -> Result<(), Error> {
        submission::note(self.connection, notes).await
    }

    async fn conclude(
        &mut self,
        hub: &NodeId,
        message_id: MessageId,
        sender: Alias,
        outcome: &wire::Outcome,
    ) -> Result<bool, Error> {
        submission::conclude(self.connection, hub, (message_id, sender), outcome).await
    }

    async fn forget_undecided(&mut self, message_id: MessageId, sender: Alias) -> Result<bool, Error> {
        submission::forget_undecided(self.connection, message_id, sender).await
    }

    async fn submitter(&mut self, message_id: MessageId, hub: &NodeId) -> Result<Option<Alias>, Error> {
        submission::submitter(self.connection, message_id, hub).await
    }

    async fn first_time(&mut self, peer: &NodeId, seen: &[Seen]) -> Result<Vec<bool>, Error> {
        submission::first_time(self.connection, peer, seen).await
    }

    async fn put(&mut self, items: &[Item]) -> Result<(), Error> {
        mailbox::put(self.connection, items).await
    }

    async fn untaken(
        &mut self,
        alias: Alias,
        device: DeviceId,
        through: u64,
        most: usize,
    ) -> Result<Vec<Untaken>, Error> {
        mailbox::untaken(self.connection, (alias, device), through, most).await
    }

    async fn take(&mut self, positions: &HashSet<u64>) -> Result<(), Error> {
        mailbox::take(self.connection, positions).await
    }

    async fn raise_cursors(&mut self, cursors: &[((Alias, DeviceId), u64)]) -> Result<(), Error> {
        mailbox::raise_cursors(self.connection, cursors).await
    }

    async fn forget(&mut self, aliases: &HashSet<Alias>) -> Result<Vec<Gone>, Error> {
        mailbox::forget(self.connection, aliases).await
    }

    async fn expired_items(&mut self, now: Timestamp, most: usize) -> Result<Vec<Expired>, Error> {
        mailbox::expired(self.connection, now, most).await
    }

    async fn replace_item(
        &mut self,
        position: u64,
        item: &node::subscribe_response::Item,
        expires_at: Timestamp,
    ) -> Result<(), Error> {
        mailbox::replace(self.connection, position, item, expires_at).await
    }

    async fn remove_items(&mut self, positions: &[u64]) -> Result<(), Error> {
        mailbox::remove(self.connection, positions).await
    }

    async fn push(&mut self, parcels: &[Outgoing]) -> Result<(), Error> {
        outbox::push(self.connection, parcels).await
    }

    async fn acknowledged(&mut self, ids: &[i64]) -> Result<Vec<Kept>, Error> {
        outbox::acknowledged(self.connection, ids).await
    }

    async fn dead(&mut self, id: i64, reason: &str) -> Result<Option<Ended>, Error> {
        outbox::dead(self.connection, id, reason).await
    }

    async fn delivery(
        &mut self,
        peer: &NodeId,
        message_id: MessageId,
        part: u32,
    ) -> Result<Option<(i64, bool, Kept)>, Error> {
        outbox::delivery(self.connection, peer, message_id, part).await
    }

    async fn release(&mut self, id: i64, rest: &[Alias]) -> Result<(), Error> {
        outbox::release(self.connection, id, rest).await
    }

    async fn drop_submission(&mut self, peer: &NodeId, message_id: MessageId) -> Result<(), Error> {
        outbox::drop_submission(self.connection, peer, message_id).await
    }

    async fn forget_news(&mut self, hub: &NodeId, alias: Alias) -> Result<(), Error> {
        outbox::forget_news(self.connection, hub, alias).await
    }

    async fn expired_parcels(
        &mut self,
        now: Timestamp,
        kept_until: Timestamp,
        most: usize,
    ) -> Result<Vec<Ended>, Error> {
        outbox::expired(self.connection, now, kept_until, most).await
    }

    async fn silent_submissions(
        &mut self,
        since: Timestamp,
        good_until: Timestamp,
        most: usize,
    ) -> Result<Vec<Ended>, Error> {
        outbox::silent(self.connection, since, good_until, most).await
    }

    async fn replace_parcel(
        &mut self,
        id: i64,
        kind: Kind,
        parcel: &wire::Parcel,
        expires_at: Timestamp,
    ) -> Result<(), Error> {
        outbox::replace(self.connection, id, kind, parcel, expires_at).await
    }

    async fn remove_parcels(&mut self, ids: &[i64]) -> Result<(), Error> {
        outbox::remove(self.connection, ids).await
    }

    async fn expire_notes(&mut self, now: Timestamp, most: usize) -> Result<u64, Error> {
        submission::expire(self.connection, now, most).await
    }

    async fn greet(&mut self, peer: &NodeId, incarnation: Incarnation) -> Result<Option<Incarnation>, Error> {
        outbox::greet(self.connection, peer, incarnation).await
    }

    async fn silent_from(&mut self, peer: &NodeId, now: Timestamp) -> Result<(), Error> {
        outbox::silent_from(self.connection, peer, now).await
    }

    async fn replay(&mut self, peer: &NodeId) -> Result<(), Error> {
        outbox::replay(self.connection, peer).await
    }
}
