//! A whole federation inside one test: PKI, evaluator, directory and nodes, each
//! behind real mutual TLS on a port of its own, put together by the same calls
//! as `chancery up`. Endpoints that live in it are in [`crate::party`].

mod directory;

use crate::recorder::Recorder;
use crate::wait::until;
use chancery_directory::authority;
use chancery_directory::{DirectoryKeyFiles, EvaluatorConfig, ceremony, evaluator, governance};
use chancery_directory_core::ceremony::{Party as CeremonyParty, Plan};
use chancery_directory_core::client::Trust;
use chancery_directory_core::enrolment::AuthoritySigner;
use chancery_directory_core::statement::{Authority as AuthorityEntry, Decision, DirectoryKeys, Member};
use chancery_directory_core::{AgentKey, SigningKey};
use chancery_kit::entrance::Entrance;
use chancery_kit::tls::files::{CHAIN, CRLS, IdentityFolder, KEY};
use chancery_kit::tls::{Credentials, connect, enrol};
use chancery_node::{NodeParts, QuotaConfig};
use chancery_pki::authority::Authority;
use chancery_pki_core::profile::{LeafNames, new_key_and_csr};
use chancery_pki_core::{Crls, FederationBundle, Party, armour};
use chancery_types::clock::ManualClock;
use chancery_types::{Clock, Entropy, NodeId, Scheme, SystemClock, SystemEntropy};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

/// The federation's name.
pub const FEDERATION: &str = "mesh.example";
/// Ids of the evaluators.
const EVALUATORS: [&str; 3] = ["e1", "e2", "e3"];
/// Bits of a handle that a lookup names.
const PREFIX_BITS: u32 = 8;
/// How long a join token is good.
const TOKEN: Duration = Duration::from_secs(600);

