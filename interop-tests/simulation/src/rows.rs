//! An endpoint's rows in memory: what its disk holds.

use crate::books::Books;
use crate::mls::{Joiner, Member, Plain, Session};
use bytes::Bytes;
use chancery_proto::federation::v1::{Delivery, Submission, delivery, submission};
use chancery_sdk_core::chain::{self, Link};
use chancery_sdk_core::receive::Envelope;
use chancery_sdk_core::{Alarm, Conclusion, Content, Item, Made, Opened, Place, Progress, Queues};
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
    /// Letters that came in, by their numbers.
    pub(crate) inbox: BTreeSet<u64>,
}

#[derive(Clone)]
struct Row {
    message_id: MessageId,
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
    Letter(u64),
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
        let open = self.threads.values().filter(|progress| progress.open);
        open.filter_map(|progress| Some((progress.id, &*self.sessions.get(&progress.id)?.members)))
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
            group: row.group,
            commits: matches!(row.body, Body::Commit(_)),
            submitted: row.submission.is_some(),
            body: None,
            expires: row.expires,
            wants_events: matches!(row.body, Body::Letter(_)),
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
        let progress = Progress {
            id,
            open: true,
            epoch: 1,
            pending_commit: None,
            head_sequence: 0,
            delivered_sequence: 0,
        };
        self.rows.threads.insert(id, progress);
        let expires = self.now.after(std::time::Duration::from_hours(24));
        let item = self.rows.insert(self.row(commit_id, id, Body::Commit(Vec::new()), expires));
        let sender = (self.own.alias, self.own.device);
        if let Some(item) = self.rows.row(item) {
            done(chancery_sdk_core::outbox::submit(self, sender, &item, 0, submission::Body::Commit(commit)));
        }
    }

    /// Queues a letter.
    pub(crate) fn write(&mut self, group: GroupId, message_id: MessageId, number: u64, expires: Timestamp) {
        self.rows.insert(self.row(message_id, group, Body::Letter(number), expires));
        done(chancery_sdk_core::outbox::prepare(self, &group));
    }

    /// Queues a commit that brings devices in.
    pub(crate) fn admit(&mut self, group: GroupId, message_id: MessageId, joiners: Vec<Joiner>) {
        let expires = self.now.after(std::time::Duration::from_hours(24));
        self.rows.insert(self.row(message_id, group, Body::Commit(joiners), expires));
        done(chancery_sdk_core::outbox::prepare(self, &group));
    }

    const fn row(&self, message_id: MessageId, group: GroupId, body: Body, expires: Timestamp) -> Row {
        Row { message_id, group, body, expires, needs_epoch: 0, made_in: 0, digest: None, submission: None }
    }
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

    fn close(&mut self, id: &GroupId) -> Result<(), Infallible> {
        if let Some(kept) = self.rows.threads.get_mut(id) {
            kept.open = false;
            kept.pending_commit = None;
        }
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
        let letter = |row: &Row| matches!(row.body, Body::Letter(_)) && row.submission.is_some();
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

    fn conclude(&mut self, item: &Item, conclusion: Conclusion<'_>) -> Result<(), Infallible> {
        let Some(row) = self.rows.items.remove(&item.id) else { return Ok(()) };
        self.rows.by_message.remove(&row.message_id);
        if let Some(ids) = self.rows.of_group.get_mut(&row.group) {
            ids.remove(&item.id);
        }
        if let Body::Letter(number) = row.body {
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

    fn make(&mut self, thread: &Thread, item: &Item) -> Result<Made, Infallible> {
        let (Some(row), Some(session)) =
            (self.rows.items.get(&item.id), self.rows.sessions.get_mut(&thread.id))
        else {
            return Ok(Made::Impossible(chancery_types::Reason::ThreadUnknown));
        };
        Ok(match &row.body {
            Body::Letter(number) => {
                let (message, generation) =
                    session.encrypt(&thread.id, self.own.device, &item.message_id, *number);
                self.books.sealed(&thread.id, session.epoch, self.own.device, generation);
                self.books.addressed(*number, &session.members, self.own.device);
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
        let mut progress = Progress {
            id: envelope.group,
            open: true,
            epoch: session.epoch,
            pending_commit: None,
            head_sequence: 0,
            delivered_sequence: 0,
        };
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
            Some(Plain::Letter { message_id, number }) if message_id == envelope.message_id => {
                self.books.arrived(number, self.own.device, self.rows.inbox.insert(number));
                self.rows.receipts.insert(envelope.place.position, message_id.to_wire());
                Ok(Opened::Good(Content::Letter(number)))
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
