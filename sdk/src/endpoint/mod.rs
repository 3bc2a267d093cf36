//! The endpoint with its network: what applications and the agent call. The
//! work inside the store belongs to the modules around this one; the tasks that
//! keep queue and mailbox moving are in `run`, sending in `send`.

mod account;
mod channels;
mod enrol;
mod moving;
mod rounds;
mod run;
mod seats;
mod send;
mod speaking;
mod succession;

pub use enrol::AuthorityAddress;
pub use send::{Addressed, SendOrder, Sent, To};

use crate::alarm::{self, Raised};
use crate::content::{MimiId, ReadReceipt, room_uri, sender_uri};
use crate::directory_view::DirectoryView;
use crate::error::EndpointError;
use crate::event::{self, Event};
use crate::home;
use crate::identity::{self, Identity, OwnKey};
use crate::inbox::{self, InboxItem};
use crate::link;
use crate::node_client::{Connection, DeviceProof, NodeClient};
use crate::outbox::Decided;
use crate::own_record::OwnRecord;
pub use crate::own_record::{RecordChange, RecordCheck, Words};
pub use crate::resolve::Found;
use crate::resolve::{Epoch, Keyed, Resolver};
use crate::store::{EndpointStore, Tx};
use crate::thread::{self, Thread};
use crate::{mls::Suite, request};
use chancery_directory_core::Trust;
pub use chancery_directory_core::client::Publication;
use chancery_kit::tls::Credentials;
use chancery_pki_core::{FederationBundle, Party};
use chancery_proto::federation::v1::outcome;
use chancery_proto::node::v1::{SubscribeResponse, subscribe_response};
use chancery_sdk_core::Stand;
use chancery_types::{
    Clock, Entropy, GroupId, Handle, Identifier, Incarnation, MessageId, NodeId, Reason, Refusal, Timestamp,
};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};

/// Messages named by one read receipt.
const READ_AT_ONCE: usize = 256;
/// How long the sender's node may try to bring a read receipt.
const READ_RECEIPT_LIFE: Duration = Duration::from_hours(30 * 24);

/// What an endpoint needs to exist.
#[derive(Clone)]
pub struct EndpointConfig {
    /// The endpoint's store: a file of its own.
    pub store: PathBuf,
    /// Home node.
    pub node: NodeId,
    /// Where it is reached: `host:port`.
    pub node_endpoint: String,
    /// Whom the endpoint believes; must name the directory's key.
    pub federation: FederationBundle,
    /// For an agent, its certificate; for a person's device
    /// [`Credentials::anonymous`].
    pub credentials: Arc<Credentials>,
    /// One-time KeyPackages of each suite to keep in stock at the node, at most 256.
    pub stock: usize,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where randomness comes from.
    pub entropy: Arc<dyn Entropy>,
}

/// A device of an account, or an agent. Clones are the same endpoint.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    store: EndpointStore,
    client: NodeClient,
    view: Arc<DirectoryView>,
    resolver: Resolver,
    record: OwnRecord,
    /// `node`: the home when the endpoint was opened.
    identity: Identity,
    /// Where the first home is reached.
    first_endpoint: String,
    /// Nodes that are read, the home first.
    homes: watch::Sender<Vec<Arc<AtHome>>>,
    moving: tokio::sync::Mutex<()>,
    stock: usize,
    clock: Arc<dyn Clock>,
    /// Who waits for the hub's decision about which message.
    waiting: Mutex<HashMap<MessageId, Vec<oneshot::Sender<Decided>>>>,
    outbox: Notify,
    /// Position of the outbox up to which the node has everything, since this start.
    submitted: AtomicU64,
    /// Whether the home said how far this device was, since this start: before, nothing
    /// leaves that was encrypted here.
    greeted: watch::Sender<bool>,
    /// A group may need one that takes its place.
    succession: Notify,
    key_packages: Notify,
    inbox: watch::Sender<u64>,
    events: watch::Sender<u64>,
    broadcasts: watch::Sender<u64>,
    /// The home node is to hear of seats.
    seats: Notify,
    /// Seats are to be read anew.
    reread: watch::Sender<u64>,
    /// A broadcast's content is to be fetched.
    contents: Notify,
    /// Residents want in, or out.
    cells: Notify,
    /// A broadcast is to be brought on its way.
    speaking: Notify,
    /// Something for cells waits for home nodes.
    handing_over: Notify,
}

