//! A federation made for one test: certificates, governance, an authority, a
//! directory and an evaluator that can be stopped and killed.

use bytes::Bytes;
use chancery_directory::authority;
use chancery_directory::{
    DirectoryConfig, DirectoryError, DirectoryKeyFiles, EvaluatorConfig, MirrorConfig, ceremony, evaluator,
    governance,
};
use chancery_directory_core::attestation::SchemeName;
use chancery_directory_core::ceremony::{Party as CeremonyParty, Plan};
use chancery_directory_core::client::{Publication, read_publication};
use chancery_directory_core::enrolment::AuthoritySigner;
use chancery_directory_core::handle::Blinded;
use chancery_directory_core::record::RecordDraft;
use chancery_directory_core::statement::{Authority, Decision, DirectoryKeys, Member};
use chancery_directory_core::{
    Address, FederationState, GovernanceKey, GovernanceKeys, Prefix, RecordKey, SigningKey, Trust,
    VerifiedLookup, keys, operation,
};
use chancery_kit::status::from_status;
use chancery_kit::store::DatabasePlace;
use chancery_kit::tls::files::{CHAIN, CRLS, IdentityFolder, KEY};
use chancery_kit::tls::{Credentials, connect};
use chancery_pki_core::profile::{Ca, new_key_and_csr};
use chancery_pki_core::{CheckedCsr, Crls, LeafNames, Party, Serial, TrustAnchors, Validity, armour};
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_proto::directory::v1::evaluator_service_client::EvaluatorServiceClient;
use chancery_test_postgres::Postgres;
use chancery_types::clock::ManualClock;
use chancery_types::entropy::SeededEntropy;
use chancery_types::{
    Alias, Clock, Entropy, Handle, Identifier, NodeId, Refusal, Scheme, SystemEntropy, Timestamp,
};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub(crate) const FEDERATION: &str = "mesh.example";
const EVALUATOR: &str = "e1";
/// Bits that lookups name.
pub(crate) const BITS: u32 = 8;
const DAY: Duration = Duration::from_secs(86_400);

/// Runs each scenario on both databases.
macro_rules! on_both {
    ($($scenario:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $scenario() { super::$scenario($crate::mesh::Backend::Sqlite).await; })*
        }
        mod postgres {
            $(#[tokio::test] async fn $scenario() { super::$scenario($crate::mesh::Backend::Postgres).await; })*
        }
    };
}
pub(crate) use on_both;

/// Where the directory keeps its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

pub(crate) struct Mesh {
    pub(crate) clock: Arc<ManualClock>,
    evaluators: Mutex<HashMap<String, Certified>>,
    pub(crate) entropy: Arc<SeededEntropy>,
    pub(crate) governors: Vec<SigningKey>,
    pub(crate) governance: GovernanceKeys,
    pub(crate) authority: AuthoritySigner,
    root: Ca,
    issuing: Ca,
    pub(crate) anchors: TrustAnchors,
    pub(crate) postgres: Option<Postgres>,
    folder: TempDir,
}

/// A party with its certificate.
#[derive(Clone)]
pub(crate) struct Certified {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) key_pin: [u8; 32],
}

/// A server on a runtime of its own.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    stop: CancellationToken,
    runtime: Option<Runtime>,
}

