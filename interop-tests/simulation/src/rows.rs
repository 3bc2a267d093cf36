//! An endpoint's rows in memory: what its disk holds.

use crate::books::Books;
use crate::mls::{Joiner, Member, Plain, Said, Session};
use bytes::Bytes;
use chancery_proto::federation::v1::{Delivery, Submission, delivery, submission};
use chancery_sdk_core::chain::{self, Link};
use chancery_sdk_core::receive::Envelope;
use chancery_sdk_core::{
    Alarm, Conclusion, Content, Item, Made, Opened, Place, Progress, Queues, Stand, Succession, succession,
};
use chancery_types::{Alias, Chain, DeviceId, GroupId, KeyPackageRef, MessageId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ops::{Deref, DerefMut};

/// The home that a device has.
pub(crate) const HOME: i64 = 1;

/// What an endpoint's disk holds.
#[derive(Clone, Default)]
pub(crate) struct Rows {
    threads: BTreeMap<GroupId, Progress>,
    successors: BTreeMap<GroupId, GroupId>,
    sessions: BTreeMap<GroupId, Session>,
    links: BTreeMap<(GroupId, u64), Link>,
    parked: BTreeMap<(GroupId, u64), (Place, Delivery)>,
    items: BTreeMap<i64, Row>,
    by_message: BTreeMap<MessageId, i64>,
    of_group: BTreeMap<GroupId, BTreeSet<i64>>,
    receipts: BTreeMap<u64, Bytes>,
    key_packages: BTreeSet<KeyPackageRef>,
    last_item: i64,
    last_submitted: u64,
    /// Position in the mailbox up to which everything was taken.
    pub(crate) through: u64,
    /// Letters that came in, by their numbers, and in which group.
    inbox: BTreeMap<u64, GroupId>,
    /// Where they stand there.
    letters: BTreeSet<(GroupId, u64)>,
}

#[derive(Clone)]
struct Row {
    message_id: MessageId,
    letter: MessageId,
    group: GroupId,
    body: Body,
    expires: Timestamp,
    needs_epoch: u64,
    made_in: u64,
    digest: Option<[u8; 32]>,
    submission: Option<(u64, Submission)>,
}

/// What is to be sent.
#[derive(Clone)]
enum Body {
    Said(Said),
    Commit(Vec<Joiner>),
}

/// One transaction of a device.
pub(crate) struct Tx<'a> {
    /// What it works on.
    pub(crate) rows: &'a mut Rows,
    /// What is counted.
    pub(crate) books: &'a mut Books,
    /// The device.
    pub(crate) own: Member,
    /// The device's time.
    pub(crate) now: Timestamp,
}

/// A thread, as the core sees it.
pub(crate) struct Thread(Progress);

impl Deref for Thread {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.0
    }
}

impl DerefMut for Thread {
    fn deref_mut(&mut self) -> &mut Progress {
        &mut self.0
    }
}

impl Rows {
    /// Whether everything that was to be sent is decided.
    pub(crate) fn is_idle(&self) -> bool {
        self.items.is_empty() && self.parked.is_empty()
    }

    /// Threads that this device is in, and who else is.
    pub(crate) fn threads(&self) -> impl Iterator<Item = (GroupId, &[Member])> {
        let open = self.threads.values().filter(|progress| progress.stand == Stand::Open);
        open.filter_map(|progress| Some((progress.id, &*self.sessions.get(&progress.id)?.members)))
    }

    /// Where letters to an alias go: behind those that wait in a group that is over, or to
    /// the one that is open, or to one that another one will take the place of.
    pub(crate) fn thread_with(&self, peer: Alias) -> Option<GroupId> {
        let with =
            self.threads.values().filter(|thread| thread.peer == peer && thread.stand != Stand::Closed);
        let current = |thread: &&Progress| {
            let waits = thread.stand.is_over() && self.of_group(&thread.id).next().is_some();
            (waits, thread.stand == Stand::Open, !self.successors.contains_key(&thread.id))
        };
        with.max_by_key(current).map(|thread| thread.id)
    }

