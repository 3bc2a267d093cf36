//! What happens in a run: a mesh and a list of operations, drawn from a seed. A plan
//! that fails can be made shorter, and written down as a test.

use crate::device::Device;
use crate::mls::{Joiner, Member};
use crate::world::{Party, World};
use chancery_types::{Alias, DeviceId, GroupId, KeyPackageRef, MessageId, Timestamp};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use std::fmt;
use std::time::Duration;

/// A mesh and what happens in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Of all else that is drawn: delays above all.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// Who lives there.
    pub people: Vec<Person>,
    /// What happens, in order.
    pub ops: Vec<Op>,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Its home.
    pub home: usize,
    /// Its devices.
    pub devices: usize,
    /// Whether it may write to whom it has no thread with.
    pub agent: bool,
}

/// An operation. Numbers that nobody has are taken modulo those that somebody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A device writes to a person, good for some seconds.
    Write {
        /// The device.
        from: usize,
        /// The person.
        to: usize,
        /// How long the letter is good.
        life: u64,
    },
    /// A person gets another device, which its first one brings into their threads.
    Join(usize),
    /// The same, but the commit says that the person lives elsewhere: the hub refuses it.
    JoinAstray(usize),
    /// A node dies, and comes back after some milliseconds.
    KillNode(usize, i64),
    /// A device dies, and comes back after some milliseconds.
    KillDevice(usize, i64),
    /// Two nodes do not reach each other for some milliseconds.
    CutNodes(usize, usize, i64),
    /// A device does not reach its home for some milliseconds.
    CutDevice(usize, i64),
    /// All connections between two nodes break.
    Snap(usize, usize),
    /// A device's connection breaks.
    HangUp(usize),
    /// What two nodes send each other is swallowed from now on.
    Stall(usize, usize),
    /// What a device and its home send each other is swallowed from now on.
    StallDevice(usize),
    /// Everything takes up to so many milliseconds on its way.
    Latency(i64),
    /// A node's clock differs by so many milliseconds.
    Skew(usize, i64),
    /// A device's clock differs by so many milliseconds.
    SkewDevice(usize, i64),
    /// A node forgets the groups that it is the hub of, as one that was restored from a
    /// copy does. It happens once in a run.
    Forget(usize),
    /// A node takes a peer for gone for good, and gives back what was submitted to it. It
    /// happens once in a run, or [`Op::Forget`] does.
    GiveUp(usize, usize),
    /// Nothing, for so many milliseconds.
    Wait(i64),
}

/// Seeds that a shorter plan is tried with.
const TRIES: u64 = 12;
/// Clocks differ by at most so many milliseconds, half of what nodes allow.
const SKEW: i64 = 150_000;

impl Plan {
    /// Draws a plan with so many operations.
    pub fn draw(seed: u64, ops: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x9e37_79b9_7f4a_7c15);
        let nodes = rng.random_range(2..=7);
        let mut people: Vec<Person> =
            (0..nodes).map(|home| Person { home, devices: 1, agent: true }).collect();
        for home in 0..nodes {
            for _ in 0..rng.random_range(1..=3) {
                people.push(Person { home, devices: rng.random_range(1..=3), agent: false });
            }
        }
        // How bad it gets differs from run to run.
        let trouble = [0, 5, 15, 40][rng.random_range(0..4)];
        let ops = (0..ops).map(|_| draw(&mut rng, nodes, people.len(), trouble)).collect();
        Self { seed, nodes, people, ops }
    }

    /// Makes a plan that fails shorter, as long as `fails` says that it still does. What
    /// is left out moves all that comes after, so each is tried with a few seeds.
    pub fn shrink(mut self, fails: impl Fn(&Self) -> bool) -> Self {
        let mut piece = self.ops.len().div_ceil(2);
        loop {
            let (mut at, mut shorter) = (0, false);
            while at < self.ops.len() {
                let mut tried = self.clone();
                tried.ops.drain(at..(at + piece).min(self.ops.len()));
                match tried.fails_with_some_seed(&fails) {
                    Some(failing) => {
                        self = failing;
                        shorter = true;
                    }
                    None => at += piece,
                }
            }
            match (piece, shorter) {
                (1, false) => return self,
                (_, true) => {}
                _ => piece = piece.div_ceil(2),
            }
        }
    }

    fn fails_with_some_seed(mut self, fails: impl Fn(&Self) -> bool) -> Option<Self> {
        let first = self.seed;
        for seed in first..first + TRIES {
            self.seed = seed;
            if fails(&self) {
                return Some(self);
            }
        }
        None
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed: {}, nodes: {}", self.seed, self.nodes)?;
        for Person { home, devices, agent } in &self.people {
            writeln!(f, "Person {{ home: {home}, devices: {devices}, agent: {agent} }},")?;
        }
        self.ops.iter().try_for_each(|op| writeln!(f, "Op::{op:?},"))
    }
}

