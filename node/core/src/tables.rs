//! The rows that a node's transactions work on. A shell keeps them in a database;
//! what is read, decided and written, and in which order, is this crate's.

use crate::hub::Group;
use crate::mailbox::{Delivered, Item};
use crate::outbox::{Ended, Kept, Kind, Outgoing};
use bytes::Bytes;
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{
    Alias, ChannelId, DeviceId, GroupId, Incarnation, MessageId, NodeId, Reason, Timestamp,
};
use std::collections::{HashMap, HashSet};

/// A transaction under way: all of it happens, or nothing.
pub struct Tx<T> {
    /// Its rows.
    pub tables: T,
    /// This node.
    pub here: NodeId,
    /// When it began.
    pub now: Timestamp,
    /// What to do once it is committed.
    pub after: After,
}

/// What follows from a committed transaction.
#[derive(Default)]
pub struct After {
    /// Whose devices have something to read.
    pub aliases: HashSet<Alias>,
    /// Which peers have something to take.
    pub peers: HashSet<NodeId>,
    /// Whose residents have something to read: owners and their channels.
    pub channels: HashSet<(NodeId, ChannelId)>,
    /// Why submissions were refused, to be counted.
    pub refused: Vec<Reason>,
}

/// A submission that is known already.
#[derive(PartialEq)]
pub struct Known {
    /// SHA-256 of what the endpoint chose.
    pub digest: [u8; 32],
    /// What the hub decided; `None`: it has not.
    pub outcome: Option<wire::Outcome>,
}

/// What is noted of a submission.
pub struct Note {
    /// Its id.
    pub message_id: MessageId,
    /// Its sender.
    pub sender: Alias,
    /// SHA-256 of what the endpoint chose.
    pub digest: [u8; 32],
    /// Who orders it.
    pub hub: NodeId,
    /// Whether the sender wants events.
    pub wants_events: bool,
    /// What the hub decided; `None`: it has not.
    pub outcome: Option<wire::Outcome>,
    /// When the note may go.
    pub expires_at: Timestamp,
}

/// Something that a peer brings and that counts once.
pub struct Seen {
    /// Names it: a message id, or a hash.
    pub key: Bytes,
    /// Which part of it.
    pub part: u32,
    /// When the note may go.
    pub expires_at: Timestamp,
}

/// A delivery in a mailbox that no device has taken.
#[derive(PartialEq)]
pub struct Untaken {
    /// Where it stands.
    pub position: u64,
    /// What its report needs.
    pub delivered: Delivered,
}

/// A delivery that was deleted from a mailbox before any device had taken it.
#[derive(PartialEq)]
pub struct Gone {
    /// Whose mailbox.
    pub recipient: Alias,
    /// What its report needs.
    pub delivered: Delivered,
}

/// A row of a mailbox that has expired.
#[derive(PartialEq)]
pub struct Expired {
    /// Where it stands.
    pub position: u64,
    /// Whose mailbox.
    pub recipient: Alias,
    /// What it holds.
    pub item: node::subscribe_response::Item,
    /// What its report needs, unless it was made or none is due.
    pub untaken: Option<Delivered>,
}

/// The rows of one transaction. Each method is one statement, or the same one
/// for several rows; what it writes the next one sees.
pub trait Tables: Send {
    /// A statement failed: the transaction is undone.
    type Error: Send;

    /// The groups among `ids` that this node is the hub of, with their members.
    fn groups(
        &mut self,
        ids: &HashSet<GroupId>,
    ) -> impl Future<Output = Result<HashMap<GroupId, Group>, Self::Error>> + Send;