    /// Groups that are to get a successor, with the other side.
    pub(crate) fn succession_due(&self) -> Vec<(GroupId, Alias)> {
        let due = self.threads.values().filter(|thread| {
            let mut items = self.of_group(&thread.id).map(|(_, row)| row.submission.is_some()).peekable();
            thread.stand.is_over()
                && !self.successors.contains_key(&thread.id)
                && (thread.stand > Stand::Ended || items.peek().is_some())
                && items.all(|submitted| !submitted)
        });
        due.map(|thread| (thread.id, thread.peer)).collect()
    }

    /// A KeyPackage of this device is in stock.
    pub(crate) fn publish(&mut self, reference: KeyPackageRef) {
        self.key_packages.insert(reference);
    }

    fn row(&self, id: i64) -> Option<Item> {
        let row = self.items.get(&id)?;
        Some(Item {
            id,
            message_id: row.message_id,
            letter: row.letter,
            group: row.group,
            commits: matches!(row.body, Body::Commit(_)),
            submitted: row.submission.is_some(),
            body: None,
            expires: row.expires,
            wants_events: matches!(row.body, Body::Said(Said::Letter(_))),
            needs_epoch: row.needs_epoch,
            made_in: row.made_in,
            digest: row.digest,
        })
    }

    fn of_group(&self, group: &GroupId) -> impl DoubleEndedIterator<Item = (i64, &Row)> {
        let ids = self.of_group.get(group).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.items.get(id)?)))
    }

    fn insert(&mut self, row: Row) -> i64 {
        self.last_item += 1;
        let id = self.last_item;
        self.by_message.insert(row.message_id, id);
        self.of_group.entry(row.group).or_default().insert(id);
        self.items.insert(id, row);
        id
    }
}

impl Tx<'_> {
    /// Opens a thread with somebody's devices; its first commit is queued.
    pub(crate) fn open_thread(&mut self, id: GroupId, secret: u64, commit_id: MessageId, joiners: &[Joiner]) {
        let mut session = Session::create(self.own, secret);
        let commit = session.stage(&id, self.own.device, joiners);
        session.merge();
        self.rows.sessions.insert(id, session);
        let peer = peer(&joiners.iter().map(|joiner| joiner.member).collect::<Vec<_>>(), self.own);
        self.rows.threads.insert(id, progress(id, peer, 1, self.now));
        let expires = self.now.after(std::time::Duration::from_hours(24));
        let item = self.rows.insert(self.row(commit_id, id, Body::Commit(Vec::new()), expires));
        let sender = (self.own.alias, self.own.device);
        if let Some(item) = self.rows.row(item) {
            done(chancery_sdk_core::outbox::submit(self, sender, &item, 0, submission::Body::Commit(commit)));
        }
    }

    /// The new group `next` takes the place of `group`, and says so.
    pub(crate) fn succeed(&mut self, group: GroupId, next: GroupId, message_id: MessageId) {
        let Some(thread) = self.rows.threads.get(&group).cloned() else { return };
        if let Some(kept) = self.rows.threads.get_mut(&next) {
            kept.root = thread.root;
        }
        let chain = done(self.chain(&group, thread.head_sequence));
        let said =
            Succession { root: thread.root, group, head: chain.map(|chain| (thread.head_sequence, chain)) };
        let expires = self.now.after(std::time::Duration::from_hours(24));
        self.rows.insert(self.row(message_id, next, Body::Said(Said::Succession(said)), expires));
        done(chancery_sdk_core::outbox::prepare(self, &next));
        done(chancery_sdk_core::succession::succeed(self, &group, &next));
    }

    /// Queues a letter.
    pub(crate) fn write(&mut self, group: GroupId, message_id: MessageId, number: u64, expires: Timestamp) {
        self.rows.insert(self.row(message_id, group, Body::Said(Said::Letter(number)), expires));
        done(chancery_sdk_core::outbox::prepare(self, &group));
    }

    /// Queues a commit that brings devices in.
    pub(crate) fn admit(&mut self, group: GroupId, message_id: MessageId, joiners: Vec<Joiner>) {
        let expires = self.now.after(std::time::Duration::from_hours(24));
        self.rows.insert(self.row(message_id, group, Body::Commit(joiners), expires));
        done(chancery_sdk_core::outbox::prepare(self, &group));
    }

    const fn row(&self, message_id: MessageId, group: GroupId, body: Body, expires: Timestamp) -> Row {
        Row {
            message_id,
            letter: message_id,
            group,
            body,
            expires,
            needs_epoch: 0,
            made_in: 0,
            digest: None,
            submission: None,
        }
    }
}

