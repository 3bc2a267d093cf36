//! A whole federation in one process, each party with its own folder, its own
//! certificate and its own port: what runs apart in earnest talks over the same
//! mutual TLS here.

use super::layout::{ADMINISTRATIONS, AGENT, AUTHORITY, AUTHORITY_KEY, EVALUATORS, Layout};
use crate::Failure;
use chancery_directory::{DirectoryConfig, DirectoryKeyFiles, EvaluatorConfig};
use chancery_directory::{authority, ceremony, evaluator, governance};
use chancery_directory_core::ceremony::{Party as CeremonyParty, Plan};
use chancery_directory_core::client::Trust;
use chancery_directory_core::statement::{
    Authority as AuthorityEntry, Decision, DirectoryKeys, Entitlement, Member,
};
use chancery_directory_core::{AgentKey, FederationState, GovernanceKeys, SigningKey};
use chancery_kit::party;
use chancery_kit::tls::files::IdentityFolder;
use chancery_kit::tls::{Credentials, connect, enrol};
use chancery_node::{NodeParts, QuotaConfig};
use chancery_pki::authority::Authority;
use chancery_pki_core::profile::LeafNames;
use chancery_pki_core::{Crls, FederationBundle, Party};
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_types::{Clock, Entropy, NodeId, Scheme};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// The federation's name.
pub(crate) const FEDERATION: &str = "chancery.local";
/// How many evaluators must answer.
const EVALUATORS_NEEDED: u32 = 2;
/// Identifiers that each evaluator evaluates for an administration in a day:
/// for as many residents as one machine bears.
const EVALUATIONS: u64 = 1_000_000;
/// Bits of a handle that a lookup names: about 16 records stand under each of
/// 256 prefixes when 4,000 residents are enrolled.
const PREFIX_BITS: u32 = 8;
/// How long a join token is good: it is spent in the same second.
const TOKEN: Duration = Duration::from_mins(10);

/// The parties that every run needs.
pub(crate) struct LocalFederation {
    /// Folders and ports.
    pub(crate) layout: Layout,
    /// What everybody was given.
    pub(crate) bundle: FederationBundle,
    /// What everybody believes of the log.
    pub(crate) trust: Trust,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    pki: Arc<Authority>,
    governance: SigningKey,
    tasks: JoinSet<Result<(), Failure>>,
    shutdown: CancellationToken,
}

impl LocalFederation {
    /// Starts PKI, directory and evaluators, and logs what governs them.
    ///
    /// # Errors
    /// A port is taken, or the folder holds something else.
    pub(crate) async fn start(
        layout: Layout,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        shutdown: CancellationToken,
    ) -> Result<Self, Failure> {
        let pki = Arc::new(open_pki(&layout, &clock, &entropy).await?);
        let governance = governance::key(&layout.path("governance.key"), &*entropy)?;
        let keys = DirectoryKeyFiles::open(&layout.path("directory"), FEDERATION, &*entropy)?;
        let bundle =
            FederationBundle::new(pki.anchors().clone(), vec![governance.verifying_key().to_bytes()], 1)?
                .with_directory(keys.vkey())?;
        chancery_kit::tls::files::replace(&layout.path("federation.toml"), bundle.to_toml()?.as_bytes())?;
        let trust = Trust::from_bundle(&bundle)?;
        let mut federation =
            Self { layout, bundle, trust, clock, entropy, pki, governance, tasks: JoinSet::new(), shutdown };
        federation.serve_pki().await?;
        let hpke = *keys.hpke_public_key();
        drop(keys);
        federation.serve_directory().await?;
        for evaluator in EVALUATORS {
            federation.serve_evaluator(evaluator).await?;
        }
        federation.govern(hpke).await?;
        federation.hold_ceremony().await?;
        Ok(federation)
    }

    async fn serve_pki(&mut self) -> Result<(), Failure> {
        let listener = self.listen("pki").await?;
        let credentials = self.pki.own_credentials(&local_names()?).await?;
        let (pki, shutdown) = (Arc::clone(&self.pki), self.shutdown.clone());
        self.tasks.spawn(async move { Ok(chancery_pki::serve(pki, listener, credentials, shutdown).await?) });
        Ok(())
    }

