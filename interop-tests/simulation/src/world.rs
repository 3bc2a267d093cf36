//! One run: time, the network, nodes and devices, and the queue of what happens next.
//! Everything follows from the plan, so that a run can be had again.

use crate::books::{Books, Violation};
use crate::device::{Answer, Call, Device};
use crate::node::{Frame, Job, Node};
use crate::plan::{Op, Person, Plan};
use chancery_node_core::expire;
use chancery_proto::node::v1::SubscribeResponse;
use chancery_types::{Alias, NodeId, Timestamp};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// When every run begins.
pub(crate) const START: i64 = 1_800_000_000_000;
/// How long a run may take to come to rest when nothing is broken any more.
const REST: i64 = 30 * 60 * 1000;

/// Who can be at an end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    /// A node, by its number.
    Node(usize),
    /// A device, by its number.
    Device(usize),
}

/// A connection, by its number.
pub(crate) type ConnId = usize;

/// A connection between two parties: what is on its way arrives in order or not at all.
pub(crate) struct Conn {
    /// Who opened it.
    pub(crate) from: Party,
    /// Whom to.
    pub(crate) to: Party,
    /// Whether it still stands.
    pub(crate) alive: bool,
    /// Whether it swallows what is sent.
    pub(crate) stalled: bool,
    /// When the last thing sent from either side arrives.
    last: [i64; 2],
}

/// Something that happens.
pub(crate) enum Event {
    /// The next operation of the plan.
    Op,
    /// A node dials a peer.
    Dial { from: usize, to: usize, boot: u32 },
    /// A frame of a link arrives.
    Frame { conn: ConnId, at: usize, frame: Frame },
    /// A node's disk has flushed a job.
    Flushed { node: usize, boot: u32, job: Job },
    /// A node has waited for an acknowledgement.
    Overdue { node: usize, conn: ConnId, sent: i64 },
    /// A node looks at what nobody woke it for.
    Look { node: usize, boot: u32 },
    /// A device dials its home.
    Call { device: usize, boot: u32 },
    /// A call of a device arrives at its home.
    Called { conn: ConnId, device: usize, call: Call },
    /// Its answer arrives.
    Answered { conn: ConnId, device: usize, boot: u32, answer: Answer },
    /// Items of a mailbox arrive.
    Items { conn: ConnId, device: usize, boot: u32, items: Vec<SubscribeResponse> },
    /// A device does what it put off.
    Later { device: usize, boot: u32 },
    /// Somebody who was down comes up.
    Start(Party),
    /// A cut between two parties heals.
    Heal(Party, Party),
}

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    /// Events that happened.
    pub steps: u64,
    /// Letters that were written.
    pub letters: usize,
    /// Letters that arrived somewhere.
    pub arrived: usize,
    /// Times that somebody died.
    pub kills: u64,
    /// Connections that broke.
    pub breaks: u64,
    /// The first thing that must not happen, and what is known of it.
    pub violation: Option<(Violation, String)>,
    /// What happened, where it was asked for.
    pub trace: Vec<String>,
}

/// A mesh on its way through a plan.
pub struct World {
    /// True time, in milliseconds; clocks differ from it.
    pub(crate) now: i64,
    pub(crate) rng: SmallRng,
    pub(crate) nodes: Vec<Node>,
    pub(crate) devices: Vec<Device>,
    pub(crate) people: Vec<(Alias, Person)>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) books: Books,
    pub(crate) latency: i64,
    pub(crate) kills: u64,
    pub(crate) breaks: u64,
    cuts: BTreeSet<(Party, Party)>,
    queue: BinaryHeap<Reverse<(i64, u64)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    order: std::collections::HashMap<u64, usize>,
    scheduled: u64,
    ops: std::vec::IntoIter<Op>,
    left: usize,
    steps: u64,
    ids: u64,
    forgot: bool,
}

impl World {
    /// The mesh that a plan describes, before anything has happened.
    pub fn new(plan: &Plan) -> Self {
        let mut world = Self {
            now: START,
            rng: SmallRng::seed_from_u64(plan.seed),
            nodes: Vec::new(),
            devices: Vec::new(),
            people: Vec::new(),
            conns: Vec::new(),
            books: Books::default(),
            latency: 20,
            kills: 0,
            breaks: 0,
            cuts: BTreeSet::new(),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            order: std::collections::HashMap::new(),
            scheduled: 0,
            left: plan.ops.len(),
            ops: plan.ops.clone().into_iter(),
            steps: 0,
            ids: 0,
            forgot: false,
        };
        for number in 0..plan.nodes {
            let incarnation = world.id16();
            world.nodes.push(Node::new(name(number), plan.nodes, incarnation));
        }
        plan.people.iter().for_each(|person| world.settle(person));
        for number in 0..plan.nodes {
            world.start_node(number);
        }
        for number in 0..world.devices.len() {
            world.start_device(number);
        }
        world.at(START, Event::Op);
        world
    }

