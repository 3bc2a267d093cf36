//! The federation as this node sees it: what the log says, and channels to the
//! directory, the evaluators and the other members' nodes.

use arc_swap::ArcSwap;
use chancery_directory_core::state::FederationState;
use chancery_directory_core::{Trust, VerifiedCheckpoint};
use chancery_kit::status::from_status;
use chancery_kit::tls::{self, Credentials};
use chancery_pki_core::{Party, VerifiedPeer};
use chancery_proto::directory::v1 as directory;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_proto::directory::v1::evaluator_service_client::EvaluatorServiceClient;
use chancery_proto::federation::v1::federation_service_client::FederationServiceClient;
use chancery_types::{Clock, NodeId, Reason, Refusal, Timestamp};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use tonic::transport::Channel;

/// Largest answer of the directory or a peer, in bytes: 128 aliases with 16
/// devices' KeyPackages each, or 256 buckets.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// How long a call to the directory, an evaluator or a peer may take.
const CALL: Duration = Duration::from_secs(20);
/// How often an unknown member may make this node ask the directory again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Whom to reach, where, and with which key.
type Target = (Party, String, Option<[u8; 32]>);

/// Everything this node needs to reach others.
pub(crate) struct Mesh {
    here: NodeId,
    credentials: Arc<Credentials>,
    trust: Trust,
    clock: Arc<dyn Clock>,
    directory: Channel,
    state: ArcSwap<FederationState>,
    changed: watch::Sender<u64>,
    channels: Mutex<HashMap<Target, Channel>>,
    newest: tokio::sync::Mutex<Option<VerifiedCheckpoint>>,
    asked_at: tokio::sync::Mutex<Timestamp>,
}