    /// An evaluator with a folder, a certificate and a seal key of its own.
    async fn serve_evaluator(&mut self, id: &str) -> Result<(), Failure> {
        let folder = self.layout.path(id);
        make_folder(&folder)?;
        evaluator::key(&folder, &*self.entropy)?;
        let listener = self.listen(id).await?;
        let credentials = self.enrol(&format!("{id}/identity"), Party::Evaluator(name(id)?)).await?;
        let config = EvaluatorConfig {
            id: name(id)?,
            trust: self.trust.clone(),
            directory: self.layout.address("directory").to_string(),
            folder,
            // In earnest it lies elsewhere, as a credential of the service.
            seal_key: self.layout.path(&format!("{id}.seal.key")),
        };
        let (entropy, shutdown) = (Arc::clone(&self.entropy), self.shutdown.clone());
        self.tasks.spawn(async move {
            Ok(chancery_directory::serve_evaluator(config, listener, credentials, entropy, shutdown).await?)
        });
        Ok(())
    }

    /// Two of three evaluators make the handles' key, unless there is one.
    async fn hold_ceremony(&self) -> Result<(), Failure> {
        if self.governed().await?.evaluators().is_some() {
            return Ok(());
        }
        let mut parties = Vec::new();
        for (index, id) in (1..).zip(EVALUATORS) {
            parties.push(CeremonyParty {
                index,
                evaluator: name(id)?,
                key: evaluator::key(&self.layout.path(id), &*self.entropy)?,
                endpoints: vec![self.layout.address(id).to_string()],
                tls_key_pin: party::key_pin(&self.layout.path(&format!("{id}/identity")))?,
            });
        }
        let plan = Plan { key_epoch: 1, generation: 1, threshold: EVALUATORS_NEEDED, parties };
        let plan = Decision::CeremonyPlan(plan);
        let plan = governance::decide(FEDERATION, plan, &[&self.governance], &*self.entropy);
        let directory = self.layout.address("directory").to_string();
        ceremony::hold(plan, &directory, self.anonymous().await?, &self.trust).await?;
        Ok(())
    }

    async fn serve_directory(&mut self) -> Result<(), Failure> {
        let (governance, folder) =
            (GovernanceKeys::from_bundle(&self.bundle)?, self.layout.path("directory"));
        let mut config = DirectoryConfig::embedded(FEDERATION.to_owned(), governance, folder);
        // Whoever tries it out need not wait.
        config.root_interval = Duration::from_secs(1);
        let listener = self.listen("directory").await?;
        let credentials = self.enrol("directory/identity", Party::Directory).await?;
        let (entropy, shutdown) = (Arc::clone(&self.entropy), self.shutdown.clone());
        self.tasks.spawn(async move {
            Ok(chancery_directory::serve(config, listener, credentials, entropy, shutdown).await?)
        });
        Ok(())
    }

    /// Logs what governs the directory and the authority, unless it stands
    /// there already.
    async fn govern(&self, hpke_public_key: [u8; 32]) -> Result<(), Failure> {
        let key = self.layout.path(AUTHORITY_KEY);
        if let Some(folder) = key.parent() {
            make_folder(folder)?;
        }
        let signer = authority::open(name(AUTHORITY)?, &key, &*self.entropy)?;
        let authority = AuthorityEntry {
            authority: signer.authority().clone(),
            key: signer.key(),
            schemes: [Scheme::BeNn, Scheme::BeCbe, Scheme::DeStid, Scheme::NoFnr, Scheme::E164]
                .into_iter()
                .map(Into::into)
                .collect(),
        };
        for decision in [
            Decision::DirectoryKeys(DirectoryKeys { hpke_public_key, lookup_prefix_bits: PREFIX_BITS }),
            Decision::Authority(authority),
        ] {
            self.decide(decision).await?;
        }
        Ok(())
    }

