//! A node: its disk, the links of its memory, and what its shell does with the core:
//! it commits, then answers.

use crate::device::{Answer, Call, Device};
use crate::rows::done;
use crate::tables::Disk;
use crate::world::{ConnId, Event, Party, World};
use chancery_node_core::link::{Acked, CREDIT, Receiving, Sending};
use chancery_node_core::mailbox::Acknowledgement;
use chancery_node_core::parcel::Submission;
use chancery_node_core::submit::{Submitted, submit_calls};
use chancery_node_core::tables::{After, Tx};
use chancery_node_core::{batch, expire, mailbox, outbox};
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, DeviceId, Incarnation, NodeId, Reason, Timestamp};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Parcels in one batch: few, so that there are many batches.
const BATCH: usize = 8;
/// Longest wait for an acknowledgement, as in the node.
const ACK: i64 = 30_000;
/// How often a node looks into its outbox unasked, as in the node.
const LOOK: i64 = 5_000;

/// A node.
pub(crate) struct Node {
    pub(crate) name: NodeId,
    pub(crate) disk: Disk,
    pub(crate) up: bool,
    pub(crate) boot: u32,
    /// How its clock differs, in milliseconds.
    pub(crate) skew: i64,
    pub(crate) incarnation: Incarnation,
    /// By peer: the link that this node opened.
    out: Vec<Option<Out>>,
    /// By peer: the link that the peer opened.
    inward: Vec<Option<(ConnId, Receiving)>>,
    /// When the disk has flushed all that it was given.
    free_at: i64,
}

/// A link that this node opened.
struct Out {
    conn: ConnId,
    /// Once both have greeted.
    sending: Option<Sending>,
    last_ack: i64,
}

/// What goes over a link.
pub(crate) enum Frame {
    Hello(Incarnation),
    HelloAck(Incarnation),
    Batch(wire::Batch),
    Ack(wire::Ack),
}

/// A transaction that waits for the disk.
pub(crate) enum Job {
    Greet { conn: ConnId, peer: usize, incarnation: Incarnation, answer: bool },
    Receive { conn: ConnId, peer: usize, batch: wire::Batch, sequence: u64 },
    Acked { peer: usize, conn: ConnId, acked: Acked },
    Submit { conn: ConnId, device: usize, submissions: Vec<Submission> },
    Acknowledge { conn: ConnId, device: usize, acknowledgement: Box<Acknowledgement> },
    Expire,
}

impl Node {
    pub(crate) fn new(name: NodeId, nodes: usize, incarnation: [u8; 16]) -> Self {
        Self {
            name,
            disk: Disk::default(),
            up: false,
            boot: 0,
            skew: 0,
            incarnation: Incarnation::from_bytes(incarnation),
            out: (0..nodes).map(|_| None).collect(),
            inward: (0..nodes).map(|_| None).collect(),
            free_at: 0,
        }
    }

    /// Everything but the disk is gone.
    pub(crate) fn die(&mut self) {
        self.up = false;
        self.boot += 1;
        self.out.iter_mut().for_each(|out| *out = None);
        self.inward.iter_mut().for_each(|inward| *inward = None);
    }

    fn clock(&self, now: i64) -> Timestamp {
        Timestamp::from_millis(now + self.skew)
    }
}

/// The core waits for tables alone, and these never wait.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("tables in memory are always ready"),
    }
}

impl World {
    pub(crate) fn start_node(&mut self, node: usize) {
        self.nodes[node].up = true;
        self.nodes[node].free_at = self.now;
        let boot = self.nodes[node].boot;
        for to in (0..self.nodes.len()).filter(|to| *to != node) {
            let at = self.now + self.below(100);
            self.at(at, Event::Dial { from: node, to, boot });
        }
        let at = self.now + self.below(LOOK);
        self.at(at, Event::Look { node, boot });
    }

    pub(crate) fn dial(&mut self, from: usize, to: usize, boot: u32) {
        if self.nodes[from].boot != boot || !self.nodes[from].up || self.nodes[from].out[to].is_some() {
            return;
        }
        if !self.reach(Party::Node(from), Party::Node(to)) {
            let at = self.now + 100 + self.below(5_000);
            return self.at(at, Event::Dial { from, to, boot });
        }
        let conn = self.open(Party::Node(from), Party::Node(to));
        self.nodes[from].out[to] = Some(Out { conn, sending: None, last_ack: self.now });
        self.send(conn, from, to, Frame::Hello(self.nodes[from].incarnation));
        self.at(self.now + ACK, Event::Overdue { node: from, conn, sent: self.now });
    }

    fn send(&mut self, conn: ConnId, from: usize, to: usize, frame: Frame) {
        if let Some(at) = self.arrival(conn, Party::Node(from)) {
            self.at(at, Event::Frame { conn, at: to, frame });
        }
    }

