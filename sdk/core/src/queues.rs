//! The rows that an endpoint's queues consist of, and the MLS behind them, as a trait.

use crate::chain::Link;
use crate::receive::Envelope;
use crate::{Alarm, Stand};
use chancery_proto::federation::v1::{Delivery, Submission, submission};
use chancery_types::{Alias, Chain, DeviceId, GroupId, MessageId, Reason, Timestamp};
use std::ops::DerefMut;

/// How far a thread has come.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Its MLS group.
    pub id: GroupId,
    /// Its first group, whose place this one may have taken: the thread's own id.
    pub root: GroupId,
    /// The other side.
    pub peer: Alias,
    /// What may be done in it.
    pub stand: Stand,
    /// When the group was opened here.
    pub opened: Timestamp,
    /// Epoch of the group as merged here.
    pub epoch: u64,
    /// Our commit that the hub has not decided.
    pub pending_commit: Option<MessageId>,
    /// Everything up to it was seen and its chain holds; 0: nothing yet.
    pub head_sequence: u64,
    /// Highest that came through the mailbox.
    pub delivered_sequence: u64,
}

/// Where an item stood: in the mailbox that a home keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The home.
    pub home: i64,
    /// Position there.
    pub position: u64,
}

/// Something to send that the hub has not decided.
pub struct Item {
    /// Growing: the order of sending.
    pub id: i64,
    /// Its id, under which it is sent until it is decided.
    pub message_id: MessageId,
    /// The letter's id: `message_id`, unless it was sent in another group before.
    pub letter: MessageId,
    /// Its thread.
    pub group: GroupId,
    /// Whether it is a commit.
    pub commits: bool,
    /// Whether it was encrypted and may be with the hub.
    pub submitted: bool,
    /// Plaintext, or what to commit.
    pub body: Option<Vec<u8>>,
    /// When to give up.
    pub expires: Timestamp,
    /// Whether the caller wants events.
    pub wants_events: bool,
    /// Encrypt it only once the group has reached it.
    pub needs_epoch: u64,
    /// Epoch in which it was last encrypted.
    pub made_in: u64,
    /// SHA-256 of the MLSMessage that was submitted.
    pub digest: Option<[u8; 32]>,
}

/// How something to send ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion<'a> {
    /// The hub accepted it then.
    Accepted(Timestamp),
    /// There is nothing to do any more.
    Needless,
    /// It will not be accepted, for this stable reason.
    Failed(&'a str),
}

/// What became of something to send when it was to be encrypted.
pub enum Made {
    /// What the hub gets.
    Body(submission::Body),
    /// A commit that would change nothing.
    Needless,
    /// It cannot be made.
    Impossible(Reason),
}

/// What became of bytes that came in.
pub enum Opened<T> {
    /// They hold, and their effect is written down.
    Good(T),
    /// They are for another device.
    NotForUs,
    /// They break a rule; nothing is written down.
    Bad,
}

/// What a message held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A letter, at this position of the inbox.
    Letter(u64),
    /// Something about earlier letters.
    Note,
    /// A letter that came before, in a group whose place this one has taken.
    Again,
    /// A commit, which is merged.
    Commit,
}

/// One transaction on an endpoint's rows.
pub trait Queues {
    /// The rows cannot be read or written: the transaction is undone.
    type Error;
    /// A thread with whatever the shell needs of it.
    type Thread: DerefMut<Target = Progress>;

    /// The time now.
    fn now(&self) -> Timestamp;
    /// Whose endpoint this is.
    fn sender(&self) -> Result<(Alias, DeviceId), Self::Error>;

    /// A thread.
    fn thread(&self, id: &GroupId) -> Result<Option<Self::Thread>, Self::Error>;
    /// Writes `head_sequence` and `delivered_sequence`.
    fn keep_head(&mut self, progress: &Progress) -> Result<(), Self::Error>;
    /// Writes `pending_commit`.
    fn keep_pending(&mut self, id: &GroupId, commit: Option<&MessageId>) -> Result<(), Self::Error>;
    /// Writes `stand`. Where nothing is read any more, no commit is pending.
    fn keep_stand(&mut self, id: &GroupId, stand: Stand) -> Result<(), Self::Error>;
    /// The group that took a group's place.
    fn successor(&self, id: &GroupId) -> Result<Option<GroupId>, Self::Error>;
    /// Notes it.
    fn set_successor(&mut self, id: &GroupId, next: &GroupId) -> Result<(), Self::Error>;

    /// The link at a sequence.
    fn link(&self, id: &GroupId, sequence: u64) -> Result<Option<Link>, Self::Error>;
    /// The chain value at a sequence.
    fn chain(&self, id: &GroupId, sequence: u64) -> Result<Option<Chain>, Self::Error>;
    /// Notes a link.
    fn add_link(&mut self, id: &GroupId, link: &Link) -> Result<(), Self::Error>;
    /// Forgets links below a sequence.
    fn forget_links(&mut self, id: &GroupId, below: u64) -> Result<(), Self::Error>;