    /// Certifies the node of an administration, and admits it with its agent's key.
    ///
    /// # Errors
    /// The enrolment service or the directory refuses.
    pub(crate) async fn admit_node(
        &mut self,
        administration: &str,
        agent_key: AgentKey,
    ) -> Result<Arc<Credentials>, Failure> {
        let party = format!("node-{administration}");
        let credentials =
            self.enrol(&format!("{party}/identity"), Party::Node(name(administration)?)).await?;
        let own = credentials.own().ok_or(Failure::NoCertificate)?;
        let member = Member {
            administration: name(administration)?,
            display_names: BTreeMap::from([("en".to_owned(), display_name(administration).to_owned())]),
            endpoints: vec![self.layout.reached(&party).to_string()],
            node_key_pin: *own.key_pin(),
            agents: BTreeMap::from([(name(AGENT)?, agent_key)]),
        };
        self.decide(Decision::Member(member)).await?;
        let entitlement = Entitlement { administration: Some(name(administration)?), per_day: EVALUATIONS };
        self.decide(Decision::Entitlement(entitlement)).await?;
        Ok(credentials)
    }

    /// Starts the node of an administration and admits it with its agent's key.
    ///
    /// # Errors
    /// A port is taken, or the directory refuses.
    pub(crate) async fn start_node(
        &mut self,
        administration: &str,
        agent_key: AgentKey,
    ) -> Result<(), Failure> {
        let party = format!("node-{administration}");
        let listener = self.listen(&party).await?;
        let credentials = self.admit_node(administration, agent_key).await?;
        let parts = NodeParts {
            data: self.layout.path(&party),
            directory: self.layout.address("directory").to_string(),
            mirror: None,
            quotas: QuotaConfig::default(),
            credentials,
            trust: self.trust.clone(),
            entrance: listener.into(),
            clock: Arc::clone(&self.clock),
            entropy: Arc::clone(&self.entropy),
        };
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move { Ok(chancery_node::serve(parts, shutdown).await?) });
        Ok(())
    }

    /// Credentials of an administration's agent.
    ///
    /// # Errors
    /// The enrolment service refuses.
    pub(crate) async fn agent_credentials(
        &mut self,
        administration: &str,
    ) -> Result<Arc<Credentials>, Failure> {
        let party = Party::Agent { administration: name(administration)?, name: name(AGENT)? };
        self.enrol(&format!("agent-{administration}/identity"), party).await
    }

    /// Credentials of residents' devices: none but the federation's root and
    /// revocation lists, which are kept fresh.
    ///
    /// # Errors
    /// The authority's store.
    pub(crate) async fn device_credentials(&mut self) -> Result<Arc<Credentials>, Failure> {
        let credentials = self.anonymous().await?;
        let (endpoint, kept) = (self.layout.address("pki").to_string(), Arc::clone(&credentials));
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            enrol::keep_renewed(endpoint, kept, shutdown).await;
            Ok(())
        });
        Ok(credentials)
    }

    async fn anonymous(&self) -> Result<Arc<Credentials>, Failure> {
        let crls = Crls::parse(&self.pki.crls().await?)?;
        Ok(Credentials::anonymous(self.bundle.anchors().clone(), crls, Arc::clone(&self.clock)))
    }

    /// Credentials of an administration's node, as it runs.
    ///
    /// # Errors
    /// The node was not started.
    pub(crate) fn node_credentials(&self, administration: &str) -> Result<Arc<Credentials>, Failure> {
        let folder = IdentityFolder::new(self.layout.path(&format!("node-{administration}/identity")));
        let anchors = self.bundle.anchors().clone();
        Ok(Credentials::open(folder, anchors, Arc::clone(&self.clock))?)
    }

    /// Binds a party's port.
    ///
    /// # Errors
    /// Something else listens there.
    pub(crate) async fn listen(&self, party: &str) -> Result<TcpListener, Failure> {
        let address = self.layout.address(party);
        TcpListener::bind(address).await.map_err(|error| Failure::Port { address, error })
    }

    /// Runs something beside the parties until the federation stops.
    pub(crate) fn spawn(&mut self, task: impl Future<Output = Result<(), Failure>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Waits until a party fails, or all have stopped.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) async fn ended(&mut self) -> Result<(), Failure> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|_| Failure::Panicked)??;
        }
        Ok(())
    }

    /// A certificate for a party, which is kept renewed.
    ///
    /// # Errors
    /// The enrolment service refuses.
    pub(crate) async fn enrol(&mut self, folder: &str, party: Party) -> Result<Arc<Credentials>, Failure> {
        let folder = IdentityFolder::new(self.layout.path(folder));
        if let Some(parent) = folder.path().parent() {
            make_folder(parent)?;
        }
        let endpoint = self.layout.address("pki").to_string();
        let anchors = self.bundle.anchors().clone();
        let token = self.pki.issue_token(&party, &local_names()?, TOKEN).await?;
        enrol::enrol(&endpoint, &anchors, &token, &folder, Arc::clone(&self.clock)).await?;
        let credentials = Credentials::open(folder, anchors, Arc::clone(&self.clock))?;
        let (renewed, shutdown) = (Arc::clone(&credentials), self.shutdown.clone());
        self.tasks.spawn(async move {
            enrol::keep_renewed(endpoint, renewed, shutdown).await;
            Ok(())
        });
        Ok(credentials)
    }

    /// Has a decision logged, unless the same is in force.
    ///
    /// # Errors
    /// The directory refuses.
    pub(crate) async fn decide(&self, decision: Decision) -> Result<(), Failure> {
        if self.governed().await?.holds(&decision) {
            return Ok(());
        }
        let statement = governance::decide(FEDERATION, decision, &[&self.governance], &*self.entropy);
        let request = wire::SubmitStatementRequest { statement: Some(statement) };
        self.directory().await?.submit_statement(request).await.map_err(Failure::call)?;
        Ok(())
    }

    /// What governs now.
    async fn governed(&self) -> Result<FederationState, Failure> {
        let request = wire::ListStatementsRequest::default();
        let statements = self.directory().await?.list_statements(request).await;
        Ok(self.trust.verify_statements(statements.map_err(Failure::call)?.into_inner())?.1)
    }

    async fn directory(&self) -> Result<DirectoryServiceClient<Channel>, Failure> {
        let endpoint = self.layout.address("directory").to_string();
        let credentials = self.anonymous().await?;
        Ok(DirectoryServiceClient::new(connect(&endpoint, Party::Directory, credentials).await?.0))
    }
}