impl Server {
    /// As SIGKILL would: whatever is under way is dropped.
    pub(crate) fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Mesh {
    /// Two governance keys, both needed.
    pub(crate) fn new(backend: Backend) -> Self {
        let clock = ManualClock::new(Timestamp::from_millis(1_790_000_000_000));
        let entropy = SeededEntropy::new(1);
        let federation = FEDERATION.parse().unwrap();
        let life = Validity::starting(clock.now(), DAY * 300);
        let root = Ca::new_root(&federation, &Serial::random(&SystemEntropy), life).unwrap();
        let issuing = root.issue_ca(None, &Serial::random(&SystemEntropy), life).unwrap();
        let anchors = TrustAnchors::new(federation, root.certificate()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let governors: Vec<_> = (0..2).map(|_| keys::generate(&entropy)).collect();
        let governance = GovernanceKeys::new(governors.iter().map(GovernanceKey::from).collect(), 2).unwrap();
        let key = folder.path().join("authority.key");
        let authority = authority::open("enrol".parse().unwrap(), &key, &entropy).unwrap();
        Self {
            clock: Arc::new(clock),
            evaluators: Mutex::default(),
            entropy: Arc::new(entropy),
            governors,
            governance,
            authority,
            root,
            issuing,
            anchors,
            postgres: match backend {
                Backend::Sqlite => None,
                Backend::Postgres => Some(Postgres::start()),
            },
            folder,
        }
    }

    pub(crate) fn certify(&self, party: &Party) -> Certified {
        let now = self.clock.now();
        let name = hex::encode(Serial::random(&SystemEntropy).as_bytes());
        let folder = IdentityFolder::new(self.folder.path().join("identities").join(name));
        let (key, csr) = new_key_and_csr().unwrap();
        folder.create().unwrap();
        let csr = CheckedCsr::check(&csr).unwrap();
        let (serial, life) = (Serial::random(&SystemEntropy), Validity::starting(now, DAY * 60));
        let leaf = self.issuing.issue_leaf(&csr, party, &LeafNames::default(), &serial, life).unwrap();
        folder.replace(KEY, key.as_bytes()).unwrap();
        let chain = armour::write_chain(&[leaf, self.issuing.certificate().clone()]);
        folder.replace(CHAIN, chain.as_bytes()).unwrap();
        let life = Validity { not_before: now, not_after: now.after(DAY * 60) };
        let lists =
            [self.root.issue_crl(1, life, &[]).unwrap(), self.issuing.issue_crl(1, life, &[]).unwrap()];
        folder.replace(CRLS, armour::write_crls(&lists).as_bytes()).unwrap();
        let credentials =
            Credentials::open(folder, self.anchors.clone(), Arc::clone(&self.clock) as _).unwrap();
        Certified { credentials, key_pin: *csr.key_pin() }
    }

    pub(crate) fn anonymous(&self) -> Arc<Credentials> {
        Credentials::anonymous(self.anchors.clone(), Crls::default(), Arc::clone(&self.clock) as _)
    }

    pub(crate) fn directory_folder(&self) -> PathBuf {
        self.folder.path().join("directory")
    }

    pub(crate) fn directory_keys(&self) -> DirectoryKeyFiles {
        DirectoryKeyFiles::open(&self.directory_folder(), FEDERATION, &*self.entropy).unwrap()
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::new(FEDERATION, self.governance.clone(), &self.directory_keys().vkey()).unwrap()
    }

    /// Starts the directory, again on the same folder.
    pub(crate) fn directory(&self) -> Server {
        // Made before others read them.
        drop(self.directory_keys());
        let credentials = self.certify(&Party::Directory).credentials;
        let (governance, folder) = (self.governance.clone(), self.directory_folder());
        let mut config = DirectoryConfig::embedded(FEDERATION.to_owned(), governance, folder);
        if let Some(postgres) = &self.postgres {
            config.database = DatabasePlace::Postgres(postgres.url());
        }
        // A root with each batch, so that what is published is found at once.
        config.root_interval = Duration::ZERO;
        let entropy = Arc::clone(&self.entropy) as Arc<dyn Entropy>;
        run(|listener, stop| async move {
            chancery_directory::serve(config, listener, credentials, entropy, stop).await.unwrap();
        })
    }

    /// Starts a mirror, again on the same folder.
    pub(crate) fn mirror(&self, directory: &Server) -> Server {
        self.mirror_at(&directory.endpoint)
    }

    /// The same of a directory that may not be there.
    pub(crate) fn mirror_at(&self, directory: &str) -> Server {
        let credentials = self.certify(&Party::Directory).credentials;
        let folder = self.folder.path().join("mirror");
        let database = match &self.postgres {
            None => DatabasePlace::File(folder.join("mirror.sqlite")),
            Some(postgres) => DatabasePlace::Postgres(postgres.url_of("mirror")),
        };
        let config = MirrorConfig { trust: self.trust(), directory: directory.to_owned(), folder, database };
        let entropy = Arc::clone(&self.entropy) as Arc<dyn Entropy>;
        run(|listener, stop| async move {
            chancery_directory::serve_mirror(config, listener, credentials, entropy, stop).await.unwrap();
        })
    }

    /// Starts an evaluator, again on the same folder.
    pub(crate) fn evaluator(&self, id: &str, directory: &Server) -> Server {
        let folder = self.evaluator_folder(id);
        std::fs::create_dir_all(&folder).unwrap();
        evaluator::key(&folder, &*self.entropy).unwrap();
        let id: NodeId = id.parse().unwrap();
        let credentials = self.evaluator_identity(id.as_str()).credentials;
        let config = EvaluatorConfig {
            trust: self.trust(),
            directory: directory.endpoint.clone(),
            folder,
            seal_key: self.folder.path().join(format!("{id}.seal.key")),
            id,
        };
        let entropy = Arc::clone(&self.entropy) as Arc<dyn Entropy>;
        run(|listener, stop| async move {
            chancery_directory::serve_evaluator(config, listener, credentials, entropy, stop).await.unwrap();
        })
    }

    /// Its certificate, the same each time.
    pub(crate) fn evaluator_identity(&self, id: &str) -> Certified {
        let mut made = self.evaluators.lock().unwrap();
        let make = || self.certify(&Party::Evaluator(id.parse().unwrap()));
        made.entry(id.to_owned()).or_insert_with(make).clone()
    }

    pub(crate) fn evaluator_folder(&self, id: &str) -> PathBuf {
        self.folder.path().join(id)
    }

    /// A plan for these evaluators, signed: key epoch, generation, threshold.
    pub(crate) fn plan(
        &self,
        numbers: (u32, u32, u32),
        evaluators: &[(u32, &str, &Server)],
    ) -> wire::SignedStatement {
        self.sign(Decision::CeremonyPlan(self.draft_plan(numbers, evaluators)))
    }

    pub(crate) fn draft_plan(
        &self,
        (key_epoch, generation, threshold): (u32, u32, u32),
        evaluators: &[(u32, &str, &Server)],
    ) -> Plan {
        let party = |(index, id, server): &(u32, &str, &Server)| CeremonyParty {
            index: *index,
            evaluator: id.parse().unwrap(),
            key: evaluator::key(&self.evaluator_folder(id), &*self.entropy).unwrap(),
            endpoints: vec![server.endpoint.clone()],
            tls_key_pin: self.evaluator_identity(id).key_pin,
        };
        let parties = evaluators.iter().map(party).collect();
        Plan { key_epoch, generation, threshold, parties }
    }

    pub(crate) async fn hold(
        &self,
        plan: wire::SignedStatement,
        directory: &Server,
    ) -> Result<ceremony::Report, DirectoryError> {
        ceremony::hold(plan, &directory.endpoint, self.anonymous(), &self.trust()).await
    }

    pub(crate) fn sign(&self, decision: Decision) -> wire::SignedStatement {
        let keys: Vec<_> = self.governors.iter().collect();
        governance::decide(FEDERATION, decision, &keys, &*self.entropy)
    }

    pub(crate) fn member(&self, name: &str, node: &Certified) -> Decision {
        Decision::Member(Member {
            administration: name.parse().unwrap(),
            display_names: [("en".to_owned(), name.to_owned())].into(),
            endpoints: vec!["localhost:1".to_owned()],
            node_key_pin: node.key_pin,
            agents: [].into(),
        })
    }

    /// Admits the node `federal` and the authority for `e164`.
    fn admissions(&self, federal: &Certified) -> [Decision; 2] {
        [
            self.member("federal", federal),
            Decision::Authority(Authority {
                authority: self.authority.authority().clone(),
                key: self.authority.key(),
                schemes: [SchemeName::from(Scheme::E164)].into(),
            }),
        ]
    }

    /// Names the directory's keys.
    fn keys(&self) -> Decision {
        Decision::DirectoryKeys(DirectoryKeys {
            hpke_public_key: *self.directory_keys().hpke_public_key(),
            lookup_prefix_bits: BITS,
        })
    }
}

fn run<F>(serve: impl FnOnce(TcpListener, CancellationToken) -> F) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let guard = runtime.enter();
    let serving = serve(TcpListener::from_std(listener).unwrap(), stop.clone());
    drop(guard);
    runtime.spawn(serving);
    Server { endpoint, stop, runtime: Some(runtime) }
}

pub(crate) async fn client(
    server: &Server,
    credentials: Arc<Credentials>,
) -> DirectoryServiceClient<Channel> {
    let (channel, _) = connect(&server.endpoint, Party::Directory, credentials).await.unwrap();
    DirectoryServiceClient::new(channel)
}

/// What a call was refused for.
pub(crate) fn refusal<T>(result: Result<tonic::Response<T>, tonic::Status>) -> Refusal {
    match result {
        Ok(_) => panic!("not refused"),
        Err(status) => from_status(&status),
    }
}

/// A founded federation with a running directory, asked by the node `federal`.
pub(crate) struct Setting {
    pub(crate) mesh: Mesh,
    pub(crate) federal: Certified,
    pub(crate) directory: Server,
    pub(crate) evaluator: Server,
    pub(crate) client: DirectoryServiceClient<Channel>,
    pub(crate) trust: Trust,
    pub(crate) state: FederationState,
}

impl Setting {
    pub(crate) async fn new(backend: Backend) -> Self {
        let mesh = Mesh::new(backend);
        let federal = mesh.certify(&Party::Node("federal".parse().unwrap()));
        let directory = mesh.directory();
        let mut client = client(&directory, Arc::clone(&federal.credentials)).await;
        let mut decide = async |decision| {
            let statement = Some(mesh.sign(decision));
            client.submit_statement(wire::SubmitStatementRequest { statement }).await.unwrap();
        };
        for decision in mesh.admissions(&federal) {
            decide(decision).await;
        }
        // One evaluator that answers alone.
        let evaluator = mesh.evaluator(EVALUATOR, &directory);
        let plan = mesh.plan((1, 1, 1), &[(1, EVALUATOR, &evaluator)]);
        assert_eq!(mesh.hold(plan, &directory).await.unwrap().index, 3);
        decide(mesh.keys()).await;
        let trust = mesh.trust();
        let listed = client.list_statements(wire::ListStatementsRequest { start: 0 }).await.unwrap();
        let (_, state) = trust.verify_statements(listed.into_inner()).unwrap();
        Self { mesh, federal, directory, evaluator, client, trust, state }
    }

