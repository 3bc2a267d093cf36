//! Endpoints that live in a [`Mesh`]: agents with their gRPC face, and persons'
//! devices. Each can be stopped and opened again on the same store.

use crate::mesh::{Mesh, Place, id};
use crate::wait::success;
use chancery_directory::authority;
use chancery_directory_core::{AccountKey, AgentKey};
use chancery_kit::tls::Credentials;
use chancery_pki_core::Party;
use chancery_sdk::attachment::{ExternalFile, Resume, Spool, download, open};
use chancery_sdk::authority::{Authority, Codes};
use chancery_sdk::content::Letter;
use chancery_sdk::endpoint::{AuthorityAddress, Endpoint, EndpointConfig, SendOrder, To, Words};
use chancery_sdk::inbox::InboxItem;
use chancery_sdk::request::{self, Order};
use chancery_types::{Clock, Entropy, Identifier, MessageId, Reason, Refusal};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longest wait for something to arrive.
const DEADLINE: Duration = Duration::from_secs(30);
/// Name of each administration's agent.
const AGENT: &str = "letters";

/// A valid Belgian national number of nobody, one for each number below 998.
pub fn person_number(number: u64) -> Identifier {
    assert!((1..998).contains(&number));
    let digits = 850_730_000 + number;
    Identifier::parse("be-nn", &format!("{digits}{:02}", 97 - digits % 97)).unwrap()
}

/// An endpoint that runs.
pub struct Device {
    /// The endpoint.
    pub endpoint: Endpoint,
    config: EndpointConfig,
    running: Option<Running>,
}

