//! For tests: endpoints without a network, and a hub of a few lines that orders
//! what they submit, as a node would.

use crate::content::{Letter, MimiId};
use crate::credential::AgentName;
use crate::error::EndpointError;
use crate::event::{self, EventKind};
use crate::home;
use crate::identity::{self, Identity};
use crate::inbox::{self, InboxItem};
use crate::mls::{Suite, key_package};
use crate::outbox::{self, Decided};
use crate::peer::{self, Peer};
use crate::request::{self, Compose};
use crate::store::{EndpointStore, StoreError, Tx};
use crate::thread::{self, Processed};
use crate::{alarm, alarm::Alarm, succession};
use chancery_proto::federation::v1::{
    Accepted, Delivered, Delivery, Outcome, Refused, Submission, delivery, outcome, submission,
};
use chancery_proto::node::v1::{Event as WireEvent, event as wire_event};
use chancery_sdk_core::acknowledge::acknowledgement;
use chancery_types::clock::ManualClock;
use chancery_types::entropy::SeededEntropy;
use chancery_types::{Alias, Chain, Clock as _, DeviceId, GroupId, MessageId, SystemClock};
use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const FEDERATION: &str = "mesh.example";

/// What stands in the mailbox of an alias.
#[derive(Clone)]
pub(crate) enum Item {
    Delivery(Delivery),
    Event(WireEvent),
}

struct Group {
    epoch: u64,
    sequence: u64,
    chain: Chain,
    aliases: BTreeSet<Alias>,
}

/// Orders submissions; keeps mailboxes and KeyPackages.
#[derive(Default)]
pub(crate) struct Hub {
    groups: HashMap<GroupId, Group>,
    pub(crate) mailboxes: HashMap<Alias, Vec<Item>>,
    decided: HashMap<(MessageId, [u8; 32]), Outcome>,
    senders: HashMap<MessageId, Alias>,
    /// How many submissions were accepted.
    pub(crate) accepted: usize,
    /// Deliveries that the hub keeps back.
    pub(crate) withhold: bool,
}

fn refused(submission: &Submission, reason: &str, current_epoch: Option<u64>) -> Outcome {
    decided(submission, outcome::Decision::Refused(Refused { reason: reason.into(), current_epoch }))
}

pub(crate) fn decided(submission: &Submission, decision: outcome::Decision) -> Outcome {
    Outcome {
        message_id: submission.message_id.clone(),
        group_id: submission.group_id.clone(),
        sender: submission.sender.clone(),
        sender_device: submission.sender_device.clone(),
        decision: Some(decision),
    }
}

impl Hub {
    pub(crate) fn submit(&mut self, submission: &Submission) -> Outcome {
        let id = MessageId::try_from(&submission.message_id).unwrap();
        let group_id = GroupId::try_from(&submission.group_id).unwrap();
        let sender = Alias::try_from(&submission.sender).unwrap();
        let (message, commit) = match submission.body.clone().unwrap() {
            submission::Body::Application(message) => (message, None),
            submission::Body::Commit(commit) => (commit.mls_commit.clone(), Some(commit)),
        };
        let digest: [u8; 32] = Sha256::digest(&message).into();
        if let Some(outcome) = self.decided.get(&(id, digest)) {
            return outcome.clone();
        }
        if submission.epoch == 0 && commit.is_some() {
            let group = Group { epoch: 0, sequence: 0, chain: Chain::START, aliases: [sender].into() };
            assert!(self.groups.insert(group_id, group).is_none());
        }
        let Some(group) = self.groups.get_mut(&group_id) else {
            return refused(submission, "GROUP_UNKNOWN", None);
        };
        if submission.epoch != group.epoch {
            return refused(submission, "STALE_EPOCH", Some(group.epoch));
        }
        group.sequence += 1;
        group.chain = group.chain.next(group.sequence, &id, &digest);
        group.epoch += u64::from(commit.is_some());
        let accepted = Accepted {
            sequence: group.sequence,
            epoch: group.epoch,
            chain: group.chain.to_wire(),
            accepted_at_ms: SystemClock.now().millis(),
        };
        let deliver = |body| Delivery {
            message_id: submission.message_id.clone(),
            group_id: submission.group_id.clone(),
            sequence: accepted.sequence,
            chain: accepted.chain.clone(),
            epoch: submission.epoch,
            expires_at_ms: submission.expires_at_ms,
            urgency: 0,
            category: 0,
            recipients: Vec::new(),
            except_device: submission.sender_device.clone(),
            part: 0,
            body: Some(body),
        };
        let mut out = Vec::new();
        for alias in group.aliases.clone() {
            out.push((
                alias,
                deliver(match &commit {
                    None => delivery::Body::Application(message.clone()),
                    Some(_) => delivery::Body::Commit(message.clone()),
                }),
            ));
        }
        for join in commit.iter().flat_map(|commit| &commit.joins) {
            let alias = Alias::try_from(&join.alias).unwrap();
            group.aliases.insert(alias);
            let welcome = commit.as_ref().unwrap().welcome.clone();
            out.push((alias, deliver(delivery::Body::Welcome(welcome))));
        }
        if !self.withhold {
            for (alias, delivery) in out {
                self.mailboxes.entry(alias).or_default().push(Item::Delivery(delivery));
            }
        }
        self.accepted += 1;
        self.senders.insert(id, sender);
        let outcome = decided(submission, outcome::Decision::Accepted(accepted));
        self.decided.insert((id, digest), outcome.clone());
        outcome
    }

