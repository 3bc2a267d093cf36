//! A device: its rows, and what its shell does with the core: it commits what came,
//! then acknowledges it; it submits until it is answered.

use crate::books::short;
use crate::mls::Member;
use crate::rows::{HOME, Rows, Tx, done};
use crate::world::{ConnId, Event, Party, World};
use bytes::Bytes;
use chancery_proto::federation::v1::{Outcome, Submission, delivery, outcome};
use chancery_proto::node::v1::{SubscribeResponse, subscribe_response::Item};
use chancery_sdk_core::acknowledge::acknowledgement;
use chancery_sdk_core::{Place, outbox, receive};
use chancery_types::Timestamp;

/// Submissions in one call: few, so that there are many calls.
const SUBMISSIONS: usize = 8;
/// How long an acknowledgement waits for company.
const ACKNOWLEDGE_AFTER: i64 = 20;
/// Longest wait for an answer.
const DEADLINE: i64 = 10_000;

/// A device.
pub(crate) struct Device {
    pub(crate) own: Member,
    pub(crate) home: usize,
    pub(crate) rows: Rows,
    pub(crate) up: bool,
    pub(crate) boot: u32,
    /// How its clock differs, in milliseconds.
    pub(crate) skew: i64,
    /// What the home serves: over which connection, behind which position.
    pub(crate) served: Option<(ConnId, u64)>,
    conn: Option<ConnId>,
    /// Position among submissions up to which the home has them.
    submitted: u64,
    acknowledged: u64,
    /// Under way: the last position of the submissions, and since when.
    submitting: Option<(u64, i64)>,
    acknowledging: Option<(u64, i64)>,
    /// Whether [`Event::Later`] is on its way.
    later: bool,
}

/// What a device asks of its home.
pub(crate) enum Call {
    Subscribe(u64),
    Submit(Vec<Submission>),
    Acknowledge { through: u64, receipts: Vec<Bytes> },
}

/// What the home answers.
pub(crate) enum Answer {
    Submitted(Vec<Option<Outcome>>),
    Acknowledged(u64),
    /// Submissions that are not well formed.
    Refused,
}

impl Device {
    pub(crate) fn new(own: Member, home: usize) -> Self {
        Self {
            own,
            home,
            rows: Rows::default(),
            up: false,
            boot: 0,
            skew: 0,
            served: None,
            conn: None,
            submitted: 0,
            acknowledged: 0,
            submitting: None,
            acknowledging: None,
            later: false,
        }
    }

    /// Everything but the rows is gone.
    pub(crate) fn die(&mut self) {
        self.up = false;
        self.boot += 1;
        (self.submitted, self.acknowledged) = (0, 0);
        (self.submitting, self.acknowledging) = (None, None);
        self.later = false;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.up && self.rows.is_idle() && self.acknowledged >= self.rows.through
    }
}