    /// With a directory that was killed.
    pub(crate) fn without_directory(self) -> Self {
        let Self { mesh, federal, directory, evaluator, client, trust, state } = self;
        let gone =
            Server { endpoint: directory.endpoint.clone(), stop: CancellationToken::new(), runtime: None };
        directory.kill();
        Self { mesh, federal, directory: gone, evaluator, client, trust, state }
    }

    /// The same directory, started again.
    pub(crate) async fn restart(&mut self) {
        self.directory = self.mesh.directory();
        self.client = client(&self.directory, Arc::clone(&self.federal.credentials)).await;
    }

    /// Killed in the middle of things, and started again.
    pub(crate) async fn killed(self) -> Self {
        let Self { mut mesh, federal, directory, evaluator, trust, state, .. } = self;
        directory.kill();
        if let Some(postgres) = &mut mesh.postgres {
            postgres.crash();
        }
        let directory = mesh.directory();
        let client = client(&directory, Arc::clone(&federal.credentials)).await;
        Self { mesh, federal, directory, evaluator, client, trust, state }
    }

    /// An owner with a handle that no evaluator made.
    pub(crate) fn owner(&self) -> Owner {
        let output: [u8; 64] = (&*self.mesh.entropy as &dyn Entropy).array();
        let (handle, record_key) = chancery_directory_core::handle::split(&output).unwrap();
        self.owner_of(handle, record_key)
    }