struct Running {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    /// Breaks off whatever is done, as a crash would.
    async fn crash(self) {
        for task in &self.tasks {
            task.abort();
        }
        self.stop.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

fn config(
    mesh: &Mesh,
    node: &str,
    address: &str,
    name: &str,
    credentials: Arc<Credentials>,
) -> EndpointConfig {
    let folder = mesh.path(name);
    std::fs::create_dir_all(&folder).unwrap();
    EndpointConfig {
        store: folder.join("endpoint.db"),
        node: id(node),
        node_endpoint: address.to_owned(),
        federation: mesh.bundle.clone(),
        credentials,
        stock: 2,
        clock: Arc::clone(&mesh.clock),
        entropy: Arc::clone(&mesh.entropy),
    }
}

/// Opens an endpoint, once whoever had its store has let go of it.
async fn reopen(config: &EndpointConfig) -> Endpoint {
    success("the store is free", async || Endpoint::open(config.clone()).await).await
}

impl Device {
    /// A person's device with an account on a node, and the person's record in
    /// the directory. It does not receive yet.
    pub async fn enrol(mesh: &Mesh, node: &str, identifier: &Identifier, name: &str) -> Self {
        let device = Self::open(mesh, node, name).await;
        device.endpoint.register().await.unwrap();
        let handle = device.endpoint.handle(identifier).await.unwrap();
        let account = device.endpoint.account_key().await.unwrap();
        let account = AccountKey::try_from(account.as_slice()).unwrap();
        let attestation = mesh.authority.attest(identifier.scheme(), handle, account, 1, mesh.clock.now());
        device.endpoint.publish_record(identifier, Words { attestation, second: None }).await.unwrap();
        device
    }

    /// A device whose node has not heard of it.
    pub async fn open(mesh: &Mesh, node: &str, name: &str) -> Self {
        let config = Self::config(mesh, node, name);
        Self { endpoint: Endpoint::open(config.clone()).await.unwrap(), config, running: None }
    }

    /// The same, with a clock of its own.
    pub async fn open_by(mesh: &Mesh, node: &str, name: &str, clock: Arc<dyn Clock>) -> Self {
        let config = EndpointConfig { clock, ..Self::config(mesh, node, name) };
        Self { endpoint: Endpoint::open(config.clone()).await.unwrap(), config, running: None }
    }

    /// What a new device of a person starts from.
    pub fn config(mesh: &Mesh, node: &str, name: &str) -> EndpointConfig {
        config(mesh, node, &mesh.nodes[node].address, name, mesh.anonymous())
    }

    /// A further device of this one's account, which it links.
    pub async fn link(&self, mesh: &Mesh, name: &str) -> Self {
        let config = Self::config(mesh, self.config.node.as_str(), name);
        let asked = Endpoint::link_request(&config).await.unwrap();
        let grant = self.endpoint.approve_link(asked, b"trust".to_vec()).await.unwrap();
        let accept = async || Endpoint::accept_link(config.clone(), grant.clone()).await;
        let (endpoint, trust) = success("the grant is accepted", accept).await;
        assert_eq!(trust, b"trust");
        endpoint.register().await.unwrap();
        Self { endpoint, config, running: None }
    }

    /// Sends and receives from now on.
    #[must_use]
    pub fn live(mut self) -> Self {
        let (endpoint, stop) = (self.endpoint.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let tasks = vec![tokio::spawn(async move { endpoint.run(stopped).await })];
        self.running = Some(Running { stop, tasks });
        self
    }

    /// Breaks off whatever it is doing, as a crash would, and opens it again on what it had
    /// committed, with its node at an address. It does not receive yet.
    pub async fn reopened_at(self, address: &str) -> Self {
        let Self { endpoint, mut config, running } = self;
        if let Some(running) = running {
            running.crash().await;
        }
        drop(endpoint);
        address.clone_into(&mut config.node_endpoint);
        Self { endpoint: reopen(&config).await, config, running: None }
    }

    /// Stops and lets go of its store; gives where that lies.
    pub async fn close(mut self) -> PathBuf {
        if let Some(running) = self.running.take() {
            running.end().await;
        }
        self.config.store.clone()
    }

    /// Waits until the inbox holds `count` letters.
    pub async fn inbox(&self, count: usize) -> Vec<InboxItem> {
        inbox(&self.endpoint, count).await
    }

    /// Answers a letter; gives the answer's id once its hub has accepted it.
    pub async fn answer(&self, item: &InboxItem, markdown: &str) -> MessageId {
        let letter =
            Letter { markdown: markdown.to_owned(), in_reply_to: item.content_id, ..Letter::default() };
        let order = Order {
            request_id: *item.message_id.as_bytes(),
            digest: [0; 32],
            compose: request::letter(letter),
            expires: self.endpoint.now().after(Duration::from_secs(86_400)),
            wants_events: true,
        };
        self.endpoint.send(SendOrder { to: To::Thread(item.thread), order }).await.unwrap().message_id
    }

    /// Fetches a letter's file into `spool` and opens it.
    pub async fn fetch(&self, file: &ExternalFile, spool: &Arc<Spool>, resume: &Resume) -> Vec<u8> {
        let blobs = self.endpoint.node().blobs().await.unwrap();
        download(&blobs, spool, file, resume, &|_, _| {}).await.unwrap();
        open(file, spool.read(&file.blob.id).unwrap()).unwrap()
    }
}

/// An enrolment authority: the one that the mesh's log admits.
pub struct Registry {
    /// Where devices find it.
    pub address: AuthorityAddress,
    codes: Codes,
    entropy: Arc<dyn Entropy>,
    clock: Arc<dyn Clock>,
}

impl Registry {
    /// Starts it as an agent of an administration whose node runs.
    pub async fn start(mesh: &Mesh, administration: &str) -> Self {
        let name = mesh.authority.authority().clone();
        let party = Party::Agent { administration: id(administration), name: name.clone() };
        let credentials = mesh.certify(&party).await;
        let node = &mesh.nodes[administration].address;
        let config = config(mesh, administration, node, "registry", Arc::clone(&credentials));
        let endpoint = Endpoint::open(config).await.unwrap();
        endpoint.register().await.unwrap();
        let signer = authority::open(name.clone(), &mesh.path("authority.key"), &*mesh.entropy).unwrap();
        let codes = mesh.path("registry/codes.db");
        let (place, stop) = (Place::free().await, mesh.stopping());
        let address = AuthorityAddress {
            authority: name.to_string(),
            administration: administration.to_owned(),
            endpoint: place.address.clone(),
        };
        let entrance = mesh.entrance("registry", place);
        let serving = Authority { endpoint, signer, codes: Arc::new(Codes::open(&codes).unwrap()) };
        tokio::spawn(async move {
            chancery_sdk::authority::serve(serving, entrance, credentials, stop).await.unwrap();
        });
        let (entropy, clock) = (Arc::clone(&mesh.entropy), Arc::clone(&mesh.clock));
        Self { address, codes: Codes::open(&codes).unwrap(), entropy, clock }
    }

    /// Whom devices expect there.
    pub fn party(&self) -> Party {
        Party::Agent { administration: id(&self.address.administration), name: id(&self.address.authority) }
    }

    /// A code for whoever holds an identifier.
    pub async fn invite(&self, identifier: &Identifier) -> String {
        self.codes.issue(identifier.clone(), &*self.entropy, self.clock.now()).await.unwrap()
    }
}

async fn inbox(endpoint: &Endpoint, count: usize) -> Vec<InboxItem> {
    let mut changes = endpoint.inbox_changes();
    loop {
        changes.mark_unchanged();
        let letters = endpoint.inbox_after(0, 1000).await.unwrap();
        assert!(letters.len() <= count, "{} letters instead of {count}", letters.len());
        if letters.len() == count {
            return letters;
        }
        let Ok(changed) = timeout(DEADLINE, changes.changed()).await else {
            let alarms = endpoint.alarms_after(0, 100).await.unwrap();
            let alarms: Vec<_> = alarms.iter().map(|raised| raised.alarm).collect();
            panic!("{} letters instead of {count}; alarms: {alarms:?}", letters.len());
        };
        changed.unwrap();
    }
}

/// An administration's agent with its gRPC face.
pub struct Agent {
    /// Where its callers find it.
    pub address: String,
    /// Its endpoint, beside the face.
    pub endpoint: Endpoint,
    config: EndpointConfig,
    folder: PathBuf,
    running: Running,
}

impl Agent {
    /// Starts an administration: its node and its agent.
    pub async fn start(mesh: &mut Mesh, administration: &str) -> Self {
        let place = Place::free().await;
        let party = Party::Agent { administration: id(administration), name: id(AGENT) };
        let credentials = mesh.certify(&party).await;
        let name = format!("agent-{administration}");
        let config = config(mesh, administration, &place.address, &name, credentials);
        let endpoint = Endpoint::open(config.clone()).await.unwrap();
        let key = AgentKey::try_from(endpoint.identity().credential_key.as_slice()).unwrap();
        mesh.start_node(administration, place, BTreeMap::from([(id(AGENT), key)])).await;
        endpoint.register().await.unwrap();
        let folder = mesh.path(&name);
        let (address, running) = face(&endpoint, folder.clone(), &config).await;
        Self { address, endpoint, config, folder, running }
    }

    /// Breaks off whatever it is doing, as a crash would, and starts it again on
    /// what it had committed.
    pub async fn crash_and_restart(self) -> Self {
        let address = self.config.node_endpoint.clone();
        self.crash_and_restart_at(&address).await
    }

    /// The same, with its node at an address.
    pub async fn crash_and_restart_at(self, address: &str) -> Self {
        let Self { endpoint, mut config, folder, running, .. } = self;
        running.crash().await;
        drop(endpoint);
        address.clone_into(&mut config.node_endpoint);
        let endpoint = reopen(&config).await;
        let (address, running) = face(&endpoint, folder.clone(), &config).await;
        Self { address, endpoint, config, folder, running }
    }
}

async fn face(endpoint: &Endpoint, folder: PathBuf, config: &EndpointConfig) -> (String, Running) {
    let place = Place::free().await;
    let address = place.address.clone();
    let stop = CancellationToken::new();
    let (running, stopped) = (endpoint.clone(), stop.clone());
    let receiving = tokio::spawn(async move { running.run(stopped).await });
    let (endpoint, entropy, stopped) = (endpoint.clone(), Arc::clone(&config.entropy), stop.clone());
    let serving = tokio::spawn(async move {
        let listener = place.into_listener();
        chancery_sdk::agent::serve(endpoint, &folder, listener, entropy, stopped).await.unwrap();
    });
    (address, Running { stop, tasks: vec![receiving, serving] })
}

/// The reason of a refusal that had to come.
pub fn reason<T>(result: Result<T, Refusal>) -> Reason {
    match result {
        Ok(_) => panic!("not refused"),
        Err(refusal) => refusal.reason,
    }
}