    /// Notes what happens as it goes.
    pub fn traced(mut self) -> Self {
        self.books.trace = Some(Vec::new());
        self
    }

    /// Goes through the plan to its end, and to rest.
    pub fn run(mut self) -> Outcome {
        let mut rested = None;
        while self.books.violations.is_empty() {
            let Some(Reverse((at, number))) = self.queue.pop() else { break };
            self.now = at;
            self.steps += 1;
            if let Some(event) = self.take(number) {
                self.happen(event);
            }
            if self.left == 0 {
                let until = *rested.get_or_insert_with(|| {
                    self.heal_all();
                    self.now + REST
                });
                if self.steps.is_multiple_of(64) && (self.now > until || self.is_at_rest()) {
                    break;
                }
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Outcome {
        if self.books.violations.is_empty() {
            let leftover = self.nodes.iter().find(|node| node.disk.waits() > 0);
            if let Some(node) = leftover {
                let what = format!("{}: {}", node.name, node.disk.leftovers());
                self.books.violations.push(Violation::Leftover(what));
            }
            self.books.close(Timestamp::from_millis(self.now));
        }
        let violation = self.books.violations.first().cloned().map(|violation| {
            let about = match violation {
                Violation::Lost(number)
                | Violation::Doubled(number)
                | Violation::Disordered(number)
                | Violation::FailedAndArrived(number)
                | Violation::Failed(number, _)
                | Violation::Outcomes(number, _)
                | Violation::Unfinished(number) => self.books.describe(number),
                _ => format!("at {}", Timestamp::from_millis(self.now)),
            };
            (violation, about)
        });
        Outcome {
            steps: self.steps,
            letters: self.books.len(),
            arrived: self.books.arrivals(),
            kills: self.kills,
            breaks: self.breaks,
            violation,
            trace: self.books.trace.unwrap_or_default(),
        }
    }

    fn is_at_rest(&self) -> bool {
        self.devices.iter().all(Device::is_idle)
            && self.nodes.iter().all(|node| node.disk.waits() == 0)
            && self.books.is_settled()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Op => self.next_op(),
            Event::Dial { from, to, boot } => self.dial(from, to, boot),
            Event::Frame { conn, at, frame } => self.framed(conn, at, frame),
            Event::Flushed { node, boot, job } => self.flushed(node, boot, job),
            Event::Overdue { node, conn, sent } => self.overdue(node, conn, sent),
            Event::Look { node, boot } => self.look(node, boot),
            Event::Call { device, boot } => self.connect(device, boot),
            Event::Called { conn, device, call } => self.called(conn, device, call),
            Event::Answered { conn, device, boot, answer } => self.answered(conn, (device, boot), answer),
            Event::Items { conn, device, boot, items } => self.read(conn, (device, boot), items),
            Event::Later { device, boot } => self.later(device, boot),
            Event::Start(party) => self.start(party),
            Event::Heal(one, other) => self.heal(one, other),
        }
    }

    fn next_op(&mut self) {
        let Some(op) = self.ops.next() else { return };
        self.left -= 1;
        let pause = self.carry_out(op);
        if self.left > 0 {
            self.at(self.now + pause, Event::Op);
        }
    }

    // --- time and chance

    /// Something happens at a time.
    pub(crate) fn at(&mut self, at: i64, event: Event) {
        self.scheduled += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(event);
        self.order.insert(self.scheduled, slot);
        self.queue.push(Reverse((at, self.scheduled)));
    }

    fn take(&mut self, number: u64) -> Option<Event> {
        let slot = self.order.remove(&number)?;
        self.free.push(slot);
        self.events.get_mut(slot)?.take()
    }

    /// A number below `most`.
    pub(crate) fn below(&mut self, most: i64) -> i64 {
        if most <= 0 { 0 } else { self.rng.random_range(0..most) }
    }

    /// 16 bytes that were never given before.
    pub(crate) fn id16(&mut self) -> [u8; 16] {
        self.ids += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.ids.to_be_bytes());
        id[8..].copy_from_slice(&self.rng.random::<u64>().to_be_bytes());
        id
    }

    // --- the network

    /// Whether two parties can reach each other.
    pub(crate) fn reach(&self, one: Party, other: Party) -> bool {
        !self.cuts.contains(&(one.min(other), one.max(other))) && self.is_up(one) && self.is_up(other)
    }

    fn is_up(&self, party: Party) -> bool {
        match party {
            Party::Node(number) => self.nodes[number].up,
            Party::Device(number) => self.devices[number].up,
        }
    }

    /// A new connection.
    pub(crate) fn open(&mut self, from: Party, to: Party) -> ConnId {
        self.conns.push(Conn { from, to, alive: true, stalled: false, last: [self.now; 2] });
        self.conns.len() - 1
    }

    /// When what `from` sends over a connection arrives; `None`: never.
    pub(crate) fn arrival(&mut self, conn: ConnId, from: Party) -> Option<i64> {
        let delay = 1 + self.below(self.latency);
        let now = self.now;
        let conn = self.conns.get_mut(conn).filter(|conn| conn.alive && !conn.stalled)?;
        let side = usize::from(conn.to == from);
        conn.last[side] = conn.last[side].max(now + delay);
        Some(conn.last[side])
    }

    /// A connection is gone: what has not arrived never does.
    pub(crate) fn break_conn(&mut self, conn: ConnId) {
        let Some(broken) = self.conns.get_mut(conn).filter(|conn| conn.alive) else { return };
        broken.alive = false;
        let ends = (broken.from, broken.to);
        self.breaks += 1;
        match ends {
            (Party::Node(from), Party::Node(to)) => self.link_down(from, to, conn),
            (Party::Device(device), _) => self.hung_up(device, conn),
            _ => {}
        }
    }

    fn break_all(&mut self, which: impl Fn(&Conn) -> bool) {
        let broken: Vec<ConnId> = (0..self.conns.len())
            .filter(|conn| self.conns[*conn].alive && which(&self.conns[*conn]))
            .collect();
        broken.into_iter().for_each(|conn| self.break_conn(conn));
    }

    // --- faults

    /// Nothing goes between two parties for a while.
    pub(crate) fn cut(&mut self, one: Party, other: Party, millis: i64) {
        self.cuts.insert((one.min(other), one.max(other)));
        self.break_all(|conn| (conn.from, conn.to) == (one, other) || (conn.from, conn.to) == (other, one));
        self.at(self.now + millis, Event::Heal(one, other));
    }

    /// The connections between two parties swallow all that is sent over them.
    pub(crate) fn stall(&mut self, one: Party, other: Party) {
        for conn in self.conns.iter_mut().filter(|conn| conn.alive) {
            conn.stalled |= (conn.from, conn.to) == (one, other) || (conn.from, conn.to) == (other, one);
        }
    }

    /// The connections between two parties break.
    pub(crate) fn snap(&mut self, one: Party, other: Party) {
        self.break_all(|conn| (conn.from, conn.to) == (one, other) || (conn.from, conn.to) == (other, one));
    }

    /// A node forgets its groups. What fails again within the hour is not mended, so it
    /// happens once.
    pub(crate) fn forget(&mut self, node: usize) {
        if !std::mem::replace(&mut self.forgot, true) {
            let now = self.now - START;
            self.books.log(|| format!("{now:>9} node {node} forgets its groups"));
            self.nodes[node].disk.forget_groups();
        }
    }

    /// A node has not heard of a peer for a long time. Who has a commit there reads no more
    /// in that group, so that is left out.
    pub(crate) fn give_up(&mut self, node: usize, peer: usize) {
        let name = self.nodes[peer].name.clone();
        if node == peer || self.nodes[node].disk.has_commit_for(&name) {
            return;
        }
        if !std::mem::replace(&mut self.forgot, true) {
            let now = self.now - START;
            self.books.log(|| format!("{now:>9} node {node} gives up on node {peer}"));
            let long_ago = Timestamp::from_millis(self.now).before(expire::PATIENCE * 2);
            self.nodes[node].disk.silent_since(&name, Some(long_ago));
            self.expire(node);
            self.nodes[node].disk.silent_since(&name, None);
        }
    }

    fn heal(&mut self, one: Party, other: Party) {
        self.cuts.remove(&(one.min(other), one.max(other)));
    }

    /// Kills a party; it comes back after a while.
    pub(crate) fn kill(&mut self, party: Party, millis: i64) {
        if !self.is_up(party) {
            return;
        }
        self.kills += 1;
        let now = self.now - START;
        self.books.log(|| format!("{now:>9} {party:?} dies"));
        match party {
            Party::Node(number) => self.nodes[number].die(),
            Party::Device(number) => self.devices[number].die(),
        }
        self.break_all(|conn| conn.from == party || conn.to == party);
        self.at(self.now + millis, Event::Start(party));
    }

    fn start(&mut self, party: Party) {
        match party {
            Party::Node(number) if !self.nodes[number].up => self.start_node(number),
            Party::Device(number) if !self.devices[number].up => self.start_device(number),
            _ => {}
        }
    }

    fn heal_all(&mut self) {
        self.cuts.clear();
        self.latency = 20;
        let stalled: Vec<ConnId> = (0..self.conns.len()).filter(|conn| self.conns[*conn].stalled).collect();
        stalled.into_iter().for_each(|conn| self.break_conn(conn));
        for number in 0..self.nodes.len() {
            self.start(Party::Node(number));
        }
        for number in 0..self.devices.len() {
            self.start(Party::Device(number));
        }
    }
}

fn name(number: usize) -> NodeId {
    let Ok(name) = format!("n{number}").parse() else { unreachable!("a short name of letters and digits") };
    name
}