    pub(crate) fn owner_of(&self, handle: Handle, record_key: RecordKey) -> Owner {
        let entropy = &*self.mesh.entropy;
        let address = Address {
            node: "federal".parse().unwrap(),
            alias: Alias::random(entropy),
            credential_key: (&keys::generate(entropy)).into(),
        };
        Owner { handle, record_key, account: keys::generate(entropy), address }
    }

    /// Handle and record key of an identifier, through the evaluator.
    pub(crate) async fn evaluate(&self, identifier: &Identifier) -> (Handle, RecordKey) {
        let credentials = Arc::clone(&self.federal.credentials);
        let party = Party::Evaluator(EVALUATOR.parse().unwrap());
        let (channel, _) = connect(&self.evaluator.endpoint, party, credentials).await.unwrap();
        let epoch = self.state.evaluators().unwrap();
        let blinded = Blinded::new(std::slice::from_ref(identifier), &*self.mesh.entropy).unwrap();
        let answer = EvaluatorServiceClient::new(channel).evaluate(blinded.request(epoch)).await.unwrap();
        blinded.finish(&[answer.into_inner()], epoch).unwrap().remove(0)
    }

    pub(crate) fn draft(&self, owner: &Owner, version: u64, previous_index: Option<u64>) -> RecordDraft {
        let (key, clock) = ((&owner.account).into(), &*self.mesh.clock);
        RecordDraft {
            handle: owner.handle,
            version,
            previous_index,
            attestation: self.mesh.authority.attest(Scheme::E164, owner.handle, key, 1, clock.now()),
            second_attestation: None,
            sealed_part: owner
                .address
                .seal(&owner.record_key, &owner.handle, version, &*self.mesh.entropy)
                .unwrap(),
            two_authorities: false,
            changed_at: self.mesh.clock.now(),
        }
    }