/// A node whose mailbox is read.
struct AtHome {
    id: i64,
    client: NodeClient,
    /// Whether it is the home, not a former one.
    is_present: bool,
    acknowledge: Notify,
    acknowledge_later: Notify,
    /// It brought a new thread.
    joined: Notify,
    /// Position of its mailbox that it knows to be safe here, since this start.
    acknowledged: AtomicU64,
    /// [`STORE_COUNT`] before anything was done at it since this start.
    count: u64,
    /// The connection on which it was greeted last, since this start, and which incarnation it
    /// was; by one at a time, and `acknowledged` goes with it.
    greeted: tokio::sync::Mutex<Option<(Connection, Incarnation)>>,
}

impl AtHome {
    fn new(id: i64, client: NodeClient, is_present: bool, count: u64) -> Self {
        Self {
            id,
            client,
            is_present,
            acknowledge: Notify::new(),
            acknowledge_later: Notify::new(),
            joined: Notify::new(),
            acknowledged: AtomicU64::new(0),
            count,
            greeted: tokio::sync::Mutex::default(),
        }
    }
}

impl Endpoint {
    /// Opens the endpoint's store; the first time it makes an alias and all
    /// keys. Needs no network.
    ///
    /// # Errors
    /// The store's, or what is wrong with the configuration.
    pub async fn open(config: EndpointConfig) -> Result<Self, Refusal> {
        let store = open_store(&config)?;
        let agent = own_agent(&config)?;
        let (federation, node) = (config.federation.federation().as_str().to_owned(), config.node.clone());
        let made = move |tx: &mut Tx<'_>| identity::create(tx, &federation, &node, agent.as_deref());
        store.call(made).await.map_err(Refusal::from)?;
        Self::start(config, store).await
    }

    /// On a new device of an account that exists: what to show to a device that
    /// [`Endpoint::approve_link`] is called on.
    ///
    /// # Errors
    /// The store's; UNSUPPORTED when the store has an alias already.
    pub async fn link_request(config: &EndpointConfig) -> Result<Vec<u8>, Refusal> {
        let store = open_store(config)?;
        let request = store.call(link::request).await;
        store.close().await;
        request.map_err(Refusal::from)
    }

    /// On the new device: takes the grant, and opens the endpoint. Then
    /// [`Endpoint::register`] publishes its KeyPackages, and the approving device's
    /// [`Endpoint::admit_devices`] brings it into the threads that exist. Gives
    /// the trust that came with the grant beside it.
    ///
    /// # Errors
    /// What is wrong with the grant.
    pub async fn accept_link(config: EndpointConfig, grant: Vec<u8>) -> Result<(Self, Vec<u8>), Refusal> {
        let store = open_store(&config)?;
        let trust = store.call(move |tx| link::accept(tx, &grant)).await.map_err(Refusal::from)?;
        Ok((Self::start(config, store).await?, trust))
    }