    /// Writes epoch, sequence and chain of groups.
    fn save_groups(
        &mut self,
        groups: &[(GroupId, Group)],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Notes members of groups of this hub, unless they are known.
    fn add_members(
        &mut self,
        joined: &[(GroupId, Alias, NodeId)],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Forgets a member of a group of this hub.
    fn remove_member(
        &mut self,
        group: GroupId,
        alias: Alias,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// In all groups of this hub an alias at home with `from` is so with `to`.
    fn relocate(
        &mut self,
        alias: Alias,
        from: &NodeId,
        to: &NodeId,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Hubs of the groups among `ids` that aliases of this node were brought into.
    fn routes(
        &mut self,
        ids: &HashSet<GroupId>,
    ) -> impl Future<Output = Result<HashMap<(GroupId, Alias), NodeId>, Self::Error>> + Send;

    /// Notes routes, unless there is one.
    fn add_routes(
        &mut self,
        routes: &[(GroupId, Alias, NodeId)],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// How many devices each alias has; an alias that is not here is left out.
    fn devices(
        &mut self,
        aliases: &HashSet<Alias>,
    ) -> impl Future<Output = Result<HashMap<Alias, u32>, Self::Error>> + Send;

    /// New homes of those among the aliases that have left.
    fn homes(
        &mut self,
        aliases: &HashSet<Alias>,
    ) -> impl Future<Output = Result<HashMap<Alias, NodeId>, Self::Error>> + Send;

    /// Aliases that left and are in groups of `hub`, with their new homes.
    fn departed(
        &mut self,
        hub: &NodeId,
    ) -> impl Future<Output = Result<Vec<(Alias, NodeId)>, Self::Error>> + Send;

    /// What is known of submissions with these ids.
    fn submissions(
        &mut self,
        ids: &[MessageId],
    ) -> impl Future<Output = Result<HashMap<(MessageId, Alias), Known>, Self::Error>> + Send;

    /// Notes submissions in the place of what was noted.
    fn note_submissions(&mut self, notes: &[Note]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Notes the outcome of a submission that waits for this hub; whether one does.
    fn conclude(
        &mut self,
        hub: &NodeId,
        message_id: MessageId,
        sender: Alias,
        outcome: &wire::Outcome,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Forgets a submission that waits for its hub; whether one does.
    fn forget_undecided(
        &mut self,
        message_id: MessageId,
        sender: Alias,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Who submitted a message to that hub and wants events.
    fn submitter(
        &mut self,
        message_id: MessageId,
        hub: &NodeId,
    ) -> impl Future<Output = Result<Option<Alias>, Self::Error>> + Send;

    /// Notes what a peer brought; of each, whether it comes for the first time.
    fn first_time(
        &mut self,
        peer: &NodeId,
        seen: &[Seen],
    ) -> impl Future<Output = Result<Vec<bool>, Self::Error>> + Send;

    /// Puts items into mailboxes, each at the next position.
    fn put(&mut self, items: &[Item]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Deliveries behind a device's cursor and up to `through` that it may read and no
    /// device has taken, oldest first, at most `most`.
    fn untaken(
        &mut self,
        alias: Alias,
        device: DeviceId,
        through: u64,
        most: usize,
    ) -> impl Future<Output = Result<Vec<Untaken>, Self::Error>> + Send;

    /// Notes that a device has what stands at these positions.
    fn take(&mut self, positions: &HashSet<u64>) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Moves cursors forward, never back. Each device stands once.
    fn raise_cursors(
        &mut self,
        cursors: &[((Alias, DeviceId), u64)],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Deletes what the cursors of all devices of these aliases have passed; gives the
    /// deliveries that no device had taken.
    fn forget(
        &mut self,
        aliases: &HashSet<Alias>,
    ) -> impl Future<Output = Result<Vec<Gone>, Self::Error>> + Send;

    /// Rows of mailboxes that have expired, at most `most`.
    fn expired_items(
        &mut self,
        now: Timestamp,
        most: usize,
    ) -> impl Future<Output = Result<Vec<Expired>, Self::Error>> + Send;

    /// Another item stands in the place of one, for the same devices; nothing is
    /// reported of it.
    fn replace_item(
        &mut self,
        position: u64,
        item: &node::subscribe_response::Item,
        expires_at: Timestamp,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Deletes rows of mailboxes.
    fn remove_items(&mut self, positions: &[u64]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Puts parcels behind all that wait.
    fn push(&mut self, parcels: &[Outgoing]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// A peer has these parcels: forgets those that nothing will be heard of, keeps the
    /// others, and gives those that waited before.
    fn acknowledged(&mut self, ids: &[i64]) -> impl Future<Output = Result<Vec<Kept>, Self::Error>> + Send;

    /// A waiting parcel is a dead letter from now on.
    fn dead(
        &mut self,
        id: i64,
        reason: &str,
    ) -> impl Future<Output = Result<Option<Ended>, Self::Error>> + Send;

    /// The delivery that a peer got, and whether it has acknowledged it.
    fn delivery(
        &mut self,
        peer: &NodeId,
        message_id: MessageId,
        part: u32,
    ) -> impl Future<Output = Result<Option<(i64, bool, Kept)>, Self::Error>> + Send;

    /// Who is still to be reported on; the parcel goes with the last one.
    fn release(&mut self, id: i64, rest: &[Alias]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Forgets a submission's parcel: its hub has decided.
    fn drop_submission(
        &mut self,
        peer: &NodeId,
        message_id: MessageId,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Forgets the news of an alias's move: its hub has noted it.
    fn forget_news(
        &mut self,
        hub: &NodeId,
        alias: Alias,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Parcels that waited beyond their expiry, and those that a peer has and that
    /// expired before `kept_until`; at most `most`.
    fn expired_parcels(
        &mut self,
        now: Timestamp,
        kept_until: Timestamp,
        most: usize,
    ) -> impl Future<Output = Result<Vec<Ended>, Self::Error>> + Send;

    /// Submissions to hubs that have been silent since then or longer, whose parcels expire
    /// after `good_until`; at most `most`.
    fn silent_submissions(
        &mut self,
        since: Timestamp,
        good_until: Timestamp,
        most: usize,
    ) -> impl Future<Output = Result<Vec<Ended>, Self::Error>> + Send;

    /// Another parcel waits in the place of one, about the same.
    fn replace_parcel(
        &mut self,
        id: i64,
        kind: Kind,
        parcel: &wire::Parcel,
        expires_at: Timestamp,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Deletes parcels.
    fn remove_parcels(&mut self, ids: &[i64]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Deletes notes of submissions and of what peers brought that have run out, at most
    /// `most` of each; the larger number.
    fn expire_notes(
        &mut self,
        now: Timestamp,
        most: usize,
    ) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// Notes that a peer answers, and its incarnation; the one before.
    fn greet(
        &mut self,
        peer: &NodeId,
        incarnation: Incarnation,
    ) -> impl Future<Output = Result<Option<Incarnation>, Self::Error>> + Send;

    /// A peer does not answer, from now on unless that is known.
    fn silent_from(
        &mut self,
        peer: &NodeId,
        now: Timestamp,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// What a peer had acknowledged waits again.
    fn replay(&mut self, peer: &NodeId) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