    /// Keeps a delivery for later, once for each sequence.
    fn park(&mut self, place: Place, id: &GroupId, delivery: &Delivery) -> Result<(), Self::Error>;
    /// Whether deliveries of a group wait.
    fn parks(&self, id: &GroupId) -> Result<bool, Self::Error>;
    /// Groups of which deliveries wait.
    fn parked_groups(&self) -> Result<Vec<GroupId>, Self::Error>;
    /// Takes out what waits of a group.
    fn unpark(&mut self, id: &GroupId) -> Result<Vec<(Place, Delivery)>, Self::Error>;
    /// Position in a home's mailbox of the first delivery that waits.
    fn first_parked(&self, home: i64) -> Result<Option<u64>, Self::Error>;

    /// Something to send, by its id, whether decided or not: `None` when it is.
    fn undecided_item(&self, id: &MessageId) -> Result<Option<Item>, Self::Error>;
    /// Everything undecided of a group, in the order of sending.
    fn undecided(&self, id: &GroupId) -> Result<Vec<Item>, Self::Error>;
    /// Whether anything of a group waits to be encrypted.
    fn any_queued(&self, id: &GroupId) -> Result<bool, Self::Error>;
    /// What of a group waits to be encrypted, in the order of sending.
    fn queued(&self, id: &GroupId) -> Result<Vec<Item>, Self::Error>;
    /// Whether anything of a group was submitted and is undecided.
    fn any_submitted(&self, id: &GroupId) -> Result<bool, Self::Error>;
    /// Whether a letter of an epoch before `epoch` was submitted and is undecided.
    fn any_submitted_before(&self, id: &GroupId, epoch: u64) -> Result<bool, Self::Error>;
    /// What expired: of the queued at all, of the submitted before `submitted`; a few.
    fn overdue(&self, submitted: Timestamp) -> Result<Vec<Item>, Self::Error>;
    /// An item was encrypted: it goes to the end of what is to be submitted.
    fn submitted(
        &mut self,
        item: &Item,
        submission: &Submission,
        digest: &[u8; 32],
    ) -> Result<(), Self::Error>;
    /// What was submitted behind a position, with the positions, at most `most`.
    fn due(&self, after: u64, most: usize) -> Result<Vec<(u64, Submission)>, Self::Error>;
    /// An item waits to be encrypted anew, in this epoch or a later one.
    fn requeue(&mut self, item: &Item, needs_epoch: u64) -> Result<(), Self::Error>;
    /// What is queued in a group is to be sent in another one; what was encrypted before,
    /// under another id.
    fn carry_over(&mut self, id: &GroupId, next: &GroupId) -> Result<(), Self::Error>;
    /// An item has ended: its plaintext goes, who waits is told.
    fn conclude(&mut self, item: &Item, conclusion: Conclusion<'_>) -> Result<(), Self::Error>;

    /// Whether what a home brings has to follow what was seen.
    fn must_follow(&self, home: i64) -> Result<bool, Self::Error>;
    /// Whether this endpoint moved, and hubs may not have heard of it.
    fn moved_lately(&self) -> Result<bool, Self::Error>;
    /// A hub had not heard of a move: submissions wait a moment.
    fn submit_later(&mut self) -> Result<(), Self::Error>;
    /// Whether submissions wait for hubs to hear of a move.
    fn submissions_wait(&self) -> Result<bool, Self::Error>;
    /// Position of a home's mailbox up to which everything was taken.
    fn through(&self, home: i64) -> Result<u64, Self::Error>;
    /// Delivery receipts for a home behind `after` and up to `through`, with their
    /// positions, at most `most`.
    fn receipts(
        &self,
        home: i64,
        after: u64,
        through: u64,
        most: usize,
    ) -> Result<Vec<(u64, prost::bytes::Bytes)>, Self::Error>;

    /// Says once more that a letter is here, if it is: what came was taken before.
    fn receipt_again(&mut self, envelope: &Envelope<'_>) -> Result<(), Self::Error>;

    /// Makes what the hub gets of an item, in the thread's epoch.
    fn make(&mut self, thread: &Self::Thread, item: &Item) -> Result<Made, Self::Error>;
    /// Merges our commit, which the hub accepted.
    fn merge(&mut self, thread: &mut Self::Thread) -> Result<(), Self::Error>;
    /// Gives our commit up.
    fn abandon(&mut self, thread: &mut Self::Thread) -> Result<(), Self::Error>;
    /// Joins the thread that a Welcome leads to. Unless `last_try` the shell may fail
    /// for want of something that it can fetch.
    fn join(&mut self, envelope: &Envelope<'_>, last_try: bool) -> Result<Opened<()>, Self::Error>;
    /// Decrypts a message, checks it against its envelope, and writes its effect down.
    fn open(
        &mut self,
        thread: &mut Self::Thread,
        envelope: &Envelope<'_>,
        last_try: bool,
    ) -> Result<Opened<Content>, Self::Error>;

    /// Something that should never happen has.
    fn raise(&mut self, alarm: Alarm, id: Option<&GroupId>) -> Result<(), Self::Error>;
}