    pub(crate) fn framed(&mut self, conn: ConnId, at: usize, frame: Frame) {
        if !self.conns[conn].alive {
            return;
        }
        let (Party::Node(from), Party::Node(to)) = (self.conns[conn].from, self.conns[conn].to) else {
            return;
        };
        match frame {
            Frame::Hello(incarnation) => {
                // A newer link of the same peer ends the older.
                if let Some((older, _)) = self.nodes[at].inward[from].replace((conn, Receiving::default())) {
                    self.break_conn(older);
                }
                self.commit(at, Job::Greet { conn, peer: from, incarnation, answer: true });
            }
            Frame::HelloAck(incarnation) => {
                self.commit(at, Job::Greet { conn, peer: to, incarnation, answer: false });
            }
            Frame::Batch(batch) => {
                let Some((_, receiving)) = self.nodes[at].inward[from].as_mut().filter(|(of, _)| *of == conn)
                else {
                    return;
                };
                match receiving.batch(&batch) {
                    Ok(sequence) => self.commit(at, Job::Receive { conn, peer: from, batch, sequence }),
                    Err(_) => self.break_conn(conn),
                }
            }
            Frame::Ack(ack) => {
                let now = self.now;
                let Some(out) = self.nodes[at].out[to].as_mut().filter(|out| out.conn == conn) else {
                    return;
                };
                out.last_ack = now;
                match out.sending.as_mut().map(|sending| sending.acked(ack)) {
                    Some(Ok(acked)) => self.commit(at, Job::Acked { peer: to, conn, acked }),
                    _ => self.break_conn(conn),
                }
            }
        }
    }

    /// Gives a job to the disk.
    fn commit(&mut self, node: usize, job: Job) {
        let flush = 1 + self.below(4);
        let free_at = self.nodes[node].free_at.max(self.now) + flush;
        self.nodes[node].free_at = free_at;
        let boot = self.nodes[node].boot;
        self.at(free_at, Event::Flushed { node, boot, job });
    }

    pub(crate) fn flushed(&mut self, node: usize, boot: u32, job: Job) {
        if self.nodes[node].boot != boot || !self.nodes[node].up {
            return;
        }
        match job {
            Job::Greet { conn, peer, incarnation, answer } => {
                let name = self.nodes[peer].name.clone();
                self.change(node, async |tx| outbox::greet(tx, &name, incarnation).await);
                let own = self.nodes[node].incarnation;
                if answer {
                    self.send(conn, node, peer, Frame::HelloAck(own));
                } else if let Some(out) = self.nodes[node].out[peer].as_mut().filter(|out| out.conn == conn) {
                    out.sending = Some(Sending::new(CREDIT));
                    self.pump(node, peer);
                }
            }
            Job::Receive { conn, peer, batch, sequence } => {
                let name = self.nodes[peer].name.clone();
                let refused = self.change(node, async |tx| batch::receive(tx, &name, &batch.parcels).await);
                let first = batch.first_sequence;
                let refusal = |(index, reason): (usize, Reason)| wire::ParcelRefusal {
                    sequence: first + index as u64,
                    reason: reason.as_str().to_owned(),
                };
                let ack = wire::Ack { sequence, refusals: refused.into_iter().map(refusal).collect() };
                self.send(conn, node, peer, Frame::Ack(ack));
            }
            Job::Acked { peer, conn, acked } => {
                self.change(node, async |tx| outbox::acked(tx, &acked).await);
                if self.conns[conn].alive {
                    self.pump(node, peer);
                }
            }
            Job::Submit { conn, device, submissions } => {
                let calls = [&*submissions];
                let results = self.change(node, async |tx| submit_calls(tx, &calls).await);
                let results = results.into_iter().flatten().map(|result| match result {
                    Submitted::Decided(outcome) => Some(outcome),
                    Submitted::Queued => None,
                });
                self.answer(conn, node, device, Answer::Submitted(results.collect()));
            }
            Job::Acknowledge { conn, device, acknowledgement } => {
                let calls = [*acknowledgement];
                let reached = self.change(node, async |tx| mailbox::acknowledge(tx, &calls).await);
                self.answer(conn, node, device, Answer::Acknowledged(reached[0]));
            }
            Job::Expire => self.expire(node),
        }
    }

    /// What has run out ends.
    pub(crate) fn expire(&mut self, node: usize) {
        while self.change(node, async |tx| expire::expire(tx).await) {}
    }

    fn answer(&mut self, conn: ConnId, node: usize, device: usize, answer: Answer) {
        if let Some(at) = self.arrival(conn, Party::Node(node)) {
            let boot = self.devices[device].boot;
            self.at(at, Event::Answered { conn, device, boot, answer });
        }
    }