fn draw(rng: &mut SmallRng, nodes: usize, people: usize, trouble: u32) -> Op {
    let node = |rng: &mut SmallRng| rng.random_range(0..nodes);
    let millis = |rng: &mut SmallRng| 1 << rng.random_range(0..16);
    if rng.random_range(0..100) >= trouble {
        return match rng.random_range(0..40) {
            0 => Op::Wait(millis(rng)),
            1 if rng.random_range(0..4) == 0 => Op::JoinAstray(rng.random_range(0..people)),
            1 => Op::Join(rng.random_range(0..people)),
            _ => {
                let life = [20, 60, 600, 86_400, 7_000_000][rng.random_range(0..5)];
                Op::Write { from: rng.random_range(0..people * 2), to: rng.random_range(0..people), life }
            }
        };
    }
    match rng.random_range(0..15) {
        14 => Op::GiveUp(node(rng), node(rng)),
        13 => Op::Forget(node(rng)),
        0 | 1 => Op::KillNode(node(rng), millis(rng)),
        2 | 3 => Op::KillDevice(rng.random_range(0..people * 2), millis(rng)),
        4 => Op::CutNodes(node(rng), node(rng), millis(rng)),
        5 => Op::CutDevice(rng.random_range(0..people * 2), millis(rng)),
        6 => Op::Snap(node(rng), node(rng)),
        7 => Op::HangUp(rng.random_range(0..people * 2)),
        8 => Op::Stall(node(rng), node(rng)),
        9 => Op::StallDevice(rng.random_range(0..people * 2)),
        10 => Op::Latency(1 << rng.random_range(0..12)),
        11 => Op::Skew(node(rng), rng.random_range(-SKEW..=SKEW)),
        _ => Op::SkewDevice(rng.random_range(0..people * 2), rng.random_range(-SKEW..=SKEW)),
    }
}

impl World {
    /// Somebody lives in the mesh from its beginning.
    pub(crate) fn settle(&mut self, person: &Person) {
        let alias = Alias::from_bytes(self.id16());
        self.people.push((alias, person.clone()));
        for _ in 0..person.devices {
            self.add_device(alias, person.home % self.nodes.len());
        }
    }

    fn add_device(&mut self, alias: Alias, home: usize) -> usize {
        let own = Member { device: DeviceId::from_bytes(self.id16()), alias };
        self.nodes[home].disk.add_device(alias, own.device);
        self.devices.push(Device::new(own, home));
        self.devices.len() - 1
    }

    /// Does what an operation says; how long until the next one.
    pub(crate) fn carry_out(&mut self, op: Op) -> i64 {
        let (nodes, devices) = (self.nodes.len(), self.devices.len());
        match op {
            Op::Write { from, to, life } => self.write(from % devices, to % self.people.len(), life),
            Op::Join(person) => self.join_device(person % self.people.len(), 0),
            Op::JoinAstray(person) => self.join_device(person % self.people.len(), 1),
            Op::KillNode(node, millis) => self.kill(Party::Node(node % nodes), millis),
            Op::KillDevice(device, millis) => self.kill(Party::Device(device % devices), millis),
            Op::CutNodes(one, other, millis) => {
                self.cut(Party::Node(one % nodes), Party::Node(other % nodes), millis);
            }
            Op::CutDevice(device, millis) => {
                let device = device % devices;
                self.cut(Party::Device(device), Party::Node(self.devices[device].home), millis);
            }
            Op::Snap(one, other) => self.snap(Party::Node(one % nodes), Party::Node(other % nodes)),
            Op::HangUp(device) => {
                let device = device % devices;
                self.snap(Party::Device(device), Party::Node(self.devices[device].home));
            }
            Op::Stall(one, other) => self.stall(Party::Node(one % nodes), Party::Node(other % nodes)),
            Op::StallDevice(device) => {
                let device = device % devices;
                self.stall(Party::Device(device), Party::Node(self.devices[device].home));
            }
            Op::Latency(millis) => self.latency = millis,
            Op::Skew(node, millis) => self.nodes[node % nodes].skew = millis,
            Op::SkewDevice(device, millis) => self.devices[device % devices].skew = millis,
            Op::Forget(node) => self.forget(node % nodes),
            Op::GiveUp(node, peer) => self.give_up(node % nodes, peer % nodes),
            Op::Wait(millis) => return millis,
        }
        self.below(50)
    }