impl Mesh {
    /// Knows nothing yet; `directory` is its `host:port`.
    pub(crate) fn new(
        here: NodeId,
        directory: &str,
        credentials: Arc<Credentials>,
        trust: Trust,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Refusal> {
        let (channel, _) = tls::connect_lazy(directory, Party::Directory, Arc::clone(&credentials))?;
        Ok(Self {
            here,
            credentials,
            trust,
            clock,
            directory: channel,
            state: ArcSwap::default(),
            changed: watch::Sender::new(0),
            channels: Mutex::default(),
            newest: tokio::sync::Mutex::default(),
            asked_at: tokio::sync::Mutex::new(Timestamp::from_millis(0)),
        })
    }

    /// What the log says, as last verified.
    pub(crate) fn state(&self) -> Arc<FederationState> {
        self.state.load_full()
    }

    /// Changes when [`Mesh::state`] does.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The directory.
    pub(crate) fn directory(&self) -> DirectoryServiceClient<Channel> {
        DirectoryServiceClient::new(self.directory.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Verifies statements and makes them the state, unless their checkpoint is
    /// older than, or does not continue, the newest that was seen.
    pub(crate) async fn learn(&self, statements: directory::ListStatementsResponse) -> Result<(), Refusal> {
        let (checkpoint, state) = self.trust.verify_statements(statements)?;
        let mut newest = self.newest.lock().await;
        if let Some(older) = newest.as_ref() {
            let path = if checkpoint.size() > older.size() && older.size() > 0 {
                let (old_size, new_size) = (older.size(), checkpoint.size());
                let request = directory::ProveConsistencyRequest { old_size, new_size };
                directory_call(self.directory().prove_consistency(request)).await?.path
            } else {
                Vec::new()
            };
            checkpoint.extends(older, &path)?;
        }
        *newest = Some(checkpoint);
        self.state.store(Arc::new(state));
        self.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    /// Asks the directory for the statements in force; returns them verified.
    pub(crate) async fn ask(&self) -> Result<directory::ListStatementsResponse, Refusal> {
        let request = directory::ListStatementsRequest::default();
        let statements = directory_call(self.directory().list_statements(request)).await?;
        self.learn(statements.clone()).await?;
        Ok(statements)
    }

    /// As [`Mesh::ask`] when somebody unknown turns up, but at most once a second.
    async fn ask_for_unknown(&self) {
        let mut asked_at = self.asked_at.lock().await;
        let now = self.clock.now();
        if now.since(*asked_at) >= ASK_AGAIN {
            *asked_at = now;
            if let Err(refusal) = self.ask().await {
                tracing::warn!(reason = refusal.reason.as_str(), "the directory was not reached");
            }
        }
    }

    /// The member behind a certificate: admitted, and with the key that the log pins.
    pub(crate) async fn admit(&self, peer: &VerifiedPeer) -> Result<NodeId, Refusal> {
        let Party::Node(node) = peer.party() else {
            return Err(Refusal::new(Reason::WrongIdentity, "this service is for members' nodes"));
        };
        if self.state().member(node).is_none() {
            self.ask_for_unknown().await;
        }
        let state = self.state();
        let member = state.member(node);
        let member =
            member.ok_or_else(|| Refusal::new(Reason::NotAMember, "the log admits no such member"))?;
        if bool::from(member.node_key_pin.ct_eq(peer.key_pin())) {
            Ok(node.clone())
        } else {
            Err(Refusal::new(Reason::WrongNodeKey, "the certificate's key is not the one that the log pins"))
        }
    }

    /// Another member's node.
    pub(crate) async fn peer(&self, node: &NodeId) -> Result<FederationServiceClient<Channel>, Refusal> {
        if self.state().member(node).is_none() {
            self.ask_for_unknown().await;
        }
        let state = self.state();
        let member = state.member(node);
        let member = member.ok_or_else(|| Refusal::new(Reason::NotAMember, "no such member"))?;
        let endpoint = member.endpoints.first();
        let endpoint = endpoint.ok_or_else(|| Refusal::new(Reason::NotAMember, "no such member"))?;
        let party = Party::Node(node.clone());
        let pin = member.node_key_pin;
        let channel = self.channel((party, endpoint.clone(), Some(pin)), |(party, endpoint, _)| {
            tls::connect_pinned(endpoint, party.clone(), pin, Arc::clone(&self.credentials))
        })?;
        Ok(FederationServiceClient::new(channel)
            .max_decoding_message_size(MAX_ANSWER)
            .max_encoding_message_size(MAX_ANSWER))
    }

    /// An evaluator of the current epoch.
    pub(crate) async fn evaluator(&self, id: &NodeId) -> Result<EvaluatorServiceClient<Channel>, Refusal> {
        let endpoint = |state: &FederationState| {
            let shares = &state.evaluators()?.evaluators;
            shares.iter().find(|share| share.evaluator == *id)?.endpoints.first().cloned()
        };
        let mut found = endpoint(&self.state());
        if found.is_none() {
            self.ask_for_unknown().await;
            found = endpoint(&self.state());
        }
        let found = found.ok_or_else(|| Refusal::new(Reason::WrongKeyEpoch, "no such evaluator now"))?;
        let channel = self.channel((Party::Evaluator(id.clone()), found, None), |(party, endpoint, _)| {
            Ok(tls::connect_lazy(endpoint, party.clone(), Arc::clone(&self.credentials))?.0)
        })?;
        Ok(EvaluatorServiceClient::new(channel))
    }

    /// This node.
    pub(crate) const fn here(&self) -> &NodeId {
        &self.here
    }

    fn channel(
        &self,
        target: Target,
        connect: impl FnOnce(&Target) -> Result<Channel, tls::TlsError>,
    ) -> Result<Channel, Refusal> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&target) {
            return Ok(channel.clone());
        }
        let channel = connect(&target)?;
        channels.insert(target, channel.clone());
        Ok(channel)
    }
}

/// A call to the directory or an evaluator, under its deadline.
pub(crate) async fn directory_call<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Refusal> {
    call_within(call, Reason::DirectoryUnreachable, "the directory or evaluator does not answer").await
}

/// A call to a peer, under its deadline.
pub(crate) async fn peer_call<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Refusal> {
    call_within(call, Reason::PeerUnreachable, "the member's node does not answer").await
}

async fn call_within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    unreachable: Reason,
    message: &'static str,
) -> Result<T, Refusal> {
    match tokio::time::timeout(CALL, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(match from_status(&status) {
            refusal if refusal.reason == Reason::PeerUnreachable => Refusal::new(unreachable, message),
            refusal => refusal,
        }),
        Err(_) => Err(Refusal::new(unreachable, message)),
    }
}
