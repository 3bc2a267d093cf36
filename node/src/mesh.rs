//! The federation as this node sees it: what the log says, and channels to the
//! directory, the evaluators and the other members' nodes.

use chancery_directory_core::Trust;
use chancery_directory_core::state::FederationState;
use chancery_directory_log::Follower;
use chancery_kit::status::call_within;
use chancery_kit::tls::{self, Credentials};
use chancery_pki_core::{Party, VerifiedPeer};
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_proto::directory::v1::evaluator_service_client::EvaluatorServiceClient;
use chancery_proto::federation::v1::federation_service_client::FederationServiceClient;
use chancery_types::{NodeId, Reason, Refusal};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use tonic::transport::Channel;

/// Largest answer of a peer, in bytes: 128 aliases with 16 devices' KeyPackages each.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// How long a call to a peer may take.
const CALL: Duration = Duration::from_secs(20);
/// How often an unknown member may make this node ask the directory again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Whom to reach, where, and with which key.
type Target = (Party, String, [u8; 32]);

/// Somebody is no member, or nobody is known to be one: the directory was not reached since the node
/// was founded.
pub(crate) fn not_a_member(state: &FederationState) -> Refusal {
    if state.members().next().is_none() {
        return Refusal::new(Reason::DirectoryUnreachable, "the log was not read yet; try again");
    }
    Refusal::new(Reason::NotAMember, "the log admits no such member")
}

/// Everything this node needs to reach others.
pub(crate) struct Mesh {
    here: NodeId,
    credentials: Arc<Credentials>,
    log: Follower,
    mirror: Option<Channel>,
    channels: Mutex<HashMap<Target, Channel>>,
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl Mesh {
    /// Knows nothing yet; `directory` is its `host:port`, and the mirror's if there is one.
    pub(crate) fn new(
        here: NodeId,
        (directory, mirror): (&str, Option<&str>),
        credentials: Arc<Credentials>,
        trust: Trust,
    ) -> Result<Self, Refusal> {
        let connect = |to: &str| tls::connect_lazy(to, Party::Directory, Arc::clone(&credentials));
        let mirror = mirror.map(connect).transpose()?.map(|(channel, _)| channel);
        let (channel, _) = connect(directory)?;
        Ok(Self {
            here,
            credentials,
            log: Follower::new(trust, channel),
            mirror,
            channels: Mutex::default(),
            asked: tokio::sync::Mutex::default(),
        })
    }

    /// What the log says, as last verified.
    pub(crate) fn state(&self) -> Arc<FederationState> {
        self.log.state()
    }

    /// The log, as this node follows it.
    pub(crate) const fn log(&self) -> &Follower {
        &self.log
    }

    /// Who answers lookups, in the order in which they are asked.
    pub(crate) fn lookups(&self) -> impl Iterator<Item = DirectoryServiceClient<Channel>> {
        let mirror = self.mirror.clone().map(DirectoryServiceClient::new);
        mirror.into_iter().chain([self.log.directory()])
    }

    /// As [`Follower::ask`] when somebody unknown turns up, but at most once a second.
    pub(crate) async fn ask_for_unknown(&self) {
        let wanted = Instant::now();
        let mut asked = self.asked.lock().await;
        if let Some(at) = *asked {
            if at > wanted {
                // Another one has asked for both.
                return;
            }
            tokio::time::sleep_until(at + ASK_AGAIN).await;
        }
        *asked = Some(Instant::now());
        if let Err(refusal) = self.log.ask().await {
            tracing::warn!(reason = refusal.reason.as_str(), "the directory was not reached");
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
        let member = member.ok_or_else(|| not_a_member(&state))?;
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
        let member = member.ok_or_else(|| not_a_member(&state))?;
        let endpoint = member.endpoints.first();
        let endpoint = endpoint.ok_or_else(|| Refusal::new(Reason::NotAMember, "no such member"))?;
        let party = Party::Node(node.clone());
        let channel = self.channel((party, endpoint.clone(), member.node_key_pin))?;
        Ok(FederationServiceClient::new(channel)
            .max_decoding_message_size(MAX_ANSWER)
            .max_encoding_message_size(MAX_ANSWER))
    }

    /// An evaluator of a key epoch that is evaluated.
    pub(crate) async fn evaluator(&self, id: &NodeId) -> Result<EvaluatorServiceClient<Channel>, Refusal> {
        let endpoint = |state: &FederationState| {
            let mut shares = state.key_epochs().flat_map(|epoch| &epoch.evaluators);
            let share = shares.find(|share| share.evaluator == *id)?;
            Some((share.endpoints.first()?.clone(), share.tls_key_pin))
        };
        let mut found = endpoint(&self.state());
        if found.is_none() {
            self.ask_for_unknown().await;
            found = endpoint(&self.state());
        }
        let none = || Refusal::new(Reason::WrongKeyEpoch, "no such evaluator now");
        let (endpoint, pin) = found.ok_or_else(none)?;
        let channel = self.channel((Party::Evaluator(id.clone()), endpoint, pin))?;
        Ok(EvaluatorServiceClient::new(channel))
    }

    /// This node.
    pub(crate) const fn here(&self) -> &NodeId {
        &self.here
    }

    fn channel(&self, target: Target) -> Result<Channel, Refusal> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&target) {
            return Ok(channel.clone());
        }
        let (party, endpoint, pin) = &target;
        let channel = tls::connect_pinned(endpoint, party.clone(), *pin, Arc::clone(&self.credentials))?;
        channels.insert(target, channel.clone());
        Ok(channel)
    }
}

/// A call to a peer, under its deadline.
pub(crate) async fn peer_call<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Refusal> {
    call_within(CALL, call, Reason::PeerUnreachable, "the member's node does not answer").await
}