/// Opens the authority, or makes it. Its root key is sealed under a passphrase
/// that lies beside it here; in earnest it would lie elsewhere.
async fn open_pki(
    layout: &Layout,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
) -> Result<Authority, Failure> {
    let folder = layout.path("pki");
    let passphrase = layout.path("root.passphrase");
    match Authority::open(&folder, Arc::clone(clock), Arc::clone(entropy)).await {
        Ok(authority) => Ok(authority),
        Err(chancery_pki::authority::AuthorityError::NotInitialised) => {
            let secret = hex::encode(entropy.array::<16>());
            chancery_kit::tls::files::replace(&passphrase, secret.as_bytes())?;
            let federation = FEDERATION.parse().map_err(|_| Failure::Name)?;
            let (clock, entropy) = (Arc::clone(clock), Arc::clone(entropy));
            Ok(Authority::init(&folder, &federation, &secret.into(), clock, entropy).await?)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn display_name(administration: &str) -> &'static str {
    if administration == ADMINISTRATIONS[0] { "Federal Administration" } else { "Regional Administration" }
}

fn make_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn local_names() -> Result<LeafNames, Failure> {
    Ok(LeafNames::parse(&["localhost", "127.0.0.1"])?)
}

/// A name of the federation.
///
/// # Errors
/// It is none.
pub(crate) fn name(text: &str) -> Result<NodeId, Failure> {
    text.parse().map_err(|_| Failure::Name)
}