    async fn start(config: EndpointConfig, store: EndpointStore) -> Result<Self, Refusal> {
        let node = config.node.clone();
        let read = move |tx: &mut Tx<'_>| {
            Ok((identity::identity(tx)?, identity::key(tx, OwnKey::Auth)?, home::was(tx, &node)?))
        };
        let (identity, key, is_home) =
            store.call(read).await.map_err(|error: EndpointError| Refusal::from(error))?;
        if identity.federation != config.federation.federation().as_str() || !is_home {
            return Err(Refusal::field("the endpoint's store belongs to another node or federation"));
        }
        let proof = DeviceProof { device: identity.device, key };
        let credentials = Arc::clone(&config.credentials);
        let client = NodeClient::new(&config.node_endpoint, config.node.clone(), credentials, proof)?;
        let trust = Trust::from_bundle(&config.federation)?;
        let view = Arc::new(DirectoryView::new(trust, client.clone(), store.clone()));
        let resolver = Resolver {
            client: client.clone(),
            store: store.clone(),
            view: Arc::clone(&view),
            entropy: Arc::clone(&config.entropy),
        };
        let record = OwnRecord {
            client: client.clone(),
            store: store.clone(),
            view: Arc::clone(&view),
            credentials: config.credentials,
            entropy: config.entropy,
        };
        let inner = Inner {
            store,
            record,
            client,
            view,
            resolver,
            identity,
            stock: config.stock.min(256),
            clock: config.clock,
            waiting: Mutex::default(),
            outbox: Notify::new(),
            submitted: AtomicU64::new(0),
            greeted: watch::Sender::new(false),
            succession: Notify::new(),
            key_packages: Notify::new(),
            inbox: watch::Sender::new(0),
            events: watch::Sender::new(0),
            broadcasts: watch::Sender::new(0),
            seats: Notify::new(),
            reread: watch::Sender::new(0),
            contents: Notify::new(),
            cells: Notify::new(),
            speaking: Notify::new(),
            handing_over: Notify::new(),
            first_endpoint: config.node_endpoint,
            homes: watch::Sender::new(Vec::new()),
            moving: tokio::sync::Mutex::default(),
        };
        inner.settle_in().await?;
        Ok(Self(Arc::new(inner)))
    }

    /// Who this endpoint is; `node` is the home that it was opened with. An agent's `credential_key` must be listed in its
    /// administration's log entry.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The home node, for blobs.
    pub fn node(&self) -> &NodeClient {
        &self.0.client
    }

    /// The endpoint's clock.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// The handle of an identifier, for an enrolment authority's attestation.
    ///
    /// # Errors
    /// The evaluators', the directory's or the node's.
    pub async fn handle(&self, identifier: &Identifier) -> Result<Handle, Refusal> {
        Ok(self.0.keyed(identifier).await?.0)
    }

    /// The same, with the key epoch that it is of.
    ///
    /// # Errors
    /// As there.
    pub async fn handle_in_epoch(&self, identifier: &Identifier) -> Result<(Handle, u32), Refusal> {
        let (epoch, keyed) = self.0.resolver.keyed(std::slice::from_ref(identifier), Epoch::Current).await?;
        let missing = || Refusal::new(Reason::Internal, "a handle is missing");
        Ok((keyed.first().ok_or_else(missing)?.0, epoch))
    }

    /// The current key epoch, as last heard of.
    ///
    /// # Errors
    /// The directory's or the node's, when nothing was heard yet.
    pub async fn key_epoch(&self) -> Result<Option<u32>, Refusal> {
        Ok(self.0.view.state().await?.evaluators().map(|epoch| epoch.key_epoch))
    }

    /// Publishes the record of this account's own identifier, or its next version:
    /// once this is back, senders find it. Over a live record of another account key
    /// it is a re-enrolment, pending for 7 days; then the same call puts it into force.
    ///
    /// # Errors
    /// The directory's refusal, or who cannot be reached.
    pub async fn publish_record(
        &self,
        identifier: &Identifier,
        words: Words,
    ) -> Result<Publication, Refusal> {
        let keyed = self.0.keyed(identifier).await?;
        self.0.record.publish(keyed, words).await
    }

    /// Changes the record that this device published.
    ///
    /// # Errors
    /// The directory's refusal, or who cannot be reached.
    pub async fn change_record(&self, change: RecordChange) -> Result<Publication, Refusal> {
        self.0.record.change(change).await
    }

    /// Compares what the directory shows of the record with what this device put
    /// last, and raises an alarm for what it did not do itself. Running endpoints do
    /// so at their start and every 6 hours or so.
    ///
    /// # Errors
    /// The directory cannot be reached, or shows what does not verify.
    pub async fn check_record(&self) -> Result<RecordCheck, Refusal> {
        self.0.record.check().await
    }

    /// Verified addresses of identifiers, in order; RECIPIENT_ABSENT where
    /// nobody enrolled.
    ///
    /// # Errors
    /// What concerns all of them: directory, evaluators or node.
    pub async fn resolve(&self, identifiers: &[Identifier]) -> Result<Vec<Result<Found, Refusal>>, Refusal> {
        self.0.resolver.resolve(identifiers).await
    }

    /// Fetches the statements in force anew, so that an agent admitted a moment
    /// ago counts.
    ///
    /// # Errors
    /// The directory's or the node's.
    pub async fn refresh_directory(&self) -> Result<(), Refusal> {
        self.0.view.refresh().await.map(drop)
    }

    /// The same, unless that was done not longer than `age` ago.
    ///
    /// # Errors
    /// The directory's or the node's.
    pub async fn refresh_directory_after(&self, age: Duration) -> Result<(), Refusal> {
        self.0.view.refresh_after(age).await
    }

    /// Letters that came in after a position, oldest first; at most `limit`.
    ///
    /// # Errors
    /// The store's.
    pub async fn inbox_after(&self, position: u64, limit: usize) -> Result<Vec<InboxItem>, Refusal> {
        self.0.call(move |tx| inbox::after(tx, position, limit)).await
    }

    /// A letter that came in.
    ///
    /// # Errors
    /// The store's.
    pub async fn letter(&self, message_id: MessageId) -> Result<Option<InboxItem>, Refusal> {
        self.0.call(move |tx| inbox::find(tx, &message_id)).await
    }

    /// The letter of an earlier request; see [`request::find`].
    ///
    /// # Errors
    /// REQUEST_ID_REUSED when the content was another, or the store's.
    pub async fn requested(
        &self,
        request_id: [u8; 16],
        digest: [u8; 32],
    ) -> Result<Option<MessageId>, Refusal> {
        self.0.call(move |tx| request::find(tx, &request_id, &digest)).await
    }

    /// The letter sent from here in a thread that has this MIMI id.
    ///
    /// # Errors
    /// The store's.
    pub async fn message_of(&self, thread: GroupId, id: MimiId) -> Result<Option<MessageId>, Refusal> {
        self.0.call(move |tx| event::sent_content(tx, &id, &thread)).await
    }

    /// What became of sent letters after a position, oldest first; at most `limit`.
    ///
    /// # Errors
    /// The store's.
    pub async fn events_after(&self, position: u64, limit: usize) -> Result<Vec<Event>, Refusal> {
        self.0.call(move |tx| event::after(tx, position, limit)).await
    }

    /// Alarms after a position, oldest first; at most `limit`.
    ///
    /// # Errors
    /// The store's.
    pub async fn alarms_after(&self, position: u64, limit: usize) -> Result<Vec<Raised>, Refusal> {
        self.0.call(move |tx| alarm::after(tx, position, limit)).await
    }

    /// Position of the inbox up to which the caller has acknowledged.
    ///
    /// # Errors
    /// The store's.
    pub async fn inbox_position(&self) -> Result<u64, Refusal> {
        self.0.call(|tx| inbox::caller_position(tx)).await
    }

    /// The caller has the letters up to a position.
    ///
    /// # Errors
    /// The store's.
    pub async fn acknowledge_inbox(&self, through: u64) -> Result<(), Refusal> {
        self.0.call(move |tx| inbox::set_caller_position(tx, through)).await
    }

    /// Changes whenever the inbox did.
    pub fn inbox_changes(&self) -> watch::Receiver<u64> {
        self.0.inbox.subscribe()
    }

    /// Changes whenever there are new events.
    pub fn event_changes(&self) -> watch::Receiver<u64> {
        self.0.events.subscribe()
    }

    /// A thread.
    ///
    /// # Errors
    /// The store's.
    pub async fn thread(&self, id: GroupId) -> Result<Option<Thread>, Refusal> {
        self.0.call(move |tx| thread::current(tx, &id)).await
    }

    /// Marks letters as read; with `tell`, the reader's consent, their senders
    /// are told.
    ///
    /// # Errors
    /// The store's.
    pub async fn mark_read(&self, message_ids: Vec<MessageId>, tell: bool) -> Result<(), Refusal> {
        self.0
            .call(move |tx| {
                for (id, read) in inbox::mark_read(tx, &message_ids)? {
                    let thread =
                        thread::current(tx, &id)?.filter(|thread| tell && thread.stand != Stand::Closed);
                    let Some(thread) = thread else { continue };
                    for message_ids in read.chunks(READ_AT_ONCE) {
                        tell_read(tx, &thread, message_ids.to_vec())?;
                    }
                }
                Ok(())
            })
            .await?;
        self.0.outbox.notify_one();
        Ok(())
    }
}