    /// Runs a transaction, and wakes whom it concerns.
    fn change<T>(
        &mut self,
        node: usize,
        job: impl AsyncFnOnce(&mut Tx<&mut Disk>) -> Result<T, std::convert::Infallible>,
    ) -> T {
        let here = &mut self.nodes[node];
        let (name, now) = (here.name.clone(), here.clock(self.now));
        let mut tx = Tx { tables: &mut here.disk, here: name, now, after: After::default() };
        let value = done(ready(job(&mut tx)));
        let After { aliases, peers, .. } = tx.after;
        for peer in 0..self.nodes.len() {
            if peers.contains(&self.nodes[peer].name) {
                self.pump(node, peer);
            }
        }
        if !aliases.is_empty() {
            let is_awake = |device: &Device| device.home == node && aliases.contains(&device.own.alias);
            let awake: Vec<usize> =
                (0..self.devices.len()).filter(|device| is_awake(&self.devices[*device])).collect();
            awake.into_iter().for_each(|device| self.stream(device));
        }
        value
    }

    /// Sends a peer what waits for it, as far as it may.
    fn pump(&mut self, node: usize, peer: usize) {
        loop {
            let name = self.nodes[peer].name.clone();
            let here = &mut self.nodes[node];
            let now = here.clock(self.now);
            let Some(out) = here.out[peer].as_mut() else { return };
            let Some(sending) = out.sending.as_mut().filter(|sending| sending.may_send()) else { return };
            let (conn, waiting) = (out.conn, here.disk.waiting(&name, sending.sent(), BATCH));
            let Ok(Some(batch)) = sending.batch(waiting, now) else { return };
            self.send(conn, node, peer, Frame::Batch(batch));
            self.at(self.now + ACK, Event::Overdue { node, conn, sent: self.now });
        }
    }

    pub(crate) fn overdue(&mut self, node: usize, conn: ConnId, sent: i64) {
        let silent = self.nodes[node].out.iter().flatten().any(|out| {
            out.conn == conn
                && out.last_ack <= sent
                && out.sending.as_ref().is_none_or(|sending| !sending.is_idle())
        });
        if silent {
            self.break_conn(conn);
        }
    }

    pub(crate) fn link_down(&mut self, from: usize, to: usize, conn: ConnId) {
        if self.nodes[to].inward[from].as_ref().is_some_and(|(of, _)| *of == conn) {
            self.nodes[to].inward[from] = None;
        }
        if self.nodes[from].out[to].as_ref().is_some_and(|out| out.conn == conn) {
            self.nodes[from].out[to] = None;
            let at = self.now + self.below(1_000);
            let boot = self.nodes[from].boot;
            self.at(at, Event::Dial { from, to, boot });
        }
    }

    pub(crate) fn look(&mut self, node: usize, boot: u32) {
        if self.nodes[node].boot != boot || !self.nodes[node].up {
            return;
        }
        for peer in 0..self.nodes.len() {
            self.pump(node, peer);
        }
        let now = self.nodes[node].clock(self.now);
        if self.nodes[node].disk.may_expire(now) {
            self.commit(node, Job::Expire);
        }
        self.at(self.now + LOOK, Event::Look { node, boot });
    }

    /// A call of a device has come to its home.
    pub(crate) fn called(&mut self, conn: ConnId, device: usize, call: Call) {
        if !self.conns[conn].alive {
            return;
        }
        let node = self.devices[device].home;
        let now = self.nodes[node].clock(self.now);
        match call {
            Call::Subscribe(after) => {
                self.devices[device].served = Some((conn, after));
                self.stream(device);
            }
            Call::Submit(submissions) => {
                let well_formed: Result<Vec<_>, _> =
                    submissions.into_iter().map(|message| Submission::from_wire(message, now)).collect();
                match well_formed {
                    Ok(submissions) => self.commit(node, Job::Submit { conn, device, submissions }),
                    Err(_) => self.answer(conn, node, device, Answer::Refused),
                }
            }
            Call::Acknowledge { through, receipts } => {
                let receipts = receipts
                    .into_iter()
                    .filter_map(|receipt| Some(((&receipt).try_into().ok()?, receipt)))
                    .collect();
                let (alias, id): (Alias, DeviceId) =
                    (self.devices[device].own.alias, self.devices[device].own.device);
                let acknowledgement = Box::new(Acknowledgement { alias, device: id, through, receipts });
                self.commit(node, Job::Acknowledge { conn, device, acknowledgement });
            }
        }
    }

    /// Sends a subscribed device what waits for it.
    fn stream(&mut self, device: usize) {
        let Some((conn, after)) = self.devices[device].served else { return };
        let (node, own) = (self.devices[device].home, self.devices[device].own);
        let now = self.nodes[node].clock(self.now);
        let items = self.nodes[node].disk.read((own.alias, own.device), after, usize::MAX, now);
        let Some(last) = items.last().map(|item| item.position) else { return };
        items.iter().filter_map(|item| item.item.as_ref()).for_each(|item| self.books.served(item, now));
        let Some(at) = self.arrival(conn, Party::Node(node)) else { return };
        self.devices[device].served = Some((conn, last));
        let boot = self.devices[device].boot;
        self.at(at, Event::Items { conn, device, boot, items });
    }
}