    /// A device acknowledged with a receipt: its sender is told.
    pub(crate) fn report(&mut self, message_id: &MessageId, recipient: Alias, receipt: Bytes) {
        let sender = self.senders[message_id];
        let event = WireEvent {
            message_id: message_id.to_wire(),
            recipient: recipient.to_wire(),
            occurred_at_ms: SystemClock.now().millis(),
            kind: Some(wire_event::Kind::Delivered(Delivered { receipt })),
        };
        self.mailboxes.entry(sender).or_default().push(Item::Event(event));
    }
}

/// An endpoint whose store can be closed and opened again.
pub(crate) struct Device {
    path: PathBuf,
    folder: Arc<tempfile::TempDir>,
    pub(crate) clock: ManualClock,
    seed: u64,
    pub(crate) store: Option<EndpointStore>,
}

impl Device {
    pub(crate) fn new(seed: u64) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let path = folder.path().join("endpoint.db");
        // openmls looks at the machine's clock, too.
        let clock = ManualClock::new(SystemClock.now());
        let mut device = Self { path, folder, clock, seed, store: None };
        device.reopen();
        device
    }

    /// As after a crash: whatever was committed is there, nothing else.
    pub(crate) fn reopen(&mut self) {
        self.store = None;
        assert!(self.folder.path().exists());
        self.seed += 1;
        // The store's thread lets go of the file a moment after the last handle.
        self.store = Some(loop {
            let entropy = Arc::new(SeededEntropy::new(self.seed));
            match EndpointStore::open(&self.path, Arc::new(self.clock.clone()), entropy) {
                Ok(store) => break store,
                Err(StoreError::InUse) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        });
    }

    pub(crate) async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Tx<'_>) -> Result<T, EndpointError> + Send + 'static,
    ) -> T {
        self.attempt(operation).await.unwrap()
    }

    pub(crate) async fn attempt<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Tx<'_>) -> Result<T, EndpointError> + Send + 'static,
    ) -> Result<T, EndpointError> {
        self.store.as_ref().unwrap().call(operation).await
    }

    /// A person's device on node `south`.
    pub(crate) async fn person(seed: u64) -> (Self, Identity) {
        let device = Self::new(seed);
        let node = "south".parse().unwrap();
        let identity = device.run(move |tx| identity::create(tx, FEDERATION, &node, None)).await;
        (device, identity)
    }

    /// The agent `desk` of `north`.
    pub(crate) async fn agent(seed: u64) -> (Self, Identity) {
        let device = Self::new(seed);
        let node = "north".parse().unwrap();
        let name = "spiffe://mesh.example/agent/north/desk";
        let identity = device.run(move |tx| identity::create(tx, FEDERATION, &node, Some(name))).await;
        (device, identity)
    }

    /// Learns from the log which key an agent has.
    pub(crate) async fn lists(&self, agent: &Identity) {
        let name = AgentName::parse(agent.agent.as_deref().unwrap()).unwrap();
        let key = agent.credential_key;
        self.run(move |tx| peer::replace_agents(tx, &[(name, key)])).await;
    }

    pub(crate) async fn key_package(&self, suite: Suite) -> Bytes {
        self.run(move |tx| key_package::make(tx, &[(suite, 1)], false)).await.one_time.remove(0).into()
    }

    pub(crate) async fn open_thread(
        &self,
        peer: Peer,
        theirs: Vec<Bytes>,
        ours: Vec<Bytes>,
    ) -> Result<GroupId, EndpointError> {
        self.attempt(move |tx| {
            peer::put(tx, &peer)?;
            Ok(thread::open(tx, &peer, &theirs, &ours)?.id)
        })
        .await
    }

    pub(crate) async fn write(&self, thread: GroupId, text: &str) -> MessageId {
        self.answer(thread, text, None).await
    }

    pub(crate) async fn answer(&self, group: GroupId, text: &str, to: Option<MimiId>) -> MessageId {
        let compose = letter(text, to);
        self.run(move |tx| {
            let thread = thread::current(tx, &group)?.ok_or(EndpointError::ThreadUnknown)?;
            let expires = tx.now().after(Duration::from_hours(24));
            request::send(tx, &thread, compose, expires, true)
        })
        .await
    }

    /// Opens the groups that are to take others' places, with a KeyPackage of each of the
    /// other side's and of this account's other devices; how many.
    pub(crate) async fn succeed(&self, theirs: &[&Self], ours: &[&Self]) -> usize {
        let due = self.run(succession::due).await;
        let count = due.len();
        for (group, peer) in due {
            let suite = Suite::Classical;
            let key_packages = async |devices: &[&Self]| {
                let mut key_packages = Vec::new();
                for device in devices {
                    key_packages.push(device.key_package(suite).await);
                }
                key_packages
            };
            let (theirs, ours) = (key_packages(theirs).await, key_packages(ours).await);
            self.run(move |tx| succession::open(tx, &group, &peer, &theirs, &ours)).await;
        }
        count
    }

    /// What the store holds, to go back to.
    pub(crate) fn copy(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = std::fs::read_dir(self.folder.path()).unwrap().map(|file| file.unwrap().path());
        files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    /// The store holds again what it held then.
    pub(crate) async fn restore(&mut self, copy: &[(PathBuf, Vec<u8>)]) {
        self.store.take().unwrap().close().await;
        for file in std::fs::read_dir(self.folder.path()).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        copy.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        self.reopen();
    }

    /// What is undecided.
    pub(crate) async fn due(&self) -> Vec<Submission> {
        let batch = self.run(|tx| outbox::next(tx, 0, 128)).await;
        batch.submissions.into_iter().map(|due| due.submission).collect()
    }

    /// Takes an outcome; gives what is decided by it.
    pub(crate) async fn decide(&self, outcome: Outcome) -> Vec<Decided> {
        let decide = move |tx: &mut Tx<'_>| {
            outbox::decide(tx, [&outcome])?;
            Ok(tx.take_decided())
        };
        self.run(decide).await
    }

    /// Submits whatever is due; gives what the hub decided.
    pub(crate) async fn flush(&self, hub: &mut Hub) -> Vec<Decided> {
        let mut decided = Vec::new();
        loop {
            let due = self.due().await;
            if due.is_empty() {
                return decided;
            }
            for submission in due {
                let outcome = hub.submit(&submission);
                decided.extend(self.decide(outcome).await);
            }
        }
    }

    /// Reads the mailbox from where it stands, and acknowledges.
    pub(crate) async fn fetch(&self, hub: &mut Hub) -> Vec<Processed> {
        let identity = self.run(|tx| identity::identity(tx)).await;
        let after = self.run(|tx| home::through(tx, 1)).await;
        let items = hub.mailboxes.get(&identity.alias).cloned().unwrap_or_default();
        let mut processed = Vec::new();
        for (position, item) in (1_u64..).zip(items).skip(usize::try_from(after).unwrap()) {
            processed.extend(self.take(position, item, identity.device).await);
        }
        self.acknowledge(hub).await;
        processed
    }

    pub(crate) async fn take(&self, position: u64, item: Item, device: DeviceId) -> Option<Processed> {
        self.run(move |tx| {
            let processed = match &item {
                Item::Delivery(delivery) if delivery.except_device == device.as_bytes().as_slice() => None,
                Item::Delivery(delivery) => Some(thread::receive(tx, at(position), delivery, true)?),
                Item::Event(event) => {
                    event::observe(tx, event)?;
                    None
                }
            };
            home::set_through(tx, 1, position)?;
            Ok(processed)
        })
        .await
    }

    pub(crate) async fn acknowledge(&self, hub: &mut Hub) {
        use chancery_proto::content::v1::{DeliveryReceipt, SignedDeliveryReceipt};
        use prost::Message as _;
        let identity = self.run(|tx| identity::identity(tx)).await;
        let Some(acknowledgement) = self.run(|tx| acknowledgement(tx, 1, 0)).await else { return };
        for receipt in acknowledgement.receipts {
            let signed = SignedDeliveryReceipt::decode(receipt.clone()).unwrap();
            let message = DeliveryReceipt::decode(signed.receipt).unwrap().message_id;
            hub.report(&MessageId::try_from(&message).unwrap(), identity.alias, receipt);
        }
        self.run(move |tx| inbox::forget_receipts(tx, 1, acknowledgement.through)).await;
    }

    pub(crate) async fn inbox(&self) -> Vec<InboxItem> {
        self.run(|tx| inbox::after(tx, 0, 1000)).await
    }

    pub(crate) async fn texts(&self) -> Vec<String> {
        let identity = self.run(|tx| identity::identity(tx)).await;
        self.inbox().await.iter().map(|item| text_of(item, &identity)).collect()
    }

    pub(crate) async fn events(&self) -> Vec<EventKind> {
        self.run(|tx| event::after(tx, 0, 1000)).await.into_iter().map(|event| event.kind).collect()
    }

    pub(crate) async fn alarms(&self) -> Vec<Alarm> {
        self.run(|tx| alarm::after(tx, 0, 1000)).await.into_iter().map(|raised| raised.alarm).collect()
    }
}