impl World {
    /// Runs a transaction of a device.
    pub(crate) fn change_device<T>(&mut self, device: usize, job: impl FnOnce(&mut Tx<'_>) -> T) -> T {
        let here = &mut self.devices[device];
        let now = Timestamp::from_millis(self.now + here.skew);
        job(&mut Tx { rows: &mut here.rows, books: &mut self.books, own: here.own, now })
    }

    pub(crate) fn start_device(&mut self, device: usize) {
        self.devices[device].up = true;
        let boot = self.devices[device].boot;
        let at = self.now + self.below(100);
        self.at(at, Event::Call { device, boot });
    }

    pub(crate) fn connect(&mut self, device: usize, boot: u32) {
        let here = &self.devices[device];
        if here.boot != boot || !here.up || here.conn.is_some() {
            return;
        }
        let home = Party::Node(here.home);
        if !self.reach(Party::Device(device), home) {
            let at = self.now + 100 + self.below(5_000);
            return self.at(at, Event::Call { device, boot });
        }
        let conn = self.open(Party::Device(device), home);
        self.devices[device].conn = Some(conn);
        let through = self.devices[device].rows.through;
        self.call(device, Call::Subscribe(through));
        self.busy(device);
    }

    /// Sends a call; whether it may arrive.
    fn call(&mut self, device: usize, call: Call) -> bool {
        let Some(conn) = self.devices[device].conn else { return false };
        if let Some(at) = self.arrival(conn, Party::Device(device)) {
            self.at(at, Event::Called { conn, device, call });
        }
        true
    }

    pub(crate) fn hung_up(&mut self, device: usize, conn: ConnId) {
        let here = &mut self.devices[device];
        if here.conn == Some(conn) {
            here.conn = None;
            (here.submitting, here.acknowledging) = (None, None);
            let boot = here.boot;
            if here.served.is_some_and(|(of, _)| of == conn) {
                here.served = None;
            }
            let at = self.now + self.below(1_000);
            self.at(at, Event::Call { device, boot });
        }
    }

    /// There may be something to do, a little later so that it is more at once.
    pub(crate) fn busy(&mut self, device: usize) {
        let here = &mut self.devices[device];
        if here.up && !here.later {
            here.later = true;
            let (at, boot) = (self.now + ACKNOWLEDGE_AFTER, here.boot);
            self.at(at, Event::Later { device, boot });
        }
    }

    pub(crate) fn later(&mut self, device: usize, boot: u32) {
        if self.devices[device].boot != boot || !self.devices[device].up {
            return;
        }
        self.devices[device].later = false;
        self.succeed(device);
        self.submit(device);
        self.acknowledge(device);
        let here = &self.devices[device];
        let since = [here.submitting, here.acknowledging].into_iter().flatten().map(|(_, since)| since).min();
        match (since, here.conn) {
            // What swallows calls is given up.
            (Some(since), Some(conn)) if self.now - since > DEADLINE => self.break_conn(conn),
            (Some(_), Some(_)) => {
                self.devices[device].later = true;
                self.at(self.now + 1_000, Event::Later { device, boot });
            }
            _ => {}
        }
    }

    fn submit(&mut self, device: usize) {
        if self.devices[device].conn.is_none() || self.devices[device].submitting.is_some() {
            return;
        }
        let after = self.devices[device].submitted;
        let batch = self.change_device(device, |tx| done(outbox::next(tx, after, SUBMISSIONS)));
        let Some(last) = batch.submissions.last().map(|due| due.position) else { return };
        self.devices[device].submitting = Some((last, self.now));
        let submissions: Vec<_> = batch.submissions.into_iter().map(|due| due.submission).collect();
        let (now, own) = (self.now - crate::world::START, self.devices[device].own.device);
        for submission in &submissions {
            self.books.log(|| {
                format!(
                    "{now:>9} device {} submits {} to group {} in epoch {}",
                    short(own.as_bytes()),
                    short(&submission.message_id),
                    short(&submission.group_id),
                    submission.epoch
                )
            });
        }
        self.call(device, Call::Submit(submissions));
    }

    fn acknowledge(&mut self, device: usize) {
        if self.devices[device].conn.is_none() || self.devices[device].acknowledging.is_some() {
            return;
        }
        let acknowledged = self.devices[device].acknowledged;
        let ready = self.change_device(device, |tx| done(acknowledgement(tx, HOME, acknowledged)));
        let Some(ready) = ready else { return };
        self.devices[device].acknowledging = Some((ready.through, self.now));
        self.call(device, Call::Acknowledge { through: ready.through, receipts: ready.receipts });
    }

    pub(crate) fn answered(&mut self, conn: ConnId, (device, boot): (usize, u32), answer: Answer) {
        let here = &mut self.devices[device];
        if here.boot != boot || here.conn != Some(conn) {
            return;
        }
        match answer {
            Answer::Submitted(outcomes) => {
                if let Some((last, _)) = here.submitting.take() {
                    here.submitted = last;
                }
                let outcomes: Vec<Outcome> = outcomes.into_iter().flatten().collect();
                let (now, own) = (self.now - crate::world::START, self.devices[device].own.device);
                for outcome in &outcomes {
                    let name = short(own.as_bytes());
                    self.books.log(|| format!("{now:>9} device {name} is answered {}", decision(outcome)));
                }
                self.change_device(device, |tx| done(outbox::decide(tx, &outcomes)));
            }
            Answer::Acknowledged(reached) => {
                let Some((through, _)) = here.acknowledging.take() else { return };
                // A long one is taken in slices: the rest is said again.
                here.acknowledged = through.min(reached);
                self.change_device(device, |tx| tx.forget_receipts(through.min(reached)));
            }
            Answer::Refused => here.submitting = None,
        }
        self.busy(device);
    }

    /// Items of the mailbox have come: each is taken with its position.
    pub(crate) fn read(&mut self, conn: ConnId, (device, boot): (usize, u32), items: Vec<SubscribeResponse>) {
        if self.devices[device].boot != boot || self.devices[device].conn != Some(conn) {
            return;
        }
        let own = self.devices[device].own.device;
        let now = self.now - crate::world::START;
        self.change_device(device, |tx| {
            for item in items {
                tx.books
                    .log(|| format!("{now:>9} device {} reads {}", short(own.as_bytes()), describe(&item)));
                let place = Place { home: HOME, position: item.position };
                match &item.item {
                    Some(Item::Delivery(delivery)) => {
                        done(receive::receive(tx, place, delivery, true));
                    }
                    Some(Item::Outcome(outcome)) => {
                        done(outbox::decide(tx, [outcome]));
                    }
                    Some(Item::Event(event)) => tx.books.event(own, event),
                    Some(Item::Moved(_) | Item::Seats(_)) | None => {}
                }
                tx.rows.through = tx.rows.through.max(item.position);
            }
        });
        self.busy(device);
    }
}

fn decision(outcome: &Outcome) -> String {
    let message = short(&outcome.message_id);
    match &outcome.decision {
        Some(outcome::Decision::Accepted(a)) => {
            format!("{message}: accepted at {} in {}", a.sequence, a.epoch)
        }
        Some(outcome::Decision::Refused(r)) => format!("{message}: {} {:?}", r.reason, r.current_epoch),
        None => format!("{message}: nothing"),
    }
}

fn describe(item: &SubscribeResponse) -> String {
    let at = item.position;
    match &item.item {
        Some(Item::Delivery(d)) => {
            let kind = match &d.body {
                Some(delivery::Body::Application(_)) => "letter",
                Some(delivery::Body::Commit(_)) => "commit",
                Some(delivery::Body::Welcome(_)) => "welcome",
                Some(delivery::Body::Expired(_)) => "expired",
                None => "nothing",
            };
            let (group, message) = (short(&d.group_id), short(&d.message_id));
            format!("{at}: {kind} {message} of group {group} at {} in epoch {}", d.sequence, d.epoch)
        }
        Some(Item::Outcome(outcome)) => format!("{at}: outcome of {}", decision(outcome)),
        Some(Item::Event(event)) => format!("{at}: event of {}", short(&event.message_id)),
        Some(Item::Moved(_) | Item::Seats(_)) | None => format!("{at}: something else"),
    }
}