fn tell_read(tx: &mut Tx<'_>, thread: &Thread, message_ids: Vec<MessageId>) -> Result<(), EndpointError> {
    let now = tx.now();
    let receipt = ReadReceipt { message_ids, read_at: now };
    let compose: request::Compose = Box::new(move |origin| {
        let identity = origin.identity;
        let composed = receipt
            .compose(
                &sender_uri(&identity.federation, &identity.alias),
                &room_uri(&identity.federation, origin.thread),
                origin.entropy,
            )
            .map_err(|_| Refusal::new(Reason::Internal, "a read receipt cannot be made"))?;
        Ok(composed.bytes)
    });
    request::send(tx, thread, compose, now.after(READ_RECEIPT_LIFE), false).map(drop)
}

fn open_store(config: &EndpointConfig) -> Result<EndpointStore, Refusal> {
    EndpointStore::open(&config.store, Arc::clone(&config.clock), Arc::clone(&config.entropy))
        .map_err(|error| Refusal::new(Reason::Internal, error.to_string()))
}

/// SPIFFE id of the agent whose certificate this is; `None`: a person's device.
fn own_agent(config: &EndpointConfig) -> Result<Option<String>, Refusal> {
    let Some(own) = config.credentials.own() else { return Ok(None) };
    match own.party() {
        Party::Agent { administration, .. } if *administration == config.node => {
            Ok(Some(own.id().to_string()))
        }
        _ => Err(Refusal::new(Reason::WrongIdentity, "the certificate is not of an agent of this node")),
    }
}