pub(crate) fn text_of(item: &InboxItem, identity: &Identity) -> String {
    use crate::content::{Body, room_uri, sender_uri};
    let sender = sender_uri(&identity.federation, &item.sender);
    match Body::open(&item.body, &sender, &room_uri(&identity.federation, &item.thread)).unwrap().body {
        Body::Letter { letter, .. } => letter.markdown,
        _ => panic!("no letter"),
    }
}

pub(crate) fn letter(text: &str, in_reply_to: Option<MimiId>) -> Compose {
    let letter = Letter { markdown: text.to_owned(), in_reply_to, ..Letter::default() };
    Box::new(move |origin| {
        Ok(letter.compose(&origin.sender_uri(), &origin.room_uri(), origin.entropy).unwrap().bytes)
    })
}

pub(crate) fn peer_of(identity: &Identity) -> Peer {
    Peer { alias: identity.alias, node: identity.node.clone(), credential_key: identity.credential_key }
}

/// An agent and a person with a thread between them, in which one letter arrived.
pub(crate) struct Pair {
    pub(crate) hub: Hub,
    pub(crate) agent: Device,
    pub(crate) agent_identity: Identity,
    pub(crate) person: Device,
    pub(crate) person_identity: Identity,
    pub(crate) thread: GroupId,
}

pub(crate) async fn pair(suite: Suite) -> Pair {
    let (agent, agent_identity) = Device::agent(100).await;
    let (person, person_identity) = Device::person(200).await;
    person.lists(&agent_identity).await;
    let mut hub = Hub::default();
    let theirs = vec![person.key_package(suite).await];
    let thread = agent.open_thread(peer_of(&person_identity), theirs, Vec::new()).await.unwrap();
    agent.write(thread, "first").await;
    assert_eq!(agent.flush(&mut hub).await.len(), 2);
    assert_eq!(person.fetch(&mut hub).await, [Processed::Joined, Processed::Letter { position: 1 }]);
    agent.fetch(&mut hub).await;
    Pair { hub, agent, agent_identity, person, person_identity, thread }
}

/// A place in the mailbox of the first home.
pub(crate) const fn at(position: u64) -> inbox::Place {
    inbox::Place { home: 1, position }
}