/// A group as it begins here.
const fn progress(id: GroupId, peer: Alias, epoch: u64, now: Timestamp) -> Progress {
    Progress {
        id,
        root: id,
        peer,
        stand: Stand::Open,
        opened: now,
        epoch,
        pending_commit: None,
        head_sequence: 0,
        delivered_sequence: 0,
    }
}

/// The other side of a group.
fn peer(members: &[Member], own: Member) -> Alias {
    members.iter().map(|member| member.alias).find(|alias| *alias != own.alias).unwrap_or(own.alias)
}

/// Another id, which follows from the first.
fn another(id: MessageId) -> MessageId {
    let mut bytes = *id.as_bytes();
    bytes[15] = bytes[15].wrapping_add(1);
    MessageId::from_bytes(bytes)
}

/// Rows in memory never fail.
pub(crate) fn done<T>(result: Result<T, Infallible>) -> T {
    let Ok(value) = result;
    value
}

impl Queues for Tx<'_> {
    type Error = Infallible;
    type Thread = Thread;

    fn now(&self) -> Timestamp {
        self.now
    }

    fn sender(&self) -> Result<(Alias, DeviceId), Infallible> {
        Ok((self.own.alias, self.own.device))
    }

    fn thread(&self, id: &GroupId) -> Result<Option<Thread>, Infallible> {
        Ok(self.rows.threads.get(id).cloned().map(Thread))
    }

    fn keep_head(&mut self, progress: &Progress) -> Result<(), Infallible> {
        if let Some(kept) = self.rows.threads.get_mut(&progress.id) {
            kept.head_sequence = progress.head_sequence;
            kept.delivered_sequence = progress.delivered_sequence;
        }
        Ok(())
    }

    fn keep_pending(&mut self, id: &GroupId, commit: Option<&MessageId>) -> Result<(), Infallible> {
        if let Some(kept) = self.rows.threads.get_mut(id) {
            kept.pending_commit = commit.copied();
        }
        Ok(())
    }

    fn keep_stand(&mut self, id: &GroupId, stand: Stand) -> Result<(), Infallible> {
        if let Some(kept) = self.rows.threads.get_mut(id) {
            kept.stand = stand;
            if !stand.reads() {
                kept.pending_commit = None;
            }
        }
        Ok(())
    }

    fn successor(&self, id: &GroupId) -> Result<Option<GroupId>, Infallible> {
        Ok(self.rows.successors.get(id).copied())
    }

    fn set_successor(&mut self, id: &GroupId, next: &GroupId) -> Result<(), Infallible> {
        self.rows.successors.insert(*id, *next);
        Ok(())
    }

    fn link(&self, id: &GroupId, sequence: u64) -> Result<Option<Link>, Infallible> {
        Ok(self.rows.links.get(&(*id, sequence)).cloned())
    }

    fn chain(&self, id: &GroupId, sequence: u64) -> Result<Option<Chain>, Infallible> {
        Ok(self.rows.links.get(&(*id, sequence)).map(|link| link.chain))
    }

    fn add_link(&mut self, id: &GroupId, link: &Link) -> Result<(), Infallible> {
        self.rows.links.insert((*id, link.sequence), link.clone());
        Ok(())
    }

    fn forget_links(&mut self, id: &GroupId, below: u64) -> Result<(), Infallible> {
        while let Some(entry) = self.rows.links.range((*id, 0)..(*id, below)).next().map(|(key, _)| *key) {
            self.rows.links.remove(&entry);
        }
        Ok(())
    }

    fn park(&mut self, place: Place, id: &GroupId, delivery: &Delivery) -> Result<(), Infallible> {
        self.rows.parked.entry((*id, delivery.sequence)).or_insert_with(|| (place, delivery.clone()));
        Ok(())
    }

    fn parks(&self, id: &GroupId) -> Result<bool, Infallible> {
        Ok(self.rows.parked.range((*id, 0)..=(*id, u64::MAX)).next().is_some())
    }

    fn parked_groups(&self) -> Result<Vec<GroupId>, Infallible> {
        let groups: BTreeSet<_> = self.rows.parked.keys().map(|(group, _)| *group).collect();
        Ok(groups.into_iter().collect())
    }

    fn unpark(&mut self, id: &GroupId) -> Result<Vec<(Place, Delivery)>, Infallible> {
        let keys: Vec<_> = self.rows.parked.range((*id, 0)..=(*id, u64::MAX)).map(|(key, _)| *key).collect();
        Ok(keys.iter().filter_map(|key| self.rows.parked.remove(key)).collect())
    }

    fn first_parked(&self, _: i64) -> Result<Option<u64>, Infallible> {
        Ok(self.rows.parked.values().map(|(place, _)| place.position).min())
    }

    fn undecided_item(&self, id: &MessageId) -> Result<Option<Item>, Infallible> {
        Ok(self.rows.by_message.get(id).and_then(|id| self.rows.row(*id)))
    }

    fn undecided(&self, id: &GroupId) -> Result<Vec<Item>, Infallible> {
        Ok(self.rows.of_group(id).filter_map(|(id, _)| self.rows.row(id)).collect())
    }

    fn any_queued(&self, id: &GroupId) -> Result<bool, Infallible> {
        Ok(self.rows.of_group(id).any(|(_, row)| row.submission.is_none()))
    }

    fn queued(&self, id: &GroupId) -> Result<Vec<Item>, Infallible> {
        let queued = self.rows.of_group(id).filter(|(_, row)| row.submission.is_none());
        Ok(queued.filter_map(|(id, _)| self.rows.row(id)).collect())
    }

    fn any_submitted(&self, id: &GroupId) -> Result<bool, Infallible> {
        Ok(self.rows.of_group(id).any(|(_, row)| row.submission.is_some()))
    }

    fn any_submitted_before(&self, id: &GroupId, epoch: u64) -> Result<bool, Infallible> {
        let letter = |row: &Row| matches!(row.body, Body::Said(_)) && row.submission.is_some();
        Ok(self.rows.of_group(id).any(|(_, row)| letter(row) && row.made_in < epoch))
    }

    fn overdue(&self, submitted: Timestamp) -> Result<Vec<Item>, Infallible> {
        let until = |row: &Row| if row.submission.is_some() { submitted } else { self.now };
        let overdue = self.rows.items.iter().filter(|(_, row)| row.expires <= until(row));
        Ok(overdue.filter_map(|(id, _)| self.rows.row(*id)).collect())
    }

    fn submitted(
        &mut self,
        item: &Item,
        submission: &Submission,
        digest: &[u8; 32],
    ) -> Result<(), Infallible> {
        self.rows.last_submitted += 1;
        if let Some(row) = self.rows.items.get_mut(&item.id) {
            self.books.made_anew(submission.epoch, row.needs_epoch);
            row.submission = Some((self.rows.last_submitted, submission.clone()));
            row.digest = Some(*digest);
            row.made_in = submission.epoch;
        }
        Ok(())
    }

    fn due(&self, after: u64, most: usize) -> Result<Vec<(u64, Submission)>, Infallible> {
        let due = self.rows.items.values().filter_map(|row| row.submission.as_ref());
        let mut due: Vec<_> = due.filter(|(position, _)| *position > after).collect();
        due.sort_by_key(|(position, _)| *position);
        due.truncate(most);
        Ok(due.into_iter().cloned().collect())
    }

    fn requeue(&mut self, item: &Item, needs_epoch: u64) -> Result<(), Infallible> {
        if let Some(row) = self.rows.items.get_mut(&item.id) {
            (row.submission, row.digest, row.needs_epoch) = (None, None, needs_epoch);
        }
        Ok(())
    }

    fn carry_over(&mut self, id: &GroupId, next: &GroupId) -> Result<(), Infallible> {
        let moving: Vec<i64> =
            self.rows.of_group(id).filter(|(_, row)| row.submission.is_none()).map(|(id, _)| id).collect();
        for item in moving {
            let Some(row) = self.rows.items.get_mut(&item) else { continue };
            if row.made_in > 0 {
                let again = another(row.message_id);
                self.rows.by_message.remove(&row.message_id);
                self.rows.by_message.insert(again, item);
                self.books.renamed(&row.message_id, again);
                row.message_id = again;
            }
            (row.group, row.needs_epoch, row.made_in) = (*next, 0, 0);
            if let Some(items) = self.rows.of_group.get_mut(id) {
                items.remove(&item);
            }
            self.rows.of_group.entry(*next).or_default().insert(item);
        }
        Ok(())
    }

    fn conclude(&mut self, item: &Item, conclusion: Conclusion<'_>) -> Result<(), Infallible> {
        let Some(row) = self.rows.items.remove(&item.id) else { return Ok(()) };
        self.rows.by_message.remove(&row.message_id);
        if let Some(ids) = self.rows.of_group.get_mut(&row.group) {
            ids.remove(&item.id);
        }
        if let Body::Said(Said::Letter(number)) = row.body {
            self.books.concluded(number, conclusion);
        }
        Ok(())
    }

    fn must_follow(&self, _: i64) -> Result<bool, Infallible> {
        Ok(false)
    }

    fn moved_lately(&self) -> Result<bool, Infallible> {
        Ok(false)
    }

    fn submit_later(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn submissions_wait(&self) -> Result<bool, Infallible> {
        Ok(false)
    }

    fn through(&self, _: i64) -> Result<u64, Infallible> {
        Ok(self.rows.through)
    }

    fn receipts(
        &self,
        _: i64,
        after: u64,
        through: u64,
        most: usize,
    ) -> Result<Vec<(u64, Bytes)>, Infallible> {
        let receipts = self.rows.receipts.range(after + 1..=through);
        Ok(receipts.take(most).map(|(position, receipt)| (*position, receipt.clone())).collect())
    }

    fn receipt_again(&mut self, envelope: &Envelope<'_>) -> Result<(), Infallible> {
        if self.rows.letters.contains(&(envelope.group, envelope.delivery.sequence)) {
            self.rows.receipts.insert(envelope.place.position, envelope.message_id.to_wire());
        }
        Ok(())
    }

    fn make(&mut self, thread: &Thread, item: &Item) -> Result<Made, Infallible> {
        let (Some(row), Some(session)) =
            (self.rows.items.get(&item.id), self.rows.sessions.get_mut(&thread.id))
        else {
            return Ok(Made::Impossible(chancery_types::Reason::ThreadUnknown));
        };
        Ok(match &row.body {
            Body::Said(said) => {
                let (message, generation) =
                    session.encrypt(&thread.id, self.own.device, &item.message_id, (&thread.root, said));
                self.books.sealed(&thread.id, session.epoch, self.own.device, generation);
                if let Said::Letter(number) = said {
                    self.books.addressed(*number, &session.members, self.own.device);
                }
                Made::Body(submission::Body::Application(message))
            }
            Body::Commit(joiners) => {
                let missing: Vec<_> =
                    joiners.iter().filter(|j| !session.members.contains(&j.member)).cloned().collect();
                if missing.is_empty() {
                    return Ok(Made::Needless);
                }
                Made::Body(submission::Body::Commit(session.stage(&thread.id, self.own.device, &missing)))
            }
        })
    }

    fn merge(&mut self, thread: &mut Thread) -> Result<(), Infallible> {
        if let Some(session) = self.rows.sessions.get_mut(&thread.id) {
            session.merge();
            self.moved_to(thread);
        }
        Ok(())
    }

    fn abandon(&mut self, thread: &mut Thread) -> Result<(), Infallible> {
        if let Some(session) = self.rows.sessions.get_mut(&thread.id) {
            session.clear();
            self.moved_to(thread);
        }
        Ok(())
    }

    fn join(&mut self, envelope: &Envelope<'_>, _: bool) -> Result<Opened<()>, Infallible> {
        let delivery::Body::Welcome(welcome) = envelope.body else { return Ok(Opened::Bad) };
        let mine = |reference: &KeyPackageRef| self.rows.key_packages.contains(reference);
        let Some(session) = Session::join(&envelope.group, welcome, mine) else {
            return Ok(Opened::NotForUs);
        };
        let mut progress =
            progress(envelope.group, peer(&session.members, self.own), session.epoch, self.now);
        self.rows.sessions.insert(envelope.group, session);
        self.rows.threads.insert(envelope.group, progress.clone());
        chain::begin(self, &mut progress, &envelope.link())?;
        Ok(Opened::Good(()))
    }

    fn open(
        &mut self,
        thread: &mut Thread,
        envelope: &Envelope<'_>,
        _: bool,
    ) -> Result<Opened<Content>, Infallible> {
        let (delivery::Body::Application(message) | delivery::Body::Commit(message)) = envelope.body else {
            return Ok(Opened::Bad);
        };
        let Some(session) = self.rows.sessions.get_mut(&thread.id) else { return Ok(Opened::Bad) };
        match session.open(&thread.id, message) {
            Some(Plain::Said { message_id, root, said }) if message_id == envelope.message_id => {
                thread.root = root;
                if let Some(kept) = self.rows.threads.get_mut(&thread.id) {
                    kept.root = root;
                }
                self.rows.receipts.insert(envelope.place.position, message_id.to_wire());
                match said {
                    Said::Letter(number) => Ok(Opened::Good(self.letter(envelope, number))),
                    Said::Succession(said) => {
                        succession::follow(self, thread, &said)?;
                        Ok(Opened::Good(Content::Note))
                    }
                }
            }
            Some(Plain::Commit) => {
                self.moved_to(thread);
                Ok(Opened::Good(Content::Commit))
            }
            _ => Ok(Opened::Bad),
        }
    }

    fn raise(&mut self, alarm: Alarm, _: Option<&GroupId>) -> Result<(), Infallible> {
        self.books.alarmed(alarm, self.own.device);
        Ok(())
    }
}

impl Tx<'_> {
    /// Takes a letter, once whatever the group.
    fn letter(&mut self, envelope: &Envelope<'_>, number: u64) -> Content {
        let before = self.rows.inbox.insert(number, envelope.group);
        if before.is_some_and(|before| before != envelope.group) {
            return Content::Again;
        }
        self.rows.letters.insert((envelope.group, envelope.delivery.sequence));
        self.books.arrived((number, envelope.group), self.own.device, before.is_none());
        Content::Letter(number)
    }

    /// The group stands in its epoch, without a commit of ours under way.
    fn moved_to(&mut self, thread: &mut Thread) {
        if let Some(session) = self.rows.sessions.get(&thread.id) {
            thread.epoch = session.epoch;
            thread.pending_commit = None;
            if let Some(kept) = self.rows.threads.get_mut(&thread.id) {
                kept.epoch = session.epoch;
                kept.pending_commit = None;
            }
        }
    }

    /// The home has what was acknowledged.
    pub(crate) fn forget_receipts(&mut self, through: u64) {
        self.rows.receipts = self.rows.receipts.split_off(&(through + 1));
    }
}

#[cfg(test)]
mod tests;