    fn write(&mut self, from: usize, to: usize, life: u64) {
        let own = self.devices[from].own;
        let (recipient, _) = self.people[to];
        if recipient == own.alias || !self.devices[from].up {
            return;
        }
        let thread = self.devices[from].rows.thread_with(recipient);
        let agent = self.people.iter().any(|(alias, person)| *alias == own.alias && person.agent);
        let group = match thread {
            Some(group) => group,
            None if agent => self.open_thread(from, recipient),
            None => return,
        };
        let message_id = MessageId::from_bytes(self.id16());
        let now = Timestamp::from_millis(self.now + self.devices[from].skew);
        let expires = now.after(Duration::from_secs(life));
        let number = self.books.written(own.device, recipient, message_id, expires);
        self.change_device(from, |tx| tx.write(group, message_id, number, expires));
        self.busy(from);
    }

    /// KeyPackages of all devices of an alias.
    fn joiners(&mut self, alias: Alias) -> Vec<Joiner> {
        let devices: Vec<usize> =
            (0..self.devices.len()).filter(|device| self.devices[*device].own.alias == alias).collect();
        devices.into_iter().map(|device| self.joiner(device, 0)).collect()
    }

    /// A KeyPackage of a device, which is said to live so many nodes beside its home.
    fn joiner(&mut self, device: usize, beside: usize) -> Joiner {
        let mut reference = [0; 32];
        reference[..16].copy_from_slice(&self.id16());
        let reference = KeyPackageRef::from_bytes(reference);
        let here = &mut self.devices[device];
        here.rows.publish(reference);
        let node = (here.home + beside) % self.nodes.len();
        Joiner { member: here.own, node: self.nodes[node].name.to_string(), reference }
    }

    fn open_thread(&mut self, from: usize, recipient: Alias) -> GroupId {
        let own = self.devices[from].own;
        let mut joiners = self.joiners(recipient);
        joiners.extend(self.joiners(own.alias).into_iter().filter(|joiner| joiner.member != own));
        let mut id = [0; 32];
        id[..16].copy_from_slice(&self.id16());
        let (group, commit, secret) =
            (GroupId::from_bytes(id), MessageId::from_bytes(self.id16()), self.rng.random());
        self.change_device(from, |tx| tx.open_thread(group, secret, commit, &joiners));
        group
    }

    /// Opens the groups that are to take others' places.
    pub(crate) fn succeed(&mut self, device: usize) {
        for (group, peer) in self.devices[device].rows.succession_due() {
            let next = self.open_thread(device, peer);
            let message_id = MessageId::from_bytes(self.id16());
            self.change_device(device, |tx| tx.succeed(group, next, message_id));
        }
    }

    /// A new device of a person: another one brings it into all its threads, unless hubs
    /// refuse that because of where it is said to live.
    fn join_device(&mut self, person: usize, beside: usize) {
        let (alias, Person { home, .. }) = self.people[person].clone();
        let home = home % self.nodes.len();
        let of = |device: &Device| device.own.alias == alias;
        let sponsor = self.devices.iter().position(|device| of(device) && device.up);
        let (Some(sponsor), true) = (sponsor, self.devices.iter().filter(|d| of(d)).count() < 4) else {
            return;
        };
        let device = self.add_device(alias, home);
        self.start_device(device);
        let threads: Vec<GroupId> = self.devices[sponsor].rows.threads().map(|(id, _)| id).collect();
        for group in threads {
            let joiner = self.joiner(device, beside);
            let message_id = MessageId::from_bytes(self.id16());
            self.change_device(sponsor, |tx| tx.admit(group, message_id, vec![joiner]));
        }
        self.busy(sponsor);
    }
}