/// A federation that runs until it is dropped.
pub struct Mesh {
    /// What everybody was given.
    pub bundle: FederationBundle,
    /// What everybody believes of the log.
    pub trust: Trust,
    /// Attests whoever asks.
    pub authority: AuthoritySigner,
    /// Where the PKI listens.
    pub pki_address: String,
    /// Where the directory listens.
    pub directory_address: String,
    /// Id of each evaluator and where it listens.
    pub evaluators: Vec<(&'static str, String)>,
    /// The system's clock.
    pub clock: Arc<dyn Clock>,
    /// The system's randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The mirror that nodes started from now on use, `host:port`.
    pub mirror_address: Option<String>,
    /// Nodes by administration.
    pub nodes: BTreeMap<String, Node>,
    /// The certificate authority.
    pub pki: Arc<Authority>,
    recorder: Option<Recorder>,
    evaluator_pins: BTreeMap<&'static str, [u8; 32]>,
    governance: SigningKey,
    identities: AtomicU64,
    shutdown: CancellationToken,
    directory: Option<(CancellationToken, JoinHandle<()>)>,
    _stop: DropGuard,
    folder: TempDir,
}

/// A node of the mesh.
pub struct Node {
    /// Where it listens.
    pub address: String,
    /// Its certificate and what it knows of revocation.
    pub credentials: Arc<Credentials>,
}

/// A port that is taken already, for a node whose agent is made first.
pub struct Place {
    listener: TcpListener,
    /// `host:port`.
    pub address: String,
}

impl Place {
    /// Takes a free port on loopback.
    pub async fn free() -> Self {
        Self::of(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// That of a listener.
    pub fn of(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        Self { listener, address }
    }

    /// The listener behind it.
    pub fn into_listener(self) -> TcpListener {
        self.listener
    }
}

impl Mesh {
    /// PKI, evaluator and directory, and in the log what governs them.
    pub async fn new() -> Self {
        Self::found(None).await
    }

    /// The same, and everything that its parties receive is recorded.
    pub async fn recorded(recorder: Recorder) -> Self {
        Self::found(Some(recorder)).await
    }

    async fn found(recorder: Option<Recorder>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let (name, passphrase) = (FEDERATION.parse().unwrap(), "passphrase of a test".into());
        let (c, e) = (Arc::clone(&clock), Arc::clone(&entropy));
        let pki = Authority::init(&folder.path().join("pki"), &name, &passphrase, c, e).await.unwrap();
        let pki = Arc::new(pki);
        let governance = governance::key(&folder.path().join("governance.key"), &*entropy).unwrap();
        let keys = DirectoryKeyFiles::open(&folder.path().join("directory"), FEDERATION, &*entropy).unwrap();
        let governors = vec![governance.verifying_key().to_bytes()];
        let bundle = FederationBundle::new(pki.anchors().clone(), governors, 1).unwrap();
        let bundle = bundle.with_directory(keys.vkey()).unwrap();
        let hpke = *keys.hpke_public_key();
        drop(keys);
        let key = folder.path().join("authority.key");
        let shutdown = CancellationToken::new();
        let mut mesh = Self {
            trust: Trust::from_bundle(&bundle).unwrap(),
            authority: authority::open(id("residents"), &key, &*entropy).unwrap(),
            bundle,
            pki_address: String::new(),
            directory_address: String::new(),
            evaluators: Vec::new(),
            evaluator_pins: BTreeMap::new(),
            clock,
            entropy,
            nodes: BTreeMap::new(),
            mirror_address: None,
            pki,
            recorder,
            governance,
            identities: AtomicU64::new(0),
            _stop: shutdown.clone().drop_guard(),
            shutdown,
            directory: None,
            folder,
        };
        mesh.serve_pki().await;
        mesh.serve_directory().await;
        for evaluator in EVALUATORS {
            mesh.serve_evaluator(evaluator).await;
        }
        mesh.govern(hpke).await;
        mesh.hold_ceremony(1, 1).await;
        mesh
    }

    /// The same with the nodes `federal` and `regional`, without agents.
    pub async fn with_nodes() -> Self {
        let mut mesh = Self::new().await;
        for administration in ["federal", "regional"] {
            mesh.start_node(administration, Place::free().await, BTreeMap::new()).await;
        }
        mesh
    }

    /// Where a party is called; what comes in is recorded, if that was asked for.
    pub(crate) fn entrance(&self, party: &str, place: Place) -> Entrance {
        match &self.recorder {
            Some(recorder) => recorder.entrance(party, place.into_listener()),
            None => place.into_listener().into(),
        }
    }

    async fn serve_pki(&mut self) {
        let place = Place::free().await;
        self.pki_address.clone_from(&place.address);
        let credentials = self.pki.own_credentials(&names()).await.unwrap();
        let (pki, stop) = (Arc::clone(&self.pki), self.shutdown.clone());
        let entrance = self.entrance("pki", place);
        tokio::spawn(async move {
            chancery_pki::serve(pki, entrance, credentials, stop).await.unwrap();
        });
    }

    async fn serve_evaluator(&mut self, id: &'static str) {
        let place = Place::free().await;
        self.evaluators.push((id, place.address.clone()));
        let folder = self.path(id);
        std::fs::create_dir_all(&folder).unwrap();
        evaluator::key(&folder, &*self.entropy).unwrap();
        let credentials = self.certify(&Party::Evaluator(crate::mesh::id(id))).await;
        self.evaluator_pins.insert(id, *credentials.own().unwrap().key_pin());
        let config = EvaluatorConfig {
            id: crate::mesh::id(id),
            trust: self.trust.clone(),
            directory: self.directory_address.clone(),
            folder,
            seal_key: self.path(&format!("{id}.seal.key")),
        };
        let (entropy, stop) = (Arc::clone(&self.entropy), self.shutdown.clone());
        let entrance = self.entrance(id, place);
        tokio::spawn(async move {
            let serving = chancery_directory::serve_evaluator(config, entrance, credentials, entropy, stop);
            serving.await.unwrap();
        });
    }

    /// Two of three evaluators make the handles' key, or deal its shares anew.
    pub async fn hold_ceremony(&self, key_epoch: u32, generation: u32) {
        let party = |(index, (id, address)): (u32, &(&'static str, String))| CeremonyParty {
            index,
            evaluator: crate::mesh::id(id),
            tls_key_pin: self.evaluator_pins[id],
            key: evaluator::key(&self.path(id), &*self.entropy).unwrap(),
            endpoints: vec![address.clone()],
        };
        let parties = (1..).zip(&self.evaluators).map(party).collect();
        let plan = Decision::CeremonyPlan(Plan { key_epoch, generation, threshold: 2, parties });
        let plan = governance::decide(FEDERATION, plan, &[&self.governance], &*self.entropy);
        let held = ceremony::hold(plan, &self.directory_address, self.anonymous(), &self.trust).await;
        assert_eq!(held.unwrap().epoch.evaluators.len(), EVALUATORS.len());
    }

    async fn govern(&self, hpke_public_key: [u8; 32]) {
        self.decide(Decision::DirectoryKeys(DirectoryKeys {
            hpke_public_key,
            lookup_prefix_bits: PREFIX_BITS,
        }))
        .await;
        self.decide(Decision::Authority(AuthorityEntry {
            authority: self.authority.authority().clone(),
            key: self.authority.key(),
            schemes: [Scheme::BeNn, Scheme::BeCbe, Scheme::E164].into_iter().map(Into::into).collect(),
        }))
        .await;
    }

    /// Starts the node of an administration and has it admitted with its agents' keys.
    pub async fn start_node(
        &mut self,
        administration: &str,
        place: Place,
        agents: BTreeMap<NodeId, AgentKey>,
    ) {
        let credentials = self.certify(&Party::Node(id(administration))).await;
        self.admit(administration, &place.address, &credentials, agents).await;
        let (party, address) = (format!("node-{administration}"), place.address.clone());
        let parts = NodeParts {
            data: self.path(&party),
            directory: self.directory_address.clone(),
            mirror: self.mirror_address.clone(),
            quotas: QuotaConfig::default(),
            credentials: Arc::clone(&credentials),
            trust: self.trust.clone(),
            entrance: self.entrance(&party, place),
            clock: Arc::clone(&self.clock),
            entropy: Arc::clone(&self.entropy),
        };
        let stop = self.shutdown.clone();
        tokio::spawn(async move { chancery_node::serve(parts, stop).await.unwrap() });
        self.nodes.insert(administration.to_owned(), Node { address, credentials });
    }

    /// Has a member logged whose node has these credentials.
    pub async fn admit(
        &self,
        administration: &str,
        address: &str,
        credentials: &Credentials,
        agents: BTreeMap<NodeId, AgentKey>,
    ) {
        self.decide(Decision::Member(Member {
            administration: id(administration),
            display_names: BTreeMap::from([("en".to_owned(), administration.to_owned())]),
            endpoints: vec![address.to_owned()],
            node_key_pin: *credentials.own().unwrap().key_pin(),
            agents,
        }))
        .await;
    }

    /// A certificate for a party, with a new key.
    pub async fn certify(&self, party: &Party) -> Arc<Credentials> {
        let folder = self.issue(&self.pki, party).await;
        Credentials::open(folder, self.bundle.anchors().clone(), Arc::clone(&self.clock)).unwrap()
    }

    /// A certificate that has expired; its owner's clock stands still before.
    pub async fn certify_expired(&self, party: &Party) -> Arc<Credentials> {
        let (clock, entropy) = (Arc::clone(&self.clock), Arc::clone(&self.entropy));
        let pki = Authority::open(&self.path("pki"), clock, entropy).await.unwrap();
        let pki = pki.with_leaf_life(Duration::from_secs(1));
        let then = self.clock.now();
        let folder = self.issue(&pki, party).await;
        let clock = Arc::new(ManualClock::new(then));
        let credentials = Credentials::open(folder, self.bundle.anchors().clone(), clock).unwrap();
        // Certificates end with a whole second.
        let end = credentials.own().unwrap().not_after().seconds();
        until("the certificate has expired", async || self.clock.now().seconds() > end).await;
        credentials
    }

    async fn issue(&self, pki: &Authority, party: &Party) -> IdentityFolder {
        let number = self.identities.fetch_add(1, Ordering::Relaxed);
        let folder = IdentityFolder::new(self.path(&format!("identities/{number}")));
        folder.create().unwrap();
        let (key, csr) = new_key_and_csr().unwrap();
        let token = pki.issue_token(party, &names(), TOKEN).await.unwrap();
        let chain = pki.enrol(&token, &csr).await.unwrap();
        folder.replace(KEY, key.as_bytes()).unwrap();
        folder.replace(CHAIN, armour::write_chain(&chain).as_bytes()).unwrap();
        folder.replace(CRLS, armour::write_crls(&pki.crls().await.unwrap()).as_bytes()).unwrap();
        folder
    }

    /// Has a node fetch the revocation lists in force, as it does every 5 minutes.
    pub async fn fetch_revocations(&self, administration: &str) {
        let credentials = &self.nodes[administration].credentials;
        enrol::fetch_revocations(&self.pki_address, credentials).await.unwrap();
    }

    /// No certificate: a person's device, or a stranger.
    pub fn anonymous(&self) -> Arc<Credentials> {
        Credentials::anonymous(self.bundle.anchors().clone(), Crls::default(), Arc::clone(&self.clock))
    }

    /// A channel to a node.
    pub async fn channel(&self, administration: &str, credentials: Arc<Credentials>) -> Channel {
        let address = &self.nodes[administration].address;
        connect(address, Party::Node(id(administration)), credentials).await.unwrap().0
    }

    /// Ends with the mesh.
    pub fn stopping(&self) -> CancellationToken {
        self.shutdown.child_token()
    }

    /// A file or folder of the mesh.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A name of the federation.
pub fn id(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn names() -> LeafNames {
    LeafNames::parse(&["localhost", "127.0.0.1"]).unwrap()
}