impl Inner {
    /// The handle of one identifier, with its record key.
    async fn keyed(&self, identifier: &Identifier) -> Result<Keyed, Refusal> {
        let (_, mut keyed) = self.resolver.keyed(std::slice::from_ref(identifier), Epoch::Current).await?;
        keyed.pop().ok_or_else(|| Refusal::new(Reason::Internal, "a handle is missing"))
    }

    async fn call<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Tx<'_>) -> Result<T, EndpointError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let deciding =
            move |tx: &mut Tx<'_>| Ok((operation(tx)?, tx.take_decided(), tx.take_succession_due()));
        let decided: Result<_, EndpointError> = self.store.call(deciding).await;
        let (result, decided, succession_due) = decided?;
        self.settle(decided);
        if succession_due {
            self.succession.notify_one();
        }
        Ok(result)
    }

    /// Acknowledges soon what was committed.
    fn acknowledge(&self) {
        self.homes.borrow().iter().for_each(|home| home.acknowledge.notify_one());
    }

    /// Tells whoever waits what became of their messages.
    fn settle(&self, decided: Vec<Decided>) {
        if decided.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for decided in decided {
            for waiter in waiting.remove(&decided.message_id).unwrap_or_default() {
                // Who does not wait any more does not mind.
                let _ = waiter.send(decided.clone());
            }
        }
        drop(waiting);
        self.events.send_modify(|count| *count += 1);
    }

    /// Whether items of the mailbox are nothing but good news that nobody waits for.
    fn may_wait(&self, items: &[SubscribeResponse]) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        items.iter().all(|item| match &item.item {
            Some(subscribe_response::Item::Outcome(outcome)) => {
                matches!(outcome.decision, Some(outcome::Decision::Accepted(_)))
                    && MessageId::try_from(&outcome.message_id).is_ok_and(|id| !waiting.contains_key(&id))
            }
            _ => false,
        })
    }

    fn wait_for(&self, message_id: MessageId) -> oneshot::Receiver<Decided> {
        let (waiter, decided) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waiters = waiting.entry(message_id).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(waiter);
        decided
    }

    /// Code points of the suites, the preferred one first.
    fn suites() -> Vec<u32> {
        Suite::ALL.iter().map(|suite| u32::from(suite.code())).collect()
    }
}