    /// Seals, publishes, opens.
    pub(crate) async fn publish(&self, record: wire::SignedRecord) -> Result<Publication, Refusal> {
        let directory = self.state.directory().unwrap().hpke_public_key;
        let (request, answer) = operation::seal(record, &directory)?;
        let response = self.client.clone().publish(request).await.map_err(|status| from_status(&status))?;
        read_publication(answer.open(response.get_ref())?)
    }

    pub(crate) async fn lookup(&self, handles: &[Handle]) -> wire::LookupResponse {
        let prefixes = handles.iter().map(|h| Bytes::copy_from_slice(&Prefix::of(h, BITS).to_bytes()));
        let request = wire::LookupRequest { prefixes: prefixes.collect() };
        self.client.clone().lookup(request).await.unwrap().into_inner()
    }

    pub(crate) async fn verified(&self, handles: &[Handle]) -> VerifiedLookup {
        let prefixes: Vec<_> = handles.iter().map(|h| Prefix::of(h, BITS)).collect();
        self.trust.verify_lookup(self.lookup(handles).await, &prefixes, BITS, self.mesh.clock.now()).unwrap()
    }
}

/// Somebody with a handle.
pub(crate) struct Owner {
    pub(crate) handle: Handle,
    pub(crate) record_key: RecordKey,
    pub(crate) account: SigningKey,
    pub(crate) address: Address,
}

impl Owner {
    /// The same handle and address under another account key.
    pub(crate) fn with_account(&self, account: SigningKey) -> Self {
        let (handle, record_key) = (self.handle, self.record_key.clone());
        Self { handle, record_key, account, address: self.address.clone() }
    }
}
